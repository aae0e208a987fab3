"""Rows of a block to full batches: pictures decoded ahead in threads, texts by length.

A short batch is filled up with copies of its last row, whose results are thrown away: every batch then has as many
rows, and a row's last bit does not depend on how many happened to be computed with it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl
from PIL import Image

from cvsi.pictures import load
from cvsi.runs import spending

T = TypeVar("T")


def full(rows: Sequence[T], size: int) -> list[T]:
    """The rows, filled up with copies of the last one to `size`."""
    return [*rows, *[rows[-1]] * (size - len(rows))]


@cache
def pool() -> ThreadPoolExecutor:
    """The threads that read ahead, one a core."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="ahead")


class Pictures(Generic[T]):
    """A block's pictures, being read and prepared by threads from the moment this is made."""

    def __init__(self, root: Path, block: pl.DataFrame, size: int, prepare: Callable[[Image.Image], T]) -> None:
        """Begin with a block that has columns `path` and `key` (the file's digest)."""
        self.block, self.size = block, size

        def read(row: tuple[str, str]) -> T:
            return prepare(load(root / row[0], row[1]))

        self._coming = [pool().submit(read, row) for row in block.select("path", "key").iter_rows()]

    def batches(self) -> Iterator[tuple[list[T], list[str]]]:
        """Each batch's `size` prepared pictures, the last batch filled up, and the digests of its true rows; once."""
        for batch in self.block.select("key").iter_slices(self.size):
            with spending("read"):
                ready = [future.result() for future in self._coming[: batch.height]]
            del self._coming[: batch.height]
            yield full(ready, self.size), batch["key"].to_list()


def length_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions of texts, batch by batch, the shortest first, so that a batch is cut to little more than it needs."""
    order = (
        pl.DataFrame({"length": lengths}, schema={"length": pl.Int64}).with_row_index("place").sort("length", "place")
    )
    for batch in order["place"].to_frame().iter_slices(size):
        yield batch["place"].to_list()
