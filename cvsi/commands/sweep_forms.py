"""Fusions that differ by numbers to the ranks of targets under each, from products that are taken once.

A query vector of a linear score is a weighted sum of a query's columns, whatever the weights, parts and unit lengths.
So its scores are a weighted sum of the products of an orthonormal basis of these columns, and the vector is projected
on that basis once. Where there are no more distinct vectors than columns, their own products are taken. Likewise, a
gallery side is a weighted sum of columns divided by its length, which the products of the columns with each other give.
Scores are then combined by the score forms themselves, a block of queries and images at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cvsi.commands import sweep_ranks
from cvsi.commands.sweep_ranks import QUERIES
from cvsi.commands.sweep_values import Inputs, Wanted
from cvsi.core.errors import CvsiError
from cvsi.evaluation.fusion import Form, Fusion
from cvsi.evaluation.parts import Part, with_parts
from cvsi.evaluation.ranking import BLOCK, LOWEST
from cvsi.evaluation.scorers import Tile
from cvsi.evaluation.vectors import RunVectors, Side, fuse

BATCH = 32  # points whose ranks are counted in one reading of the products
HELD = 128  # linear scores of a block in memory
LARGEST = 4 * 2**30  # bytes of products of the smallest group of queries
ROUNDING = 1e-4  # of a projected vector, relative to its length
ZERO = 1e-12  # a squared length below it, relative to its terms, is rounding


@dataclass(frozen=True)
class Vectors:
    """Distinct query vectors of linear scores, as weights of directions.

    `directions` [queries, k, d] float32 are multiplied with the gallery. `weights` [vectors, queries, k] float32 give
    the vectors from these; None: the vectors are the directions. `empty` [vectors, queries] bool marks zero vectors.
    """

    directions: np.ndarray
    weights: np.ndarray | None
    empty: np.ndarray


@dataclass(frozen=True)
class Sides:
    """Distinct gallery sides of linear scores, as weights of `columns` of the gallery.

    `lengths` [pairs, images] float64 are the products of each image's columns with each other, the first with all, the
    second with those from the second on and so on; None where no side is scaled to unit length. Without `summed`, there
    are no more sides than columns, and these themselves are multiplied with the queries.
    """

    sides: Sequence[Side]
    columns: Sequence[str]
    summed: bool
    lengths: Tensor | None = None

    @property
    def number(self) -> int:
        """How many matrices the gallery has."""
        return len(self.columns) if self.summed else len(self.sides)

    def weights(self, side: int) -> list[float]:
        """A side's weights of the columns."""
        return [self.sides[side][0].get(column, 0.0) for column in self.columns]

    def shards(self, vectors: RunVectors, width: int) -> Iterator[np.ndarray]:
        """The gallery's matrices side by side, [m, number, d] float32 a shard."""
        if self.summed:
            yield from sweep_ranks.gallery_columns(vectors, self.columns, width)
            return
        for shard in vectors.gallery.shards(vectors.backbone):
            fused = [fuse(shard, weights, vectors.gallery_path, unit) for weights, unit in self.sides]
            vectors.check_width(width, fused[0].shape[1])
            yield np.stack(fused, axis=1)


