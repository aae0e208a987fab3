"""The queries of an index, and the gallery positions of the images that they name: what a ranking is compared with."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import parquet, paths, tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import QUERIES, queries_schema
from cvsi.evaluation.gallery import Gallery

NAMING = ("exclude_ids", "group_ids", "target_ids", "negative_ids")  # the last one is optional
OPTIONAL = ("negative_ids", "variant_of", "second_reference_id")  # columns that metrics or the report read


@dataclass(frozen=True)
class NamedImages:
    """The gallery positions (int64) of the images that queries name; -1 where an image is not in the gallery.

    `excluded` [n, 2] are pairs (query row, position) that are never ranked. `groups` and `targets` [queries, longest
    list] are in the lists' order, filled up with -1. Where the index has negatives, the last `negatives` columns of
    `targets` are these: their ranks are computed as those of targets.
    """

    excluded: np.ndarray
    groups: np.ndarray
    targets: np.ndarray
    negatives: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class QueryTable:
    """Queries in the index's order, with the columns of `queries.parquet`, and the images that they name.

    Targets count in `labelled` splits only, where every query has one; in the other splits they are -1.
    """

    frame: pl.DataFrame
    named: NamedImages
    labelled: tuple[str, ...]

    @property
    def splits(self) -> list[str]:
        """All splits, in order."""
        return self.frame["split"].unique(maintain_order=True).to_list()

    def of_split(self, split: str) -> pl.DataFrame:
        """The queries of one split, in order."""
        return self.frame.filter(pl.col("split") == split)

    def labelled_rows(self) -> np.ndarray:
        """The rows of the labelled splits, in order."""
        return np.flatnonzero(self.frame["split"].is_in(list(self.labelled)).to_numpy())


def read(name: str) -> tuple[QueryTable, Gallery]:
    """The queries of a dataset's index and its gallery; raises CvsiError for a duplicate key."""
    where = paths.folder("index", name) / "queries.parquet"
    frame = read_frame(tables.read("index", name, where.name), str(where))
    duplicates = frame.filter(frame.select("split", "query_id").is_duplicated())
    if duplicates.height:
        raise CvsiError(f"{where}: duplicate query_id {duplicates['query_id'][0]!r}; ids must be unique in a split")
    naming = [column for column in NAMING if column in frame.columns]
    gallery = Gallery(name, pl.concat([frame[column].explode() for column in naming]).drop_nulls())
    return with_positions(frame, gallery), gallery


def read_frame(table: pa.Table, where: str) -> pl.DataFrame:
    """The columns of `queries.parquet`, optional ones only if metrics or the report read them.

    A query's tags are among its aspects, as metrics treat them alike.
    """
    frame = pl.DataFrame(parquet.fit(table, queries_schema(table.column_names), where))
    if "tags" in frame.columns:
        frame = frame.with_columns(aspects=pl.concat_list("aspects", "tags"))
    return frame.select(*QUERIES.names, *(name for name in OPTIONAL if name in frame.columns))


def with_positions(frame: pl.DataFrame, gallery: Gallery) -> QueryTable:
    """The queries with the positions of the images that they name."""
    every = pl.col("target_ids").list.len().min().over("split") > 0
    labelled = frame.filter(every)["split"].unique(maintain_order=True).to_list()
    excluded = _positions(frame, "exclude_ids", gallery).filter(pl.col("position") >= 0)
    targets = _matrix(frame, "target_ids", gallery)
    negatives = 0
    if "negative_ids" in frame.columns:
        matrix = _matrix(frame, "negative_ids", gallery)
        targets, negatives = np.concatenate([targets, matrix], axis=1), matrix.shape[1]
    targets[~frame["split"].is_in(labelled).to_numpy()] = -1
    pairs = excluded.select("row", "position").to_numpy().astype(np.int64)
    named = NamedImages(pairs, _matrix(frame, "group_ids", gallery), targets, negatives=negatives)
    return QueryTable(frame, named, tuple(labelled))


def _positions(frame: pl.DataFrame, column: str, gallery: Gallery) -> pl.DataFrame:
    """(query row, index in its list, gallery position or -1) of the images in a column of lists."""
    listed = frame.select(column).with_row_index("row").explode(column)
    listed = listed.with_columns(pl.int_range(pl.len()).over("row").alias("index")).drop_nulls(column)
    joined = listed.join(gallery.named, left_on=column, right_on="image_id", how="left", maintain_order="left")
    return joined.select("row", "index", pl.col("position").cast(pl.Int64).fill_null(-1))


def _matrix(frame: pl.DataFrame, column: str, gallery: Gallery) -> np.ndarray:
    """The positions of a column of lists as a matrix [queries, longest list] int64, filled up with -1."""
    listed = _positions(frame, column, gallery)
    longest = int(frame[column].list.len().max() or 1)  # type: ignore[arg-type]
    matrix = np.full((frame.height, longest), -1, dtype=np.int64)
    matrix[listed["row"].to_numpy(), listed["index"].to_numpy()] = listed["position"].to_numpy()
    return matrix
