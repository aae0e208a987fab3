"""A dataset's gallery on disk, shard by shard: named images to positions, positions to ids, vectors with checked ids.

A position is an image's place among the gallery images of the index. Only the ids that somebody asks for are ever in
memory, so it does not grow with the gallery.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import paths, tables
from cvsi.core.console import Meter
from cvsi.core.errors import CvsiError
from cvsi.core.schema import IMAGES

ID = pa.schema([IMAGES.field("image_id")])
COLUMNS = pa.schema([IMAGES.field("image_id"), IMAGES.field("in_gallery")])


class Gallery:
    """The gallery images of an index, in order: `size` of them, and where those that queries name stand."""

    def __init__(self, name: str, named: pl.Series) -> None:
        """Read through the index once for `named` ids; raises CvsiError for one that stands twice."""
        self.name, self.where = name, paths.folder("index", name) / "images.parquet"
        wanted, found, start = named.unique().implode(), [], 0
        for ids in self._ids():
            here = pl.DataFrame({"image_id": ids}).with_row_index("position", start)
            found.append(here.filter(pl.col("image_id").is_in(wanted)))
            start += len(ids)
        self.size = start
        self.named = pl.concat(found) if found else pl.DataFrame(schema={"position": pl.UInt32, "image_id": pl.String})
        self._once(self.named["image_id"])

    def ids(self, positions: np.ndarray) -> pl.Series:
        """The ids of the images at these positions [n], in that order; raises CvsiError for an id that stands twice."""
        distinct = np.unique(positions)
        found, start, begin = [], 0, 0
        for ids in self._ids():
            end = begin + int(np.searchsorted(distinct[begin:], start + len(ids)))
            found.append(ids.gather(distinct[begin:end] - start))
            start, begin = start + len(ids), end
        names = pl.concat(found) if found else pl.Series("image_id", [], dtype=pl.String)
        self._once(names)
        return names.gather(np.searchsorted(distinct, positions))

    def shards(self, backbone: str) -> Iterator[pa.Table]:
        """The gallery vectors of a backbone, at most 4,096 rows at a time, their ids those of the index.

        Raises CvsiError where they are not, one after the other and to the end.
        """
        place = paths.folder("gallery_vectors", self.name, backbone)
        ahead, held, start = self._ids(), pl.Series("image_id", [], dtype=pl.String), 0
        with Meter(self.size, "images ranked") as meter:
            for shard in tables.shards("gallery_vectors", self.name, backbone):
                if not shard.num_rows:
                    continue
                while len(held) < shard.num_rows and (more := next(ahead, None)) is not None:
                    held = pl.concat([held, more])
                named = pl.Series("image_id", tables.fit(shard, ID, str(place))["image_id"])
                if not named.equals(held[: shard.num_rows]):
                    raise CvsiError(f"{place}: image_id is not in the order of the index; run gallery_vectors again")
                yield shard
                held, start = held[shard.num_rows :], start + shard.num_rows
                meter.advance(shard.num_rows)
        if start != self.size:
            raise CvsiError(
                f"{place}: {start:,} rows, the index has {self.size:,} gallery images; run gallery_vectors again"
            )

    def _ids(self) -> Iterator[pl.Series]:
        for part in tables.parts(self.where, COLUMNS.names):
            rows = pl.DataFrame(tables.fit(part, COLUMNS, str(self.where)))
            yield rows.filter("in_gallery")["image_id"]

    def _once(self, ids: pl.Series) -> None:
        twice = ids.filter(ids.is_duplicated())
        if len(twice):
            raise CvsiError(f"{self.where}: image_id {twice[0]!r} stands twice; ids must be unique")
