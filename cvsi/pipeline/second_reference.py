"""Queries with a second reference image (`second_reference_id` of `queries.parquet`): their rows, captions and vectors.

The reference of such a query is the mean of both images. What a component makes from an image is computed for each of
the two, and the mean of both unit vectors is scaled to unit length. The captions are those of both, in turn, so that an
editor that reads the first few of them reads some of each.
"""

from collections.abc import Callable

import numpy as np
import polars as pl

SECOND = "second_reference_id"
FILE = ("digest", "path", "crop")  # columns that say which image a row has


def with_second_captions(queries: pl.DataFrame, captions: pl.DataFrame) -> pl.DataFrame:
    """Queries with the captions of the second image among their `captions`; `captions` has `image_id`, `captions`."""
    if SECOND not in queries.columns:
        return queries
    seconds = captions.select(pl.col("image_id").alias(SECOND), second_captions="captions")
    joined = queries.join(seconds, on=SECOND, how="left", maintain_order="left").with_row_index("row")
    sides = [
        joined.select("row", side=pl.lit(side), text=column).explode("text").drop_nulls("text")
        for side, column in enumerate(("captions", "second_captions"))
    ]
    listed = pl.concat(sides).with_columns(place=pl.int_range(pl.len()).over("row", "side"))
    both = listed.sort("row", "place", "side").group_by("row", maintain_order=True).agg(captions="text")
    joined = joined.drop("captions", "second_captions").join(both, on="row", how="left", maintain_order="left")
    return joined.with_columns(pl.col("captions").fill_null([])).drop("row")


def with_second_files(queries: pl.DataFrame, images: pl.DataFrame) -> pl.DataFrame:
    """Queries with `second_digest`, `second_path` and, where images have it, `second_crop`; null without one.

    `images` has `image_id` and these columns.
    """
    if SECOND not in queries.columns:
        return queries
    names = {"image_id": SECOND} | {name: f"second_{name}" for name in FILE if name in images.columns}
    files = images.select(pl.col(name).alias(second) for name, second in names.items())
    return queries.join(files, on=SECOND, how="left", maintain_order="left")


def second_references(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with a second image, that image in place of the first."""
    if "second_digest" not in rows.columns:
        return rows.clear()
    second = rows.filter(pl.col("second_digest").is_not_null())
    return second.with_columns(
        pl.col(f"second_{name}").alias(name) for name in FILE if f"second_{name}" in rows.columns
    )


def mean_of_references(rows: pl.DataFrame, vectors: Callable[[pl.DataFrame], np.ndarray]) -> np.ndarray:
    """The unit vectors of the rows' images [rows, d]; of two images, their mean, scaled to unit length."""
    from torch import from_numpy  # seconds of imports, needed only where vectors are read
    from torch.nn.functional import normalize

    first, second = vectors(rows), second_references(rows)
    if second.height:
        places = rows["second_digest"].is_not_null().arg_true().to_numpy()
        first[places] = normalize(from_numpy(first[places] + vectors(second)), dim=-1).numpy()
    return first
