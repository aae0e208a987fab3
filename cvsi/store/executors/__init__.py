"""The registry of executors: how the blocks of a job are computed, in this process or elsewhere.

`compute.executor` of params.yaml is a kind, or a mapping with `kind` and that kind's settings. To add one, write one
file and one line below.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import polars as pl
import pyarrow as pa

from cvsi.core.params import PATH, Compute, Settings, checked
from cvsi.core.registry import Registry
from cvsi.store.jobs import RowJob

S = TypeVar("S", bound=Settings)


class Executor(Protocol):
    """Computes the blocks of one job."""

    def load(self, blocks: int) -> None:
        """Load the models for so many blocks; called once, before `run`."""

    def run(self, blocks: Sequence[pl.DataFrame]) -> Iterator[pa.Table]:
        """The rows of every block as they are ready, one table per block, in any order."""


@dataclass(frozen=True)
class ExecutorKind(Generic[S]):
    """A kind of executor: its settings, and how one is made for a job."""

    settings: type[S]
    start: Callable[[S, RowJob], Executor]


EXECUTORS: Registry[ExecutorKind[Any]] = Registry(
    "executor",
    "cvsi.executors",
    {
        "local": "cvsi.store.executors.local:KIND",
    },
)


def executor_of(compute: Compute, job: RowJob) -> Executor:
    """The executor that `compute.executor` names, for a job; raises CvsiError for an unknown kind or setting."""
    kind, settings = check_executor(compute)
    return kind.start(settings, job)


def check_executor(compute: Compute) -> tuple[ExecutorKind[Any], Settings]:
    """The kind of executor and its settings; raises CvsiError for an unknown kind, key or value."""
    where = "compute.executor"
    block = {"kind": compute.executor} if isinstance(compute.executor, str) else dict(compute.executor)
    kind = EXECUTORS.get(block.pop("kind", "local"), f"{PATH}: {where}")
    return kind, checked(kind.settings, block, where)
