"""Weights to vectors: parts of queries and gallery images become one vector each, whose dot product is the score.

The score is bilinear, so known methods are corners of one space: each weighting below is a name for some weights.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from cvsi.core import tables
from cvsi.core.errors import CvsiError
from cvsi.core.params import Fusion, GalleryWeights, QueryWeights
from cvsi.core.vector_columns import numbers_of

KEY = pa.schema({"split": pa.string(), "query_id": pa.string()})

IMAGE_ALONE = GalleryWeights(image=1.0)
# PDV-F (arXiv 2502.07215) on edited captions, at the weights of its ViT-B/32 table.
PDV_MIX, PDV_TEXT, PDV_IMAGE = 0.75, 1.4, 1.4


def weightings(fusion: Fusion) -> dict[str, Fusion]:
    """The named weightings in the order of the table: the dataset's own as `cvsi`, then the corners on images alone."""
    corners = {
        "edited": QueryWeights(edited=1.0),
        "pseudo": QueryWeights(pseudo=1.0),
        "image": QueryWeights(reference=1.0),
        "text": QueryWeights(instruction=1.0),
        "image+text": QueryWeights(reference=0.5, instruction=0.5),
        "pdv": QueryWeights(
            edited=PDV_MIX * PDV_TEXT + (1 - PDV_MIX) * PDV_IMAGE,
            reference=1 - PDV_MIX,
            source=PDV_MIX * (1 - PDV_TEXT) - (1 - PDV_MIX) * PDV_IMAGE,
        ),
    }
    return {"cvsi": fusion} | {name: Fusion(query=query, gallery=IMAGE_ALONE) for name, query in corners.items()}


def needs(weights: QueryWeights | GalleryWeights) -> dict[str, float]:
    """The parts with a non-zero weight, by name."""
    return {part: weight for part, weight in weights.model_dump().items() if weight != 0}


def fuse(table: pa.Table, weights: Mapping[str, float], where: str) -> np.ndarray:
    """The weighted sum of a table's vector columns, [rows, d] float32.

    Raises CvsiError for a column that is missing, has another type or holds a number that is not finite.
    """
    total: Tensor | None = None
    for part, weight in weights.items():
        # Scaled, then added: one operation for both may round the last numbers of an array otherwise than the rest.
        scaled = numbers_of(table, part, where).to(torch.float32, copy=True).mul_(weight)
        total = scaled if total is None else total.add_(scaled)
    if total is None:
        raise CvsiError(f"{where}: all weights are zero; give at least one part a weight in params.yaml")
    fused: np.ndarray = total.numpy()
    if not np.isfinite(fused).all():
        raise CvsiError(f"{where}: vectors hold numbers that are not finite; run the stage that wrote them again")
    return fused


def query_order(queries: pl.DataFrame, vectors: pa.Table, where: str) -> pa.Table:
    """The query vectors in the index's order, joined by (`split`, `query_id`); raises CvsiError for a missing one."""
    places = pl.DataFrame(tables.fit(vectors, KEY, where)).with_row_index("place")
    found = queries.join(places, on=["split", "query_id"], how="left", maintain_order="left")
    lost = found.filter(pl.col("place").is_null())
    if lost.height:
        raise CvsiError(f"{where}: no vectors for query {lost['query_id'][0]} of split {lost['split'][0]}")
    if found.height != queries.height:
        raise CvsiError(f"{where}: a query has vectors twice; run the stage query_vectors again")
    return vectors.take(found["place"].to_arrow())


def describe(fusion: Fusion) -> str:
    """Weights in words: `.6 edited + .4 pseudo, on .8 image + .2 caption`."""
    sides = (needs(fusion.query), needs(fusion.gallery))
    return ", on ".join(" + ".join(f"{weight:g} {part}" for part, weight in side.items()) for side in sides)
