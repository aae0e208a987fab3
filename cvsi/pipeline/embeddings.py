"""Images, texts and pseudo tokens to vectors in the store: one backbone's rows, each computed once.

Image rows are the projected, un-normalised embeddings by file digest (phi needs them so), text rows are unit vectors by
text digest, pseudo-token rows are unit vectors by reference image and sentence. Gallery and query vectors read them.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import schema
from cvsi.core.devices import device_kind, precision
from cvsi.core.digest import digest
from cvsi.core.params import Backbone
from cvsi.core.run_log import timed
from cvsi.models.batching import pool
from cvsi.models.encoder import load_encoder, recipe_of, width_of
from cvsi.pipeline.image_loader import ImageLoader
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.rows import RowStore

if TYPE_CHECKING:  # torch takes seconds to import, and is needed only where vectors are computed or read
    import torch

    from cvsi.models.encoder import BackboneEncoder

TEXT_BATCHES = 16  # a block of texts has so many times the batches of a block of images: a text takes far less time
Rows = Callable[[str], pl.DataFrame]


@dataclass(frozen=True)
class VectorJob(RowJob):
    """Rows of one backbone; `source`, a function of a module, returns the wanted rows of the dataset `dataset`."""

    backbone: Backbone
    dataset: str
    source: Rows

    @property
    def schema(self) -> pa.Schema:
        """`key` and `vector`, float32 of the backbone's width."""
        return schema.stored_vectors(width_of(self.backbone))

    def recipe(self) -> dict[str, Any]:
        """The backbone's recipe of this kind of rows."""
        used = precision(self.backbone.precision, device_kind(self.compute))
        return recipe_of(self.backbone, self.kind.removesuffix("_vectors"), used)

    def wanted(self) -> pl.DataFrame:
        """The rows of the stage's tables."""
        return self.source(self.dataset)

    def encoder(self, worker: int) -> "BackboneEncoder":
        """The backbone, loaded now so that its time counts as loading."""
        encoder = load_encoder(self.backbone, self.compute, worker)
        encoder.load()
        return encoder


@dataclass(frozen=True)
class ImageVectorJob(VectorJob):
    """Image embeddings; wanted rows have `key` (the file's digest) and `path` below `root`."""

    kind: ClassVar[str] = "image_vectors"
    words: ClassVar[Words] = Words("image", "to embed", "embedded")

    root: Path

    @property
    def block_rows(self) -> int:
        """Several batches of images."""
        return self.compute.image_batch * self.compute.block_batches

    @property
    def memory_advice(self) -> str:
        """The batch size."""
        return f"compute.image_batch (now {self.compute.image_batch})"

    def load(self, worker: int) -> BlockWorker:
        """Load the backbone; a block is read as files, batch by batch."""
        encoder = self.encoder(worker)
        size, ahead = self.compute.image_batch, encoder.device.type != "cpu"

        def compute(images: "ImageLoader[torch.Tensor]") -> pa.Table:
            vectors = [encoder.image_embeddings(batch) for batch, _ in images.batches()]
            return _rows(images.block, np.concatenate([batch.numpy() for batch in vectors]))

        return BlockWorker(compute, lambda block: ImageLoader(self.root, block, size, encoder.prepare, ahead))


@dataclass(frozen=True)
class TextVectorJob(VectorJob):
    """Text vectors; wanted rows have `key` (the text's digest) and `text`."""

    kind: ClassVar[str] = "text_vectors"
    words: ClassVar[Words] = Words("text", "to embed", "embedded")

    @property
    def block_rows(self) -> int:
        """Enough batches that most of them are full of texts of one length."""
        return self.compute.text_batch * self.compute.block_batches * TEXT_BATCHES

    @property
    def memory_advice(self) -> str:
        """The batch size."""
        return f"compute.text_batch (now {self.compute.text_batch})"

    def load(self, worker: int) -> BlockWorker:
        """Load the backbone; the next block's texts are tokenised while one is computed."""
        encoder = self.encoder(worker)

        def prefetch(block: pl.DataFrame) -> "tuple[pl.DataFrame, Future[torch.Tensor]]":
            return block, pool().submit(encoder.tokens, block["text"].to_list())

        def compute(ready: "tuple[pl.DataFrame, Future[torch.Tensor]]") -> pa.Table:
            block, pending = ready
            with timed("read"):
                tokens = pending.result()
            return _rows(block, encoder.text_vectors(tokens, self.images_of(block)).numpy())

        return BlockWorker(compute, prefetch)

    def images_of(self, block: pl.DataFrame) -> "torch.Tensor | None":
        """The image embeddings that phi reads; none for plain texts."""
        return None


