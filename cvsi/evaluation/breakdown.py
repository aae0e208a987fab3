"""Pairs of a query and an image to the terms that their score consists of, for each of several methods.

A method with one linear score has a term for each pair of a query column and a gallery column: their weighted product,
so that the terms add up to the score. A method that combines several linear scores has one term for each of these.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cvsi.core.vector_columns import matrix_of
from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.parts import with_parts
from cvsi.evaluation.vectors import RunVectors

Side = dict[str, np.ndarray]  # the summands of a fused vector by name, [rows, d] float32 each
SMALLEST = np.float32(1e-30)  # a zero vector stays zero when it is scaled to unit length


@dataclass(frozen=True)
class Pairs:
    """Query rows and gallery positions, int64 [n] each, in any order."""

    rows: np.ndarray
    positions: np.ndarray


def break_down(
    vectors: RunVectors, shards: Iterable[pa.Table], wanted: Mapping[str, tuple[Fusion, Pairs]]
) -> dict[str, np.ndarray]:
    """The terms of the pairs of each method, float32 [pairs, terms], in one pass over shards of gallery vectors.

    Their names are those of `term_names`. Raises CvsiError for a missing column and for vectors that are none.
    """
    methods = {name: _Method(fusion, pairs, vectors) for name, (fusion, pairs) in wanted.items()}
    start = 0
    for shard in shards:
        for method in methods.values():
            method.take(shard, start)
        start += shard.num_rows
    return {name: method.values for name, method in methods.items()}


def adds_up(fusion: Fusion) -> bool:
    """Whether a score is the sum of its terms."""
    return fusion.scorer.is_product and len(fusion.forms) == 1


def term_names(fusion: Fusion) -> list[str]:
    """The names of a score's terms: `edited * image`, or those of the linear scores that the score form combines."""
    if not adds_up(fusion):
        return list(fusion.forms)
    (form,) = fusion.forms.values()
    return [f"{query} * {image}" for query in form.query for image in form.gallery]


class _Method:
    """One method: its query vectors, its pairs in the order of the gallery, and the values found so far."""

    def __init__(self, fusion: Fusion, pairs: Pairs, vectors: RunVectors) -> None:
        """Take the query vectors; no image is read yet."""
        self.fusion, self.pairs, self.where = fusion, pairs, vectors.gallery_path
        table = with_parts(vectors.queries, fusion.parts, vectors.query_path)
        self.queries = [
            self._side(name, _summands(table, form.query, form.unit, vectors.query_path))
            for name, form in fusion.forms.items()
        ]
        self.order = np.argsort(pairs.positions, kind="stable")
        self.values = np.zeros((len(self.order), len(term_names(fusion))), dtype=np.float32)

    def take(self, shard: pa.Table, start: int) -> None:
        """Compute the terms of the pairs whose images are in a shard that begins at a position."""
        ordered = self.pairs.positions[self.order]
        begin, end = np.searchsorted(ordered, [start, start + shard.num_rows])
        chosen = self.order[begin:end]
        if not len(chosen):
            return
        distinct, numbers = np.unique(self.pairs.positions[chosen] - start, return_inverse=True)
        table, rows, term = shard.take(pa.array(distinct)), self.pairs.rows[chosen], 0
        for (name, form), queries in zip(self.fusion.forms.items(), self.queries, strict=True):
            images = self._side(name, _summands(table, form.gallery, form.unit, self.where))
            for query in queries.values():
                for image in images.values():
                    self.values[chosen, term] = np.einsum("nd,nd->n", query[rows], image[numbers])
                    term += 1

    def _side(self, name: str, summands: Side) -> Side:
        """The summands, or their sum where the form is one term."""
        return summands if adds_up(self.fusion) else {name: np.sum(list(summands.values()), axis=0)}


def _summands(table: pa.Table, weights: Mapping[str, float], unit: bool, where: str) -> Side:
    """The weighted columns; with `unit`, scaled so that their sum has unit length."""
    columns = {name: matrix_of(table, name, where) * np.float32(weight) for name, weight in weights.items()}
    if not unit:
        return columns
    length = np.linalg.norm(np.sum(list(columns.values()), axis=0), axis=1, keepdims=True)
    return {name: matrix / np.maximum(length, SMALLEST) for name, matrix in columns.items()}
