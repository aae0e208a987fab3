"""Batches whose shape depends on a row alone: filled up with copies, and texts grouped by length.

A short batch is filled up with copies of its last row, whose results are thrown away: every batch then has the same
shape, and a row's last bit does not depend on which other rows are computed with it.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import polars as pl

T = TypeVar("T")
LENGTH_STEP = 4


def full(rows: Sequence[T], size: int) -> list[T]:
    """The rows, filled up with copies of the last one to `size`."""
    return [*rows, *[rows[-1]] * (size - len(rows))]


@cache
def pool() -> ThreadPoolExecutor:
    """The threads that prefetch, one per core."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="prefetch")


def length_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions of texts, batch by batch; texts go together whose token counts round up to the same multiple of 4.

    So a text's batch has a shape that the text alone decides, whatever else is computed with it. The last batch of each
    length may be short.
    """
    groups = (
        pl.DataFrame({"length": lengths}, schema={"length": pl.Int64})
        .with_row_index("position")
        .with_columns(pl.col("length").add(LENGTH_STEP - 1) // LENGTH_STEP)
    )
    for _, group in groups.sort("length", "position").group_by("length", maintain_order=True):
        for batch in group.iter_slices(size):
            yield batch["position"].to_list()
