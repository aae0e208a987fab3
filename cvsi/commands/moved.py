"""Two runs' values per query, of one split, to what changed: queries better, worse and the same, by aspect and by name.

Better and worse are by the main metric of the protocol, the one that `metrics.json` has an interval of.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from cvsi.evaluation.metrics import EPSILON as EPSILON
from cvsi.evaluation.metrics import tally as tally

KEY = ["split", "query_id"]
DEEPEST = 1_000  # ranks of targets are known up to here


class Moved(BaseModel):
    """One query: the main metric, and the rank of its main target (None past the first 1,000), before and after."""

    model_config = ConfigDict(frozen=True)

    query_id: str
    instruction: str
    before: float
    after: float
    rank_before: int | None
    rank_after: int | None


class Changes(BaseModel):
    """How many queries of a split the second run answers better, worse and equally well, and those that moved most."""

    model_config = ConfigDict(frozen=True)

    metric: str
    better: int
    worse: int
    same: int
    moved: list[Moved]


def main_metric(*metrics: Mapping[str, float]) -> str:
    """The first metric with an interval in all of several splits; empty where there is none."""
    return next((name for name in metrics[0] if all(f"{name} low" in values for values in metrics)), "")


def pair(first: pl.DataFrame, second: pl.DataFrame, queries: pl.DataFrame, metric: str) -> pl.DataFrame:
    """The queries that count in both runs, with `before`, `after` and `difference` of a metric, and both ranks.

    The first two are tables `per_query`; `queries` has the split's rows of the index, in whose order the result is.
    """
    values = [
        table.select(*KEY, pl.col(metric).alias(name), pl.col("target_ranks").list.first().alias(f"rank_{name}"))
        for table, name in ((first, "before"), (second, "after"))
    ]
    rows = queries.join(values[0], on=KEY, maintain_order="left").join(values[1], on=KEY, maintain_order="left")
    rows = rows.drop_nulls(["before", "after"])
    return rows.with_columns(difference=pl.col("after") - pl.col("before"))


def changes(rows: pl.DataFrame, metric: str, top: int) -> Changes:
    """Counts over rows of `pair`, and the `top` queries by the metric's difference, then by their target's rank."""
    difference = pl.col("difference")
    rank = {name: pl.col(f"rank_{name}").fill_null(DEEPEST + 1).log() for name in ("before", "after")}
    moves = rows.with_columns(size=difference.abs(), climb=(rank["after"] - rank["before"]).abs())
    moves = moves.filter((pl.col("size") > EPSILON) | (pl.col("climb") > 0))
    most = moves.sort("size", "climb", descending=True, maintain_order=True).head(top)
    better, worse, same = tally(rows["difference"].to_numpy())
    names = list(Moved.model_fields)
    return Changes(
        metric=metric, better=better, worse=worse, same=same,
        moved=[Moved(**row) for row in most.select(names).to_dicts()],
    )  # fmt: skip


def by_aspect(rows: pl.DataFrame, metric: str) -> dict[str, np.ndarray]:
    """`{metric/aspect: differences}` of the queries of each aspect; one query alone gives no interval, so no entry."""
    listed = rows.select("aspects", "difference").explode("aspects").drop_nulls()
    groups = listed.group_by("aspects", maintain_order=True).agg("difference").filter(
        pl.col("difference").list.len() > 1
    )  # fmt: skip
    return {f"{metric}/{aspect}": np.array(values) for aspect, values in groups.iter_rows()}
