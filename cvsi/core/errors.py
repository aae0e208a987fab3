"""The error that users see: one line that names the file, the value and what to do."""

import json


class CvsiError(Exception):
    """Something the user can correct; its text is printed without a traceback."""


class ChangedFile(CvsiError):
    """A file that is not the one that was indexed; `path` is the root and the path below it."""

    def __init__(self, path: str) -> None:
        """Keep the path; an exception can be sent to another process by its arguments."""
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        """One line."""
        return f"{self.path}: the file changed since it was indexed; the next dvc repro reads it again"


def cause(error: BaseException, secret: str = "") -> str:
    """A library's error as the end of a line of ours: 200 characters at most, without its advice to read pickles.

    `secret` is removed before the text is cut, also where it is quoted as in Python or JSON.
    """
    text = " ".join(str(error).split())
    for spelling in {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]} - {""}:
        text = text.replace(spelling, "(key)")
    if text.startswith("Weights only load failed"):
        return "the file holds more than tensors; it was not opened"
    return text[:200] or type(error).__name__
