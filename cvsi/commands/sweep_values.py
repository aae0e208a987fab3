"""Ranks of targets and scores of groups under many fusions to the protocol's values per query, and to their means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cvsi.commands.sweep_grid import Components
from cvsi.core.console import Meter, info
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation.metrics import with_ranks
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.ranking import group_ranks
from cvsi.evaluation.target_ranks import LAST
from cvsi.evaluation.vectors import RunVectors

KEPT = 2**30  # bytes of the main metric's values per point and query of a split


@dataclass(frozen=True)
class Inputs:
    """What every point of a grid is evaluated on: labelled queries, vectors with their columns, and the metrics.

    `own` is the name of the dataset's own fusion.
    """

    table: QueryTable
    vectors: RunVectors
    components: Components
    protocol: Protocol
    device: torch.device
    own: str


@dataclass(frozen=True)
class Wanted:
    """What is ranked for some queries [q]: targets [q, t], groups [q, g], and pairs [x, 2] that never are.

    The pairs are (row among these queries, position); positions are -1 where there is no image.
    """

    targets: Tensor
    groups: Tensor
    excluded: Tensor


class Points(Interface):
    """The points of a grid, as `means` evaluates them."""

    @property
    def noun(self) -> str:
        """What they are called in messages."""
        ...

    def __len__(self) -> int:
        """How many they are."""
        ...

    def group_size(self, memory: int) -> int:
        """How many queries' products take `memory` bytes."""
        ...

    def of_group(self, rows: np.ndarray, wanted: Wanted) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Numbers of points [w], the ranks from 0 of the targets [q, w, t] and the scores of the groups [q, w, g]."""
        ...


def means(inputs: Inputs, split: str, points: Points, memory: int) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The means of all metrics over a split's queries, [points] by name, a group of queries at a time.

    Also the main metric's values, [points, queries] in the index's order, where they take at most `KEPT` bytes.
    """
    names, main, number = inputs.protocol.names(), inputs.protocol.main, len(points)
    of_split = np.flatnonzero((inputs.table.frame["split"] == split).to_numpy())
    # Queries with many right answers first: those with a second one, say, are then one piece of memory.
    rows = of_split[np.argsort(-(inputs.table.named.targets[of_split] >= 0).sum(axis=1), kind="stable")]
    size = points.group_size(memory)
    sums, numbers = ({name: np.zeros(number) for name in names} for _ in range(2))
    kept = np.empty((number, len(rows))) if 8 * number * len(rows) <= KEPT else None
    noun = points.noun if size >= len(rows) else f"{points.noun} by group of queries"
    with Meter(number * -(-len(rows) // size), noun) as meter:
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            columns = np.searchsorted(of_split, group)
            if size < len(rows):
                info(f"{split}: queries {start + 1:,} to {start + len(group):,} of {len(rows):,}")
            wanted = _wanted(inputs, group)
            for run, ahead, scores in points.of_group(group, wanted):
                for name, percent in _values(inputs, group, ahead, scores).items():
                    counts = ~np.isnan(percent)
                    sums[name][run] += np.where(counts, percent, 0).sum(axis=1)
                    numbers[name][run] += counts.sum(axis=1)
                    if kept is not None and name == main:
                        kept[np.ix_(run, columns)] = percent
                meter.advance(len(run))
    outcome = {name: np.full(number, np.nan) for name in names}
    for name, mean in outcome.items():
        np.divide(sums[name], numbers[name], out=mean, where=numbers[name] > 0)
    return outcome, kept


def _wanted(inputs: Inputs, rows: np.ndarray) -> Wanted:
    named = inputs.table.named
    row_of = np.full(inputs.table.frame.height, -1)
    row_of[rows] = np.arange(len(rows))
    mine = named.excluded[row_of[named.excluded[:, 0]] >= 0]
    pairs = np.stack([row_of[mine[:, 0]], mine[:, 1]], axis=1)
    targets, groups, excluded = (
        torch.from_numpy(array).to(inputs.device) for array in (named.targets[rows], named.groups[rows], pairs)
    )
    return Wanted(targets, groups, excluded)


def _values(inputs: Inputs, rows: np.ndarray, ahead: Tensor, scores: Tensor) -> Mapping[str, np.ndarray]:
    """The protocol's values, [points, queries] by name, from ranks [q, w, t] and scores of groups [q, w, g]."""
    named, number = inputs.table.named, ahead.shape[1]
    ranks, of_groups = (tensor.transpose(0, 1).cpu().numpy() for tensor in (ahead, scores))
    # One table for all points, since a protocol computes each row by itself.
    target_ranks = np.where(ranks < LAST, ranks + 1, 0).reshape(number * len(rows), -1)
    in_group = group_ranks(
        of_groups.reshape(number * len(rows), -1),
        np.tile(named.groups[rows], (number, 1)),
        np.tile(named.targets[rows, 0], number),
    )
    frame = pl.concat([inputs.table.frame[rows]] * number)
    values = inputs.protocol.values(with_ranks(frame, target_ranks, in_group, named.negatives))
    return {name: percent.reshape(number, len(rows)) for name, percent in values.items()}
