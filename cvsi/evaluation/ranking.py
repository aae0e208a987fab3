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
BLOCK_BYTES = 256 << 20  # of the scores of a block, all methods together
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
class LinearScore:
    """One linear score: queries [q, d] float32, and which of a shard's matrices it is the product with."""

    queries: np.ndarray
    side: int


@dataclass(frozen=True)
class Combination:
    """A score form, and the numbers of the linear scores that it combines, in its order."""

    scorer: Scorer
    linear: tuple[int, ...]


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
    linear = [LinearScore(matrix, side) for side, matrix in enumerate(queries)]
    scored = [Combination(scorer, tuple(range(len(linear))))]
    for (block,) in score_blocks(linear, scored, gallery, named.excluded, k, device):
        groups.update(block)
        targets.update(block.scores.cpu().numpy(), block.start)
        first.update(block)
    return Ranking(*first.result(), groups.scores.cpu().numpy(), targets.ranks())


def rank_targets(
    linear: Sequence[LinearScore],
    scored: Sequence[Combination],
    gallery: Iterable[Sequence[np.ndarray]],
    named: NamedImages,
    device: torch.device | str = "cpu",
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The `target_ranks` and `group_scores` of `rank` for several methods, in one pass over the gallery."""
    rankings = rank_together(linear, scored, gallery, named, 0, device)
    return [(ranking.target_ranks, ranking.group_scores) for ranking in rankings]


def rank_together(
    linear: Sequence[LinearScore],
    scored: Sequence[Combination],
    gallery: Iterable[Sequence[np.ndarray]],
    named: NamedImages,
    k: int,
    device: torch.device | str = "cpu",
) -> list[Ranking]:
    """What `rank` gives for several methods, in one pass over the gallery; with k = 0, no first images.

    A linear score that several methods use is computed once. The shards of `gallery` have one matrix [m, d] float32 per
    side of the linear scores.
    """
    queries = len(linear[0].queries)
    rows = block_rows(queries, len(scored))
    first = [FirstImages(queries, k, device) for _ in scored]
    groups = [GroupScores(named.groups, device) for _ in scored]
    targets = [TargetRanks(named.targets, rows) for _ in scored]
    for blocks in score_blocks(linear, scored, gallery, named.excluded, k, device, rows):
        for block, best, group, target in zip(blocks, first, groups, targets, strict=True):
            group.update(block)
            target.update(block.scores.cpu().numpy(), block.start)
            if k:
                best.update(block)
    return [
        Ranking(*best.result(), group.scores.cpu().numpy(), target.ranks())
        for best, group, target in zip(first, groups, targets, strict=True)
    ]


def block_rows(queries: int, methods: int) -> int:
    """How many images a block has where each of several methods has one in memory: `BLOCK`, or fewer tiles."""
    tiles = BLOCK_BYTES // (4 * TILE_ROWS * max(queries * methods, 1))
    return TILE_ROWS * min(max(tiles, 1), BLOCK // TILE_ROWS)


def group_ranks(group_scores: np.ndarray, groups: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The rank from 1 of each query's target [q] among its group [q, g], equal scores by position; 0 outside of it."""
    own = groups == targets[:, None]
    score = np.where(own, group_scores, -np.inf).max(axis=1, initial=-np.inf)
    equal_before = (group_scores == score[:, None]) & (groups < targets[:, None])
    better = (group_scores > score[:, None]) | equal_before
    ahead = (better & (groups >= 0) & (group_scores > -np.inf)).sum(axis=1)
    return np.where(own.any(axis=1) & (targets >= 0), ahead + 1, 0)


def score_blocks(
    linear: Sequence[LinearScore],
    scored: Sequence[Combination],
    gallery: Iterable[Sequence[np.ndarray]],
    excluded: np.ndarray,
    lead: int,
    device: torch.device | str,
    rows: int = BLOCK,
) -> Iterator[list[Block]]:
    """The scores of a gallery by each method, a list of blocks at a time.

    Pairs (query row, position) of `excluded` score minus infinity. All blocks are in the same memory, so each must be
    used before the next.
    """
    left = [torch.from_numpy(score.queries).to(device) for score in linear]
    empty = [~matrix.any(dim=1, keepdim=True) for matrix in left]
    pairs = torch.from_numpy(excluded).to(device)
    buffers = [torch.full((len(left[0]), lead + rows), LOWEST, device=device) for _ in scored]
    direct = _direct(scored)
    scratch = {
        number: torch.empty((len(left[0]), TILE_ROWS), device=device)
        for number in range(len(linear))
        if number not in direct
    }
    start = 0
    for matrices, images in _blocks(gallery, rows):
        right = [torch.from_numpy(matrix).to(device) for matrix in matrices]
        for row in range(0, len(right[0]), TILE_ROWS):
            outputs = [buffer[:, lead + row : lead + row + TILE_ROWS] for buffer in buffers]
            products = [outputs[direct[n]] if n in direct else scratch[n] for n in range(len(linear))]
            for score, one, product in zip(linear, left, products, strict=True):
                torch.mm(one, right[score.side][row : row + TILE_ROWS].T, out=product)
            for method, out in zip(scored, outputs, strict=True):
                tiles = {
                    name: Tile(products[number], empty[number])
                    for name, number in zip(method.scorer.forms, method.linear, strict=True)
                }
                scores = method.scorer.combine(tiles)
                if scores is not out:
                    out.copy_(scores)
        blocks = [Block(buffer[:, : lead + images], lead, start) for buffer in buffers]
        inside = (pairs[:, 1] >= start) & (pairs[:, 1] < start + images)
        for block in blocks:
            block.scores[pairs[inside, 0], pairs[inside, 1] - start] = LOWEST
        yield blocks
        start += images


def _direct(scored: Sequence[Combination]) -> dict[int, int]:
    """The linear scores that are used by one method which uses no other, with the number of that method.

    Such a product is written straight to the method's scores.
    """
    users: dict[int, list[int]] = {}
    for number, method in enumerate(scored):
        for linear in method.linear:
            users.setdefault(linear, []).append(number)
    return {
        linear: methods[0]
        for linear, methods in users.items()
        if len(methods) == 1 and len(scored[methods[0]].linear) == 1
    }


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


def _blocks(shards: Iterable[Sequence[np.ndarray]], rows: int) -> Iterator[tuple[list[np.ndarray], int]]:
    """The rows of all shards in blocks of `rows`, each with how many of its rows are the gallery's.

    The last block is filled up with zeros to a multiple of `TILE_ROWS`.
    """
    rest: list[np.ndarray] = []
    for shard in shards:
        rest = (
            [np.concatenate(pair) for pair in zip(rest, shard, strict=True)] if rest and len(rest[0]) else list(shard)
        )
        full = len(rest[0]) // rows * rows
        for start in range(0, full, rows):
            yield [matrix[start : start + rows] for matrix in rest], rows
        rest = [matrix[full:] for matrix in rest]
    if rest and len(rest[0]):
        zeros = [np.zeros((-len(matrix) % TILE_ROWS, matrix.shape[1]), dtype=matrix.dtype) for matrix in rest]
        yield [np.concatenate(pair) for pair in zip(rest, zeros, strict=True)], len(rest[0])
