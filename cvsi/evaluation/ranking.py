"""Query and gallery vectors to the best k images of every query: exact, streaming, equal scores by position.

One block of the gallery is in memory at a time; what is kept is k scores and positions a query, so memory does not grow
with the gallery. Products are always taken with `STRIP` rows, the last ones filled up with zeros: a matrix product of
another size may round otherwise, and then equal images would not score equally, nor the same gallery in other shards.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOWEST = -torch.inf
STRIP = 512  # rows a product: little is filled up, and no slower than larger ones
BLOCK = 4096  # rows a top-k


@dataclass(frozen=True)
class Ranking:
    """The best images of every query: `positions` int64 and `scores` float32, both [queries, k].

    Where fewer than k images may be ranked, the rest has position -1 and score minus infinity. `probed` are the scores
    of the positions that were asked for, [queries, probes].
    """

    positions: Tensor
    scores: Tensor
    probed: Tensor


def rank(
    queries: np.ndarray,
    gallery: Iterable[np.ndarray],
    k: int,
    excluded: np.ndarray,
    probes: np.ndarray,
    device: torch.device | str = "cpu",
) -> Ranking:
    """Rank a gallery that comes in shards [m, d] float32 for queries [q, d] float32, on a device; results on the CPU.

    `excluded` [n, 2] int64 holds pairs (query row, gallery position) that are never ranked. `probes` [q, p] int64 holds
    positions (or -1) whose scores are wanted whatever their rank; an excluded one scores minus infinity.
    """
    left, barred, wanted = (torch.from_numpy(array).to(device) for array in (queries, excluded, probes))
    # The best so far stand before the block's scores, so that one top-k over both carries them on.
    buffer = torch.full((len(left), k + BLOCK), LOWEST, device=device)
    positions = torch.full((len(left), k), -1, device=device)
    probed = torch.full(wanted.shape, LOWEST, device=device)
    start = 0
    for block, rows_there in _blocks(gallery):
        right, end = torch.from_numpy(block).to(device), start + rows_there
        for strip in range(0, len(right), STRIP):
            torch.mm(left, right[strip : strip + STRIP].T, out=buffer[:, k + strip : k + strip + STRIP])
        found = buffer[:, k : k + rows_there]
        here = (barred[:, 1] >= start) & (barred[:, 1] < end)
        found[barred[here, 0], barred[here, 1] - start] = LOWEST
        rows, columns = torch.nonzero((wanted >= start) & (wanted < end), as_tuple=True)
        probed[rows, columns] = found[rows, wanted[rows, columns] - start]
        best, chosen = best_of(buffer[:, : k + rows_there], k)
        earlier = positions.gather(1, chosen.clamp(max=k - 1))
        positions = torch.where(chosen < k, earlier, chosen - k + start)
        buffer[:, :k], start = best, end
    scores = buffer[:, : min(k, start)]
    positions = positions[:, : scores.shape[1]].masked_fill(scores == LOWEST, -1)
    return Ranking(positions.cpu(), scores.cpu().clone(), probed.cpu())


def _blocks(shards: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    """The rows of all shards in blocks of `BLOCK`, each with how many of its rows are the gallery's.

    The last block is filled up with zeros to a multiple of `STRIP`.
    """
    rest: np.ndarray | None = None
    for shard in shards:
        rest = shard if rest is None or not len(rest) else np.concatenate([rest, shard])
        full = len(rest) // BLOCK * BLOCK
        for start in range(0, full, BLOCK):
            yield rest[start : start + BLOCK], BLOCK
        rest = rest[full:]
    if rest is not None and len(rest):
        filled = np.zeros((-len(rest) % STRIP, rest.shape[1]), dtype=rest.dtype)
        yield np.concatenate([rest, filled]), len(rest)


def best_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row with their columns; of equal ones the lower column comes first.

    `topk` leaves open in which order equal values come and which of them it takes; rows where that matters, found by
    one value more, are settled by themselves.
    """
    size = min(k, scores.shape[1])
    values, columns = torch.topk(scores, min(size + 1, scores.shape[1]), dim=1)
    tied = torch.nonzero((values[:, 1:] == values[:, :-1]).any(dim=1)).flatten()
    values, columns = values[:, :size], columns[:, :size]
    if len(tied):
        values[tied], columns[tied] = _settled(scores[tied], values[tied, -1:], size)
    return values, columns


def _settled(scores: Tensor, last: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, the k-th of which is `last` [rows, 1], with their columns; equal ones by column.

    All that are larger than the last, and as many equal to it, the first ones, as there is room for: cheaper by far
    than sorting the whole rows, of which near-duplicates in a gallery would make many.
    """
    larger, equal = scores > last, scores == last
    room = k - larger.count_nonzero(dim=1).unsqueeze(1)
    taken = larger | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))
    columns = torch.nonzero(taken)[:, 1].view(len(scores), k)
    values, places = torch.sort(scores.gather(1, columns), dim=1, descending=True, stable=True)
    return values, columns.gather(1, places)
