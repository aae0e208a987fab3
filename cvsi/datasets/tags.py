"""A user's file of tags to a column `tags` of the queries: metrics are computed by tag in the same way as by aspect.

The file is CSV or Parquet with the columns `split`, `query_id` and `tag`, one row per tag of a query: CIRCUS' lists, or
a subset of one's own.
"""

from pathlib import Path

import polars as pl

from cvsi.core import parquet
from cvsi.core.console import count, warn
from cvsi.core.errors import CvsiError, cause
from cvsi.core.schema import TAGS
from cvsi.datasets.base import LONGEST_ID, MAX_TEXT, first_names


def with_tags(queries: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Queries with a column `tags`, a sorted list each, empty for a query without one.

    Prints how many rows name no query of the dataset. Raises CvsiError for a file that cannot be read, has other
    columns, empty cells or endless tags, or names no query at all, and for a tag that is an aspect of the dataset.
    """
    tags = _read(path).unique()
    keys = ["split", "query_id"]
    unknown = tags.join(queries, on=keys, how="anti")
    if tags.height and unknown.height == tags.height:
        row = unknown.row(0, named=True)
        raise CvsiError(f"{path}: names no query of the dataset (first: {row['query_id']} of split {row['split']})")
    if unknown.height:
        warn(f"{path}: {count(unknown.height, 'row')} of {tags.height:,} name queries that the dataset does not have")
    aspects = queries["aspects"].explode().drop_nulls().unique()
    if (taken := tags["tag"].filter(tags["tag"].is_in(aspects.implode()))).len():
        raise CvsiError(f"{path}: tag '{taken[0]}' is an aspect of the dataset; give it another name")
    lists = tags.group_by(keys).agg(tags=pl.col("tag").sort())
    joined = queries.join(lists, on=keys, how="left", maintain_order="left")
    return joined.with_columns(pl.col("tags").fill_null(pl.lit([], dtype=pl.List(pl.String))))


def _read(path: Path) -> pl.DataFrame:
    """The rows of the file, all columns as strings."""
    if not path.is_file():
        raise CvsiError(f"{path}: no such file; correct tags in params.yaml")
    if path.stat().st_size > MAX_TEXT:
        raise CvsiError(f"{path}: {path.stat().st_size:,} bytes; more than {MAX_TEXT:,} are not read")
    if path.suffix == ".parquet":
        rows = pl.DataFrame(parquet.fit(parquet.read_file(path), TAGS, str(path)))
    else:
        try:
            rows = pl.read_csv(path, infer_schema=False)
        except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
            raise CvsiError(f"{path}: not a CSV file with split, query_id, tag ({cause(error)})") from None
        if missing := [name for name in TAGS.names if name not in rows.columns]:
            raise CvsiError(f"{path}: no column '{missing[0]}'; there are: {first_names(rows.columns)}")
        rows = rows.select(TAGS.names)
    empty = rows.filter(pl.any_horizontal(pl.all().is_null() | (pl.all().str.strip_chars() == "")))
    if empty.height:
        raise CvsiError(f"{path}: {count(empty.height, 'row')} with an empty cell; fill in split, query_id and tag")
    long = rows.filter(pl.col("tag").str.len_chars() > LONGEST_ID)
    if long.height:
        raise CvsiError(
            f"{path}: tags of more than {LONGEST_ID:,} characters: {first_names(long['tag'])}; shorten them"
        )
    return rows
