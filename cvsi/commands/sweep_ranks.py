"""Query and gallery components to the ranks of targets under many weightings, from products that are taken once.

A score is bilinear: the weighted sum of the products of every query component with every gallery component. A metric
needs the ranks of the targets alone, and a rank is a count of the images ahead of one, so nothing is sorted. Products
are taken with `TILE_ROWS` images and `QUERIES` queries, the last ones filled up with zeros, then scaled and added one
after the other: a score has the same bits in every group and block in which it is computed.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cvsi.core.errors import CvsiError
from cvsi.core.vector_columns import matrix_of
from cvsi.evaluation.ranking import BLOCK, LOWEST, TILE_ROWS
from cvsi.evaluation.vectors import RunVectors

QUERIES = 16  # queries of a product and of a count
UNRANKED = 2**62


def group_size(pairs: int, gallery: int, memory: int) -> int:
    """How many queries' products with a gallery fit into `memory` bytes, for so many pairs of components.

    The number is a multiple of `QUERIES`.
    """
    return QUERIES * max(1, memory // (4 * QUERIES * max(1, pairs * gallery)))


def query_columns(vectors: RunVectors, rows: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """Columns of some queries' vectors side by side, [rows, columns, d] float32; raises CvsiError for a bad one."""
    return stacked(vectors.queries.take(rows), columns, vectors.query_path)


def gallery_columns(vectors: RunVectors, columns: Sequence[str], width: int) -> Iterator[np.ndarray]:
    """Columns of the gallery's vectors side by side, a shard [m, columns, d] float32 at a time.

    Raises CvsiError for a column that is missing, has numbers that are not finite or vectors not `width` long.
    """
    for shard in vectors.gallery.shards(vectors.backbone):
        right = stacked(shard, columns, vectors.gallery_path)
        vectors.check_width(width, right.shape[2])
        yield right


