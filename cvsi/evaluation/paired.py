"""Values per query of several methods to their paired differences from the run's own fusion, each with an interval."""

from collections.abc import Iterable

import polars as pl
from pydantic import BaseModel, ConfigDict

from cvsi.evaluation import OWN
from cvsi.evaluation.metrics import interval, tally

KEY = ("split", "query_id")


class Difference(BaseModel):
    """A method less the run's own fusion in the main metric, over the queries that count in both.

    `low` and `high` are the 95% interval of the difference, None for fewer than two queries.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    difference: float
    low: float | None
    high: float | None
    better: int
    worse: int
    same: int


def differences(values: pl.DataFrame, methods: Iterable[str], own_name: str = OWN) -> list[Difference]:
    """Each method less the own fusion over the queries that count in both, in the order of `methods`.

    `values` has the main metric as `value` by `method` and query, of one split.
    """
    own = values.filter(method=own_name).select(*KEY, own="value")
    paired = values.join(own, on=KEY, maintain_order="left").drop_nulls(["value", "own"])
    rows = []
    for method in methods:
        difference = paired.filter(method=method).select(pl.col("value") - pl.col("own")).to_series().to_numpy()
        if method == own_name or not len(difference):
            continue
        low, high = interval(difference) if len(difference) > 1 else (None, None)
        better, worse, same = tally(difference)
        mean = float(difference.mean())
        row = Difference(method=method, difference=mean, low=low, high=high, better=better, worse=worse, same=same)
        rows.append(row)
    return rows
