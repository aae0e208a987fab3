"""The components of one new query: captions, edit and vectors from the store, else by models that stay loaded.

The inputs of a component decide which models run: a fusion without captions and edits needs the backbone alone. What
is computed here is kept in memory; nothing is written.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import tables
from cvsi.core.console import redirect_output
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params, Run
from cvsi.core.paths import libraries_log
from cvsi.explorer.images import NewImage
from cvsi.models.captioner import Captioner
from cvsi.models.encoder import BackboneEncoder, load_encoder
from cvsi.models.engines import captioner_engine, reader_engine
from cvsi.models.reader import Reader, image_url
from cvsi.pipeline.captions import caption_job
from cvsi.pipeline.components import COMPUTED, QUERY_COMPONENTS, Component, Role
from cvsi.pipeline.edits import edit_job, with_keys
from cvsi.pipeline.embeddings import Embeddings, pair_keys, text_rows
from cvsi.pipeline.readings import ReadingJob, reading_job, roles_of
from cvsi.pipeline.vectors import query_jobs
from cvsi.store.jobs import BlockWorker, Interrupted, RowJob
from cvsi.store.rows import RowStore

if TYPE_CHECKING:  # torch takes seconds to import, and is needed only where vectors are computed
    import torch

KEPT = 1_000  # computed rows of a kind in memory; a query has some tens
# One query at a time: batches are filled up to their size, which would only take longer. No result depends on it.
SMALL = {"caption_batch": 1, "image_batch": 1, "text_batch": 4, "workers": 1}
EDITED = frozenset({"edited", "added"})  # the columns that the editor computes
READ = pl.Schema([("digest", pl.String), ("captions", pl.List(pl.String)), ("instruction", pl.String)])
CAPTIONS = pl.Schema([("captions", pl.List(pl.String)), ("instruction", pl.String)])


class Edit(NamedTuple):
    """The edited texts, the added objects, and the status of the answers (empty where no model was called).

    `roles` are the texts by role and `reader_status` is their status, where the fusion uses those of a reader.
    """

    edited: list[str]
    added: str = ""
    status: str = ""
    roles: Mapping[str, list[str]] = MappingProxyType({})
    reader_status: str = ""


class KeptRows(RowStore):
    """The rows of a job: those of the store, and those computed here, which are kept in memory and never stored."""

    def __init__(self, job: RowJob) -> None:
        """Open the job's rows; raises CvsiError where its model cannot be identified."""
        super().__init__(job.store.path, job.kind, job.recipe(), job.schema)

    def ensure(self, wanted: pl.DataFrame, compute: Callable[[pl.DataFrame], pa.Table]) -> None:
        """Compute the wanted rows (a `key` each, and the inputs) that neither the store nor the memory has."""
        distinct = wanted.unique("key", keep="first", maintain_order=True)
        missing = self.missing(distinct["key"])
        todo = missing.filter(~missing.is_in(pl.Series(self._held["key"], dtype=pl.String).implode()))
        if todo.len():
            self.hold(compute(distinct.filter(pl.col("key").is_in(todo.implode()))))

    def forget(self, above: int = KEPT) -> None:
        """Drop the computed rows where there are more than `above`."""
        if self._held.num_rows > above:
            self._held = self.schema.empty_table()


