"""A dataset's gallery on disk, shard by shard: ids to positions, positions to ids, vectors with checked ids.

A position is an image's number among the gallery images of the index, from 0. Only the ids that are needed are ever in
memory, so memory does not grow with the gallery.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import parquet, paths, tables
from cvsi.core.console import Meter
from cvsi.core.errors import CvsiError
from cvsi.core.schema import IMAGES

ID = pa.schema([IMAGES.field("image_id")])
COLUMNS = pa.schema([IMAGES.field("image_id"), IMAGES.field("in_gallery")])


class Gallery:
    """The gallery images of an index, in order: `size` of them, and the positions of those that queries name."""

    def __init__(self, name: str, named: pl.Series) -> None:
        """Read through the index once for `named` ids; raises CvsiError for a duplicate among them."""
        self.name, self.where = name, paths.folder("index", name) / "images.parquet"
        wanted, matches, start = named.unique().implode(), [], 0
        for ids in self._ids():
            rows = pl.DataFrame({"image_id": ids}).with_row_index("position", start)
            matches.append(rows.filter(pl.col("image_id").is_in(wanted)))
            start += len(ids)
        self.size = start
        empty = pl.DataFrame(schema={"position": pl.UInt32, "image_id": pl.String})
        self.named = pl.concat(matches) if matches else empty
        self._refuse_duplicates(self.named["image_id"])

    def ids(self, positions: np.ndarray) -> pl.Series:
        """The ids of the images at these positions [n], in that order; raises CvsiError for a duplicate id."""
        distinct = np.unique(positions)
        pieces, start, begin = [], 0, 0
        for ids in self._ids():
            end = begin + int(np.searchsorted(distinct[begin:], start + len(ids)))
            pieces.append(ids.gather(distinct[begin:end] - start))
            start, begin = start + len(ids), end
        names = pl.concat(pieces) if pieces else pl.Series("image_id", [], dtype=pl.String)
        self._refuse_duplicates(names)
        return names.gather(np.searchsorted(distinct, positions))

    def shards(self, backbone: str) -> Iterator[pa.Table]:
        """The gallery vectors of a backbone, at most 4,096 rows at a time, in the index's order.

        Raises CvsiError where their ids are not those of the index, one after the other and to the end.
        """
        path = paths.folder("gallery_vectors", self.name, backbone)
        ahead, pending, start = self._ids(), pl.Series("image_id", [], dtype=pl.String), 0
        with Meter(self.size, "images ranked") as meter:
            for shard in tables.shards("gallery_vectors", self.name, backbone):
                if not shard.num_rows:
                    continue
                while len(pending) < shard.num_rows and (more := next(ahead, None)) is not None:
                    pending = pl.concat([pending, more])
                ids = pl.Series("image_id", parquet.fit(shard, ID, str(path))["image_id"])
                if not ids.equals(pending[: shard.num_rows]):
                    raise CvsiError(f"{path}: image_id is not in the order of the index; run gallery_vectors again")
                yield shard
                pending, start = pending[shard.num_rows :], start + shard.num_rows
                meter.advance(shard.num_rows)
        if start != self.size:
            raise CvsiError(
                f"{path}: {start:,} rows, the index has {self.size:,} gallery images; run gallery_vectors again"
            )

    def _ids(self) -> Iterator[pl.Series]:
        for part in parquet.parts(self.where, COLUMNS.names):
            rows = pl.DataFrame(parquet.fit(part, COLUMNS, str(self.where)))
            yield rows.filter("in_gallery")["image_id"]

    def _refuse_duplicates(self, ids: pl.Series) -> None:
        duplicates = ids.filter(ids.is_duplicated())
        if len(duplicates):
            raise CvsiError(f"{self.where}: duplicate image_id {duplicates[0]!r}; ids must be unique")