@dataclass(frozen=True)
class PseudoTokenJob(TextVectorJob):
    """Vectors of sentences with a pseudo token; wanted rows have `key`, `text` and the reference's `digest`.

    A block is completed with the image embeddings of its references, so it can be computed anywhere.
    """

    kind: ClassVar[str] = "pseudo_vectors"
    words: ClassVar[Words] = Words("pseudo token", "to embed", "embedded")

    def complete(self, block: pl.DataFrame) -> pl.DataFrame:
        """Add the image embeddings as the column `image`."""
        return block.with_columns(image=pl.Series(self._images.get(block["digest"])["vector"]))

    @cached_property
    def _images(self) -> RowStore:
        """The image embeddings, opened once: that identifies the backbone by its files, which takes long."""
        return ImageVectorJob(self.compute, self.store, self.backbone, self.dataset, self.source, Path()).rows()

    def images_of(self, block: pl.DataFrame) -> "torch.Tensor | None":
        """The image embeddings of the references, [rows, d]."""
        import torch

        return torch.from_numpy(block["image"].to_numpy().copy())


@dataclass(frozen=True)
class ComposedJob(ImageVectorJob):
    """Vectors of images with instructions, by a backbone that embeds both together.

    Wanted rows have `key`, `text`, and of the reference image its `digest` and `path` below `root`, and `crop` where
    images have it.
    """

    kind: ClassVar[str] = "composed_vectors"
    words: ClassVar[Words] = Words("composed query", "to embed", "embedded")

    def load(self, worker: int) -> BlockWorker:
        """Load the backbone; a block's images are read batch by batch."""
        encoder = self.encoder(worker)
        size, ahead = self.compute.image_batch, encoder.device.type != "cpu"

        def prefetch(block: pl.DataFrame) -> "tuple[pl.DataFrame, ImageLoader[Any]]":
            images = block.drop("key", "text").rename({"digest": "key"})
            return block, ImageLoader(self.root, images, size, encoder.prepare, ahead)

        def compute(ready: "tuple[pl.DataFrame, ImageLoader[Any]]") -> pa.Table:
            block, images = ready
            texts = (part["text"].to_list() for part in block.iter_slices(size))
            batches = zip(images.batches(), texts, strict=True)
            vectors = [encoder.composed_vectors(batch, instructions) for (batch, _), instructions in batches]
            return _rows(block, np.concatenate([batch.numpy() for batch in vectors]))

        return BlockWorker(compute, prefetch)


@dataclass(frozen=True)
class Embeddings:
    """The stored vectors of one backbone, looked up by a file's digest, a text, or both.

    `pseudo` is None for a table without pseudo tokens, `composed` for one of a backbone that composes nothing.
    """

    image: RowStore
    text: RowStore
    pseudo: RowStore | None = None
    composed: RowStore | None = None

    def images(self, digests: pl.Series) -> np.ndarray:
        """Un-normalised image embeddings, [rows, d] float32."""
        return _vectors(self.image, digests)

    def texts(self, texts: pl.Series) -> np.ndarray:
        """Unit vectors of texts, [rows, d] float32."""
        return _vectors(self.text, text_keys(texts))

    def pseudo_tokens(self, digests: pl.Series, sentences: pl.Series) -> np.ndarray:
        """Unit vectors of sentences with the pseudo tokens of these image files, [rows, d] float32."""
        assert self.pseudo is not None, "the table was made without pseudo tokens"
        return _vectors(self.pseudo, pair_keys(digests, sentences))

    def composed_queries(self, digests: pl.Series, instructions: pl.Series) -> np.ndarray:
        """Unit vectors of these image files with their instructions, [rows, d] float32."""
        assert self.composed is not None, "the table was made without composed queries"
        return _vectors(self.composed, pair_keys(digests, instructions))


def text_rows(texts: pl.Series) -> pl.DataFrame:
    """Texts as the wanted rows of a `TextVectorJob`, nulls left out."""
    texts = texts.drop_nulls()
    return pl.DataFrame({"key": text_keys(texts), "text": texts})


def text_keys(texts: pl.Series) -> pl.Series:
    """The store's keys of texts, in order."""
    return pl.Series([digest(text) for text in texts], dtype=pl.String)


def pair_keys(digests: pl.Series, texts: pl.Series) -> pl.Series:
    """The store's keys of image files with a text each (a sentence with a pseudo token, an instruction), in order."""
    return pl.Series([digest(*pair) for pair in zip(digests, texts, strict=True)], dtype=pl.String)


def _vectors(rows: RowStore, keys: pl.Series) -> np.ndarray:
    from cvsi.core.vector_columns import matrix_of

    return matrix_of(rows.get(keys), "vector", rows.kind)


def _rows(block: pl.DataFrame, vectors: np.ndarray) -> pa.Table:
    from cvsi.core.vector_columns import column

    return pa.table([block["key"].to_arrow().cast(pa.string()), column(vectors)], names=["key", "vector"])
