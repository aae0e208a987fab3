"""Query and gallery vectors to the best k images of every query: exact, streaming, equal scores by position.

One block of the gallery is in memory at a time; what is kept is k scores and positions a query, so memory does not grow
with the gallery. Products are always taken with `BLOCK` rows, the last ones filled up with zeros: a matrix product of
another size may round otherwise, and then equal images would not score equally, nor the same gallery in other shards.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOWEST = -torch.inf
BLOCK = 4096


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
    queries: np.ndarray, gallery: Iterable[np.ndarray], k: int, excluded: np.ndarray, probes: np.ndarray
) -> Ranking:
    """Rank a gallery that comes in shards [m, d] float32 for queries [q, d] float32.

    `excluded` [n, 2] int64 holds pairs (query row, gallery position) that are never ranked. `probes` [q, p] int64 holds
    positions (or -1) whose scores are wanted whatever their rank; an excluded one scores minus infinity.
    """
    left = torch.from_numpy(queries)
    barred, wanted = torch.from_numpy(excluded), torch.from_numpy(probes)
    scores = torch.full((len(left), 0), LOWEST)
    positions = torch.empty((len(left), 0), dtype=torch.int64)
    probed = torch.full(wanted.shape, LOWEST)
    start = 0
    for block, rows_there in _blocks(gallery):
        found = (left @ torch.from_numpy(block).T)[:, :rows_there]
        end = start + found.shape[1]
        here = (barred[:, 1] >= start) & (barred[:, 1] < end)
        found[barred[here, 0], barred[here, 1] - start] = LOWEST
        rows, columns = torch.nonzero((wanted >= start) & (wanted < end), as_tuple=True)
        probed[rows, columns] = found[rows, wanted[rows, columns] - start]
        best, places = best_of(found, k)
        scores, chosen = best_of(torch.cat([scores, best], dim=1), k)
        positions = torch.cat([positions, places + start], dim=1).gather(1, chosen)
        start = end
    return Ranking(positions.masked_fill(scores == LOWEST, -1), scores, probed)


def _blocks(shards: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    """The rows of all shards in blocks of `BLOCK`, each with how many of its rows are the gallery's."""
    rest: np.ndarray | None = None
    for shard in shards:
        rest = shard if rest is None or not len(rest) else np.concatenate([rest, shard])
        full = len(rest) // BLOCK * BLOCK
        for start in range(0, full, BLOCK):
            yield rest[start : start + BLOCK], BLOCK
        rest = rest[full:]
    if rest is not None and len(rest):
        yield np.concatenate([rest, np.zeros((BLOCK - len(rest), rest.shape[1]), dtype=rest.dtype)]), len(rest)


def best_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row with their columns; of equal ones the lower column comes first.

    `topk` leaves open which of equal values it takes; rows where that matters, found by one value more, are sorted.
    """
    size = min(k, scores.shape[1])
    values, columns = torch.topk(scores, min(size + 1, scores.shape[1]), dim=1)
    unclear = torch.nonzero(values[:, -1] == values[:, size - 1]).flatten() if values.shape[1] > size else None
    values, columns = values[:, :size], columns[:, :size]
    order = torch.argsort(columns, dim=1)
    values, columns = values.gather(1, order), columns.gather(1, order)
    values, order = torch.sort(values, dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if unclear is not None and len(unclear):
        exact, places = torch.sort(scores[unclear], dim=1, descending=True, stable=True)
        values[unclear], columns[unclear] = exact[:, :size], places[:, :size]
    return values, columns
