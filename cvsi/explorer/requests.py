"""One new query and its answer, as the engine, the server and the shell exchange them.

A request comes from outside: every size is bounded here, and an image is its bytes or an id, never a path.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cvsi.core.errors import CvsiError
from cvsi.core.images import MAX_FILE, Unreadable, contents, use
from cvsi.core.params import explain
from cvsi.datasets.base import LONGEST_ID, LONGEST_WORD

T = TypeVar("T")
LONGEST_TEXT = 10_000  # characters
MOST_EDITED = 50
MOST_RESULTS = 1_000
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
    image: Annotated[bytes, Field(max_length=MAX_FILE)] = b""
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


class Result(BaseModel):
    """One image of the answer; `path` is below the dataset's root."""

    model_config = ConfigDict(frozen=True)

    rank: int
    image_id: str
    path: str
    score: float


class Answer(BaseModel):
    """The images in order, and the edited texts where a language model or the user gave them, with their status."""

    model_config = ConfigDict(frozen=True)

    results: tuple[Result, ...]
    edited: tuple[str, ...] = ()
    status: str = ""


class Searcher(Protocol):
    """What answers requests."""

    def answer(self, request: Request) -> Answer:
        """The answer; raises CvsiError."""


class NewImage:
    """An image by the digest of its file; its bytes come from memory or, when a model needs them, from its file."""

    def __init__(self, digest: str, read: Callable[[], bytes]) -> None:
        """Keep how the bytes are read; nothing is read yet."""
        self.digest, self._read = digest, read

    @classmethod
    def of(cls, data: bytes) -> "NewImage":
        """An image from a file's bytes."""
        return cls(hashlib.sha256(data).hexdigest(), lambda: data)

    def use(self, work: Callable[[Image.Image], T]) -> T:
        """The result of `work` on the decoded image; raises CvsiError for one that cannot be read."""
        try:
            return use(self._read(), work)
        except Unreadable as reason:
            raise CvsiError(f"the image cannot be read: {reason}") from None


def file_bytes(path: Path) -> bytes:
    """The bytes of an image file that the user names; raises CvsiError with one line for anything else."""
    try:
        if not path.exists():
            raise CvsiError(f"{path}: no such file")
        if not path.is_file():  # a pipe or a device would never end
            raise CvsiError(f"{path}: not a file")
        with contents(path) as data:
            use(data, lambda image: None)
            return data
    except Unreadable as reason:
        raise CvsiError(f"{path}: not a readable image: {reason}") from None
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror or error}") from None


def request(**parts: object) -> Request:
    """A checked request; raises CvsiError with one line for what is wrong with it."""
    try:
        return Request.model_validate(parts)
    except ValidationError as error:
        raise CvsiError(explain(error)) from None


def _check_text(text: str) -> None:
    if not text.strip():
        raise ValueError("the text is empty")
    if max(map(len, text.split())) > LONGEST_WORD:
        raise ValueError(f"a word of more than {LONGEST_WORD:,} characters")
    if "\0" in text or (not text.isprintable() and any("\ud800" <= char <= "\udfff" for char in text)):
        raise ValueError("the text is not plain text")
