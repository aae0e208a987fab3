"""Query and gallery vectors to the first k images of every query, the ranks of its targets and the scores of its group.

The ranking is exact and streaming: one block of the gallery is in memory at a time, so memory does not grow with the
gallery, and equal scores rank by position. Products are always taken with `TILE_ROWS` images, the last ones filled up
with zeros: a matrix product of another size may round otherwise, and then equal images would not score equally, nor the
same gallery in other shards.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.scorers import Scorer, Tile
from cvsi.evaluation.scorers.sum import Sum
from cvsi.evaluation.target_ranks import TargetRanks

LOWEST = -torch.inf
KEPT = 100  # images per query in the rankings
TILE_ROWS = 512  # images per product: little is filled up, and no slower than larger ones
BLOCK = 4096  # images per top-k
PRODUCT = Sum(kind="sum")


@dataclass(frozen=True)
class Ranking:
    """The outcome for every query, on the CPU.

    `positions` int64 and `scores` float32 [queries, k] are the first images; where fewer than k images may be ranked,
    the rest has position -1 and score minus infinity. `group_scores` float32 [queries, group] are those of the query's
    group, minus infinity for images that are never ranked. `target_ranks` int32 [queries, targets] count from 1; 0 is a
    target that is not ranked, or past the first 1,000.
    """

    positions: np.ndarray
    scores: np.ndarray
    group_scores: np.ndarray
    target_ranks: np.ndarray


@dataclass(frozen=True)
class Block:
    """The scores of all queries and the gallery images from `start` on, after `lead` columns for the best before."""

    buffer: Tensor
    lead: int
    start: int

    @property
    def scores(self) -> Tensor:
        """[queries, images] float32."""
        return self.buffer[:, self.lead :]


def rank(
    queries: Sequence[np.ndarray],
    gallery: Iterable[Sequence[np.ndarray]],
    named: NamedImages,
    k: int = KEPT,
    scorer: Scorer = PRODUCT,
    device: torch.device | str = "cpu",
) -> Ranking:
    """Rank a gallery that arrives in shards, [m, d] float32 per form of the scorer, for queries [q, d] per form."""
    first = FirstImages(len(queries[0]), k, device)
    groups, targets = GroupScores(named.groups, device), TargetRanks(named.targets, BLOCK)
    for block in score_blocks(queries, gallery, named.excluded, k, scorer, device):
        groups.update(block)
        targets.update(block.scores.cpu().numpy(), block.start)
        first.update(block)
    return Ranking(*first.result(), groups.scores.cpu().numpy(), targets.ranks())


def rank_targets(
    queries: Sequence[np.ndarray],
    gallery: Iterable[Sequence[np.ndarray]],
    named: NamedImages,
    scorer: Scorer = PRODUCT,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The `target_ranks` and `group_scores` of `rank` alone, from the same scores."""
    groups, targets = GroupScores(named.groups, device), TargetRanks(named.targets, BLOCK)
    for block in score_blocks(queries, gallery, named.excluded, KEPT, scorer, device):
        groups.update(block)
        targets.update(block.scores.cpu().numpy(), block.start)
    return targets.ranks(), groups.scores.cpu().numpy()


