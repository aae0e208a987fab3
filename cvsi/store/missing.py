"""Computes the rows of a job that the store does not contain, block by block, and stores each block.

A block is a fixed run of rows in canonical order (position // block size), so the rows of a block, and with them every
last bit of the result, are the same in a resumed run as in one that was never stopped. While a block is computed, the
previous one is stored.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from cvsi.core import run_log
from cvsi.core.console import Meter, count, info, plural, redirect_output, seconds
from cvsi.core.errors import ChangedFile, CvsiError
from cvsi.core.paths import libraries_log
from cvsi.store.changed import record_change
from cvsi.store.executors import executor_of
from cvsi.store.jobs import RowJob
from cvsi.store.rows import RowStore, Store


def compute_missing(job: RowJob, opened: RowStore | None = None) -> RowStore:
    """Compute and store the rows that a job needs and the store does not contain; the rows of the job.

    `opened` are the job's rows, where the caller opened them already. Prints how many rows there are, how many are
    stored, and how long the others took.
    """
    began, loaded = time.monotonic(), 0.0
    rows, every = job.rows() if opened is None else opened, job.wanted()
    wanted = every.unique("key", keep="first", maintain_order=True)
    with run_log.timed("read"):
        rows.quarantine_corrupt(wanted["key"])
        missing = rows.missing(wanted["key"])
    stored = wanted.height - missing.len()
    distinct = f" ({wanted.height:,} distinct)" if every.height != wanted.height else ""
    noun = job.words.noun
    info(f"{count(every.height, noun)}{distinct}: {stored:,} in the store, {missing.len():,} {job.words.todo}")
    if missing.len():
        blocks = _blocks(job, wanted, missing)
        executor = executor_of(job.compute, job)
        with _memory(f"while the {noun} model is loaded; choose a lower precision or a smaller model"):
            with redirect_output(libraries_log()), run_log.timed("load"):
                executor.load(len(blocks))
        loaded = time.monotonic() - began
        with Meter(missing.len(), plural(noun)) as meter, _memory(f"; lower {job.memory_advice} in params.yaml"):
            _store(job, rows, executor.run(blocks), meter)
        took = time.monotonic() - began - loaded
        rate = missing.len() / max(took, 1e-9)
        ready = f", after {seconds(loaded)} of loading" if loaded >= 0.1 else ""
        info(f"{count(missing.len(), noun)} {job.words.done} in {seconds(took)} ({rate:,.1f} a second{ready})")
    run_log.record_step(
        kind=rows.kind, recipe=rows.folder.name, rows=every.height, distinct=wanted.height, found=stored,
        computed=missing.len(), load_seconds=round(loaded, 3), seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip
    return rows


def _blocks(job: RowJob, wanted: pl.DataFrame, missing: pl.Series) -> list[pl.DataFrame]:
    """The missing rows, cut where the wanted ones are cut into blocks."""
    numbered = wanted.with_columns(block=pl.int_range(pl.len()) // job.block_rows)
    todo = numbered.filter(pl.col("key").is_in(missing.implode()))
    return [block for _, block in todo.group_by("block", maintain_order=True)]


def _store(job: RowJob, rows: RowStore, tables: Iterable[pa.Table], meter: Meter) -> None:
    """Store each table while the next one is computed; a file that changed since it was indexed is recorded."""
    try:
        _store_all(job, rows, tables, meter)
    except ChangedFile as change:
        record_change(Store(rows.store), change)
        raise


def _store_all(job: RowJob, rows: RowStore, tables: Iterable[pa.Table], meter: Meter) -> None:
    """Store each table while the next one is computed; also the last one before an error."""
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        done = 0

        def finish() -> None:
            if writing is not None:
                with run_log.timed("write"):
                    writing.result()
                meter.advance(done)

        try:
            for table in tables:
                finish()
                writing, done = writer.submit(_keep, job, rows, table), table.num_rows
        finally:
            finish()


def _keep(job: RowJob, rows: RowStore, table: pa.Table) -> None:
    """Store the rows that may be stored; hold the others for this run."""
    permanent = job.permanent(table)
    if permanent.num_rows:
        rows.append(permanent)
    if permanent.num_rows < table.num_rows:
        rows.hold(table.filter(pc.invert(pc.is_in(table["key"], permanent["key"].combine_chunks()))))


@contextmanager
def _memory(advice: str) -> Iterator[None]:
    """Turn running out of GPU memory into one line with advice."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; importing it here would load torch for every stage
            raise
        raise CvsiError(f"out of GPU memory {advice}".replace(" ;", ";")) from None