class NewQueries:
    """The query components of one run for new images and texts."""

    def __init__(self, run: Run, params: Params) -> None:
        """Keep the settings; models are loaded and the store is opened when they are needed."""
        self.params = params.model_copy(update={"compute": params.compute.model_copy(update=SMALL)})
        self.name, self.backbone = run.dataset, run.backbone

    def vectors(
        self, columns: Sequence[str], image: NewImage | None, instruction: str, edited: Sequence[str] = (),
        told: Callable[[Edit], object] = lambda edit: None,
    ) -> tuple[dict[str, np.ndarray], Edit]:  # fmt: skip
        """One vector [1, d] float32 per column of the query vectors, and the edit that was used.

        `told` gets the edit before anything is embedded.
        Raises CvsiError for a column that no component computes, and where a model cannot be loaded.
        """
        components = {name: self._component(name) for name in columns}
        reads = frozenset[str]().union(*(component.reads for component in components.values()))
        row: dict[str, Any] = {"instruction": instruction, "digest": image.digest if image else None}
        roles, of_edit = reads - COMPUTED, reads & EDITED and not edited
        edit, captions = Edit(list(edited)), list[str]()
        if image and ("captions" in reads or of_edit or (roles and self._reads_captions)):
            captions = self.captions(image)
        if image and of_edit:
            edit = self.edit(captions, instruction)
        if image and roles:
            edit = self.reading(edit, image, captions, instruction)
        told(edit)
        row |= {"captions": captions, "edited": edit.edited, "added": edit.added, **edit.roles}
        lists = {name: pl.List(pl.String) for name in ("captions", "edited", *edit.roles)}
        rows = pl.DataFrame([row], schema_overrides={"digest": pl.String, "added": pl.String, **lists})
        embeddings = self._embeddings(components.values(), rows, image)
        return {name: component.vectors(rows, embeddings) for name, component in components.items()}, edit

    def load(self, columns: Sequence[str]) -> None:
        """Load every model that a new query of these columns needs; the language model first, as it claims memory."""
        components = [self._component(name) for name in columns]
        reads = frozenset[str]().union(*(component.reads for component in components))
        if reads & EDITED:
            _ = self._editor
        roles = reads - COMPUTED
        if roles:
            _ = self._reader
        if reads & COMPUTED or (roles and self._reads_captions):
            _ = self._captioner
        self._encoder.load()
        if any(component.uses_phi for component in components):
            _ = self._pseudo_rows  # raises CvsiError where there is no phi

    def forget(self) -> None:
        """Drop computed rows where they are many."""
        for name in (
            "_caption_rows",
            "_edit_rows",
            "_reading_rows",
            "_image_rows",
            "_text_rows",
            "_pseudo_rows",
            "_composed_rows",
        ):
            if (rows := vars(self).get(name)) is not None:
                rows.forget()

    def captions(self, image: NewImage) -> list[str]:
        """The captions of an image: the dataset's, the store's, or new ones."""
        known = self._known_captions.filter(pl.col("digest") == image.digest)
        if known.height:
            return known["captions"][0].to_list()  # type: ignore[no-any-return]

        def compute(block: pl.DataFrame) -> pa.Table:
            prepared = [image.use(self._captioner.prepare)]
            return self._caption_job.rows_of(self._captioner, prepared, block["key"].to_list())

        keys = pl.DataFrame({"key": [image.digest]})
        try:
            self._caption_rows.ensure(keys, compute)
        except Interrupted as end:
            raise (end.__cause__ or end) from None
        stored = self._caption_rows.get(keys["key"])
        if not self._caption_job.permanent(stored).num_rows:
            self._caption_rows.forget(0)  # a failure that may pass: the next query asks again
        return self._caption_job.columns(stored)["captions"][0].as_py()  # type: ignore[no-any-return]

    def edit(self, captions: Sequence[str], instruction: str) -> Edit:
        """The edit of captions by an instruction: the store's, or the language model's answers, parsed."""
        query = {"captions": list(captions), "instruction": instruction}
        block = with_keys(pl.DataFrame([query], schema=CAPTIONS))
        try:
            self._edit_rows.ensure(block, lambda missing: self._editor.compute(missing))
        except Interrupted as end:
            raise (end.__cause__ or end) from None
        stored = self._edit_rows.get(block["key"])
        if not self._edit_job.permanent(stored).num_rows:
            self._edit_rows.forget(0)  # a failure that may pass: the next query asks again
        row = self._edit_job.parsed(stored.select(["answers", "finish", "status"]).to_pylist()[0] | query)
        return Edit(row["edited"], row["added"], row["status"])

    def reading(self, edit: Edit, image: NewImage, captions: Sequence[str], instruction: str) -> Edit:
        """An edit with the texts by role of an image: the store's, or the reader's answer, parsed."""
        job = self._reading_job
        query = {"digest": image.digest, "captions": list(captions), "instruction": instruction}
        block = job.with_keys(pl.DataFrame([query], schema=READ))
        url = "" if self._reads_captions else image.use(lambda picture: image_url(picture, job.settings))
        try:
            self._reading_rows.ensure(block, lambda missing: job.read(self._reader, missing, [(url, "")]))
        except Interrupted as end:
            raise (end.__cause__ or end) from None
        stored = self._reading_rows.get(block["key"])
        if not job.permanent(stored).num_rows:
            self._reading_rows.forget(0)  # a failure that may pass: the next query asks again
        row = job.parsed(stored.select(["answers", "finish"]).to_pylist()[0] | query)
        return edit._replace(roles={role: row[role] for role in job.roles}, reader_status=row["reader_status"])

    def _component(self, name: str) -> Component:
        if name in self._roles:
            return Role(name)
        if name not in QUERY_COMPONENTS.names():
            raise CvsiError(
                f"datasets.{self.name}.fusion: no component computes '{name}', so only queries of the dataset can be "
                "searched"
            )
        return QUERY_COMPONENTS.get(name, f"datasets.{self.name}.fusion")

    def _embeddings(self, components: Any, rows: pl.DataFrame, image: NewImage | None) -> Embeddings:
        """The vectors that components look up, computed where they are missing."""
        chosen = list(components)
        images, texts = self._image_rows, self._text_rows
        # Without a weight for a pseudo token, a backbone needs no phi.
        pseudo = self._pseudo_rows if any(component.uses_phi for component in chosen) else None
        composed = self._composed_rows if any(component.composes for component in chosen) else None
        embeddings = Embeddings(images, texts, pseudo, composed)
        if image is not None and not all(component.composes for component in chosen):
            images.ensure(pl.DataFrame({"key": [image.digest]}), lambda block: self._image_vector(block, image))
        wanted = text_rows(pl.concat([component.texts(rows).rename("text") for component in chosen]))
        texts.ensure(wanted, lambda block: self._text_vectors(block, None))
        for component in chosen:
            if pseudo is None or not component.uses_phi:
                continue
            text = component.sentences(rows)
            keys = pair_keys(rows["digest"], text)
            sentences = pl.DataFrame({"key": keys, "digest": rows["digest"], "text": text})
            pseudo.ensure(sentences, lambda block: self._text_vectors(block, embeddings.images(block["digest"])))
        if composed is not None and image is not None:
            pairs = pl.DataFrame({"key": pair_keys(rows["digest"], rows["instruction"]), "text": rows["instruction"]})
            composed.ensure(pairs, lambda block: self._composed_vector(block, image))
        return embeddings

    def _composed_vector(self, block: pl.DataFrame, image: NewImage) -> pa.Table:
        prepared = image.use(self._encoder.prepare)
        return _vector_table(block["key"], self._encoder.composed_vectors([prepared], block["text"].to_list()))

    def _image_vector(self, block: pl.DataFrame, image: NewImage) -> pa.Table:
        prepared = image.use(self._encoder.prepare)
        return _vector_table(block["key"], self._encoder.image_embeddings([prepared]))

    def _text_vectors(self, block: pl.DataFrame, images: np.ndarray | None) -> pa.Table:
        import torch

        tokens = self._encoder.tokens(block["text"].to_list())
        return _vector_table(
            block["key"], self._encoder.text_vectors(tokens, None if images is None else torch.from_numpy(images))
        )

    @cached_property
    def _known_captions(self) -> pl.DataFrame:
        """`digest` and `captions` of the dataset's images; none where the stage did not run."""
        if not tables.exists("captions", self.name):
            return pl.DataFrame(schema={"digest": pl.String, "captions": pl.List(pl.String)})
        return pl.DataFrame(tables.whole("captions", self.name)).select("digest", "captions")

    @cached_property
    def _caption_job(self) -> Any:
        return caption_job(self.name, self.params)

    @cached_property
    def _caption_rows(self) -> KeptRows:
        return KeptRows(self._caption_job)

    @cached_property
    def _edit_job(self) -> Any:
        return edit_job(self.name, self.params)

    @cached_property
    def _edit_rows(self) -> KeptRows:
        return KeptRows(self._edit_job)

    @cached_property
    def _roles(self) -> list[str]:
        """The roles of the dataset's reader; none without one."""
        return roles_of(self.params.dataset(self.name), self.name)

    @cached_property
    def _reading_job(self) -> ReadingJob:
        job = reading_job(self.name, self.params)
        assert job is not None  # only columns of its roles lead here
        return job

    @property
    def _reads_captions(self) -> bool:
        return self._reading_job.settings.sees == "captions"

    @cached_property
    def _reading_rows(self) -> KeptRows:
        return KeptRows(self._reading_job)

    @cached_property
    def _vector_jobs(self) -> dict[str, RowJob]:
        """The jobs of the stage's vectors, by kind."""
        return {job.kind: job for job in query_jobs(self.name, self.backbone, self.params)}

    @cached_property
    def _image_rows(self) -> KeptRows:
        return KeptRows(self._vector_jobs["image_vectors"])

    @cached_property
    def _text_rows(self) -> KeptRows:
        return KeptRows(self._vector_jobs["text_vectors"])

    @cached_property
    def _pseudo_rows(self) -> KeptRows:
        """The rows of pseudo tokens; raises CvsiError where the backbone has no phi, or its file is missing."""
        if "pseudo_vectors" not in self._vector_jobs:
            raise CvsiError(f"backbones.{self.backbone}: no phi, which a pseudo token needs")
        return KeptRows(self._vector_jobs["pseudo_vectors"])

    @cached_property
    def _composed_rows(self) -> KeptRows:
        """The rows of composed queries; raises CvsiError for a backbone whose kind makes none."""
        if "composed_vectors" not in self._vector_jobs:
            raise CvsiError(f"backbones.{self.backbone}: its kind makes no composed vectors; choose another fusion")
        return KeptRows(self._vector_jobs["composed_vectors"])

    @cached_property
    def _captioner(self) -> Captioner[Any]:
        settings = self._caption_job.settings
        with redirect_output(libraries_log()):
            model: Captioner[Any] = captioner_engine(settings).load(settings, self.params.compute, 0)
        return model

    @cached_property
    def _editor(self) -> BlockWorker:
        with redirect_output(libraries_log()):
            worker: BlockWorker = self._edit_job.load(0)
        return worker

    @cached_property
    def _reader(self) -> Reader:
        job = self._reading_job
        job.check_prompt()
        with redirect_output(libraries_log()):
            reader: Reader = reader_engine(job.settings).load(job.settings, self.params.compute, 0)
        return reader

    @cached_property
    def _encoder(self) -> BackboneEncoder:
        """The backbone; raises CvsiError where its weights are missing or do not fit."""
        encoder = load_encoder(self.params.backbone(self.backbone), self.params.compute)
        with redirect_output(libraries_log()):
            encoder.load()
        return encoder


def _vector_table(keys: pl.Series, vectors: "torch.Tensor") -> pa.Table:
    from cvsi.core.vector_columns import column

    return pa.table([keys.to_arrow().cast(pa.string()), column(vectors.numpy())], names=["key", "vector"])
