"""The one error that is shown to people: a line that names the file, the value and what to do."""


class CvsiError(Exception):
    """Something the user can mend; its text is printed as it is, without a traceback."""


def cause(error: BaseException) -> str:
    """A library's error as the end of a line of ours: 200 characters at most, never its advice to read pickles."""
    text = " ".join(str(error).split())
    if text.startswith("Weights only load failed"):
        return "the file holds more than tensors; it was not opened"
    return text[:200] or type(error).__name__
