"""A run's parameters and its index to what the explorer's page says of the run, of its methods, and of images."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from cvsi.core import tables
from cvsi.core.params import Params
from cvsi.datasets.formats import format_of
from cvsi.evaluation import methods
from cvsi.evaluation.breakdown import adds_up, term_names
from cvsi.evaluation.report.method_table import Table

OF_IMAGE = ("image_id", "path", "caption", "ratio")  # what the page has of an image, in this order


def facts(
    name: str, backbone: str, params: Params, metrics: Table, shown: Iterable[str], gallery: int
) -> dict[str, Any]:
    """What is said of the run and of its methods; `metrics` are those of the report's table, for `shown` methods."""
    main = format_of(params.dataset(name), name).protocol.main
    known, fusions = methods.methods(params), methods.table(params, name)
    ends = (main, f"{main} low", f"{main} high")
    return {
        "dataset": name,
        "backbone": backbone,
        "metric": main,
        "own": methods.own_name(params, name),
        "gallery": gallery,
        "splits": {
            split: {method: [values[end] for end in ends] for method, values in rows.items()}
            for split, rows in metrics.items()
        },
        "methods": [
            {
                "name": method,
                "about": known[method].about.about if method in known else "",
                "fusion": fusions[method].describe(),
                "terms": term_names(fusions[method]),
                "addsUp": adds_up(fusions[method]),
                "block": fusions[method].recipe(),
            }
            for method in shown
        ],
    }


def image_table(name: str) -> pl.DataFrame:
    """The images of an index in its order: id, path, digest, crop where there is one, first caption, width by height.

    A part of a picture is shown as a square.
    """
    index = pl.DataFrame(tables.read("index", name, "images.parquet"))
    shape = pl.col("width") / pl.col("height")
    if "crop" in index.columns:
        shape = pl.when(pl.col("crop").is_null()).then(shape).otherwise(1.0)
    first = pl.col("captions").list.first().fill_null("")
    captions = pl.concat(
        pl.DataFrame(shard).select("image_id", caption=first) for shard in tables.shards("captions", name)
    )
    kept = [column for column in ("image_id", "path", "digest", "in_gallery", "crop") if column in index.columns]
    images = index.select(*kept, ratio=shape.round(4))
    return images.join(captions, on="image_id", how="left", maintain_order="left").with_columns(
        pl.col("caption").fill_null("")
    )


def image_rows(images: pl.DataFrame, numbers: Iterable[int]) -> list[list[Any]]:
    """`[number, id, path, caption, ratio]` of some images of a table, by their rows."""
    chosen = list(numbers)
    rows = images[chosen].select(*OF_IMAGE).rows() if chosen else []
    return [[number, *row] for number, row in zip(chosen, rows, strict=True)]


def numbers_of(images: pl.DataFrame) -> Mapping[str, int]:
    """The row of each image by its id."""
    return dict(zip(images["image_id"], range(images.height), strict=True))
