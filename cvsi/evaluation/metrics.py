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
BLOCK = 1024  # rows whose resampled means are in memory at a time


def with_ranks(queries: pl.DataFrame, target_ranks: np.ndarray, group_ranks: np.ndarray) -> pl.DataFrame:
    """Queries with the columns `target_ranks` and `group_rank`, as protocols take them.

    Target ranks [queries, longest list] and group ranks [queries] count from 1; 0 is a null.
    """
    lengths = queries["target_ids"].list.len().to_numpy()
    ranks = target_ranks[np.arange(target_ranks.shape[1]) < lengths[:, None]]
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ranks, pa.int32(), mask=ranks == 0))
    group = pa.array(group_ranks, pa.int32(), mask=group_ranks == 0)
    return queries.with_columns(target_ranks=pl.Series(lists), group_rank=pl.Series(group))


def by_query(protocol: Protocol, queries: pl.DataFrame) -> pl.DataFrame:
    """The table `per_query` of a protocol's metrics in percent, from the output of `with_ranks`."""
    columns = {name: pl.Series(name, values, nan_to_null=True) for name, values in protocol.values(queries).items()}
    return pl.DataFrame(per_query(columns).empty_table()).vstack(
        queries.select("query_id", "split", "target_ranks", "group_rank").with_columns(**columns)
    )


def summarise(protocol: Protocol, table: pl.DataFrame, aspects: pl.Series) -> dict[str, float]:
    """Means of the metrics of one split, the main one's interval, and the main one by aspect, in reading order.

    `table` has the split's rows of `per_query`, `aspects` a list per row. A metric without any value is left out.
    """
    counted = {name: table[name].drop_nulls().to_numpy() for name in protocol.names()}
    summary = {name: float(values.mean()) for name, values in counted.items() if len(values)}
    if protocol.main not in summary:
        return summary
    low, high = interval(counted[protocol.main])
    summary |= {f"{protocol.main} low": low, f"{protocol.main} high": high}
    listed = pl.DataFrame({"aspect": aspects, "value": table[protocol.main]}).explode("aspect").drop_nulls()
    means = listed.group_by("aspect").agg(pl.col("value").mean()).sort("aspect")
    return summary | {f"{protocol.main}/{aspect}": value for aspect, value in means.iter_rows()}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean over queries: percentiles of the means of seeded resamples."""
    low, high = np.percentile(values[_draws(len(values))].mean(axis=1), ENDS)
    return float(low), float(high)


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
