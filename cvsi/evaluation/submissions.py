"""Rankings of a hidden split to the file that the benchmark's server takes, checked before it is written."""

import json

import polars as pl

from cvsi.core.errors import CvsiError
from cvsi.datasets.submissions import Submission, SubmissionReference, inspect


def build(kind: Submission, queries: pl.DataFrame, rankings: pl.DataFrame) -> str:
    """The text of a submission for the queries of one split; raises CvsiError where the server would refuse it.

    The header comes first, then a list of image ids per query, of the gallery or, where the kind says so, of the
    query's group; `rankings` are of the same images.
    """
    ranked = rankings.filter(pl.col("rank") <= kind.images).sort("rank", maintain_order=True)
    lists = ranked.group_by("query_id", maintain_order=True).agg("image_id")
    ordered = queries.select("query_id").join(lists, on="query_id", how="left", maintain_order="left")
    ordered = ordered.with_columns(pl.col("image_id").fill_null(pl.lit([], dtype=pl.List(pl.String))))
    text = json.dumps({**kind.header, **_answers(ordered, kind)}, separators=(",", ":"))
    _, _, faults = inspect(text, [kind], SubmissionReference(queries), "submission")
    if faults:
        more = f" (and {len(faults) - 3:,} more faults)" if len(faults) > 3 else ""
        raise CvsiError(f"submission for {kind.benchmark}, {kind.metric}: {'; '.join(faults[:3])}{more}")
    return text


def _answers(lists: pl.DataFrame, kind: Submission) -> dict[str, object]:
    if kind.integer_ids:
        try:
            lists = lists.with_columns(pl.col("image_id").cast(pl.List(pl.Int64)))
        except pl.exceptions.InvalidOperationError:
            raise CvsiError(
                f"submission for {kind.benchmark}: image ids that are not integers; the server takes no others"
            ) from None
    return dict(lists.iter_rows())
