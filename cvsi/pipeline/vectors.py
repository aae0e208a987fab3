"""Images, captions, edits and phi to vectors: the tables `gallery_vectors` and `query_vectors`."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import parquet, provenance, schema, tables
from cvsi.core.console import info
from cvsi.core.params import Backbone, Params
from cvsi.models.clip import TEMPLATES
from cvsi.models.encoder import composes, kind_of, width_of
from cvsi.pipeline.components import GALLERY_COMPONENTS, QUERY_COMPONENTS, Component, Role, unit
from cvsi.pipeline.embeddings import (
    ComposedJob,
    Embeddings,
    ImageVectorJob,
    PseudoTokenJob,
    Rows,
    TextVectorJob,
    VectorJob,
    pair_keys,
    text_rows,
)
from cvsi.pipeline.image_loader import image_rows
from cvsi.pipeline.second_reference import second_references, with_second_captions, with_second_files
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store


def gallery_jobs(name: str, backbone: str, params: Params) -> list[VectorJob]:
    """The jobs of a gallery's vectors: images and captions."""
    return _jobs(name, backbone, params, gallery_images, gallery_texts)


def query_jobs(name: str, backbone: str, params: Params) -> list[VectorJob]:
    """The jobs of the queries' vectors: reference images and texts, and what this backbone makes besides.

    That is pseudo tokens where it has a phi, and composed queries where its kind makes them.
    """
    settings, store = params.backbone(backbone), Store(Path(params.store))
    jobs: list[VectorJob] = _jobs(name, backbone, params, query_images, query_texts)
    if settings.phi is not None:
        jobs.append(PseudoTokenJob(params.compute, store, settings, name, query_sentences))
    if composes(settings):
        root = Path(params.dataset(name).root)
        jobs.append(ComposedJob(params.compute, store, settings, name, query_pairs, root))
    return jobs


