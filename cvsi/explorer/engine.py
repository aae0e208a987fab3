"""A run's artifacts and models to ranked results for new queries.

A query of the dataset (its reference and its instruction) takes the vectors of the stage `query_vectors`, so that its
results are those of `scores` and no model is needed. Other queries get the same components from `components`. The
gallery is fused once and kept in memory where it is not too large. Nothing is written.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import tables
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.statuses import usable
from cvsi.core.vector_columns import column
from cvsi.datasets.base import LONGEST_WORD
from cvsi.datasets.formats import format_of
from cvsi.evaluation import queries, vectors
from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.methods import fusion_of, methods
from cvsi.evaluation.queries import NamedImages, QueryTable
from cvsi.evaluation.ranking import rank
from cvsi.evaluation.vectors import RunVectors, fuse, fuse_queries
from cvsi.explorer.components import Edit, NewQueries
from cvsi.explorer.images import NewImage
from cvsi.explorer.requests import Answer, Request, Result

METHODS = {"text": "text", "like": "image"}  # a text alone, and an image alone, rank as these methods of the report
KEPT_BYTES = 4 << 30  # of fused gallery vectors; a larger gallery is read from disk for each query
# A matrix product of one row rounds otherwise than one of many; with some equal rows it does as in the stage `scores`.
ROWS = 8


class Engine:
    """The search of one run; not to be used by two threads at once."""

    def __init__(self, name: str, params: Params) -> None:
        """Open the run's tables; raises CvsiError where a run, its index or its vectors are missing."""
        run = params.run(name)
        self.params, self.dataset, self.backbone = params, run.dataset, run.backbone
        self.fusion = fusion_of(params, run.dataset)
        self.root = Path(params.dataset(run.dataset).root)
        tables.schema_of("gallery_vectors", run.dataset, run.backbone)  # raises CvsiError where there are none
        images = pl.DataFrame(tables.read("index", run.dataset, "images.parquet"))
        columns = ("image_id", "path", "digest", "in_gallery", "crop")
        self.images = images.select(name for name in columns if name in images.columns)
        self.gallery_images = self.images.filter("in_gallery").select("image_id", "path")
        self.models = NewQueries(run, params)
        self._fused: dict[object, list[np.ndarray]] = {}

    def answer(self, request: Request, told: Callable[[Edit], object] = lambda edit: None) -> Answer:
        """The first `k` images for a request; `told` gets a new edit before the images are ranked.

        Raises CvsiError with one line where there can be none.
        """
        self.models.forget()
        try:
            return self._answer(request, told)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's
                raise
            raise CvsiError("out of GPU memory; stop other programs on it, or lower compute.gpu_memory") from None

    def load(self) -> None:
        """Load every model that a new query needs, and fuse the gallery."""
        self.models.load(list(self.fusion.query_columns))
        list(self._gallery(self.fusion))

    def _answer(self, request: Request, told: Callable[[Edit], object]) -> Answer:
        for text in (request.text, *request.edited):
            _check_words(text)
        ids, image = self._image(request)
        if request.kind != "composed":
            dataset_format = self.params.dataset(self.dataset).format
            fusion = methods(self.params)[METHODS[request.kind]].fusion(dataset_format)
            return Answer(results=self._ranked(fusion, *self._new(fusion, request, image), [], request.k))
        known = self._known(ids, request.text) if not request.edited else None
        if known is not None:
            row, excluded = known
            table = self._vectors.queries.slice(row, 1)
            return Answer(results=self._ranked(self.fusion, table, self._vectors.query_path, excluded, request.k))
        table, edit = self._composed(request, image, told)
        results = self._ranked(self.fusion, table, "new query", self._excluded(ids), request.k)
        fell_back = bool(edit.status) and not usable(edit.status)
        read = {role: tuple(texts) for role, texts in edit.roles.items()}
        return Answer(
            results=results, edited=tuple(edit.edited), status=edit.status, fell_back=fell_back,
            roles=read, reader_status=edit.reader_status,
        )  # fmt: skip

    def _image(self, request: Request) -> tuple[list[str], NewImage | None]:
        """The dataset's images that a request's image is (none, or several with the same content), and the image."""
        if request.kind == "text":
            return [], None
        if request.image:
            image = NewImage.of(request.image)
            return self.images.filter(pl.col("digest") == image.digest)["image_id"].to_list(), image
        found = self.images.filter(pl.col("image_id") == request.image_id)
        if not found.height:
            raise CvsiError(f"{request.image_id[:200]}: no such file, and no such image of dataset {self.dataset}")
        row = found.row(0, named=True)
        return [request.image_id], NewImage.at(self.root / row["path"], row["digest"], row.get("crop"))

    def _known(self, ids: list[str], instruction: str) -> tuple[int, list[str]] | None:
        """The row of the dataset's query with one of these references and this instruction, and what it excludes."""
        frame = self._queries.frame.with_row_index("row")
        own = frame.filter(pl.col("reference_id").is_in(ids) & (pl.col("instruction") == instruction))
        return None if not own.height else (own["row"][0], own["exclude_ids"][0].to_list())

    def _excluded(self, ids: list[str]) -> list[str]:
        """The dataset's images that a new query leaves out: its reference, where the dataset's own queries do."""
        frame = self._queries.frame
        own = pl.col("exclude_ids").list.contains(pl.col("reference_id")).all()
        if frame.height:
            return ids if frame.select(own).item() else []
        return ids if format_of(self.params.dataset(self.dataset), self.dataset).excludes_reference else []

    def _new(self, fusion: Fusion, request: Request, image: NewImage | None) -> tuple[pa.Table, str]:
        """The components of a text alone or an image alone, and what they are called in messages."""
        vectors_of, _ = self.models.vectors(list(fusion.query_columns), image, request.text)
        return _table(vectors_of), "new query"

    def _composed(
        self, request: Request, image: NewImage | None, told: Callable[[Edit], object]
    ) -> tuple[pa.Table, Edit]:
        """The components of an image and a text that have a weight in the fusion."""
        columns = list(self.fusion.query_columns)
        vectors_of, edit = self.models.vectors(columns, image, request.text, request.edited, told)
        return _table(vectors_of), edit

    def _ranked(self, fusion: Fusion, table: pa.Table, where: str, excluded: list[str], k: int) -> tuple[Result, ...]:
        """The first k images by a fusion for a query's components, a table of one row."""
        query = [np.repeat(vectors, ROWS, axis=0) for vectors in fuse_queries(table, fusion, where)]
        ranking = rank(query, self._gallery(fusion, query), self._named(excluded), k=k, scorer=fusion.scorer)
        positions = ranking.positions[0][ranking.positions[0] >= 0]
        found = self.gallery_images[positions] if len(positions) else self.gallery_images.head(0)
        rows = zip(found.iter_rows(), ranking.scores[0], strict=False)
        return tuple(
            Result(rank=number, image_id=image, path=path, score=float(score))
            for number, ((image, path), score) in enumerate(rows, 1)
        )

    def _named(self, excluded: list[str]) -> NamedImages:
        """The gallery positions that are never ranked, for each of the equal rows."""
        frame = self.gallery_images.with_row_index("position").filter(pl.col("image_id").is_in(excluded))
        positions = frame["position"].to_numpy().astype(np.int64)
        rows = np.repeat(np.arange(ROWS), len(positions))
        none = np.full((ROWS, 1), -1, dtype=np.int64)
        return NamedImages(np.column_stack([rows, np.tile(positions, ROWS)]), none, none)

    def _gallery(self, fusion: Fusion, query: list[np.ndarray] | None = None) -> Iterable[list[np.ndarray]]:
        """The gallery fused for each form: kept in memory, or shard by shard where that would be too large."""
        forms = list(fusion.forms.values())
        key = tuple((tuple(form.gallery.items()), form.unit) for form in forms)
        if key not in self._fused:
            width = query[0].shape[1] if query else 0
            if self._vectors.gallery.size * width * 4 * len(forms) > KEPT_BYTES:
                return self._shards(fusion, width)
            self._fused[key] = [np.concatenate(shards) for shards in zip(*self._shards(fusion, width), strict=True)]
        return [self._fused[key]] if self._fused[key] else []

    def _shards(self, fusion: Fusion, width: int) -> Iterator[list[np.ndarray]]:
        """The gallery fused for each form, shard by shard; raises CvsiError where the vectors have another length."""
        for shard in self._vectors.gallery.shards(self.backbone):
            matrices = [
                fuse(shard, form.gallery, self._vectors.gallery_path, form.unit) for form in fusion.forms.values()
            ]
            for matrix in matrices:
                self._vectors.check_width(width or matrix.shape[1], matrix.shape[1])
            yield matrices

    @cached_property
    def _opened(self) -> tuple[QueryTable, RunVectors]:
        table, gallery = queries.read(self.dataset)
        read = vectors.read(table.frame, gallery, self.backbone)
        read.require(self.fusion, self.params.backbone(self.backbone))
        return table, read

    @property
    def _queries(self) -> QueryTable:
        return self._opened[0]

    @property
    def _vectors(self) -> RunVectors:
        return self._opened[1]


def _table(components: dict[str, np.ndarray]) -> pa.Table:
    """Vectors [1, d] by column, as the table of query vectors has them."""
    return pa.table({name: column(matrix) for name, matrix in components.items()})


def _check_words(text: str) -> None:
    """Raise CvsiError for a word that the tokenizer would take very long for."""
    if max(map(len, text.split()), default=0) > LONGEST_WORD:
        raise CvsiError(f"a word of more than {LONGEST_WORD:,} characters; shorten it")
