"""One new query and its answer, as the engine, the server and the shell exchange them.

A request comes from outside: every size is bounded here, and an image is its bytes or an id, never a path. No library
that takes long is imported: with a server, a search takes little more time than this program's start.
"""

from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cvsi.core.errors import CvsiError
from cvsi.core.params import explain

UNREADABLE = "the image cannot be read"  # beginning of a line whose file only the user's side can name
LONGEST_ID = 1_000  # characters
LONGEST_TEXT = 10_000  # characters
MOST_EDITED = 50
MOST_RESULTS = 1_000
MAX_IMAGE = 256 << 20  # bytes, as of every image file
MAX_SENT = 32 << 20  # bytes of an image that is sent to a server; a larger one is searched without it
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
BASE64 = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class Request(BaseModel):
    """A query: an image changed by a text (`composed`), a text alone (`text`), or an image alone (`like`).

    The image is one of the dataset, by its id, or a file's bytes. `edited` replaces the language model's answer.
    """

    model_config = BASE64

    kind: Literal["composed", "text", "like"]
    text: Text = ""
    image_id: Annotated[str, Field(max_length=LONGEST_ID)] = ""
    image: Annotated[bytes, Field(max_length=MAX_IMAGE)] = b""
    edited: Annotated[tuple[Text, ...], Field(max_length=MOST_EDITED)] = ()
    k: Annotated[int, Field(ge=1, le=MOST_RESULTS)] = 20

    @model_validator(mode="after")
    def parts_fit(self) -> Self:
        """Refuse a part that the kind does not have, a missing one, and texts that no model reads."""
        if (self.kind != "text") != bool(self.image_id or self.image):
            raise ValueError("a text search takes no image" if self.kind == "text" else "the image is missing")
        if self.image_id and self.image:
            raise ValueError("give an image by its id or by its bytes")
        if self.kind == "like" and self.text:
            raise ValueError("a search by an image alone takes no text")
        if self.edited and self.kind != "composed":
            raise ValueError("an edited text belongs to an image and a text")
        for text in (*((self.text,) if self.kind != "like" else ()), *self.edited):
            _check_text(text)
        return self


class NewQuery(BaseModel):
    """A query for a folder's file of queries: its reference is an image by its row, `seen` the file's digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: Annotated[int, Field(ge=0)]
    instruction: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
    seen: Annotated[str, Field(max_length=64)]


class Marked(BaseModel):
    """An image, by its row, marked for a query, by its row; `seen` is the digest of the file of queries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: Annotated[int, Field(ge=0)]
    image: Annotated[int, Field(ge=0)]
    mark: Literal["right", "wrong", "none"]
    seen: Annotated[str, Field(max_length=64)]


Label = NewQuery | Marked


class Result(BaseModel):
    """One image of the answer; `path` is below the dataset's root."""

    model_config = ConfigDict(frozen=True)

    rank: int
    image_id: str
    path: str
    score: float


class Answer(BaseModel):
    """The images in order; of a new edit its texts, the status of the model's answers, and whether it fell back.

    `roles` and `reader_status` are the reader's texts and their status, where the fusion uses them.
    """

    model_config = ConfigDict(frozen=True)

    results: tuple[Result, ...]
    edited: tuple[str, ...] = ()
    status: str = ""
    fell_back: bool = False
    roles: dict[str, tuple[str, ...]] = Field(default={})
    reader_status: str = ""


class Searcher(Protocol):
    """What answers requests."""

    def answer(self, request: Request) -> Answer:
        """The answer; raises CvsiError."""


def file_bytes(path: Path) -> bytes:
    """The bytes of a file that the user names; raises CvsiError with one line for anything else."""
    try:
        if not path.is_file():  # a pipe or a device would never end
            raise CvsiError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size > MAX_IMAGE:
            raise CvsiError(f"{path}: a file of more than {MAX_IMAGE >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror or error}") from None
    if not data:
        raise CvsiError(f"{path}: {UNREADABLE}: empty file")
    return data


def request(**parts: object) -> Request:
    """A checked request; raises CvsiError with one line for what is wrong with it."""
    try:
        return Request.model_validate(parts)
    except ValidationError as error:
        raise CvsiError(explain(error)) from None


def _check_text(text: str) -> None:
    if not text.strip():
        raise ValueError("the text is empty")
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("the text is not plain text")
