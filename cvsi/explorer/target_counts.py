"""Tiles of scores to the ranks of known images, exact to the 1,000th, where the images' scores are nearly known before.

A target's own score is first computed alone, which rounds otherwise than a tile does. Images whose score is above that
one by more than a margin are counted while the tiles pass by; the few within the margin are kept with their scores, and
among them is the target with its score as the tile has it. At the end its rank is what was counted and those of the
kept ones that are ahead of it. That takes two comparisons per score, a quarter of what `target_ranks` does, which must
find out as it goes; where a target is not within its margin, the answer is None.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.ranking import TILE_ROWS, Combination, GroupScores, LinearScore, score_blocks
from cvsi.evaluation.scorers import Tile
from cvsi.evaluation.target_ranks import LAST
from cvsi.evaluation.vectors import fuse
from cvsi.explorer.kept_gallery import KeptGallery

MARGIN = 1e-5  # of the lengths of the vectors, far more than rounding changes a product
MOST_KEPT = 4_000_000  # scores within margins; equal scores of very many images are for `target_ranks`
CHUNK = 4096  # pairs at a time


def rank_targets(
    queries: Sequence[np.ndarray], fusion: Fusion, gallery: KeptGallery, tiles: Iterable[Sequence[np.ndarray]],
    named: NamedImages,
) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
    """The `target_ranks` and `group_scores` of `ranking.rank` for queries [q, d] per form; None where it cannot tell.

    `tiles` are the fused gallery's matrices [m, d] per form, in order, of `TILE_ROWS` rows but for the last ones.
    """
    counts = _Counts(queries, fusion, gallery, named)
    groups = GroupScores(named.groups, "cpu")
    linear = [LinearScore(matrix, side) for side, matrix in enumerate(queries)]
    scored = [Combination(fusion.scorer, tuple(range(len(linear))))]
    for (block,) in score_blocks(linear, scored, tiles, named.excluded, 0, "cpu", TILE_ROWS):
        groups.update(block)
        if not counts.update(block.scores.numpy(), block.start):
            return None
    ranks = counts.ranks()
    return None if ranks is None else (ranks, groups.scores.numpy())


class _Counts:
    """The targets of queries as pairs, with what was counted for each so far."""

    def __init__(self, queries: Sequence[np.ndarray], fusion: Fusion, gallery: KeptGallery, named: NamedImages) -> None:
        """Compute the targets' scores and margins; excluded targets have no rank and are no pairs."""
        self._shape = named.targets.shape
        rows, slots = np.nonzero(named.targets >= 0)
        positions = named.targets[rows, slots]
        size = max(gallery.size, 1)
        ranked = ~np.isin(rows * size + positions, named.excluded[:, 0] * size + named.excluded[:, 1])
        self._rows, self._slots, self._positions = rows[ranked], slots[ranked], positions[ranked]
        scores, margins = _alone(queries, fusion, gallery, self._rows, self._positions)
        self._low, self._high = (scores - margins)[:, None], (scores + margins)[:, None]
        self._above = np.zeros(len(self._rows), dtype=np.int64)
        self._each = np.array_equal(self._rows, np.arange(self._shape[0]))  # each query has one, so none is looked up
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._number = 0

    def update(self, scores: np.ndarray, start: int) -> bool:
        """Count the images of one tile, scores [queries, images]; False where too many are within margins."""
        for begin in range(0, len(self._rows), CHUNK):
            pairs = slice(begin, begin + CHUNK)
            values = scores[pairs] if self._each else scores[self._rows[pairs]]
            self._count(values, self._low[pairs], self._high[pairs], begin, start)
        return self._number <= MOST_KEPT

    def ranks(self) -> np.ndarray | None:
        """The ranks from 1, [queries, targets] int32, 0 past the last one; None where a target was not kept."""
        kept = [np.concatenate(parts) for parts in zip(*self._kept, strict=True)] if self._kept else [np.empty(0)] * 3
        pairs, positions, scores = kept[0].astype(np.int64), kept[1].astype(np.int64), kept[2]
        is_own = positions == self._positions[pairs]
        own = np.full(len(self._rows), np.nan, dtype=np.float32)
        own[pairs[is_own]] = scores[is_own]
        if np.isnan(own).any():
            return None
        tied_before = (scores == own[pairs]) & (positions < self._positions[pairs])
        ahead = pairs[(scores > own[pairs]) | tied_before]
        rank = self._above + np.bincount(ahead, minlength=len(self._rows)) + 1
        ranks = np.zeros(self._shape, dtype=np.int32)
        ranks[self._rows, self._slots] = np.where(rank <= LAST, rank, 0)
        return ranks

    def _count(self, values: np.ndarray, low: np.ndarray, high: np.ndarray, begin: int, start: int) -> None:
        above = np.count_nonzero(values > high, axis=1)
        self._above[begin : begin + len(values)] += above
        near = np.flatnonzero(np.count_nonzero(values >= low, axis=1) > above)
        if not len(near):
            return
        part = values[near]
        rows, columns = np.nonzero((part >= low[near]) & (part <= high[near]))
        self._kept.append((near[rows] + begin, columns + start, part[rows, columns]))
        self._number += len(rows)


def _alone(
    queries: Sequence[np.ndarray], fusion: Fusion, gallery: KeptGallery, rows: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of pairs [n] and their margins, float32 [n] each, without a tile."""
    scores, margins = np.empty(len(rows), dtype=np.float32), np.empty(len(rows), dtype=np.float32)
    distinct, numbers = np.unique(positions, return_inverse=True)
    for begin in range(0, len(rows), CHUNK):
        pairs = slice(begin, begin + CHUNK)
        wanted, place = np.unique(numbers[pairs], return_inverse=True)
        table = gallery.rows(distinct[wanted])
        tiles, scale = {}, np.zeros(len(place), dtype=np.float32)
        for (name, form), matrix in zip(fusion.forms.items(), queries, strict=True):
            query, image = matrix[rows[pairs]], fuse(table, form.gallery, gallery.where, form.unit)[place]
            product = np.einsum("nd,nd->n", query, image)
            tiles[name] = Tile(torch.from_numpy(product[:, None]), torch.from_numpy(~query.any(axis=1, keepdims=True)))
            scale += np.linalg.norm(query, axis=1) * np.linalg.norm(image, axis=1)
        scores[pairs] = fusion.scorer.combine(tiles)[:, 0].numpy()
        margins[pairs] = MARGIN * (scale + np.abs(scores[pairs]))
    return scores, margins
