"""A sample of queries with everything that the page shows of each: images, captions, edit, results, right answers.

Half of the sample are the labelled queries whose best right answer is ranked lowest; the other half is evenly spaced
through the index.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cvsi.core import parquet, paths, tables
from cvsi.evaluation.report.thumbnails import pictures

SAMPLE = 36
SHOWN = 10
ANSWERS = 5
KEY = ("split", "query_id")
NO_RANK = 1 << 30  # of a right answer past the last rank that is computed


def query_cards(
    name: str, backbone: str, root: Path, queries: pl.DataFrame, values: pl.DataFrame
) -> list[dict[str, Any]]:
    """The cards of up to 36 queries, the worst first; images are `data:` addresses.

    `values` has the main metric per labelled query as `value`, and `target_ranks`.
    """
    shown = _with_texts(name, backbone, _sample(queries, values), values)
    named = pl.concat([shown["reference_id"], shown["results"].explode(), shown["target_ids"].explode()])
    if "second_reference_id" in shown.columns:
        named = pl.concat([named, shown["second_reference_id"].alias(named.name)])
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    images = images.filter(pl.col("image_id").is_in(named.drop_nulls().unique().implode()))
    shown_as = pictures(root, images)
    files = dict(images.select("image_id", "path").iter_rows())
    return [_card(row, shown_as, files) for row in shown.iter_rows(named=True)]


def _sample(queries: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    """The queries that are shown, with `worst` for those that are there as failures."""
    best = pl.col("target_ranks").list.min().fill_null(NO_RANK)
    lowest = values.select(*KEY, best=best).filter(pl.col("best") > SHOWN)
    lowest = lowest.sort("best", *KEY, descending=[True, False, False], maintain_order=True).head(SAMPLE // 2)
    failures = lowest.select(*KEY).join(queries, on=KEY, how="inner", maintain_order="left")
    others = queries.join(failures, on=KEY, how="anti", maintain_order="left")
    number = min(SAMPLE - failures.height, others.height)
    spaced = others[[index * others.height // number for index in range(number)]] if number else others.head(0)
    columns = queries.columns
    return pl.concat([failures.select(columns).with_columns(worst=True), spaced.with_columns(worst=False)])


def _with_texts(name: str, backbone: str, shown: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    """The queries with captions of the reference, edits, the first results, and values where they are labelled."""
    captions = pl.DataFrame(tables.whole("captions", name)).select(reference_id="image_id", captions="captions")
    edits = pl.DataFrame(tables.whole("edits", name)).select(*KEY, "edited", "added", "status")
    rankings = pl.DataFrame(parquet.read_file(paths.folder("scores", name, backbone) / "rankings.parquet"))
    rankings = rankings.join(shown, on=KEY, how="semi", maintain_order="left").filter(pl.col("rank") <= SHOWN)
    results = rankings.group_by(KEY, maintain_order=True).agg(results="image_id")
    shown = shown.join(captions, on="reference_id", how="left", maintain_order="left")
    for more in (edits, results, values.select(*KEY, "value", "target_ranks")):
        shown = shown.join(more, on=KEY, how="left", maintain_order="left")
    return shown


def _card(row: dict[str, Any], pictures: Mapping[str, str], files: Mapping[str, str]) -> dict[str, Any]:
    results = [
        {
            "id": image,
            "file": files[image],
            "picture": pictures[image],
            "hit": image in row["target_ids"],
            "own": image in (row["reference_id"], row.get("second_reference_id")),
            "negative": image in row.get("negative_ids", ()),
        }
        for image in row["results"] or []
    ]
    ranks = row["target_ranks"] or [None] * len(row["target_ids"])
    answers = [
        {"id": image, "file": files[image], "picture": pictures[image], "rank": rank}
        for image, rank in zip(row["target_ids"][:ANSWERS], ranks, strict=False)
    ]
    second = pictures.get(row.get("second_reference_id", ""), "")
    return row | {
        "picture": pictures[row["reference_id"]], "file": files[row["reference_id"]], "second_picture": second,
        "results": results, "targets": answers, "labelled": row["value"] is not None,
        "best": min((rank for rank in ranks if rank is not None), default=None),
    }  # fmt: skip
