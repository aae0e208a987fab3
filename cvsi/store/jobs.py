"""Fills a shelf of the store: finds what is missing, computes it block by block, says what it does.

A block is a fixed run of rows in canonical order (position // block size), so the rows of a block, and with them every
last bit of the result, are the same in a resumed run as in one that was never stopped; or a row's value depends on that
row alone, and then rows may wait for a later block. While a block is computed, the next one is read and the one before
is stored.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

import polars as pl
import pyarrow as pa

from cvsi.core import run_log
from cvsi.core.console import Meter, chatter_to, count, plural, say, seconds
from cvsi.core.errors import CvsiError
from cvsi.core.paths import libraries_log
from cvsi.store.rows import Shelf


def nothing() -> None:
    """No rows are left waiting."""


def as_it_is(block: pl.DataFrame) -> pl.DataFrame:
    """Nothing to read ahead: a block's rows are all there is."""
    return block


@dataclass(frozen=True)
class Work:
    """How a block's rows become a table of the shelf's schema, by a loaded model.

    `ahead` takes the block while another one is computed, returns at once (threads do the reading), and what it returns
    is what `compute` gets. Rows that `compute` did not return yet, since they wait for others to fill a batch with,
    come from `rest` after the last block.
    """

    compute: Callable[[Any], pa.Table]
    ahead: Callable[[pl.DataFrame], Any] = as_it_is
    rest: Callable[[], pa.Table | None] = nothing


@dataclass(frozen=True)
class Step:
    """How rows of one kind come about.

    `load` is called only when a row is missing, with the number of a worker (from 0). `noun`, `todo` and `done` are
    words for people ("image", "to caption", "captioned"); `lower` names the parameter to lower, with its value, where a
    GPU's memory is too small.
    """

    noun: str
    todo: str
    done: str
    block: int
    load: Callable[[int], Work]
    workers: int = 1
    lower: str = ""


def fill(shelf: Shelf, step: Step, wanted: pl.DataFrame, rows: int | None = None) -> None:
    """Compute and store what `wanted` (distinct rows with a column `key`, in canonical order) lacks in the store.

    `rows` is how many rows of the tables these stand for, where several share one; it is only said.
    """
    began, loaded = time.monotonic(), 0.0
    with run_log.spending("read"):
        shelf.mend(wanted["key"])
        missing = shelf.missing(wanted["key"])
    total = wanted.height if rows is None else rows
    found = wanted.height - missing.len()
    same = f" ({wanted.height:,} distinct)" if total != wanted.height else ""
    say(f"{count(total, step.noun)}{same}: {found:,} in the store, {missing.len():,} {step.todo}")
    if missing.len():
        todo = wanted.with_columns(block=pl.int_range(pl.len()) // step.block)
        todo = todo.filter(pl.col("key").is_in(missing.implode()))
        blocks = [block for _, block in todo.group_by("block", maintain_order=True)]
        with _memory(f"while the {step.noun} model is loaded; choose a lower precision or a smaller model"):
            with chatter_to(libraries_log()), run_log.spending("load"):
                workers = [step.load(number) for number in range(min(step.workers, len(blocks)))]
        loaded = time.monotonic() - began
        with Meter(todo.height, plural(step.noun)) as meter, _memory(f"; lower {step.lower} in params.yaml"):
            _store(shelf, _computed(workers, blocks), meter)
        took = time.monotonic() - began - loaded
        rate = missing.len() / max(took, 1e-9)
        ready = f", after {seconds(loaded)} of loading" if loaded >= 0.1 else ""
        say(f"{count(missing.len(), step.noun)} {step.done} in {seconds(took)} ({rate:,.1f} a second{ready})")
    run_log.note_step(
        kind=shelf.kind, recipe=shelf.folder.name, rows=total, distinct=wanted.height, found=found,
        computed=missing.len(), load_seconds=round(loaded, 3), seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip


def _store(shelf: Shelf, tables: Iterable[pa.Table], meter: Meter) -> None:
    """Store each table while the next one is computed."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        done = 0
        for table in tables:
            if writing is not None:
                with run_log.spending("write"):
                    writing.result()
                meter.advance(done)
            writing, done = writer.submit(shelf.add, table), table.num_rows
        if writing is not None:
            with run_log.spending("write"):
                writing.result()
            meter.advance(done)


def _computed(workers: Sequence[Work], blocks: Sequence[pl.DataFrame]) -> Iterator[pa.Table]:
    """The blocks' rows as they are ready; each worker has one block in work, and reads the next one meanwhile."""
    shared = iter(blocks)
    if len(workers) == 1:
        yield from _one_by_one(workers[0], shared)
        return
    results: SimpleQueue[pa.Table | BaseException | None] = SimpleQueue()

    def serve(worker: Work) -> None:
        try:
            for table in _one_by_one(worker, shared):  # taking the next from a list's iterator is safe among threads
                results.put(table)
            results.put(None)
        except BaseException as error:  # it is raised again by whoever waits for the results
            results.put(error)

    for worker in workers:
        Thread(target=serve, args=(worker,), daemon=True).start()  # after an error or a signal nobody waits for it
    serving = len(workers)
    while serving:
        with run_log.spending("compute"):
            result = results.get()
        if isinstance(result, BaseException):
            raise result
        if result is None:
            serving -= 1
        else:
            yield result


def _one_by_one(worker: Work, blocks: Iterator[pl.DataFrame]) -> Iterator[pa.Table]:
    for table in _tables(worker, blocks):
        if table is not None and table.num_rows:
            yield table


def _tables(worker: Work, blocks: Iterator[pl.DataFrame]) -> Iterator[pa.Table | None]:
    coming = next(blocks, None)
    ready = None if coming is None else worker.ahead(coming)
    while ready is not None:
        following = next(blocks, None)
        reading = None if following is None else worker.ahead(following)
        with run_log.spending("compute"):
            table = worker.compute(ready)
        yield table
        ready = reading
    with run_log.spending("compute"):
        table = worker.rest()
    yield table


@contextmanager
def _memory(advice: str) -> Iterator[None]:
    """Turn running out of GPU memory into one line with advice."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; importing it here would load torch for everybody
            raise
        raise CvsiError(f"out of GPU memory {advice}".replace(" ;", ";")) from None
