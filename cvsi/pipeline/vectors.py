"""Images, captions, edits and phi to vectors: the tables `gallery_vectors` and `query_vectors`."""

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from cvsi.core import provenance, schema, tables
from cvsi.core.digest import digest
from cvsi.core.params import Params
from cvsi.core.vector_columns import column
from cvsi.models.clip import template
from cvsi.pipeline.embeddings import Shelves, text_keys, vectors_of
from cvsi.store.rows import Shelf


def gallery(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/gallery_vectors`: `image` and `caption` of every gallery image, float16."""
    dataset = params.dataset(name)
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    captions = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    images = images.filter("in_gallery").join(captions, on="image_id", how="left", maintain_order="left")
    shelves = Shelves(params, backbone, dataset.root)
    shelves.encoder.check_phi(optional=True)  # the queries will need one that fits: better said before the gallery
    shelves.images(images["digest"], images["path"])
    shelves.texts(images["captions"].explode().drop_nulls())
    recipe = {
        "image": shelves.image.recipe,
        "text": shelves.text.recipe,
        "normalize_captions": dataset.normalize_captions,
    }
    recipe |= provenance.inputs("gallery_vectors", name, backbone)
    with tables.output("gallery_vectors", name, backbone, recipe) as out:
        for rows in images.iter_slices(tables.SHARD_ROWS):
            image = unit(vectors_of(shelves.image, rows["digest"]))
            caption = mean_of_texts(shelves.text, rows["captions"])
            caption = unit(caption) if dataset.normalize_captions else caption
            out.shard(
                _table(rows.select("image_id"), image=image, caption=caption),
                schema.gallery_vectors(shelves.encoder.width),
            )


def queries(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/query_vectors`: the five parts of every query, float32."""
    dataset = params.dataset(name)
    asked = _questions(name)
    shelves = Shelves(params, backbone, dataset.root)
    shelves.encoder.check_phi()
    shelves.images(asked["digest"], asked["path"])
    shelves.texts(pl.concat([asked["edited"].explode(), asked["captions"].explode(), asked["instruction"]]))
    pseudo = shelves.open(params, "pseudo")
    shelves.pseudos(pseudo, asked.select("key", "digest", "text"))
    recipe = {"image": shelves.image.recipe, "text": shelves.text.recipe, "pseudo": pseudo.recipe}
    recipe |= provenance.inputs("query_vectors", name, backbone)
    with tables.output("query_vectors", name, backbone, recipe) as out:
        for start in range(0, max(asked.height, 1), tables.SHARD_ROWS):
            rows = asked.slice(start, tables.SHARD_ROWS)
            parts = {
                "edited": mean_of_texts(shelves.text, rows["edited"]),
                "pseudo": vectors_of(pseudo, rows["key"]),
                "reference": unit(vectors_of(shelves.image, rows["digest"])),
                "source": mean_of_texts(shelves.text, rows["captions"]),
                "instruction": vectors_of(shelves.text, text_keys(rows["instruction"])),
            }
            out.shard(_table(rows.select("query_id", "split"), **parts), schema.query_vectors(shelves.encoder.width))


def _questions(name: str) -> pl.DataFrame:
    """The queries with what their parts are made from: the reference's file and captions, the edits, the template."""
    images = pl.DataFrame(tables.read("index", name, "images.parquet")).select("image_id", "digest", "path")
    captions = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    edits = pl.DataFrame(tables.whole("edits", name)).select("split", "query_id", "edited", "added")
    asked = pl.DataFrame(tables.read("index", name, "queries.parquet")).rename({"reference_id": "image_id"})
    asked = asked.join(images.join(captions, on="image_id"), on="image_id", how="left", maintain_order="left")
    asked = asked.join(edits, on=["split", "query_id"], how="left", maintain_order="left")
    texts = [template(*row) for row in asked.select("instruction", "added").iter_rows()]
    keys = [digest(file, text) for file, text in zip(asked["digest"], texts, strict=True)]
    return asked.with_columns(text=pl.Series(texts, dtype=pl.String), key=pl.Series(keys, dtype=pl.String))


def mean_of_texts(shelf: Shelf, lists: pl.Series) -> np.ndarray:
    """For each list of texts the mean of its unit vectors, [rows, d] float32; an empty list gives zeros."""
    exploded = lists.to_frame("text").with_row_index("row").explode("text").drop_nulls("text")
    vectors = torch.from_numpy(vectors_of(shelf, text_keys(exploded["text"])))
    total = torch.zeros(len(lists), vectors.shape[1]).index_add_(
        0, torch.from_numpy(exploded["row"].to_numpy().astype(np.int64)), vectors
    )
    counts = torch.from_numpy(lists.list.len().to_numpy().astype(np.float32)).clamp(min=1)
    return (total / counts.unsqueeze(1)).numpy()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its length."""
    return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1).numpy()


def _table(rows: pl.DataFrame, **parts: np.ndarray) -> pa.Table:
    """Id columns and vector columns as one table; halves are made here, where Arrow's cast would not."""
    table = rows.to_arrow()
    for name, vectors in parts.items():
        table = table.append_column(name, column(vectors))
    return table
