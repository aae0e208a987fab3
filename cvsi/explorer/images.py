"""The image of a query: its digest, and its bytes when a model or a page needs them."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from cvsi.core.errors import ChangedFile, CvsiError
from cvsi.core.images import Unreadable, contents, cropped, image_digest, use
from cvsi.explorer.requests import UNREADABLE

T = TypeVar("T")


class NewImage:
    """An image by the digest of its file; its bytes are in memory, or read from the dataset when they are needed."""

    def __init__(self, digest: str, read: Callable[[], bytes], crop: Sequence[float] | None = None) -> None:
        """Keep how the bytes are read, and the part of the picture that is used; nothing is read yet."""
        self.digest, self._read, self._crop = digest, read, crop

    @classmethod
    def of(cls, data: bytes) -> "NewImage":
        """An image from a file's bytes; raises CvsiError, without a name, for bytes that are no usable image."""
        image = cls(hashlib.sha256(data).hexdigest(), lambda: data)
        image.use(lambda picture: None)
        return image

    @classmethod
    def at(cls, path: Path, digest: str, crop: Sequence[float] | None = None) -> "NewImage":
        """An indexed file or a part of it; raises CvsiError only when it is used and is gone or changed."""
        return cls(digest, lambda: _content(path, digest, crop), crop)

    def use(self, work: Callable[[Image.Image], T]) -> T:
        """The result of `work` on the decoded image; raises CvsiError for one that cannot be read."""
        try:
            crop = self._crop
            return use(self._read(), work if crop is None else lambda image: work(cropped(image, crop)))
        except Unreadable as reason:
            raise CvsiError(f"{UNREADABLE}: {reason}") from None


def _content(path: Path, digest: str, crop: Sequence[float] | None) -> bytes:
    try:
        with contents(path) as data:
            if image_digest(hashlib.sha256(data).hexdigest(), crop) != digest:
                raise ChangedFile(str(path))
            return data
    except Unreadable as reason:
        raise CvsiError(f"{path}: {reason}") from None
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror or error}") from None
