"""Query and gallery parts to the ranks of right answers under many weightings, from products that are taken once.

A score is bilinear: the weighted sum of the products of every query part with every gallery part. A metric asks for
the ranks of the right answers alone, and a rank is a count of the images that stand before one, so nothing is sorted.
Products are taken with `STRIP` images and `QUERIES` queries, the last ones filled up with zeros, then scaled and added
one after the other: a score has the same bits in whatever group or block it is computed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cvsi.core import paths
from cvsi.core.errors import CvsiError
from cvsi.core.vector_columns import matrix_of
from cvsi.evaluation.ranking import BLOCK, LOWEST, STRIP
from cvsi.evaluation.scores import Judge

QUERIES = 16  # queries of a product and of a count
UNRANKED = 2**62


def group_size(parts: int, gallery: int, memory: int) -> int:
    """How many queries' products of `parts` with a gallery fit into `memory` bytes: a multiple of `QUERIES`."""
    return QUERIES * max(1, memory // (4 * QUERIES * max(1, parts * gallery)))


def products(judge: Judge, rows: np.ndarray, asked: Sequence[str], shown: Sequence[str]) -> Tensor:
    """The products of some queries' parts with the gallery's: [rows, asked, shown, gallery] float32.

    The gallery is read through once. Raises CvsiError for a part that is missing or holds numbers that are not finite.
    """
    left = _stacked(judge.vectors.take(rows), asked, judge.where)
    filled = np.zeros((-(-len(rows) // QUERIES) * QUERIES, *left.shape[1:]), dtype=np.float32)
    filled[: len(rows)] = left
    blocks = torch.from_numpy(filled).to(judge.device).view(-1, QUERIES * len(asked), left.shape[2])
    found = torch.empty((*blocks.shape[:2], len(shown), judge.gallery.size), device=judge.device)
    start, where = 0, str(paths.folder("gallery_vectors", judge.gallery.name, judge.backbone))
    for shard in judge.shards():
        right = _stacked(shard, shown, where)
        if right.shape[2] != left.shape[2]:
            raise CvsiError(f"{where}: vectors of {right.shape[2]} numbers, the queries have {left.shape[2]}")
        for strip, images in _strips(right):
            matrices = torch.from_numpy(strip).to(judge.device)
            for block, into in zip(blocks, found, strict=True):
                for part, matrix in enumerate(matrices):
                    into[:, part, start : start + images] = (block @ matrix.T)[:, :images]
            start += images
    return found.view(len(filled), len(asked), len(shown), judge.gallery.size)[: len(rows)]


def weighted(parts: Tensor, left: Tensor, right: Tensor, room: Tensor | None = None) -> Tensor:
    """Scores [q, w, n] float32 from products [q, asked, shown, n], query weights [asked], gallery weights [w, shown].

    All is scaled, then added, part by part: exact IEEE steps, so equal images score equally wherever they stand. The
    result may lie in `room`, which is `room_for` these or more: fresh memory for each block would cost half the time.
    """
    (queries, _, shown, images), number = parts.shape, len(right)
    room = room_for(parts, right) if room is None else room
    scores, scaled, sides = room[:, :queries, :, :images]
    _sums(parts.transpose(1, 2), left[None], sides[:, :shown, None], scaled[:, :shown, None])
    return _sums(sides[:, :shown], right, scores[:, :number], scaled[:, :number])


def room_for(parts: Tensor, right: Tensor) -> Tensor:
    """Memory in which `weighted` works on products as large as these."""
    return torch.empty((3, len(parts), max(right.shape), parts.shape[3]), device=parts.device)


def scores_at(parts: Tensor, left: Tensor, right: Tensor, positions: Tensor, barred: Tensor) -> Tensor:
    """The scores at positions [q, t] of the gallery, [q, w, t]; minus infinity where there is -1 or a barred image."""
    chosen = positions.clamp(min=0)[:, None, None].expand(*parts.shape[:3], -1)
    scores = weighted(parts.gather(3, chosen), left, right)
    return scores.masked_fill_(((positions < 0) | barred)[:, None], LOWEST)


def ranks(parts: Tensor, left: Tensor, right: Tensor, targets: Tensor, barred: Tensor) -> Tensor:
    """The ranks from 0 of targets [q, t] among the gallery under the weightings of `weighted`, [q, w, t] int64.

    Equal scores rank by position. `barred` [x, 2] holds pairs (query row, position) that are never ranked; the rank of
    such a target, and of one at -1, is `UNRANKED`.
    """
    rows, columns = barred.unbind(1)
    limits = scores_at(parts, left, right, targets, is_barred(targets, barred, parts.shape[3]))
    ahead = torch.zeros(limits.shape, dtype=torch.int64, device=parts.device)
    room = room_for(parts[:QUERIES, :, :, :BLOCK], right)
    for first in range(0, len(parts), QUERIES):
        block = slice(first, first + QUERIES)
        mine = (rows >= first) & (rows < first + QUERIES)
        for start in range(0, parts.shape[3], BLOCK):
            scores = weighted(parts[block, :, :, start : start + BLOCK], left, right, room)
            here = mine & (columns >= start) & (columns < start + BLOCK)
            scores[rows[here] - first, :, columns[here] - start] = LOWEST
            _count(scores, start, targets[block], limits[block], ahead[block], room[1])
    return ahead.masked_fill_(limits == LOWEST, UNRANKED)


def is_barred(positions: Tensor, barred: Tensor, size: int) -> Tensor:
    """Whether positions [q, t] of a gallery of `size` images are among the pairs (row, position), [q, t] bool."""
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    return torch.isin(rows * size + positions, barred[:, 0] * size + barred[:, 1]) & (positions >= 0)


def _sums(parts: Tensor, weights: Tensor, total: Tensor, scaled: Tensor) -> Tensor:
    """Sums over parts [..., p, n] by weights [w, p] into `total` [..., w, n], which comes back; `scaled` is scratch."""
    first, *others = torch.nonzero(weights.any(dim=0)).flatten().tolist() or [0]  # leaving zeros out changes no bit
    torch.mul(parts[..., first, None, :], weights[:, first, None], out=total)
    for place in others:
        total += torch.mul(parts[..., place, None, :], weights[:, place, None], out=scaled)
    return total


def _count(scores: Tensor, start: int, targets: Tensor, limits: Tensor, ahead: Tensor, scratch: Tensor) -> None:
    """Add to `ahead` [q, w, t] how many of the images from `start` on, with scores [q, w, n], stand before targets."""
    positions = torch.arange(start, start + scores.shape[2], device=scores.device)
    for place, wanted in enumerate(targets.T):
        there = torch.nonzero(wanted >= 0)
        rows = slice(int(there[-1]) + 1 if len(there) else 0)
        mine, limit = scores[rows], limits[rows, :, place, None]
        # Zeros and ones as floats: comparing into booleans takes five times as long.
        flags = scratch[: len(mine), : mine.shape[1], : mine.shape[2]]
        ahead[rows, :, place] += torch.gt(mine, limit, out=flags).sum(2).long()
        earlier = (positions < wanted[rows, None]).float()[:, None]
        ahead[rows, :, place] += torch.eq(mine, limit, out=flags).mul_(earlier).sum(2).long()


def _stacked(table: pa.Table, parts: Sequence[str], where: str) -> np.ndarray:
    """Parts of a table side by side, [rows, parts, d] float32."""
    lost = [part for part in parts if part not in table.column_names]
    if lost:
        raise CvsiError(f"{where}: no column '{lost[0]}', which the weightings need; there are: {table.column_names}")
    matrices = [matrix_of(table, part, where) for part in parts]
    if len({matrix.shape for matrix in matrices}) > 1:
        raise CvsiError(f"{where}: parts of different lengths, {', '.join(parts)}")
    stacked = np.stack(matrices, axis=1)
    if not np.isfinite(stacked).all():
        raise CvsiError(f"{where}: vectors hold numbers that are not finite; run the stage that wrote them again")
    return stacked


def _strips(right: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Rows [m, parts, d] as strips [parts, STRIP, d], the last filled up with zeros, each with its number of rows."""
    for start in range(0, len(right), STRIP):
        rows = right[start : start + STRIP].transpose(1, 0, 2)
        strip = np.zeros((rows.shape[0], STRIP, rows.shape[2]), dtype=np.float32)
        strip[:, : rows.shape[1]] = rows
        yield strip, rows.shape[1]
