"""Rows of a block to full batches: pictures decoded ahead in threads, texts grouped by length.

A short batch is filled up with copies of its last row, whose results are thrown away: every batch then has the same
shape, and a row's last bit does not depend on which rows happened to be computed with it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import polars as pl
import torch
from PIL import Image
from torch import Tensor

from cvsi.pictures import load

T = TypeVar("T")
LENGTH_STEP = 8


def full(rows: Sequence[T], size: int) -> list[T]:
    """The rows, filled up with copies of the last one to `size`."""
    return [*rows, *[rows[-1]] * (size - len(rows))]


def pixel_batches(
    root: Path, block: pl.DataFrame, size: int, prepare: Callable[[Image.Image], Tensor]
) -> Iterator[tuple[Tensor, list[str]]]:
    """Pixels [size, 3, s, s] and digests of each batch of a block with columns `path` and `key` (the file's digest).

    While a batch is computed, threads decode the next one.
    """
    batches = [list(batch.select("path", "key").iter_rows()) for batch in block.iter_slices(size)]

    def read(row: tuple[str, str]) -> Tensor:
        return prepare(load(root / row[0], row[1]))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(read, row) for row in batches[0]]
        for number, batch in enumerate(batches):
            ready = [future.result() for future in futures]
            following = batches[number + 1] if number + 1 < len(batches) else []
            futures = [pool.submit(read, row) for row in following]
            yield torch.stack(full(ready, size)), [digest for _, digest in batch]


def length_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions of texts, batch by batch; texts go together whose token counts round up to the same multiple of 8."""
    groups = (
        pl.DataFrame({"length": lengths})
        .with_row_index("place")
        .with_columns(pl.col("length").add(LENGTH_STEP - 1) // LENGTH_STEP)
    )
    for _, group in groups.sort("length", "place").group_by("length", maintain_order=True):
        for batch in group.iter_slices(size):
            yield batch["place"].to_list()
