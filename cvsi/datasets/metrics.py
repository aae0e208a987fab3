"""Ranks of right answers to metrics in percent: pure functions of a table with one row per query.

The table has the columns of `queries.parquet`, in the index's order, and two more: `target_ranks`, the rank from 1 of
each entry of `target_ids` (null past the first 1,000), and `group_rank`, the rank of the first target among the
query's group (null where it is in none). Where the index has `negative_ids`, `negative_ranks` has their ranks. A
protocol is the list of metrics that a format's benchmark reports.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Metric:
    """One number per query: the table to percent [queries] float64, NaN where a query does not count."""

    name: str
    values: Callable[[pl.DataFrame], np.ndarray]


@dataclass(frozen=True)
class GroupMetric:
    """One number per group of queries with the same `variant_of`, from their values of `metric`.

    `value` is an expression over the values of a group; a group of one does not count. The mean over groups is in
    `metrics.json` alone.
    """

    name: str
    metric: str
    value: Callable[[pl.Expr], pl.Expr]


@dataclass(frozen=True)
class Protocol:
    """What a benchmark reports: its metrics in order, and the main one, which has an interval and values by aspect.

    `groups` are its metrics over groups of queries.
    """

    main: str
    metrics: tuple[Metric, ...]
    groups: tuple[GroupMetric, ...] = ()

    def names(self) -> list[str]:
        """Every metric by name, in order."""
        return [metric.name for metric in self.metrics]

    def cut_offs(self) -> list[str]:
        """The main metric's other cut-offs, and its kind within a query's group."""
        family = self.main.partition("@")[0]
        kinds = (family, f"{family}_subset")
        parts = ((name, *name.split("@")) for name in self.names() if name != self.main and name.count("@") == 1)
        return [name for name, kind, cut_off in parts if kind in kinds and cut_off.isdigit()]

    def values(self, table: pl.DataFrame) -> dict[str, np.ndarray]:
        """Every metric for every query of a table, in percent: [queries] float64 by name."""
        return {metric.name: metric.values(table) for metric in self.metrics}


def mean_average_precision(*cut_offs: int) -> tuple[Metric, ...]:
    """`mAP@k`: the mean of AP@k over queries, for each cut-off."""
    return tuple(Metric(f"mAP@{k}", partial(_average_precision, k)) for k in cut_offs)


def recall(*cut_offs: int) -> tuple[Metric, ...]:
    """`Recall@k`: whether the first target is within the first k, for each cut-off."""
    return tuple(Metric(f"Recall@{k}", partial(_recall, k)) for k in cut_offs)


def subset_recall(*cut_offs: int) -> tuple[Metric, ...]:
    """`Recall_subset@k`: whether the first target is within the first k of the query's group, for each cut-off."""
    return tuple(Metric(f"Recall_subset@{k}", partial(_subset_recall, k)) for k in cut_offs)


def hits(table: pl.DataFrame, k: int) -> np.ndarray:
    """Whether the image at each of the first k ranks is a right answer, [queries, k] bool."""
    ranked = table.select("target_ranks").with_row_index("row").explode("target_ranks").drop_nulls("target_ranks")
    ranked = ranked.filter(pl.col("target_ranks") <= k)
    matrix = np.zeros((table.height, k), dtype=bool)
    matrix[ranked["row"].to_numpy(), ranked["target_ranks"].to_numpy() - 1] = True
    return matrix


def average_precision(hits: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """AP@k of each query: the sum of the precision at each hit within k, over min(number of targets, k).

    Hits [q, >= k] bool and numbers of targets [q] to [q] float64 in 0..1 (CIRCO, arXiv 2303.15247).
    """
    first = hits[:, :k].astype(np.float64)
    precision = first.cumsum(axis=1) / np.arange(1, first.shape[1] + 1)
    return np.asarray((precision * first).sum(axis=1) / np.minimum(targets, k))


def within(ranks: pl.Series, k: int) -> np.ndarray:
    """100 where a rank is at most k, else 0; a null is not."""
    return np.asarray((ranks <= k).fill_null(False).cast(pl.Float64).to_numpy() * 100)


def _average_precision(k: int, table: pl.DataFrame) -> np.ndarray:
    return 100 * average_precision(hits(table, k), table["target_ids"].list.len().to_numpy(), k)


def _recall(k: int, table: pl.DataFrame) -> np.ndarray:
    return within(table["target_ranks"].list.first(), k)


def _subset_recall(k: int, table: pl.DataFrame) -> np.ndarray:
    return within(table["group_rank"], k)
