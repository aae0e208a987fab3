"""A block's image files to prepared images, batch by batch, read and decoded by threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl
from PIL import Image

from cvsi.core.images import load
from cvsi.core.run_log import timed
from cvsi.models.batching import pool

T = TypeVar("T")


def image_rows(images: pl.DataFrame) -> pl.DataFrame:
    """Images of an index as rows to load: `key` (their digest), `path`, and `crop` where they are parts of files."""
    return images.select(key="digest", path="path", **({"crop": "crop"} if "crop" in images.columns else {}))


class ImageLoader(Generic[T]):
    """A block's images, read and prepared by threads from the moment this is made.

    With `ahead` false, the threads start at the first batch: reading ahead for a model on the CPU would take its cores.
    """

    def __init__(
        self, root: Path, block: pl.DataFrame, size: int, prepare: Callable[[Image.Image], T], ahead: bool
    ) -> None:
        """Start with a block of `image_rows`."""
        self.block, self.size, self._root, self._prepare = block, size, root, prepare
        self._pending = self._submit() if ahead else []

    def batches(self) -> Iterator[tuple[list[T], list[str]]]:
        """Each batch's prepared images, at most `size`, and their digests; can be iterated once."""
        if not self._pending:
            self._pending = self._submit()
            with timed("read"):
                wait(self._pending)
        for batch in self.block.select("key").iter_slices(self.size):
            with timed("read"):
                images = [future.result() for future in self._pending[: batch.height]]
            del self._pending[: batch.height]
            yield images, batch["key"].to_list()

    def _submit(self) -> list[Future[T]]:
        columns = [name for name in ("path", "key", "crop") if name in self.block.columns]
        return [pool().submit(self._read, *row) for row in self.block.select(columns).iter_rows()]

    def _read(self, path: str, digest: str, crop: Sequence[float] | None = None) -> T:
        return load(self._root / path, digest, self._prepare, crop)
