"""Pictures, texts and pseudo tokens to rows of the store: one backbone's vectors, each computed once.

Projected, un-normalised embeddings by file digest (phi needs them so), unit vectors by text digest, and pseudo-token
vectors by reference and sentence; the tables of gallery and query vectors both read them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from cvsi import schema
from cvsi.batches import full, length_batches, pixel_batches
from cvsi.encoder import Encoder
from cvsi.fusion import matrix_of
from cvsi.params import Params
from cvsi.steps import Compute, Step, fill
from cvsi.store import Shelf, digest

Embed = Callable[[Encoder, pl.DataFrame], pa.Table]


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
        self._fill(self.image, "image", self._images, pl.DataFrame({"key": digests, "path": paths}))

    def texts(self, texts: pl.Series) -> None:
        """Fill the text shelf for these texts."""
        self._fill(self.text, "text", self._texts, pl.DataFrame({"key": text_keys(texts), "text": texts}))

    def pseudos(self, shelf: Shelf, wanted: pl.DataFrame) -> None:
        """Fill a pseudo-token shelf for rows of `key`, `digest` of the reference and `text` of the template."""
        self._fill(shelf, "pseudo token", self._pseudos, wanted)

    def _fill(self, shelf: Shelf, noun: str, embed: Embed, wanted: pl.DataFrame) -> None:
        def load(worker: int) -> Compute:
            encoder = Encoder(self.backbone, self.compute, worker) if worker else self.encoder
            _ = encoder.model  # now, so that its time counts as loading
            return partial(embed, encoder)

        name = "image_batch" if noun == "image" else "text_batch"
        batch = getattr(self.compute, name)
        step = Step(
            noun, "to embed", "embedded", batch * self.compute.block_batches, load,
            self.compute.workers, f"compute.{name} (now {batch})",
        )  # fmt: skip
        fill(shelf, step, wanted.unique("key", keep="first", maintain_order=True), wanted.height)

    def _images(self, encoder: Encoder, block: pl.DataFrame) -> pa.Table:
        size = self.compute.image_batch
        batches = pixel_batches(self.root, block, size, encoder.prepare)
        parts = [encoder.images(pixels)[: len(digests)] for pixels, digests in batches]
        return self._rows(block, torch.cat(parts).numpy())

    def _texts(self, encoder: Encoder, block: pl.DataFrame) -> pa.Table:
        texts = block["text"].to_list()
        return self._by_length(encoder, block, lambda places: encoder.texts([texts[place] for place in places]))

    def _pseudos(self, encoder: Encoder, block: pl.DataFrame) -> pa.Table:
        texts = block["text"].to_list()
        references = torch.from_numpy(matrix_of(self.image.take(block["digest"]), "vector", "image vectors"))

        def encode(places: list[int]) -> torch.Tensor:
            return encoder.pseudo([texts[place] for place in places], encoder.words(references[places]))

        return self._by_length(encoder, block, encode)

    def _by_length(
        self, encoder: Encoder, block: pl.DataFrame, encode: Callable[[list[int]], torch.Tensor]
    ) -> pa.Table:
        """Encode a block's texts in full batches of like length, back in the block's order."""
        size = self.compute.text_batch
        found = np.empty((block.height, encoder.width), dtype=np.float32)
        for places in length_batches(encoder.lengths(block["text"].to_list()), size):
            found[places] = encode(full(places, size))[: len(places)].numpy()
        return self._rows(block, found)

    def _rows(self, block: pl.DataFrame, vectors: np.ndarray) -> pa.Table:
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