def products(left: np.ndarray, gallery: Iterable[np.ndarray], sides: int, images: int, device: torch.device) -> Tensor:
    """The products of queries [q, p, d] with a gallery of so many images: [q, p, sides, images] float32.

    The gallery arrives in shards [m, sides, d].
    """
    number, parts, width = left.shape
    filled = np.zeros((-(-number // QUERIES) * QUERIES, parts, width), dtype=np.float32)
    filled[:number] = left
    blocks = torch.from_numpy(filled).to(device).view(-1, QUERIES * parts, width)
    out = torch.empty((*blocks.shape[:2], sides, images), device=device)
    start = 0
    for right in gallery:
        for tile, here in _tiles(right):
            matrices = torch.from_numpy(tile).to(device)
            for block, into in zip(blocks, out, strict=True):
                for component, matrix in enumerate(matrices):
                    into[:, component, start : start + here] = (block @ matrix.T)[:, :here]
            start += here
    return out.view(len(filled), parts, sides, images)[:number]


def weighted(parts: Tensor, left: Tensor, right: Tensor, memory: Tensor | None = None) -> Tensor:
    """Scores [q, w, n] float32 from products [q, query, gallery, n], weights [query] and [w, gallery].

    All is scaled, then added, component by component: exact IEEE steps, so equal images score equally at any position.
    The result may be in `memory`, of `memory_for` or more: new memory for each block would cost half the time.
    """
    (queries, _, shown, images), number = parts.shape, len(right)
    memory = memory_for(parts, right) if memory is None else memory
    scores, scaled, sides = memory[:, :queries, :, :images]
    _sums(parts.transpose(1, 2), left[None], sides[:, :shown, None], scaled[:, :shown, None])
    return _sums(sides[:, :shown], right, scores[:, :number], scaled[:, :number])


def memory_for(parts: Tensor, right: Tensor) -> Tensor:
    """Memory in which `weighted` works on products as large as these."""
    return torch.empty((3, len(parts), max(right.shape), parts.shape[3]), device=parts.device)


def scores_at(parts: Tensor, left: Tensor, right: Tensor, positions: Tensor, excluded: Tensor) -> Tensor:
    """The scores at positions [q, t] of the gallery, [q, w, t]; minus infinity at -1 and for an excluded image."""
    chosen = positions.clamp(min=0)[:, None, None].expand(*parts.shape[:3], -1)
    scores = weighted(parts.gather(3, chosen), left, right)
    return scores.masked_fill_(((positions < 0) | excluded)[:, None], LOWEST)


def ranks(parts: Tensor, left: Tensor, right: Tensor, targets: Tensor, excluded: Tensor) -> Tensor:
    """The ranks from 0 of targets [q, t] among the gallery under the weightings of `weighted`, [q, w, t] int64.

    Equal scores rank by position. `excluded` [x, 2] are pairs (query row, position) that are never ranked; the rank of
    such a target, and of one at -1, is `UNRANKED`.
    """
    rows, columns = excluded.unbind(1)
    limits = scores_at(parts, left, right, targets, is_excluded(targets, excluded, parts.shape[3]))
    ahead = torch.zeros(limits.shape, dtype=torch.int64, device=parts.device)
    memory = memory_for(parts[:QUERIES, :, :, :BLOCK], right)
    for first in range(0, len(parts), QUERIES):
        block = slice(first, first + QUERIES)
        mine = (rows >= first) & (rows < first + QUERIES)
        for start in range(0, parts.shape[3], BLOCK):
            scores = weighted(parts[block, :, :, start : start + BLOCK], left, right, memory)
            here = mine & (columns >= start) & (columns < start + BLOCK)
            scores[rows[here] - first, :, columns[here] - start] = LOWEST
            count_ahead(scores, start, targets[block], limits[block], ahead[block], memory[1])
    return ahead.masked_fill_(limits == LOWEST, UNRANKED)


def is_excluded(positions: Tensor, excluded: Tensor, size: int) -> Tensor:
    """Whether positions [q, t] of a gallery of `size` images are among the pairs (row, position), [q, t] bool."""
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    return torch.isin(rows * size + positions, excluded[:, 0] * size + excluded[:, 1]) & (positions >= 0)


def _sums(parts: Tensor, weights: Tensor, total: Tensor, scaled: Tensor) -> Tensor:
    """Sums over parts [..., p, n] by weights [w, p] into `total` [..., w, n], which comes back; `scaled` is scratch."""
    first, *others = torch.nonzero(weights.any(dim=0)).flatten().tolist() or [0]  # leaving zeros out changes no bit
    torch.mul(parts[..., first, None, :], weights[:, first, None], out=total)
    for index in others:
        total += torch.mul(parts[..., index, None, :], weights[:, index, None], out=scaled)
    return total


def count_ahead(scores: Tensor, start: int, targets: Tensor, limits: Tensor, ahead: Tensor, scratch: Tensor) -> None:
    """Add to `ahead` [q, w, t] how many of the images from `start` on, with scores [q, w, n], are ahead of targets.

    `targets` [q, t] are positions or -1, `limits` [q, w, t] their scores; `scratch` is as large as the scores or
    larger.
    """
    end = start + scores.shape[2]
    positions = torch.arange(start, end, device=scores.device)
    for index, wanted in enumerate(targets.T):
        ranked = torch.nonzero(wanted >= 0)
        rows = slice(int(ranked[-1]) + 1 if len(ranked) else 0)
        mine, limit, wanted = scores[rows], limits[rows, :, index], wanted[rows]
        # Images that come before a target are ahead with an equal score, too: they are above the next lower number.
        least = torch.where((wanted >= end)[:, None], limit.nextafter(limit.new_tensor(LOWEST)), limit)
        # Zeros and ones as floats: comparing into booleans takes five times as long.
        flags = scratch[: len(mine), : mine.shape[1], : mine.shape[2]]
        ahead[rows, :, index] += torch.gt(mine, least[:, :, None], out=flags).sum(2).long()
        inside = torch.nonzero((wanted >= start) & (wanted < end)).flatten()
        if len(inside):
            equal = (mine[inside] == limit[inside, :, None]) & (positions < wanted[inside, None])[:, None]
            ahead[inside, :, index] += equal.sum(2)


def stacked(table: pa.Table, columns: Sequence[str], where: str) -> np.ndarray:
    """Columns of a table side by side, [rows, columns, d] float32."""
    matrices = [matrix_of(table, column, where) for column in columns]
    if len({matrix.shape for matrix in matrices}) > 1:
        raise CvsiError(f"{where}: vectors of different lengths in {', '.join(columns)}")
    stacked = np.stack(matrices, axis=1)
    if not np.isfinite(stacked).all():
        raise CvsiError(f"{where}: vectors with numbers that are not finite; run the stage that wrote them again")
    return stacked


def _tiles(right: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Rows [m, columns, d] as tiles [columns, TILE_ROWS, d] and their row numbers; the last is filled up with zeros."""
    for start in range(0, len(right), TILE_ROWS):
        rows = right[start : start + TILE_ROWS].transpose(1, 0, 2)
        tile = np.zeros((rows.shape[0], TILE_ROWS, rows.shape[2]), dtype=np.float32)
        tile[:, : rows.shape[1]] = rows
        yield tile, rows.shape[1]
