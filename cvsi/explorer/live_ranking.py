"""One query of a run ranked anew for each change of a method's numbers, quickly, and as the stage `scores` does.

A fused query is a linear combination of the columns of the query vectors, and so is a fused image of those of the
gallery vectors. The products of all columns are therefore computed once per query; a change of numbers only combines
them. That rounds otherwise than `scores`, so the first images are then scored once more, exactly as there.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cvsi.core.errors import CvsiError
from cvsi.core.vector_columns import matrix_of, names_of
from cvsi.evaluation.fusion import Form, Fusion
from cvsi.evaluation.ranking import TILE_ROWS, topk_stable
from cvsi.evaluation.scorers import Tile
from cvsi.evaluation.vectors import RunVectors, fuse, fuse_queries
from cvsi.explorer.kept_gallery import KeptGallery

# A matrix product of one row rounds otherwise than one of many; with some equal rows it does as in the stage `scores`.
ROWS = 8
SPARE = 12  # images beyond the wanted ones that are scored exactly, since rounding may have changed their order
KEPT_QUERIES = 16  # whose products are in memory
SMALLEST = 1e-30  # a zero vector keeps a score of zero
TOLERANCE = 1e-4  # of a fused query's length that may not be explained by the columns


@dataclass(frozen=True)
class First:
    """The first images of a query: positions int64 [k] and scores float32 [k], fewer where the gallery is smaller."""

    positions: np.ndarray
    scores: np.ndarray


class LiveRanking:
    """The queries of a run against its gallery; not to be used by two threads at once."""

    def __init__(self, inputs: RunVectors, gallery: KeptGallery) -> None:
        """Read nothing yet."""
        self.inputs, self.gallery = inputs, gallery
        self._products: OrderedDict[int, _Products] = OrderedDict()

    def rank(self, row: int, fusion: Fusion, excluded: np.ndarray, k: int) -> First:
        """The first k images for a query by its row; images at `excluded` positions are never ranked.

        Raises CvsiError for a column that the vectors do not have.
        """
        table = self.inputs.queries.slice(row, 1)
        queries = fuse_queries(table, fusion, self.inputs.query_path)
        tiles = {
            name: Tile(self._linear(row, form, query[0]), torch.from_numpy(~query.any(axis=1, keepdims=True)))
            for (name, form), query in zip(fusion.forms.items(), queries, strict=True)
        }
        scores = fusion.scorer.combine(tiles).clone()
        scores[0, torch.from_numpy(excluded)] = -torch.inf
        likely = topk_stable(scores, min(k + SPARE, scores.shape[1]))[1][0].numpy()
        likely = np.sort(likely[~np.isin(likely, excluded)])
        exact = self._exact(likely, fusion, queries)
        order = np.argsort(-exact, kind="stable")[:k]
        return First(likely[order], exact[order])

    def _linear(self, row: int, form: Form, query: np.ndarray) -> torch.Tensor:
        """The linear scores [1, images] of a fused query [d], from the products of the columns."""
        products = self._products_of(row)
        shares = products.shares(query)
        scores: Any = sum(weight * (shares @ products.of[column]) for column, weight in form.gallery.items())
        if form.unit:
            scores = scores / self._lengths(form.gallery)
        return torch.from_numpy(np.asarray(scores, dtype=np.float32)[None])

    def _products_of(self, row: int) -> "_Products":
        """The products of a query's columns with those of the gallery, computed when it is first shown."""
        if row not in self._products:
            table = self.inputs.queries.slice(row, 1)
            names = names_of(table.schema)
            columns = np.concatenate([matrix_of(table, name, self.inputs.query_path) for name in names])
            found: dict[str, list[np.ndarray]] = {name: [] for name in names_of(self.inputs.gallery_schema)}
            for shard in self.gallery.shards():
                for name, parts in found.items():
                    parts.append(columns @ matrix_of(shard, name, self.gallery.where).T)
            self._products[row] = _Products(columns, {name: np.concatenate(parts, 1) for name, parts in found.items()})
            while len(self._products) > KEPT_QUERIES:
                self._products.popitem(last=False)
        self._products.move_to_end(row)
        return self._products[row]

    def _lengths(self, weights: Mapping[str, float]) -> np.ndarray:
        """The length of each fused image [images], from the products of the gallery's columns with each other."""
        squares: Any = sum(
            weights[one] * weights[other] * self._gram[(one, other) if one < other else (other, one)]
            for one in weights
            for other in weights
        )
        lengths: np.ndarray = np.sqrt(np.maximum(squares, SMALLEST))
        return lengths

    @cached_property
    def _gram(self) -> dict[tuple[str, str], np.ndarray]:
        """The products of each two columns of the gallery, image by image."""
        names = sorted(names_of(self.inputs.gallery_schema))
        found: dict[tuple[str, str], list[np.ndarray]] = {
            (one, other): [] for number, one in enumerate(names) for other in names[number:]
        }
        for shard in self.gallery.shards():
            columns = {name: matrix_of(shard, name, self.gallery.where) for name in names}
            for pair, parts in found.items():
                parts.append(np.einsum("nd,nd->n", columns[pair[0]], columns[pair[1]]))
        return {pair: np.concatenate(parts) for pair, parts in found.items()}

    def _exact(self, positions: np.ndarray, fusion: Fusion, queries: Sequence[np.ndarray]) -> np.ndarray:
        """The scores [n] of some images, from products of the same sizes as in the stage `scores`."""
        repeated = [torch.from_numpy(np.repeat(query, ROWS, axis=0)) for query in queries]
        scores = np.empty(len(positions), dtype=np.float32)
        table = self.gallery.rows(positions)
        for start in range(0, len(positions), TILE_ROWS):
            part, tiles = table.slice(start, TILE_ROWS), {}
            for (name, form), query in zip(fusion.forms.items(), repeated, strict=True):
                images = np.zeros((TILE_ROWS, query.shape[1]), dtype=np.float32)
                images[: part.num_rows] = fuse(part, form.gallery, self.gallery.where, form.unit)
                tiles[name] = Tile(query @ torch.from_numpy(images).T, ~query.any(dim=1, keepdim=True))
            scores[start : start + TILE_ROWS] = fusion.scorer.combine(tiles)[0, : part.num_rows].numpy()
        return scores


@dataclass(frozen=True)
class _Products:
    """A query's columns [columns, d], and their products with each gallery column, [columns, images] each."""

    columns: np.ndarray
    of: dict[str, np.ndarray]

    def shares(self, query: np.ndarray) -> np.ndarray:
        """How much of each column a fused query [d] is, [columns].

        Raises CvsiError for one that is no combination of them.
        """
        shares, *_ = np.linalg.lstsq(self.columns.T.astype(np.float64), query.astype(np.float64), rcond=None)
        rest = float(np.linalg.norm(shares @ self.columns - query))
        if rest > TOLERANCE * max(float(np.linalg.norm(query)), 1.0):
            raise CvsiError("a part of this method is no combination of the query's vectors; it cannot be changed here")
        return shares.astype(np.float32)
