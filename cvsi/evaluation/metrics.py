"""Ranks of targets to the table `per_query`, and that table to what `metrics.json` says of a split.

The metrics themselves are those of the dataset's format (`datasets/metrics.py`). A value in `metrics.json` is the mean
of a column of `per_query`, over the queries that count in it.
"""

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core.schema import per_query
from cvsi.datasets.metrics import Protocol

BOOTSTRAP_DRAWS = 1000
BOOTSTRAP_SEED = 0
ENDS = [2.5, 97.5]  # percentiles
EPSILON = 1e-9  # percent; a smaller difference is none
BLOCK = 1024  # rows whose resampled means are in memory at a time


def with_ranks(
    queries: pl.DataFrame, target_ranks: np.ndarray, group_ranks: np.ndarray, negatives: int = 0
) -> pl.DataFrame:
    """Queries with the columns `target_ranks` and `group_rank`, as protocols take them.

    Target ranks [queries, longest list] and group ranks [queries] count from 1; 0 is a null. The last `negatives`
    columns are the ranks of the queries' negatives, for a column `negative_ranks`.
    """
    targets = target_ranks.shape[1] - negatives
    columns = {"target_ranks": _lists(target_ranks[:, :targets], queries["target_ids"])}
    columns["group_rank"] = pl.Series(pa.array(group_ranks, pa.int32(), mask=group_ranks == 0))
    if negatives:
        columns["negative_ranks"] = _lists(target_ranks[:, targets:], queries["negative_ids"])
    return queries.with_columns(**columns)


def by_query(protocol: Protocol, queries: pl.DataFrame) -> pl.DataFrame:
    """The table `per_query` of a protocol's metrics in percent, from the output of `with_ranks`."""
    columns = {name: pl.Series(name, values, nan_to_null=True) for name, values in protocol.values(queries).items()}
    empty = pl.DataFrame(per_query(columns, queries.columns).empty_table())
    ranks = [name for name in empty.columns if name not in columns]
    return empty.vstack(queries.select(ranks).with_columns(**columns))


def summarise(
    protocol: Protocol, table: pl.DataFrame, aspects: pl.Series, variants: pl.Series | None = None
) -> dict[str, float]:
    """Means of the metrics of one split, the main one's interval, and the main one by aspect, in reading order.

    `table` has the split's rows of `per_query`, `aspects` a list per row, `variants` the value of `variant_of` where
    the index has it. A metric without any value is left out.
    """
    counted = {name: table[name].drop_nulls().to_numpy() for name in protocol.names()}
    summary = {name: float(values.mean()) for name, values in counted.items() if len(values)}
    if variants is not None:
        summary |= _over_groups(protocol, table.with_columns(variant_of=variants))
    if protocol.main not in summary:
        return summary
    low, high = interval(counted[protocol.main])
    summary |= {f"{protocol.main} low": low, f"{protocol.main} high": high}
    listed = pl.DataFrame({"aspect": aspects, "value": table[protocol.main]}).explode("aspect").drop_nulls()
    means = listed.group_by("aspect").agg(pl.col("value").mean()).sort("aspect")
    return summary | {f"{protocol.main}/{aspect}": value for aspect, value in means.iter_rows()}


def _over_groups(protocol: Protocol, table: pl.DataFrame) -> dict[str, float]:
    """The means of the metrics over groups of queries, of which at least two count."""
    means = {}
    for metric in protocol.groups:
        values = table.select("variant_of", value=metric.metric).drop_nulls("value")
        groups = values.group_by("variant_of").agg(n=pl.len(), of_group=metric.value(pl.col("value")))
        several = groups.filter(pl.col("n") > 1).sort("variant_of")["of_group"]
        if several.len():
            means[metric.name] = float(several.to_numpy().mean())
    return means


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean over queries: percentiles of the means of seeded resamples."""
    low, high = np.percentile(values[_draws(len(values))].mean(axis=1), ENDS)
    return float(low), float(high)


def tally(differences: np.ndarray) -> tuple[int, int, int]:
    """How many of some differences in percent are better, worse and the same."""
    better, worse = int((differences > EPSILON).sum()), int((differences < -EPSILON).sum())
    return better, worse, len(differences) - better - worse


def intervals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lows and highs of `interval` for every row of values [rows, queries], from the same resamples, [rows] each.

    A resample is a count per query, so all means of many rows are one product of matrices.
    """
    size = values.shape[1]
    cells = _draws(size) + size * np.arange(BOOTSTRAP_DRAWS)[:, None]
    counts = np.bincount(cells.ravel(), minlength=BOOTSTRAP_DRAWS * size).reshape(BOOTSTRAP_DRAWS, size).astype(float)
    low, high = np.empty((2, len(values)))
    for start in range(0, len(values), BLOCK):
        rows = slice(start, start + BLOCK)
        low[rows], high[rows] = np.percentile(values[rows] @ counts.T / size, ENDS, axis=1)
    return low, high


def _draws(size: int) -> np.ndarray:
    """The positions of the queries of every resample, [draws, size]."""
    return np.random.default_rng(BOOTSTRAP_SEED).integers(size, size=(BOOTSTRAP_DRAWS, size))


def _lists(ranks: np.ndarray, ids: pl.Series) -> pl.Series:
    """The first ranks of each row [queries, longest list] as a list as long as that of `ids`; 0 is a null."""
    lengths = ids.list.len().to_numpy()
    kept = ranks[np.arange(ranks.shape[1]) < lengths[:, None]]
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    return pl.Series(pa.ListArray.from_arrays(pa.array(offsets), pa.array(kept, pa.int32(), mask=kept == 0)))
