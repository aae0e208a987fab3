"""A sample of queries, each with all that the page shows of it: pictures, captions, edit, results, right answers."""

from pathlib import Path
from typing import Any

import polars as pl

from cvsi.core import tables
from cvsi.evaluation.report.thumbnails import thumbnail
from cvsi.evaluation.scores import Judge, Judged

SAMPLE = 36
SHOWN = 10
ANSWERS = 5
KEY = ("split", "query_id")


def cards(name: str, root: Path, judge: Judge, judged: Judged) -> list[dict[str, Any]]:
    """The cards of up to 36 queries, evenly spaced through the index; pictures are `data:` addresses."""
    shown = _sample(name, judge, judged)
    named = pl.concat([shown["reference_id"], shown["results"].explode(), shown["target_ids"].explode()])
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    images = images.filter(pl.col("image_id").is_in(named.drop_nulls().unique().implode()))
    pictures = {
        image: thumbnail(root / path, digest)
        for image, path, digest in images.select("image_id", "path", "digest").iter_rows()
    }
    return [_card(row, pictures) for row in shown.iter_rows(named=True)]


def _sample(name: str, judge: Judge, judged: Judged) -> pl.DataFrame:
    """Sampled queries with captions of the reference, edits, the first results, and the main metric where labelled."""
    number = min(SAMPLE, judge.queries.height)
    rows = [place * judge.queries.height // number for place in range(number)]
    shown = judge.queries[rows]
    captions = pl.DataFrame(tables.whole("captions", name)).select(reference_id="image_id", captions="captions")
    edits = pl.DataFrame(tables.whole("edits", name)).select(*KEY, "edited", "added", "status")
    ranked = judge.rankings(judged.ranking).filter(pl.col("rank") <= SHOWN)
    results = ranked.group_by(KEY, maintain_order=True).agg(results="image_id")
    values = [
        judge.split(split).select(*KEY, value=pl.Series(metrics[judge.protocol.main]))
        for split, metrics in judged.by_query.items()
    ]
    shown = shown.join(captions, on="reference_id", how="left", maintain_order="left")
    for more in (edits, results, *([pl.concat(values)] if values else [])):
        shown = shown.join(more, on=KEY, how="left", maintain_order="left")
    return shown if values else shown.with_columns(value=pl.lit(None, dtype=pl.Float64))


def _card(row: dict[str, Any], pictures: dict[str, str]) -> dict[str, Any]:
    results = [
        {
            "id": image,
            "picture": pictures[image],
            "hit": image in row["target_ids"],
            "own": image == row["reference_id"],
        }
        for image in row["results"] or []
    ]
    answers = [{"id": image, "picture": pictures[image]} for image in row["target_ids"][:ANSWERS]]
    return row | {"picture": pictures[row["reference_id"]], "results": results, "targets": answers}
