"""The two vector tables of a run to fused vectors: queries in the index's order, the gallery shard by shard."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from cvsi.core import parquet, paths, tables
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Backbone
from cvsi.core.schema import PHI_PARTS
from cvsi.core.vector_columns import numbers_of
from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.gallery import Gallery
from cvsi.evaluation.parts import with_parts
from cvsi.evaluation.ranking import Combination, LinearScore

Side = tuple[Mapping[str, float], bool]  # weights of gallery columns, and whether their sum is scaled to unit length
KEY = pa.schema({"split": pa.string(), "query_id": pa.string()})


@dataclass(frozen=True)
class Together:
    """Several fusions for one pass over the gallery, as `ranking.rank_targets` takes them.

    `gallery` has one matrix [m, d] float32 per side of the linear scores for each shard, which is read while it runs.
    """

    linear: list[LinearScore]
    scored: list[Combination]
    gallery: Iterator[list[np.ndarray]]


@dataclass(frozen=True)
class RunVectors:
    """The vectors of a dataset with a backbone, whichever program wrote them.

    `queries` is in memory, in the index's order; the gallery's columns are known, its shards are read when they are
    needed.
    """

    gallery: Gallery
    backbone: str
    queries: pa.Table
    gallery_schema: pa.Schema

    @property
    def query_path(self) -> str:
        """The folder of the query vectors, for messages."""
        return str(paths.folder("query_vectors", self.gallery.name, self.backbone))

    @property
    def gallery_path(self) -> str:
        """The folder of the gallery vectors, for messages."""
        return str(paths.folder("gallery_vectors", self.gallery.name, self.backbone))

    def missing(self, fusion: Fusion) -> dict[str, str]:
        """The columns with a weight in a fusion that the tables do not have, each with a line that names its folder."""
        query = [name for name in fusion.query_columns if name not in self.queries.column_names]
        gallery = [name for name in fusion.gallery_columns if name not in self.gallery_schema.names]
        return {name: f"{self.query_path}: no column '{name}'" for name in query} | {
            name: f"{self.gallery_path}: no column '{name}'" for name in gallery
        }

    def require(self, fusion: Fusion, settings: Backbone) -> None:
        """Raise CvsiError for a column that the dataset's own fusion needs and the tables do not have.

        `settings` are those of the backbone: one without phi may be the reason.
        """
        missing = self.missing(fusion)
        of_phi = [line for part, line in missing.items() if part in PHI_PARTS]
        if of_phi and settings.phi is None:
            raise CvsiError(
                f"{PATH}: {of_phi[0]}, which has a weight in datasets.{self.gallery.name}.fusion, and "
                f"backbones.{self.backbone} has no phi; add a phi, or remove the weight"
            )
        if missing:
            raise CvsiError(f"{next(iter(missing.values()))}, which has a weight in the dataset's fusion (params.yaml)")

    def fused(self, fusion: Fusion) -> tuple[list[np.ndarray], Iterator[list[np.ndarray]]]:
        """One matrix [queries, d] float32 per form of a fusion, in its order; and such lists for each gallery shard.

        The shards are read while the iterator runs; it raises CvsiError where their vectors have another length.
        """
        queries = fuse_queries(self.queries, fusion, self.query_path)
        sides = [(form.gallery, form.unit) for form in fusion.forms.values()]
        return queries, self._fused_gallery(sides, queries[0].shape[1])

    def fused_together(self, fusions: Sequence[Fusion]) -> Together:
        """The distinct linear scores of several fusions, what each fusion combines, and the gallery for all of them."""
        linear, scored = dict[str, LinearScore](), list[Combination]()
        sides = dict[str, Side]()
        for fusion in fusions:
            numbers = []
            for form, matrix in zip(
                fusion.forms.values(), fuse_queries(self.queries, fusion, self.query_path), strict=True
            ):
                side, key = repr((form.gallery, form.unit)), repr((form, fusion.parts))
                sides.setdefault(side, (form.gallery, form.unit))
                linear.setdefault(key, LinearScore(matrix, list(sides).index(side)))
                numbers.append(list(linear).index(key))
            scored.append(Combination(fusion.scorer, tuple(numbers)))
        width = next(iter(linear.values())).queries.shape[1]
        return Together(list(linear.values()), scored, self._fused_gallery(list(sides.values()), width))

    def _fused_gallery(self, sides: Sequence[Side], width: int) -> Iterator[list[np.ndarray]]:
        for shard in self.gallery.shards(self.backbone):
            matrices = [fuse(shard, weights, self.gallery_path, unit) for weights, unit in sides]
            for matrix in matrices:
                self.check_width(width, matrix.shape[1])
            yield matrices

    def check_width(self, queries: int, images: int) -> None:
        """Raise CvsiError where vectors of the two tables have different lengths."""
        if queries != images:
            raise CvsiError(f"{self.gallery_path}: vectors of {images} numbers, the queries have {queries}")


def read(frame: pl.DataFrame, gallery: Gallery, backbone: str) -> RunVectors:
    """The vectors of a run for the queries of an index; raises CvsiError where a query has none."""
    where = str(paths.folder("query_vectors", gallery.name, backbone))
    vectors = in_order(frame, tables.whole("query_vectors", gallery.name, backbone), where)
    return RunVectors(gallery, backbone, vectors, tables.schema_of("gallery_vectors", gallery.name, backbone))


def in_order(frame: pl.DataFrame, vectors: pa.Table, where: str) -> pa.Table:
    """Query vectors in the index's order, joined by (`split`, `query_id`); raises CvsiError for a missing one."""
    keys = pl.DataFrame(parquet.fit(vectors, KEY, where)).with_row_index("index")
    joined = frame.select("split", "query_id").join(keys, on=["split", "query_id"], how="left", maintain_order="left")
    missing = joined.filter(pl.col("index").is_null())
    if missing.height:
        raise CvsiError(f"{where}: no vectors for query {missing['query_id'][0]} of split {missing['split'][0]}")
    if joined.height != frame.height:
        raise CvsiError(f"{where}: a query has duplicate vectors; run the stage query_vectors again")
    return vectors.take(joined["index"].to_arrow())


def fuse_queries(table: pa.Table, fusion: Fusion, where: str) -> list[np.ndarray]:
    """One matrix [queries, d] float32 per form of a fusion, in its order, from a table of query vectors."""
    extended = with_parts(table, fusion.parts, where)
    return [fuse(extended, form.query, where, form.unit) for form in fusion.forms.values()]


def fuse(table: pa.Table, weights: Mapping[str, float], where: str, unit: bool = False) -> np.ndarray:
    """The weighted sum of a table's vector columns, [rows, d] float32.

    Raises CvsiError for a column that is missing, has another type or contains a number that is not finite.
    """
    total: Tensor | None = None
    for column, weight in weights.items():
        # Scaled, then added: one operation for both may round the last numbers of an array otherwise than the rest.
        scaled = numbers_of(table, column, where).to(torch.float32, copy=True).mul_(weight)
        total = scaled if total is None else total.add_(scaled)
    if total is None:
        raise CvsiError(f"{where}: all weights are zero; give at least one column a weight in params.yaml")
    if unit:
        total = torch.nn.functional.normalize(total, dim=1, eps=1e-30)  # a zero vector remains zero
    fused: np.ndarray = total.numpy()
    if not np.isfinite(fused).all():
        raise CvsiError(f"{where}: vectors with numbers that are not finite; run the stage that wrote them again")
    return fused
