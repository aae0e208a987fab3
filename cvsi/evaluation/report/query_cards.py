"""A sample of queries with everything that the page shows of each: images, captions, edit, results, right answers."""

from pathlib import Path
from typing import Any

import polars as pl

from cvsi.core import parquet, paths, tables
from cvsi.evaluation.report.thumbnails import pictures

SAMPLE = 36
SHOWN = 10
ANSWERS = 5
KEY = ("split", "query_id")


def query_cards(
    name: str, backbone: str, root: Path, queries: pl.DataFrame, values: pl.DataFrame
) -> list[dict[str, Any]]:
    """The cards of up to 36 queries, evenly spaced through the index; images are `data:` addresses.

    `values` has the main metric per labelled query as `value`.
    """
    shown = _sample(name, backbone, queries, values)
    named = pl.concat([shown["reference_id"], shown["results"].explode(), shown["target_ids"].explode()])
    if "second_reference_id" in shown.columns:
        named = pl.concat([named, shown["second_reference_id"].alias(named.name)])
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    images = images.filter(pl.col("image_id").is_in(named.drop_nulls().unique().implode()))
    shown_as = pictures(root, images)
    return [_card(row, shown_as) for row in shown.iter_rows(named=True)]


def _sample(name: str, backbone: str, queries: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    """Sampled queries with captions of the reference, edits, the first results, and the main metric where labelled."""
    number = min(SAMPLE, queries.height)
    shown = queries[[index * queries.height // number for index in range(number)]]
    captions = pl.DataFrame(tables.whole("captions", name)).select(reference_id="image_id", captions="captions")
    edits = pl.DataFrame(tables.whole("edits", name)).select(*KEY, "edited", "added", "status")
    rankings = pl.DataFrame(parquet.read_file(paths.folder("scores", name, backbone) / "rankings.parquet"))
    rankings = rankings.join(shown, on=KEY, how="semi", maintain_order="left").filter(pl.col("rank") <= SHOWN)
    results = rankings.group_by(KEY, maintain_order=True).agg(results="image_id")
    shown = shown.join(captions, on="reference_id", how="left", maintain_order="left")
    for more in (edits, results, values.select(*KEY, "value")):
        shown = shown.join(more, on=KEY, how="left", maintain_order="left")
    return shown


def _card(row: dict[str, Any], pictures: dict[str, str]) -> dict[str, Any]:
    results = [
        {
            "id": image,
            "picture": pictures[image],
            "hit": image in row["target_ids"],
            "own": image in (row["reference_id"], row.get("second_reference_id")),
            "negative": image in row.get("negative_ids", ()),
        }
        for image in row["results"] or []
    ]
    answers = [{"id": image, "picture": pictures[image]} for image in row["target_ids"][:ANSWERS]]
    second = pictures.get(row.get("second_reference_id", ""), "")
    return row | {
        "picture": pictures[row["reference_id"]], "second_picture": second, "results": results, "targets": answers,
    }  # fmt: skip
