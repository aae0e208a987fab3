"""Pictures, texts and pseudo tokens to rows of the store: one backbone's vectors, each computed once.

Projected, un-normalised embeddings by file digest (phi needs them so), unit vectors by text digest, and pseudo-token
vectors by reference and sentence; the tables of gallery and query vectors both read them.
"""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from cvsi import schema
from cvsi.batches import Pictures, full, length_batches, pool
from cvsi.encoder import Encoder
from cvsi.fusion import matrix_of
from cvsi.params import Params
from cvsi.runs import spending
from cvsi.steps import Step, Work, fill
from cvsi.store import Shelf, digest

SORTED_BLOCKS = 16  # that many blocks of texts are sorted by length together


class Shelves:
    """The shelves of one backbone and the steps that fill them."""

    def __init__(self, params: Params, backbone: str, root: str) -> None:
        """Open the shelves; `root` is the dataset's folder."""
        self.compute, self.root = params.compute, Path(root)
        self.backbone = params.backbone(backbone)
        self.encoder = Encoder(self.backbone, params.compute)
        self.image, self.text = self.open(params, "image"), self.open(params, "text")

    def open(self, params: Params, kind: str) -> Shelf:
        """The shelf of this backbone's `image`, `text` or `pseudo` vectors."""
        rows = schema.stored_vectors(self.encoder.width)
        return Shelf(params.store, f"{kind}_vectors", self.encoder.recipe(kind), rows)

    def images(self, digests: pl.Series, paths: pl.Series) -> None:
        """Fill the image shelf for these files."""
        wanted = pl.DataFrame({"key": digests, "path": paths})
        self._fill(self.image, "image", self._images, _distinct(wanted), wanted.height)

    def texts(self, texts: pl.Series) -> None:
        """Fill the text shelf for these texts."""
        wanted = pl.DataFrame({"key": text_keys(texts), "text": texts})
        self._fill(self.text, "text", self._texts, self._by_length(_distinct(wanted)), wanted.height)

    def pseudos(self, shelf: Shelf, wanted: pl.DataFrame) -> None:
        """Fill a pseudo-token shelf for rows of `key`, `digest` of the reference and `text` of the template."""
        self._fill(shelf, "pseudo token", self._texts, self._by_length(_distinct(wanted)), wanted.height)

    def _fill(self, shelf: Shelf, noun: str, work: Callable[[Encoder], Work], wanted: pl.DataFrame, rows: int) -> None:
        def load(worker: int) -> Work:
            encoder = Encoder(self.backbone, self.compute, worker) if worker else self.encoder
            _ = encoder.model  # now, so that its time counts as loading
            return work(encoder)

        name = "image_batch" if noun == "image" else "text_batch"
        batch = getattr(self.compute, name)
        step = Step(
            noun, "to embed", "embedded", batch * self.compute.block_batches, load,
            self.compute.workers, f"compute.{name} (now {batch})",
        )  # fmt: skip
        fill(shelf, step, wanted, rows)

    def _by_length(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """Texts in an order that lets a block's be about equally long, since a batch is cut to its longest.

        Sorted within a few blocks alone, so that the rows of a gallery's part still lie in few files of the store.
        """
        window = SORTED_BLOCKS * self.compute.block_batches * self.compute.text_batch
        order = (pl.int_range(pl.len()) // window, pl.col("text").str.len_bytes())
        return wanted.sort(*order, maintain_order=True)

    def _images(self, encoder: Encoder) -> Work:
        def compute(pictures: Pictures[torch.Tensor]) -> pa.Table:
            parts = [encoder.images(torch.stack(pixels))[: len(keys)] for pixels, keys in pictures.batches()]
            return _rows(pictures.block, torch.cat(parts).numpy())

        size, ahead = self.compute.image_batch, encoder.device.type != "cpu"
        return Work(compute, lambda block: Pictures(self.root, block, size, encoder.prepare, ahead))

    def _texts(self, encoder: Encoder) -> Work:
        """Texts, or where a column `digest` names references, sentences with their pseudo tokens, in full batches."""
        size = self.compute.text_batch

        def ahead(block: pl.DataFrame) -> tuple[pl.DataFrame, Future[torch.Tensor]]:
            return block, pool().submit(encoder.tokens, block["text"].to_list())

        def compute(ready: tuple[pl.DataFrame, Future[torch.Tensor]]) -> pa.Table:
            block = ready[0]
            with spending("read"):
                tokens = ready[1].result()
            words = self._words(encoder, block["digest"]) if "digest" in block.columns else None
            found = np.empty((block.height, encoder.width), dtype=np.float32)
            for places in length_batches(encoder.lengths(tokens), size):
                batch = full(places, size)
                found[places] = encoder.texts(tokens[batch], None if words is None else words[batch])[: len(places)]
            return _rows(block, found)

        return Work(compute, ahead)

    def _words(self, encoder: Encoder, references: pl.Series) -> torch.Tensor:
        """The word embedding that phi makes of each reference, [n, token width]."""
        return encoder.words(torch.from_numpy(vectors_of(self.image, references)))


def _distinct(wanted: pl.DataFrame) -> pl.DataFrame:
    return wanted.unique("key", keep="first", maintain_order=True)


def _rows(block: pl.DataFrame, vectors: np.ndarray) -> pa.Table:
    return pa.table([block["key"].to_arrow().cast(pa.string()), column(vectors)], names=["key", "vector"])


def text_keys(texts: pl.Series) -> pl.Series:
    """The store's keys of texts, in order."""
    return pl.Series([digest(text) for text in texts], dtype=pl.String)


def vectors_of(shelf: Shelf, keys: pl.Series) -> np.ndarray:
    """The vectors of these keys, [rows, d] float32."""
    return matrix_of(shelf.take(keys), "vector", shelf.kind)


def column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix [rows, d] as an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])
