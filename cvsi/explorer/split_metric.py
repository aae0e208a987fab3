"""A fusion to the main metric of a labelled split beside the run's own: the difference, its interval, and by aspect."""

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import numpy as np
import polars as pl

from cvsi.core.errors import CvsiError
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.halves import in_first_half
from cvsi.evaluation.metrics import interval
from cvsi.evaluation.queries import NamedImages, QueryTable
from cvsi.evaluation.ranking import TILE_ROWS, Combination, LinearScore, rank_targets
from cvsi.evaluation.scores import evaluate
from cvsi.evaluation.vectors import fuse_queries
from cvsi.explorer import target_counts
from cvsi.explorer.kept_gallery import KeptGallery

KEY = ("split", "query_id")
Progress = Callable[[float], object]


class Cancelled(Exception):
    """The metric is no longer wanted."""


def measure(
    fusion: Fusion, split: str, table: QueryTable, gallery: KeptGallery, protocol: Protocol, own: pl.DataFrame,
    cancelled: Event, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The split's metric by a fusion, as the stage `scores` computes it, and how it differs from the values `own`.

    `progress` is told the share that is done. Raises Cancelled soon after `cancelled` is set, CvsiError for a split
    without labels and a column that is missing.
    """
    if split not in table.labelled:
        raise CvsiError(f"split {split[:80]!r} has no labels; there are: {', '.join(table.labelled) or 'none'}")
    rows = np.flatnonzero((table.frame["split"] == split).to_numpy())
    some, inputs = subset(table, rows), gallery.inputs
    queries = fuse_queries(inputs.queries.take(rows), fusion, inputs.query_path)

    def tiles() -> Iterator[list[np.ndarray]]:
        return _watched(gallery, fusion, cancelled, progress)

    ranks = target_counts.rank_targets(queries, fusion, gallery, tiles(), some.named)
    if ranks is None:  # very many equal scores
        linear = [LinearScore(matrix, side) for side, matrix in enumerate(queries)]
        scored = [Combination(fusion.scorer, tuple(range(len(linear))))]
        (ranks,) = rank_targets(linear, scored, tiles(), some.named)
    values = evaluate(protocol, some, *ranks).per_query
    return _beside(values, own, some.frame, rows, protocol.main)


def subset(table: QueryTable, rows: np.ndarray) -> QueryTable:
    """Some queries of a table, by their rows in ascending order."""
    named = table.named
    place = np.searchsorted(rows, named.excluded[:, 0]).clip(max=len(rows) - 1)
    inside = rows[place] == named.excluded[:, 0]
    excluded = np.column_stack([place[inside], named.excluded[inside, 1]])
    some = NamedImages(excluded, named.groups[rows], named.targets[rows], negatives=named.negatives)
    frame = table.frame[rows]
    return QueryTable(frame, some, tuple(split for split in table.labelled if split in frame["split"].unique()))


def _watched(gallery: KeptGallery, fusion: Fusion, cancelled: Event, progress: Progress) -> Iterator[list[np.ndarray]]:
    """The fused gallery in tiles; a cancellation is seen at each, progress is told after each table."""
    done = 0
    for matrices in gallery.fused([(form.gallery, form.unit) for form in fusion.forms.values()]):
        for start in range(0, len(matrices[0]), TILE_ROWS):
            if cancelled.is_set():
                raise Cancelled
            yield [matrix[start : start + TILE_ROWS] for matrix in matrices]
        done += len(matrices[0])
        progress(done / max(gallery.size, 1))


def _beside(
    values: pl.DataFrame, own: pl.DataFrame, frame: pl.DataFrame, rows: np.ndarray, main: str
) -> dict[str, Any]:
    """The means of the new values, of the own ones and of their differences, which has a paired interval.

    `rows` are the numbers of the frame's queries, by which those that differ are named.
    """
    joined = frame.select(*KEY, "aspects", row=pl.Series(rows))
    joined = joined.join(values.select(*KEY, new=main), on=KEY, how="left", maintain_order="left")
    joined = joined.join(own.select(*KEY, own=main), on=KEY, how="left", maintain_order="left").drop_nulls()
    if not joined.height:
        raise CvsiError(f"no query of this split has a value of {main}")
    joined = joined.with_columns(difference=pl.col("new") - pl.col("own"))
    difference, new = joined["difference"].to_numpy(), joined["new"].to_numpy()
    signs = {"better": 1, "worse": -1, "same": 0}
    moved = {kind: joined["row"].filter(np.sign(difference) == sign).to_list() for kind, sign in signs.items()}
    first = in_first_half(joined["query_id"].to_list())
    aspects = joined.explode("aspects").drop_nulls().group_by("aspects").agg(pl.len(), pl.col("difference").mean())
    return {
        "value": float(new.mean()), "interval": interval(new), "own": float(joined["own"].to_numpy().mean()),
        "difference": float(difference.mean()), "differenceInterval": interval(difference),
        **{kind: len(of_kind) for kind, of_kind in moved.items()}, "rows": moved,
        "halves": [float(difference[half].mean()) if half.any() else None for half in (first, ~first)],
        "aspects": [list(row) for row in aspects.sort("difference", "aspects", descending=True).rows()],
    }  # fmt: skip