def write_gallery(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/gallery_vectors`: one column per gallery component, float16, one row per image."""
    dataset = params.dataset(name)
    embeddings = _compute(gallery_jobs(name, backbone, params))
    images = gallery_rows(name)
    recipe = _recipes(embeddings) | {"normalize_captions": dataset.normalize_captions}
    recipe |= provenance.inputs("gallery_vectors", name, backbone)
    columns = schema.gallery_vectors(width_of(params.backbone(backbone)), GALLERY_COMPONENTS.names())
    with tables.output("gallery_vectors", name, backbone, recipe) as out:
        for rows in images.iter_slices(parquet.SHARD_ROWS):
            vectors = {part: component.vectors(rows, embeddings) for part, component in GALLERY_COMPONENTS}
            if dataset.normalize_captions:
                vectors["caption"] = unit(vectors["caption"])
            out.shard(_table(rows.select("image_id"), vectors), columns)


def write_queries(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/query_vectors`: one column per query component and role, float32, a row per query.

    Components that use phi are left out where the backbone has none, the composed one where its kind makes none, roles
    where the edits have none.
    """
    settings = params.backbone(backbone)
    components = query_components(settings) | role_components(name)
    embeddings = _compute(query_jobs(name, backbone, params))
    queries = query_rows(name)
    recipe = _recipes(embeddings) | ({} if settings.phi is None else {"templates": TEMPLATES})
    recipe |= provenance.inputs("query_vectors", name, backbone)
    columns = schema.query_vectors(width_of(settings), list(components))
    with tables.output("query_vectors", name, backbone, recipe) as out:
        for start in range(0, max(queries.height, 1), parquet.SHARD_ROWS):
            rows = queries.slice(start, parquet.SHARD_ROWS)
            vectors = {part: component.vectors(rows, embeddings) for part, component in components.items()}
            out.shard(_table(rows.select("query_id", "split"), vectors), columns)


def query_components(backbone: Backbone) -> dict[str, Component]:
    """The query components that a backbone can compute, by name: without phi, those that do not use it."""
    composed = composes(backbone)
    every = {part: component for part, component in QUERY_COMPONENTS if composed or not component.composes}
    left_out = [part for part, component in every.items() if component.uses_phi and backbone.phi is None]
    if left_out:
        info(f"the backbone has no phi: no column {', '.join(left_out)}")
    return {part: component for part, component in every.items() if part not in left_out}


def role_components(name: str) -> dict[str, Component]:
    """The components of the roles that a dataset's edits have texts of, by name; none without a reader."""
    return {role: Role(role) for role in schema.roles_in(tables.schema_of("edits", name))}


def gallery_rows(name: str) -> pl.DataFrame:
    """The gallery images with their captions, in the index's order."""
    images = pl.DataFrame(tables.read("index", name, "images.parquet")).filter("in_gallery")
    captions = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    return images.join(captions, on="image_id", how="left", maintain_order="left")


def gallery_images(name: str) -> pl.DataFrame:
    """The wanted image rows of a gallery, as `image_rows`."""
    return image_rows(pl.DataFrame(tables.read("index", name, "images.parquet")).filter("in_gallery"))


def gallery_texts(name: str) -> pl.DataFrame:
    """The wanted text rows of a gallery: `key`, `text`."""
    return _texts(dict(GALLERY_COMPONENTS), gallery_rows(name))


def query_rows(name: str) -> pl.DataFrame:
    """The queries with the inputs of their components: the reference image's file and captions, and the edits."""
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    images = images.select(name for name in ("image_id", "digest", "path", "crop") if name in images.columns)
    captions = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    roles = role_components(name)
    edits = pl.DataFrame(tables.whole("edits", name)).select("split", "query_id", "edited", "added", *roles)
    queries = pl.DataFrame(tables.read("index", name, "queries.parquet"))
    references = images.join(captions, on="image_id").rename({"image_id": "reference_id"})
    queries = queries.join(references, on="reference_id", how="left", maintain_order="left")
    queries = with_second_captions(with_second_files(queries, images), captions)
    return queries.join(edits, on=["split", "query_id"], how="left", maintain_order="left")


def query_images(name: str) -> pl.DataFrame:
    """The wanted image rows of the queries' reference images, as `image_rows`."""
    rows = query_rows(name)
    return pl.concat([image_rows(part) for part in (rows, second_references(rows))])


def query_texts(name: str) -> pl.DataFrame:
    """The wanted text rows of the queries: `key`, `text`."""
    return _texts(dict(QUERY_COMPONENTS) | role_components(name), query_rows(name))


def query_sentences(name: str) -> pl.DataFrame:
    """The wanted pseudo-token rows of the queries: `key`, `digest` of the reference image, `text`."""
    first = query_rows(name)
    parts = []
    for _, component in QUERY_COMPONENTS:
        for rows in (first, second_references(first)) if component.uses_phi else ():
            text = component.sentences(rows)
            keys = pair_keys(rows["digest"], text)
            parts.append(pl.DataFrame({"key": keys, "digest": rows["digest"], "text": text}))
    return pl.concat(parts)


def query_pairs(name: str) -> pl.DataFrame:
    """The wanted composed rows of the queries: `key`, `text`, and the reference image's `digest`, `path` and `crop`."""
    first = query_rows(name)
    rows = pl.concat([part.select(first.columns) for part in (first, second_references(first))])
    files = [column for column in ("digest", "path", "crop") if column in rows.columns]
    keys = pair_keys(rows["digest"], rows["instruction"]).alias("key")
    return rows.select(keys, pl.col("instruction").alias("text"), *files)


def _texts(components: Mapping[str, Component], rows: pl.DataFrame) -> pl.DataFrame:
    return text_rows(pl.concat([component.texts(rows).rename("text") for component in components.values()]))


def _jobs(name: str, backbone: str, params: Params, images: Rows, texts: Rows) -> list[VectorJob]:
    settings, store = params.backbone(backbone), Store(Path(params.store))
    kind_of(settings, f"backbones.{backbone}")  # raises CvsiError for a wrong key, by the backbone's name
    root = Path(params.dataset(name).root)
    return [
        ImageVectorJob(params.compute, store, settings, name, images, root),
        TextVectorJob(params.compute, store, settings, name, texts),
    ]


def _compute(jobs: list[VectorJob]) -> Embeddings:
    """Compute what is missing, job by job."""
    opened = [job.rows() for job in jobs]  # raises CvsiError for a missing model or phi before any long work
    rows = {job.kind: compute_missing(job, rows) for job, rows in zip(jobs, opened, strict=True)}
    return Embeddings(**{kind.removesuffix("_vectors"): computed for kind, computed in rows.items()})


def _recipes(embeddings: Embeddings) -> dict[str, Any]:
    """The recipe of each kind of rows that a table is made from."""
    rows = {field.name: getattr(embeddings, field.name) for field in fields(embeddings)}
    return {kind: store.recipe for kind, store in rows.items() if store is not None}


def _table(rows: pl.DataFrame, vectors: Mapping[str, np.ndarray]) -> pa.Table:
    """Id columns and vector columns as one table."""
    from cvsi.core.vector_columns import column

    table = rows.to_arrow()
    for name, matrix in vectors.items():
        table = table.append_column(name, column(matrix))
    return table
