"""Images, captions, edits and phi to vectors: the tables `gallery_vectors` and `query_vectors`.

Both read the same shelves of the store: projected, un-normalised embeddings by file digest (phi needs them so), unit
vectors by text digest, and pseudo-token vectors by reference, instruction and added objects.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from cvsi import schema, tables
from cvsi.batches import full, length_batches, pixel_batches
from cvsi.encoder import Encoder, template
from cvsi.fusion import matrix_of
from cvsi.params import Params
from cvsi.steps import Compute, Step, fill
from cvsi.store import Shelf, digest


class Shelves:
    """The three shelves of one backbone and the steps that fill them."""

    def __init__(self, params: Params, backbone: str, root: str) -> None:
        """Open the shelves; `root` is the dataset's folder."""
        self.compute, self.root = params.compute, Path(root)
        self.encoder = Encoder(params.backbone(backbone), params.compute)
        rows = schema.stored_vectors(self.encoder.width)
        self.image, self.text, self.pseudo = (
            Shelf(params.store, f"{kind}_vectors", self.encoder.recipe(kind), rows)
            for kind in ("image", "text", "pseudo")
        )

    def images(self, digests: pl.Series, paths: pl.Series) -> None:
        """Fill the image shelf for these files."""
        wanted = pl.DataFrame({"key": digests, "path": paths})
        size = self.compute.image_batch
        step = Step(
            "image", "to embed", "embedded", size * self.compute.block_batches, lambda: self._ready(self._images)
        )
        fill(self.image, step, wanted.unique("key", keep="first", maintain_order=True), wanted.height)

    def texts(self, texts: pl.Series) -> pl.Series:
        """Fill the text shelf for these texts; their keys, in order."""
        keys = text_keys(texts)
        wanted = pl.DataFrame({"key": keys, "text": texts})
        block = self.compute.text_batch * self.compute.block_batches
        step = Step("text", "to encode", "encoded", block, lambda: self._ready(self._texts))
        fill(self.text, step, wanted.unique("key", keep="first", maintain_order=True), wanted.height)
        return keys

    def pseudos(self, wanted: pl.DataFrame) -> None:
        """Fill the pseudo-token shelf for rows of `key`, `digest` of the reference and `text` of the template."""
        block = self.compute.text_batch * self.compute.block_batches
        step = Step("pseudo token", "to encode", "encoded", block, lambda: self._ready(self._pseudos))
        fill(self.pseudo, step, wanted.unique("key", keep="first", maintain_order=True), wanted.height)

    def _images(self, block: pl.DataFrame) -> pa.Table:
        size = self.compute.image_batch
        batches = pixel_batches(self.root, block, size, self.encoder.prepare)
        parts = [self.encoder.images(pixels)[: len(digests)] for pixels, digests in batches]
        return self._rows(block, torch.cat(parts).numpy())

    def _texts(self, block: pl.DataFrame) -> pa.Table:
        texts = block["text"].to_list()
        return self._by_length(block, lambda places: self.encoder.texts([texts[place] for place in places]))

    def _pseudos(self, block: pl.DataFrame) -> pa.Table:
        texts = block["text"].to_list()
        references = torch.from_numpy(matrix_of(self.image.take(block["digest"]), "vector", "image vectors"))

        def encode(places: list[int]) -> torch.Tensor:
            return self.encoder.pseudo([texts[place] for place in places], self.encoder.words(references[places]))

        return self._by_length(block, encode)

    def _by_length(self, block: pl.DataFrame, encode: Callable[[list[int]], torch.Tensor]) -> pa.Table:
        """Encode a block's texts in full batches of like length, back in the block's order."""
        size = self.compute.text_batch
        found = np.empty((block.height, self.encoder.width), dtype=np.float32)
        for places in length_batches(self.encoder.lengths(block["text"].to_list()), size):
            found[places] = encode(full(places, size))[: len(places)].numpy()
        return self._rows(block, found)

    def _rows(self, block: pl.DataFrame, vectors: np.ndarray) -> pa.Table:
        return pa.table([block["key"].to_arrow().cast(pa.string()), column(vectors)], names=["key", "vector"])

    def _ready(self, compute: Compute) -> Compute:
        """Load the model now, so that its time counts as loading."""
        _ = self.encoder.model
        return compute


def gallery(name: str, backbone: str, params: Params) -> None:
    """Write `cache/<name>/<backbone>/gallery_vectors`: `image` and `caption` of every gallery image, float16."""
    dataset = params.dataset(name)
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    captions = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    images = images.filter("in_gallery").join(captions, on="image_id", how="left", maintain_order="left")
    shelves = Shelves(params, backbone, dataset.root)
    shelves.images(images["digest"], images["path"])
    shelves.texts(images["captions"].explode().drop_nulls())
    recipe = {
        "image": shelves.image.recipe,
        "text": shelves.text.recipe,
        "normalize_captions": dataset.normalize_captions,
    }
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
    shelves.pseudos(asked.select("key", "digest", "text"))
    recipe = {"image": shelves.image.recipe, "text": shelves.text.recipe, "pseudo": shelves.pseudo.recipe}
    with tables.output("query_vectors", name, backbone, recipe) as out:
        for start in range(0, max(asked.height, 1), tables.SHARD_ROWS):
            rows = asked.slice(start, tables.SHARD_ROWS)
            parts = {
                "edited": mean_of_texts(shelves.text, rows["edited"]),
                "pseudo": vectors_of(shelves.pseudo, rows["key"]),
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


def text_keys(texts: pl.Series) -> pl.Series:
    """The store's keys of texts, in order."""
    return pl.Series([digest(text) for text in texts], dtype=pl.String)


def vectors_of(shelf: Shelf, keys: pl.Series) -> np.ndarray:
    """The vectors of these keys, [rows, d] float32."""
    return matrix_of(shelf.take(keys), "vector", shelf.kind)


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


def column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix [rows, d] as an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def _table(rows: pl.DataFrame, **parts: np.ndarray) -> pa.Table:
    """Id columns and vector columns as one table; halves are made here, where Arrow's cast would not."""
    table = rows.to_arrow()
    for name, vectors in parts.items():
        table = table.append_column(name, column(vectors))
    return table
