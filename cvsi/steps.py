"""Fills a shelf of the store: finds what is missing, computes it block by block, says what it does.

A block is a fixed run of rows in canonical order (position // block size), so the rows of a block, and with them every
last bit of the result, are the same in a resumed run as in one that was never stopped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from cvsi import runs
from cvsi.console import Meter, chatter_to, count, plural, say, seconds
from cvsi.places import libraries_log
from cvsi.store import Shelf

Compute = Callable[[pl.DataFrame], pa.Table]


@dataclass(frozen=True)
class Step:
    """How rows of one kind come about.

    `load` is called only when a row is missing, and returns a function from a block's rows to a table of the shelf's
    schema; `noun`, `todo` and `done` are words for people ("image", "to caption", "captioned").
    """

    noun: str
    todo: str
    done: str
    block: int
    load: Callable[[], Compute]


def fill(shelf: Shelf, step: Step, wanted: pl.DataFrame, rows: int | None = None) -> None:
    """Compute and store what `wanted` (distinct rows with a column `key`, in canonical order) lacks in the store.

    `rows` is how many rows of the tables these stand for, where several share one; it is only said.
    """
    missing = shelf.missing(wanted["key"])
    total = wanted.height if rows is None else rows
    shared = f" ({wanted.height:,} distinct)" if total != wanted.height else ""
    found = wanted.height - missing.len()
    say(f"{count(total, step.noun)}{shared}: {found:,} in the store, {missing.len():,} {step.todo}")
    began = time.monotonic()
    loaded = 0.0
    if missing.len():
        with chatter_to(libraries_log()):
            compute = step.load()
        loaded = time.monotonic() - began
        todo = wanted.with_columns(block=pl.int_range(pl.len()) // step.block)
        todo = todo.filter(pl.col("key").is_in(missing.implode()))
        with Meter(todo.height, plural(step.noun)) as meter:
            for _, block in todo.group_by("block", maintain_order=True):
                shelf.add(compute(block))
                meter.advance(block.height)
        took = time.monotonic() - began - loaded
        rate = missing.len() / max(took, 1e-9)
        ready = f", after {seconds(loaded)} of loading" if loaded >= 0.1 else ""
        say(f"{count(missing.len(), step.noun)} {step.done} in {seconds(took)} ({rate:,.1f} a second{ready})")
    runs.note_step(
        kind=shelf.kind, rows=total, distinct=wanted.height, found=found, computed=missing.len(),
        load_seconds=round(loaded, 3), seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip
