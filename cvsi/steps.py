"""Fills a shelf of the store: finds what is missing, computes it block by block, says what it does.

A block is a fixed run of rows in canonical order (position // block size), so the rows of a block, and with them every
last bit of the result, are the same in a resumed run as in one that was never stopped.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import polars as pl
import pyarrow as pa

from cvsi import runs
from cvsi.console import Meter, chatter_to, count, plural, say, seconds
from cvsi.errors import CvsiError
from cvsi.places import libraries_log
from cvsi.store import Shelf

Compute = Callable[[pl.DataFrame], pa.Table]


@dataclass(frozen=True)
class Step:
    """How rows of one kind come about.

    `load` is called only when a row is missing, with the number of a worker (from 0), and returns a function from a
    block's rows to a table of the shelf's schema. `noun`, `todo` and `done` are words for people ("image", "to
    caption", "captioned"); `lower` names the parameter to lower, with its value, where a GPU's memory is too small.
    """

    noun: str
    todo: str
    done: str
    block: int
    load: Callable[[int], Compute]
    workers: int = 1
    lower: str = ""


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
        todo = wanted.with_columns(block=pl.int_range(pl.len()) // step.block)
        todo = todo.filter(pl.col("key").is_in(missing.implode()))
        blocks = [block for _, block in todo.group_by("block", maintain_order=True)]
        with _memory(f"while the {step.noun} model is loaded; choose a lower precision or a smaller model"):
            with chatter_to(libraries_log()):
                workers = [step.load(number) for number in range(min(step.workers, len(blocks)))]
        loaded = time.monotonic() - began
        with Meter(todo.height, plural(step.noun)) as meter, _memory(f"; lower {step.lower} in params.yaml"):
            for table in _computed(workers, blocks):
                shelf.add(table)
                meter.advance(table.num_rows)
        took = time.monotonic() - began - loaded
        rate = missing.len() / max(took, 1e-9)
        ready = f", after {seconds(loaded)} of loading" if loaded >= 0.1 else ""
        say(f"{count(missing.len(), step.noun)} {step.done} in {seconds(took)} ({rate:,.1f} a second{ready})")
    runs.note_step(
        kind=shelf.kind, recipe=shelf.folder.name, rows=total, distinct=wanted.height, found=found,
        computed=missing.len(), load_seconds=round(loaded, 3), seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip


def _computed(workers: Sequence[Compute], blocks: Sequence[pl.DataFrame]) -> Iterator[pa.Table]:
    """The blocks' rows as they are ready; each worker has one block at a time."""
    if len(workers) == 1:
        yield from map(workers[0], blocks)
        return
    idle: SimpleQueue[Compute] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def compute(block: pl.DataFrame) -> pa.Table:
        worker = idle.get()
        try:
            return worker(block)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(len(workers))
    try:
        for future in as_completed([pool.submit(compute, block) for block in blocks]):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after an error or a signal nobody waits for what still runs


@contextmanager
def _memory(advice: str) -> Iterator[None]:
    """Turn running out of GPU memory into one line with advice."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; importing it here would load torch for everybody
            raise
        raise CvsiError(f"out of GPU memory {advice}".replace(" ;", ";")) from None