@dataclass(frozen=True)
class FormPoints:
    """The points of a grid of fusions, which have the same score form.

    `linear` has, for each point, its linear scores: the numbers of a query vector and of a gallery side.
    """

    inputs: Inputs
    fusions: Sequence[Fusion]
    linear: Sequence[tuple[tuple[int, int], ...]]
    vectors: Vectors
    sides: Sides
    noun: str = "points"

    def __len__(self) -> int:
        """How many they are."""
        return len(self.fusions)

    def group_size(self, memory: int) -> int:
        """How many queries' products take `memory` bytes; raises CvsiError where a few take too much."""
        least = self.bytes_of(QUERIES)
        if least > LARGEST:
            raise CvsiError(
                f"the products of {QUERIES} queries take {least / 2**30:.1f} GiB, more than {LARGEST / 2**30:.0f}; "
                "vary the weights of fewer columns at a time"
            )
        return QUERIES * max(1, memory // least)

    def bytes_of(self, queries: int) -> int:
        """How many bytes the products of so many queries take, whole blocks of queries."""
        pairs = self.vectors.directions.shape[1] * self.sides.number
        return 4 * -(-queries // QUERIES) * QUERIES * int(pairs) * self.inputs.vectors.gallery.size

    @cached_property
    def order(self) -> np.ndarray:
        """The points in an order in which neighbours have the same linear scores."""
        return np.array(sorted(range(len(self)), key=lambda number: self.linear[number]))

    def of_group(self, rows: np.ndarray, wanted: Wanted) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Numbers of points [w], the targets' ranks from 0 [q, w, t] and the groups' scores [q, w, g]."""
        directions, device, gallery = self.vectors.directions[rows], self.inputs.device, self.inputs.vectors
        shards = self.sides.shards(gallery, directions.shape[2])
        products = sweep_ranks.products(directions, shards, self.sides.number, gallery.gallery.size, device)
        weights, lengths = self.vectors.weights, self.sides.lengths
        scores = Scores(
            self.sides,
            products,
            None if weights is None else torch.from_numpy(weights[:, rows]).to(device),
            torch.from_numpy(self.vectors.empty[:, rows]).to(device),
            None if lengths is None else lengths.to(device)[:, None],
        )
        for start in range(0, len(self), BATCH):
            run = self.order[start : start + BATCH]
            points = [(self.fusions[number], self.linear[number]) for number in run]
            yield run, *ranks(scores, points, wanted)


@dataclass(frozen=True)
class Scores:
    """Linear scores of some queries and images, by the numbers of their query vectors and gallery sides.

    `products` [queries, directions, matrices, images] float32 are of these queries and images, like the weights
    `vectors` [vectors, queries, directions] and the `lengths` [pairs, 1 or queries, images] of the gallery's columns.
    """

    sides: Sides
    products: Tensor
    vectors: Tensor | None
    empty: Tensor
    lengths: Tensor | None
    _linear: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _sums: dict[int, list[Tensor]] = field(default_factory=dict)

    def block(self, rows: slice, images: slice) -> "Scores":
        """Those of some queries and images."""
        vectors = None if self.vectors is None else self.vectors[:, rows]
        lengths = None if self.lengths is None else self.lengths[:, :, images]
        products, empty = self.products[rows, :, :, images], self.empty[:, rows]
        return Scores(self.sides, products, vectors, empty, lengths)

    def at(self, positions: Tensor) -> "Scores":
        """Those of each query's own images at positions [queries, n]; -1 is as 0."""
        chosen = positions.clamp(min=0)
        products = self.products.gather(3, chosen[:, None, None].expand(*self.products.shape[:3], -1))
        lengths = None if self.lengths is None else self.lengths[:, 0][:, chosen]
        return Scores(self.sides, products, self.vectors, self.empty, lengths)

    def combined(self, fusion: Fusion, linear: Sequence[tuple[int, int]]) -> Tensor:
        """The scores [queries, images] of a fusion, only to be read."""
        tiles = {
            name: Tile(self._score(vector, side), self.empty[vector][:, None])
            for name, (vector, side) in zip(fusion.scorer.forms, linear, strict=True)
        }
        return fusion.scorer.combine(tiles)

    def _score(self, vector: int, side: int) -> Tensor:
        """One linear score: exact IEEE steps one after the other, so that equal images have equal scores."""
        if (vector, side) not in self._linear:
            if len(self._linear) >= HELD:
                self._linear.clear()
            self._linear[vector, side] = self._weighted(vector, side)
        return self._linear[vector, side]

    def _weighted(self, vector: int, side: int) -> Tensor:
        if vector not in self._sums:
            self._sums.clear()
            self._sums[vector] = [self._of_matrix(vector, matrix) for matrix in range(self.products.shape[2])]
        sums = self._sums[vector]
        if not self.sides.summed:
            return sums[side]
        weights, unit = self.sides.weights(side), self.sides.sides[side][1]
        total = _sum([(weight, product) for weight, product in zip(weights, sums, strict=True) if weight])
        return total.mul_(scales_of(self.lengths, weights)) if unit and self.lengths is not None else total

    def _of_matrix(self, vector: int, matrix: int) -> Tensor:
        """The products of a query vector with one of the gallery's matrices."""
        if self.vectors is None:
            return self.products[:, vector, matrix]
        weights = self.vectors[vector].unbind(1)
        return _sum([(weight[:, None], self.products[:, part, matrix]) for part, weight in enumerate(weights)])


def form_points(inputs: Inputs, fusions: Sequence[Fusion]) -> FormPoints:
    """The points of a grid, with what is computed once; raises CvsiError for vectors that cannot be fused."""
    queries: dict[str, tuple[Form, dict[str, Part]]] = {}
    sides: dict[str, Side] = {}
    linear = []
    for fusion in fusions:
        pairs = []
        for form in fusion.forms.values():
            parts = _used(form, fusion.parts)
            query, side = repr((form.query, form.unit, parts)), repr((form.gallery, form.unit))
            queries.setdefault(query, (form, parts))
            sides.setdefault(side, (form.gallery, form.unit))
            pairs.append((query, side))
        linear.append(pairs)
    numbers = tuple({key: number for number, key in enumerate(table)} for table in (queries, sides))
    numbered = [tuple((numbers[0][query], numbers[1][side]) for query, side in pairs) for pairs in linear]
    columns = list(dict.fromkeys(name for fusion in fusions for name in fusion.query_columns))
    vectors = query_vectors(inputs.vectors, list(queries.values()), columns)
    shown = list(dict.fromkeys(name for fusion in fusions for name in fusion.gallery_columns))
    width = vectors.directions.shape[2]
    return FormPoints(
        inputs, fusions, numbered, vectors, gallery_sides(inputs.vectors, list(sides.values()), shown, width)
    )


def query_vectors(
    vectors: RunVectors, forms: Sequence[tuple[Form, Mapping[str, Part]]], columns: Sequence[str]
) -> Vectors:
    """The query vectors of forms with their parts, from the columns that these use."""
    where, extended = vectors.query_path, dict[str, pa.Table]()

    def fused(form: Form, parts: Mapping[str, Part]) -> np.ndarray:
        key = repr(parts)
        if key not in extended:
            extended.clear()
            extended[key] = with_parts(vectors.queries, parts, where)
        return fuse(extended[key], form.query, where, form.unit)

    if len(forms) <= len(columns):
        directions = np.stack([fused(form, parts) for form, parts in forms], axis=1)
        return Vectors(directions, None, np.asarray(~directions.any(axis=2)).T)
    stacked = torch.from_numpy(sweep_ranks.stacked(vectors.queries, columns, where)).to(torch.float64)
    basis = torch.linalg.qr(stacked.transpose(1, 2)).Q.contiguous()  # [queries, d, k]
    size = 4 * len(forms) * basis.shape[0] * basis.shape[2]
    if size > LARGEST:
        raise CvsiError(f"the weights of {len(forms):,} query vectors take {size / 2**30:.1f} GiB; shorten a list")
    weights = np.empty((len(forms), *basis.shape[::2]), dtype=np.float32)
    empty = np.empty(weights.shape[:2], dtype=bool)
    for number, (form, parts) in enumerate(forms):
        vector = fused(form, parts)
        weights[number], empty[number] = projected(vector, basis, where), ~vector.any(axis=1)
    return Vectors(basis.transpose(1, 2).to(torch.float32).numpy(), weights, empty)


def projected(vectors: np.ndarray, basis: Tensor, where: str) -> np.ndarray:
    """Vectors [q, d] as weights [q, k] of a basis [q, d, k] float64; raises CvsiError where one is outside of it."""
    wide = torch.from_numpy(vectors).to(torch.float64)
    weights = torch.einsum("qd,qdk->qk", wide, basis)
    rest = (wide - torch.einsum("qk,qdk->qd", weights, basis)).norm(dim=1)
    if (rest > ROUNDING * wide.norm(dim=1)).any():
        raise CvsiError(f"{where}: a part is no weighted sum of columns, so a sweep cannot vary it")
    return weights.to(torch.float32).numpy()


def gallery_sides(vectors: RunVectors, sides: Sequence[Side], columns: Sequence[str], width: int) -> Sides:
    """Gallery sides, as they are or as weights of their columns, whichever takes fewer products."""
    summed = len(sides) > len(columns)
    if not summed or not any(unit for _, unit in sides):
        return Sides(sides, columns, summed)
    shards = sweep_ranks.gallery_columns(vectors, columns, width)
    return Sides(sides, columns, summed, torch.cat([lengths_of(shard) for shard in shards], dim=1))


def lengths_of(shard: np.ndarray) -> Tensor:
    """The products of images' columns [m, columns, d] with each other, [pairs, m] float64."""
    wide = torch.from_numpy(shard).to(torch.float64).unbind(1)
    return torch.stack([(left * right).sum(dim=1) for left, right in combinations_with_replacement(wide, 2)])


def scales_of(lengths: Tensor, weights: Sequence[float]) -> Tensor:
    """One over the lengths of images' weighted sums, [...] float32, from `lengths` [pairs, ...]; 0 for a zero sum."""
    factors = [
        weights[left] * weights[right] * (1 if left == right else 2)
        for left, right in combinations_with_replacement(range(len(weights)), 2)
    ]
    terms = [(factor, length) for factor, length in zip(factors, lengths, strict=True) if factor]
    square, size = _sum(terms), _sum([(abs(factor), length.abs()) for factor, length in terms])
    return torch.where(square > ZERO * size, square.clamp(min=0).sqrt().reciprocal(), 0.0).to(torch.float32)


def ranks(
    scores: Scores, points: Sequence[tuple[Fusion, Sequence[tuple[int, int]]]], wanted: Wanted
) -> tuple[Tensor, Tensor]:
    """The ranks from 0 of targets [q, w, t] int64 and the scores of groups [q, w, g] under fusions.

    Equal scores rank by position. The rank of a target that is never ranked, and of one at -1, is `UNRANKED`; the score
    of such an image of a group is minus infinity.
    """
    images = scores.products.shape[3]
    limits, groups = (
        _at(scores, points, positions, sweep_ranks.is_excluded(positions, wanted.excluded, images))
        for positions in (wanted.targets, wanted.groups)
    )
    ahead = torch.zeros(limits.shape, dtype=torch.int64, device=limits.device)
    scratch = torch.empty((QUERIES, 1, BLOCK), device=limits.device)
    rows, columns = wanted.excluded.unbind(1)
    for first in range(0, len(limits), QUERIES):
        block = slice(first, first + QUERIES)
        mine = (rows >= first) & (rows < first + QUERIES)
        for start in range(0, images, BLOCK):
            here = mine & (columns >= start) & (columns < start + BLOCK)
            never = (rows[here] - first, columns[here] - start)
            of_block = scores.block(block, slice(start, start + BLOCK))
            for number, (fusion, linear) in enumerate(points):
                combined = of_block.combined(fusion, linear)
                if len(never[0]):
                    combined = combined.index_put(never, combined.new_tensor(LOWEST))
                point = slice(number, number + 1)
                sweep_ranks.count_ahead(
                    combined[:, None], start, wanted.targets[block], limits[block, point], ahead[block, point], scratch
                )
    return ahead.masked_fill_(limits == LOWEST, sweep_ranks.UNRANKED), groups


def _at(
    scores: Scores, points: Sequence[tuple[Fusion, Sequence[tuple[int, int]]]], positions: Tensor, excluded: Tensor
) -> Tensor:
    """The scores at positions [q, n] under fusions, [q, w, n]; minus infinity at -1 and for an excluded image."""
    there = scores.at(positions)
    combined = torch.stack([there.combined(fusion, linear) for fusion, linear in points], dim=1)
    return combined.masked_fill_(((positions < 0) | excluded)[:, None], LOWEST)


def _used(form: Form, parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts that a form uses, by itself or in another part."""
    names = set(form.query)
    for name, part in reversed(list(parts.items())):
        names |= set(part.inputs) if name in names else set()
    return {name: part for name, part in parts.items() if name in names}


def _sum(terms: Sequence[tuple[float | Tensor, Tensor]]) -> Tensor:
    """A weighted sum, scaled and added term by term."""
    (weight, first), *others = terms
    total = first * weight
    for weight, term in others:
        total += term * weight
    return total
