"""Pictures, texts and pseudo tokens to rows of the store: one backbone's vectors, each computed once.

Projected, un-normalised embeddings by file digest (phi needs them so), unit vectors by text digest, and pseudo-token
vectors by reference and sentence; the tables of gallery and query vectors both read them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from cvsi.core import schema
from cvsi.core.digest import digest
from cvsi.core.params import Params
from cvsi.core.run_log import spending
from cvsi.core.vector_columns import column, matrix_of
from cvsi.models.batching import Pictures, full, length_batches, pool
from cvsi.models.clip import Encoder
from cvsi.store.jobs import Step, Work, fill
from cvsi.store.rows import Shelf

TEXT_BATCHES = 4  # that many times as many batches are in a block of texts, which take a fraction of an image's time
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
        block = batch * self.compute.block_batches if noun == "image" else self._text_block
        step = Step(
            noun, "to embed", "embedded", block, load, self.compute.workers, f"compute.{name} (now {batch})"
        )  # fmt: skip
        fill(shelf, step, wanted, rows)

    @property
    def _text_block(self) -> int:
        return self.compute.text_batch * self.compute.block_batches * TEXT_BATCHES

    def _by_length(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """Texts in an order that lets a block's be about equally long, since a batch is cut to its longest.

        Sorted within a few blocks alone, so that the rows of a gallery's part still lie in few files of the store.
        """
        order = (pl.int_range(pl.len()) // (SORTED_BLOCKS * self._text_block), pl.col("text").str.len_bytes())
        return wanted.sort(*order, maintain_order=True)

    def _images(self, encoder: Encoder) -> Work:
        def compute(pictures: Pictures[torch.Tensor]) -> pa.Table:
            parts = [encoder.images(torch.stack(pixels))[: len(keys)] for pixels, keys in pictures.batches()]
            return _rows(pictures.block, torch.cat(parts).numpy())

        size, ahead = self.compute.image_batch, encoder.device.type != "cpu"
        return Work(compute, lambda block: Pictures(self.root, block, size, encoder.prepare, ahead))

    def _texts(self, encoder: Encoder) -> Work:
        """Texts, or where a column `digest` names references, sentences with their pseudo tokens."""
        texts = Texts(encoder, self.compute.text_batch, self.image)
        return Work(texts.compute, texts.ahead, texts.rest)


class Texts:
    """Texts to unit vectors in full batches of like length; what does not fill one waits for the next block.

    Each text's batch has a shape that this text alone decides, so it does not matter with which others it is computed.
    """

    def __init__(self, encoder: Encoder, size: int, images: Shelf) -> None:
        """`size` texts a batch; where a block has a column `digest`, phi reads these image vectors."""
        self.encoder, self.size, self.images = encoder, size, images
        self.waiting: list[tuple[pl.DataFrame, torch.Tensor]] = []

    def ahead(self, block: pl.DataFrame) -> tuple[pl.DataFrame, Future[torch.Tensor]]:
        """Begin to tokenise a block."""
        return block, pool().submit(self.encoder.tokens, block["text"].to_list())

    def compute(self, ready: tuple[pl.DataFrame, Future[torch.Tensor]]) -> pa.Table:
        """The rows of all batches that this block fills up."""
        with spending("read"):
            self.waiting.append((ready[0], ready[1].result()))
        return self._rows(short=False)

    def rest(self) -> pa.Table:
        """The rows that still wait."""
        return self._rows(short=True)

    def _rows(self, short: bool) -> pa.Table:
        """Compute the full batches, and the short ones if asked; else their texts go on waiting."""
        block = pl.concat([block for block, _ in self.waiting])
        tokens = torch.cat([tokens for _, tokens in self.waiting])
        batches = list(length_batches(self.encoder.lengths(tokens), self.size))
        computed = [places for places in batches if short or len(places) == self.size]
        done = [place for places in computed for place in places]
        left = sorted(set(range(block.height)).difference(done))
        self.waiting = [(block[left], tokens[left])]
        return _rows(block[done], self._embed(block, tokens, computed))

    def _embed(self, block: pl.DataFrame, tokens: torch.Tensor, batches: Sequence[Sequence[int]]) -> np.ndarray:
        found = [np.empty((0, self.encoder.width), dtype=np.float32)]
        images = torch.from_numpy(vectors_of(self.images, block["digest"])) if "digest" in block.columns else None
        for places in batches:
            batch = full(places, self.size)
            words = None if images is None else self.encoder.words(images[batch])
            found.append(self.encoder.texts(tokens[batch], words)[: len(places)].numpy())
        return np.concatenate(found)


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
