"""The one error that is shown to people: a line that names the file, the value and what to do."""


class CvsiError(Exception):
    """Something the user can mend; its text is printed as it is, without a traceback."""
