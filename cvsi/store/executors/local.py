"""Computes blocks in this process: one model, or several in threads, which take the GPUs in turn.

While a block is computed, the next one is read.
"""

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Thread

import polars as pl
import pyarrow as pa

from cvsi.core import run_log
from cvsi.core.params import Settings
from cvsi.store.executors import ExecutorKind
from cvsi.store.jobs import BlockWorker, Interrupted, RowJob


class LocalSettings(Settings):
    """Nothing to set: the number of workers is `compute.workers`."""


class Local:
    """The models of one job in this process."""

    def __init__(self, settings: LocalSettings, job: RowJob) -> None:
        """Prepare to compute the blocks of a job; nothing is loaded yet."""
        self.job = job
        self.workers: list[BlockWorker] = []

    def load(self, blocks: int) -> None:
        """Load one model per worker, and no more than there are blocks."""
        self.workers = [self.job.load(number) for number in range(min(self.job.workers, blocks))]

    def run(self, blocks: Sequence[pl.DataFrame]) -> Iterator[pa.Table]:
        """The rows of every block as they are ready; each worker computes one block and prefetches the next."""
        remaining = iter(blocks)
        if len(self.workers) == 1:
            yield from self._one_by_one(self.workers[0], remaining)
            return
        results: SimpleQueue[pa.Table | BaseException | None] = SimpleQueue()

        def serve(worker: BlockWorker) -> None:
            try:
                for table in self._one_by_one(worker, remaining):  # `next` of a list's iterator is safe among threads
                    results.put(table)
                results.put(None)
            except BaseException as error:  # raised again below, in the main thread
                results.put(error)

        for worker in self.workers:
            Thread(target=serve, args=(worker,), daemon=True).start()  # a daemon: an error must not wait for others
        serving = len(self.workers)
        while serving:
            with run_log.timed("compute"):
                result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                serving -= 1
            else:
                yield result

    def _one_by_one(self, worker: BlockWorker, blocks: Iterator[pl.DataFrame]) -> Iterator[pa.Table]:
        first = next(blocks, None)
        ready = None if first is None else worker.prefetch(self.job.complete(first))
        while ready is not None:
            following = next(blocks, None)
            reading = None if following is None else worker.prefetch(self.job.complete(following))
            try:
                with run_log.timed("compute"):
                    table = worker.compute(ready)
            except Interrupted as end:
                yield end.rows
                raise (end.__cause__ or end) from None
            yield table
            ready = reading


KIND = ExecutorKind(LocalSettings, Local)
