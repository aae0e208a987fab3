"""The row job: which rows a stage needs, under which recipe, and how one block of them is computed.

A job is a frozen value. The stage computes what it misses, `cvsi check` counts that, packs are matched against it, and
an executor may send it to another process: a block is computed from nothing but the job's settings and the block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from cvsi.core.params import Compute
from cvsi.store.rows import RowStore, Store


def identity(block: pl.DataFrame) -> pl.DataFrame:
    """No prefetch: the rows of a block are all that its computation reads."""
    return block


class Interrupted(Exception):
    """A block ended early; `rows` are complete and are stored before the exception's cause ends the run."""

    def __init__(self, rows: pa.Table) -> None:
        """Keep the complete rows."""
        super().__init__("a block ended early")
        self.rows = rows


@dataclass(frozen=True)
class BlockWorker:
    """How one block's rows become a table of the job's schema, by a loaded model.

    `prefetch` gets the next block while one is computed and returns at once (threads do the reading); `compute` gets
    what it returned. `compute` raises `Interrupted` from an error where some rows of the block are complete.
    """

    compute: Callable[[Any], pa.Table]
    prefetch: Callable[[pl.DataFrame], Any] = identity


@dataclass(frozen=True)
class Words:
    """Words for messages: the noun of a row ("image"), what is to be done ("to caption"), and done ("captioned")."""

    noun: str
    todo: str
    done: str


@dataclass(frozen=True)
class RowJob(ABC):
    """Rows of one kind that a stage needs; subclasses are frozen dataclasses that can be pickled.

    `compute` has the settings of speed (executor, workers, batches); the rows are stored in `store`.
    """

    kind: ClassVar[str]
    words: ClassVar[Words]

    compute: Compute
    store: Store

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns of a row; `key` is a string."""

    @property
    @abstractmethod
    def block_rows(self) -> int:
        """The number of rows of a block."""

    @property
    def workers(self) -> int:
        """How many models an executor may load at most."""
        return self.compute.workers

    @property
    def memory_advice(self) -> str:
        """The parameter to lower, with its value, where a GPU's memory is too small."""
        return ""

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """What decides a row's value besides its key; raises CvsiError where a model cannot be identified."""

    @abstractmethod
    def wanted(self) -> pl.DataFrame:
        """A row with `key` and the inputs for each row that the stage's tables need, in canonical order.

        A key may repeat: several rows of a table may share one stored row.
        """

    def complete(self, block: pl.DataFrame) -> pl.DataFrame:
        """A block with the inputs that are too large to be listed by `wanted`."""
        return block

    def permanent(self, rows: pa.Table) -> pa.Table:
        """The rows that may be stored: all but those whose computation may succeed in the next run."""
        return rows

    @abstractmethod
    def load(self, worker: int) -> BlockWorker:
        """Load the model for a worker (from 0); called only where a row is missing."""

    def rows(self) -> RowStore:
        """The stored rows under this job's recipe."""
        return self.store.rows(self.kind, self.recipe(), self.schema)
