"""Rankings of hidden splits to the files that the benchmarks' servers want, checked before they are written."""

import json
from collections.abc import Mapping

import polars as pl

from cvsi.core.errors import CvsiError
from cvsi.datasets.submissions import CIRCO, CIRR, VERSION, Kind, Known, inspect

SUBMISSIONS: Mapping[str, tuple[Kind, ...]] = {
    "circo": (CIRCO,),
    "cirr": (CIRR["recall"], CIRR["recall_subset"]),
    "fashioniq": (),
    "folder": (),
}


def build(kind: Kind, queries: pl.DataFrame, rankings: pl.DataFrame) -> str:
    """The text of a submission for the queries of one split; raises CvsiError where it would be refused.

    CIRCO: `{query id: [50 image ids as integers]}`; CIRR: `{"version": "rc2", "metric": ..., pair id: [names]}`, 50 of
    the gallery or 3 of the query's group.
    """
    ranked = rankings.filter(pl.col("rank") <= kind.images).sort("rank", maintain_order=True)
    lists = ranked.group_by("query_id", maintain_order=True).agg("image_id")
    ordered = queries.select("query_id").join(lists, on="query_id", how="left", maintain_order="left")
    ordered = ordered.with_columns(pl.col("image_id").fill_null(pl.lit([], dtype=pl.List(pl.String))))
    head: dict[str, object] = {} if kind.integers else {"version": VERSION, "metric": kind.metric}
    text = json.dumps(head | _answers(ordered, kind), separators=(",", ":"))
    _, _, faults = inspect(text, Known(queries), "submission")
    if faults:
        more = f" (and {len(faults) - 3:,} more faults)" if len(faults) > 3 else ""
        raise CvsiError(f"submission for {kind.benchmark}, {kind.metric}: {'; '.join(faults[:3])}{more}")
    return text


def _answers(lists: pl.DataFrame, kind: Kind) -> dict[str, object]:
    if kind.integers:
        try:
            lists = lists.with_columns(pl.col("image_id").cast(pl.List(pl.Int64)))
        except pl.exceptions.InvalidOperationError:
            raise CvsiError(
                "submission for CIRCO: image ids that are not integers; the server takes no others"
            ) from None
    return dict(lists.iter_rows())
