"""Rankings of hidden splits to the files that the benchmarks' servers want, checked before they are written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

from cvsi.errors import CvsiError

Content = dict[str, object]
MAX_BYTES = 5_000_000


@dataclass(frozen=True)
class Submission:
    """One file: its name's end, how many images a query gets, of the gallery or of its group, and how it is written."""

    metric: str
    images: int
    content: Callable[[pl.DataFrame], Content]
    of_group: bool = False


def _circo(ranked: pl.DataFrame) -> Content:
    """`{query id: [50 image ids as integers]}`."""
    return _lists(ranked.with_columns(pl.col("image_id").cast(pl.Int64)))


def _cirr(metric: str) -> Callable[[pl.DataFrame], Content]:
    """`{"version": "rc2", "metric": ..., pair id: [names]}`."""
    return lambda ranked: {"version": "rc2", "metric": metric} | _lists(ranked)


def _lists(ranked: pl.DataFrame) -> Content:
    return dict(ranked.group_by("query_id", maintain_order=True).agg("image_id").iter_rows())


SUBMISSIONS: Mapping[str, tuple[Submission, ...]] = {
    "circo": (Submission("map", 50, _circo),),
    "cirr": (
        Submission("recall", 50, _cirr("recall")),
        Submission("recall_subset", 3, _cirr("recall_subset"), of_group=True),
    ),
    "fashioniq": (),
    "folder": (),
}


def build(form: Submission, queries: pl.DataFrame, rankings: pl.DataFrame) -> str:
    """The text of a submission for the queries of one split; raises CvsiError where it would be refused."""
    ranked = rankings.filter(pl.col("rank") <= form.images)
    counts = queries.select("query_id").join(
        ranked.group_by("query_id").agg(pl.len(), pl.col("image_id").n_unique().alias("different")),
        on="query_id", how="left", maintain_order="left",
    )  # fmt: skip
    wrong = counts.filter((pl.col("len") != form.images).fill_null(True) | (pl.col("different") != pl.col("len")))
    if wrong.height:
        query, found = wrong["query_id"][0], wrong["len"][0] or 0
        raise CvsiError(
            f"submission: query {query} has {found} ranked images, the server wants {form.images} different ones"
        )
    ordered = queries.select("query_id").join(ranked, on="query_id", maintain_order="left_right")
    text = json.dumps(form.content(ordered), separators=(",", ":"))
    if len(text) > MAX_BYTES:
        raise CvsiError(f"submission: {len(text):,} bytes, the server takes {MAX_BYTES:,} at most")
    return text
