"""Blocks of scores to the ranks of known images, exact to the 1,000th, in one pass and without sorting a gallery.

The rank of an image is the number of images ahead of it: those with a higher score, and those with the same score at an
earlier position. From the block with the image on, these are counted as the blocks arrive. Before it, the image's score
is not known, so the highest 1,000 scores of each query are kept until its last target was reached: if fewer than 1,000
of them are ahead of the image, no other one is. Memory therefore does not grow with the gallery, and an image that has
1,000 others ahead of it needs no more work.
"""

from collections.abc import Iterator

import numpy as np

LAST = 1000  # the last rank that is computed
CHUNK = 128  # images compared at a time, so that their scores stay in the processor's cache


class TargetRanks:
    """Ranks of positions [queries, targets] (-1: none), computed while blocks of scores pass by."""

    def __init__(self, targets: np.ndarray, width: int, last: int = LAST) -> None:
        """Prepare for blocks of at most `width` images."""
        rows, slots = np.nonzero(targets >= 0)
        order = np.argsort(targets[rows, slots], kind="stable")
        self._shape, self._last = targets.shape, last
        self._rows, self._slots = rows[order], slots[order]
        self._positions = targets[self._rows, self._slots]
        self._scores = np.full(len(rows), -np.inf, dtype=np.float32)
        self._ahead = np.zeros(len(rows), dtype=np.int64)
        self._reached = 0  # targets with a lower index are in the blocks so far
        self._earlier = _HighestScores(targets, width, last)

    def update(self, scores: np.ndarray, start: int) -> None:
        """Count the images of one block: scores [queries, images] float32, minus infinity for images never ranked."""
        end = start + scores.shape[1]
        first, self._reached = self._reached, int(np.searchsorted(self._positions, end))
        known = np.flatnonzero(self._ahead[:first] < self._last)
        for chunk in _chunks(known):
            block = scores[self._rows[chunk]]
            self._ahead[chunk] += _count(block > self._scores[chunk, None])
        for chunk in _chunks(np.arange(first, self._reached)):
            self._begin(chunk, scores, start)
        self._earlier.add(scores, end)

    def ranks(self) -> np.ndarray:
        """The ranks from 1, [queries, targets] int32; 0 where there is no target, or one past the last rank."""
        ranks = np.zeros(self._shape, dtype=np.int32)
        ranked = self._ahead < self._last
        ranked[self._reached :] = False
        ranks[self._rows[ranked], self._slots[ranked]] = self._ahead[ranked] + 1
        return ranks

    def _begin(self, chunk: np.ndarray, scores: np.ndarray, start: int) -> None:
        """Count for targets that are in this block: images of earlier blocks, and images of this one."""
        rows, columns = self._rows[chunk], self._positions[chunk] - start
        block, own = scores[rows], scores[rows, columns][:, None]
        # Targets are in the order of their positions: equal scores count to the left of all of them, not to the right.
        low, high = int(columns[0]), int(columns[-1]) + 1
        between = block[:, low:high]
        tied = (between == own) & (np.arange(low, high) < columns[:, None])
        ahead = _count(block[:, :low] >= own) + _count((between > own) | tied) + _count(block[:, high:] > own)
        ahead += self._earlier.count(rows, own)
        ahead[own[:, 0] == -np.inf] = self._last  # never ranked
        self._scores[chunk], self._ahead[chunk] = own[:, 0], ahead


class _HighestScores:
    """The highest scores of each query in the blocks so far, for queries with a target that was not reached yet.

    The scores of a query are the first `_used` of its row, in any order, with minus infinity between them; every score
    above the query's limit is among them, and where there is a limit, at least `last` scores are not below it.
    """

    def __init__(self, targets: np.ndarray, width: int, last: int) -> None:
        """Keep `last` scores per query, with space for one more block."""
        self._final = targets.max(axis=1, initial=-1)  # the last of a query's targets, in the order of positions
        self._last, self._width = last, width
        self._queries = np.flatnonzero(self._final >= 0)
        self._row_of = np.full(len(targets), -1)
        self._kept: np.ndarray | None = None
        self._limits: np.ndarray | None = None
        self._used = 0

    def count(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """How many kept scores of each query [n] are not below a score [n, 1]; exact where it is less than `last`."""
        if self._kept is None:
            return np.zeros(len(queries), dtype=np.int64)
        return _count(self._kept[self._row_of[queries], : self._used] >= scores)

    def add(self, scores: np.ndarray, end: int) -> None:
        """Keep the scores of the block that ends at position `end`."""
        self._drop_finished(end)
        if not len(self._queries):
            return
        block = scores[self._queries]
        kept = self._kept
        if kept is None:
            kept = self._kept = np.empty((len(block), self._last + self._width), dtype=np.float32)
        piece = block if self._limits is None else _above(block, self._limits)
        if self._used + piece.shape[1] > kept.shape[1]:
            highest = np.partition(kept[:, : self._used], self._used - self._last, axis=1)[:, self._used - self._last :]
            kept[:, : self._last], self._used = highest, self._last
            self._limits = highest.min(axis=1, keepdims=True)
            piece = _above(block, self._limits)
        kept[:, self._used : self._used + piece.shape[1]] = piece
        self._used += piece.shape[1]

    def _drop_finished(self, end: int) -> None:
        """Drop queries without a target from `end` on; where most of the rows still count, copying them costs more."""
        pending = self._final[self._queries] >= end
        if 2 * pending.sum() > len(pending) and self._kept is not None:
            return
        self._queries = self._queries[pending]
        self._row_of[self._queries] = np.arange(len(self._queries))
        self._kept = None if self._kept is None else self._kept[pending]
        self._limits = None if self._limits is None else self._limits[pending]


def _above(block: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The scores of each row [n, images] above its limit [n, 1], moved to the left and filled up to the longest row."""
    chosen = np.flatnonzero(block > limits)
    rows = chosen // block.shape[1]
    sizes = np.bincount(rows, minlength=len(block))
    columns = np.arange(len(chosen)) - np.repeat(sizes.cumsum() - sizes, sizes)
    piece = np.full((len(block), int(sizes.max(initial=0))), -np.inf, dtype=np.float32)
    piece[rows, columns] = block.reshape(-1)[chosen]
    return piece


def _count(mask: np.ndarray) -> np.ndarray:
    return np.asarray(np.count_nonzero(mask, axis=1))


def _chunks(indices: np.ndarray) -> Iterator[np.ndarray]:
    return (indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK))