def group_ranks(group_scores: np.ndarray, groups: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The rank from 1 of each query's target [q] among its group [q, g], equal scores by position; 0 outside of it."""
    own = groups == targets[:, None]
    score = np.where(own, group_scores, -np.inf).max(axis=1, initial=-np.inf)
    equal_before = (group_scores == score[:, None]) & (groups < targets[:, None])
    better = (group_scores > score[:, None]) | equal_before
    ahead = (better & (groups >= 0) & (group_scores > -np.inf)).sum(axis=1)
    return np.where(own.any(axis=1) & (targets >= 0), ahead + 1, 0)


def score_blocks(
    queries: Sequence[np.ndarray],
    gallery: Iterable[Sequence[np.ndarray]],
    excluded: np.ndarray,
    lead: int,
    scorer: Scorer,
    device: torch.device | str,
) -> Iterator[Block]:
    """The scores of a gallery, block by block; pairs (query row, position) of `excluded` score minus infinity.

    All blocks are in the same memory, so each must be used before the next.
    """
    left = [torch.from_numpy(matrix).to(device) for matrix in queries]
    empty = [torch.from_numpy(~matrix.any(axis=1, keepdims=True)).to(device) for matrix in queries]
    pairs = torch.from_numpy(excluded).to(device)
    buffer = torch.full((len(left[0]), lead + BLOCK), LOWEST, device=device)
    scratch = [torch.empty((len(left[0]), TILE_ROWS), device=device) for _ in left[1:]]
    start = 0
    for matrices, images in _blocks(gallery):
        right = [torch.from_numpy(matrix).to(device) for matrix in matrices]
        for row in range(0, len(right[0]), TILE_ROWS):
            out = buffer[:, lead + row : lead + row + TILE_ROWS]
            products = [out, *scratch]
            for one, other, product in zip(left, right, products, strict=True):
                torch.mm(one, other[row : row + TILE_ROWS].T, out=product)
            tiles = map(Tile, products, empty)
            scores = scorer.combine(dict(zip(scorer.forms, tiles, strict=True)))
            if scores is not out:
                out.copy_(scores)
        block = Block(buffer[:, : lead + images], lead, start)
        inside = (pairs[:, 1] >= start) & (pairs[:, 1] < start + images)
        block.scores[pairs[inside, 0], pairs[inside, 1] - start] = LOWEST
        yield block
        start += images


class FirstImages:
    """The first k images of every query so far; the best scores are carried in the lead of the next block."""

    def __init__(self, queries: int, k: int, device: torch.device | str) -> None:
        """Begin without images."""
        self._k, self._images = k, 0
        self._positions = torch.full((queries, k), -1, device=device)
        self._scores = torch.full((queries, k), LOWEST, device=device)

    def update(self, block: Block) -> None:
        """One top-k over the best so far and the scores of a block, whose lead has k columns."""
        block.buffer[:, : self._k] = self._scores
        best, chosen = topk_stable(block.buffer, self._k)
        earlier = self._positions.gather(1, chosen.clamp(max=self._k - 1))
        self._positions = torch.where(chosen < self._k, earlier, chosen - self._k + block.start)
        self._scores, self._images = best, block.start + block.scores.shape[1]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and scores, no more columns than there are images."""
        size = min(self._k, self._images)
        scores = self._scores[:, :size]
        positions = self._positions[:, :size].masked_fill(scores == LOWEST, -1)
        return positions.cpu().numpy(), scores.cpu().numpy()


class GroupScores:
    """The scores of positions [queries, group] (-1: none), whatever their rank."""

    def __init__(self, groups: np.ndarray, device: torch.device | str) -> None:
        """Begin with minus infinity everywhere."""
        self._groups = torch.from_numpy(groups).to(device)
        self.scores = torch.full(groups.shape, LOWEST, device=device)

    def update(self, block: Block) -> None:
        """Take the scores of the group's images in a block."""
        inside = (self._groups >= block.start) & (self._groups < block.start + block.scores.shape[1])
        rows, columns = torch.nonzero(inside, as_tuple=True)
        self.scores[rows, columns] = block.scores[rows, self._groups[rows, columns] - block.start]


def topk_stable(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row with their columns; of equal ones the lower column comes first.

    `topk` leaves open in which order equal values come and which of them it takes. One value more shows the rows where
    that matters; they are computed by themselves.
    """
    size = min(k, scores.shape[1])
    values, columns = torch.topk(scores, min(size + 1, scores.shape[1]), dim=1)
    tied = torch.nonzero((values[:, 1:] == values[:, :-1]).any(dim=1)).flatten()
    values, columns = values[:, :size], columns[:, :size]
    if len(tied):
        values[tied], columns[tied] = _topk_with_ties(scores[tied], values[tied, -1:], size)
    return values, columns


def _topk_with_ties(scores: Tensor, last: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, the k-th of which is `last` [rows, 1], with their columns; equal ones by column.

    These are all that are larger than the last, and as many equal to it, the first ones, as there is space for: far
    cheaper than sorting the whole rows, of which near-duplicates in a gallery would make many.
    """
    larger, equal = scores > last, scores == last
    space = k - larger.count_nonzero(dim=1).unsqueeze(1)
    chosen = larger | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= space))
    columns = torch.nonzero(chosen)[:, 1].view(len(scores), k)
    values, order = torch.sort(scores.gather(1, columns), dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _blocks(shards: Iterable[Sequence[np.ndarray]]) -> Iterator[tuple[list[np.ndarray], int]]:
    """The rows of all shards in blocks of `BLOCK`, each with how many of its rows are the gallery's.

    The last block is filled up with zeros to a multiple of `TILE_ROWS`.
    """
    rest: list[np.ndarray] = []
    for shard in shards:
        rest = (
            [np.concatenate(pair) for pair in zip(rest, shard, strict=True)] if rest and len(rest[0]) else list(shard)
        )
        full = len(rest[0]) // BLOCK * BLOCK
        for start in range(0, full, BLOCK):
            yield [matrix[start : start + BLOCK] for matrix in rest], BLOCK
        rest = [matrix[full:] for matrix in rest]
    if rest and len(rest[0]):
        zeros = [np.zeros((-len(matrix) % TILE_ROWS, matrix.shape[1]), dtype=matrix.dtype) for matrix in rest]
        yield [np.concatenate(pair) for pair in zip(rest, zeros, strict=True)], len(rest[0])
