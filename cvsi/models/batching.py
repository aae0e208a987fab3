"""Rows of a block to full batches: pictures decoded ahead in threads, texts by length.

A short batch is filled up with copies of its last row, whose results are thrown away: every batch then has the same
shape, and a row's last bit does not depend on which rows happened to be computed with it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl
from PIL import Image

from cvsi.core.images import load
from cvsi.core.run_log import spending

T = TypeVar("T")
LENGTH_STEP = 4


def full(rows: Sequence[T], size: int) -> list[T]:
    """The rows, filled up with copies of the last one to `size`."""
    return [*rows, *[rows[-1]] * (size - len(rows))]


@cache
def pool() -> ThreadPoolExecutor:
    """The threads that read ahead, one a core."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ahead")


class Pictures(Generic[T]):
    """A block's pictures, being read and prepared by threads from the moment this is made.

    Unless they are read for a CPU's models, whose cores they would take: then all of them are read when the first is
    wanted, by all cores, and the model has these to itself after that.
    """

    def __init__(
        self, root: Path, block: pl.DataFrame, size: int, prepare: Callable[[Image.Image], T], ahead: bool
    ) -> None:
        """Begin with a block that has columns `path` and `key` (the file's digest)."""
        self.block, self.size, self._root, self._prepare = block, size, root, prepare
        self._coming = self._begun() if ahead else []

    def batches(self) -> Iterator[tuple[list[T], list[str]]]:
        """Each batch's `size` prepared pictures, the last batch filled up, and the digests of its true rows; once."""
        if not self._coming:
            self._coming = self._begun()
            with spending("read"):
                wait(self._coming)
        for batch in self.block.select("key").iter_slices(self.size):
            with spending("read"):
                ready = [future.result() for future in self._coming[: batch.height]]
            del self._coming[: batch.height]
            yield full(ready, self.size), batch["key"].to_list()

    def _begun(self) -> list[Future[T]]:
        return [pool().submit(self._read, *row) for row in self.block.select("path", "key").iter_rows()]

    def _read(self, path: str, digest: str) -> T:
        return load(self._root / path, digest, self._prepare)


def length_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions of texts, batch by batch; texts go together whose token counts round up to the same multiple of 4.

    So a text's batch has a shape that the text alone decides, whatever else is computed with it. The last batch of each
    length may be short.
    """
    groups = (
        pl.DataFrame({"length": lengths}, schema={"length": pl.Int64})
        .with_row_index("place")
        .with_columns(pl.col("length").add(LENGTH_STEP - 1) // LENGTH_STEP)
    )
    for _, group in groups.sort("length", "place").group_by("length", maintain_order=True):
        for batch in group.iter_slices(size):
            yield batch["place"].to_list()
