"""The index and the vectors to the metrics of hundreds of weightings: a search that encodes and ranks nothing anew.

It lies outside every stage: it reads what stages (or another program) made, and none reads what it writes. Weights
chosen on the split they are reported on are no result, so it says that each time.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from cvsi.commands import sweep_grid, sweep_plots, sweep_ranks
from cvsi.commands.sweep_grid import PARTS
from cvsi.core import tables
from cvsi.core.console import Meter, count, say
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.schema import GALLERY_PARTS, QUERY_PARTS
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation.fusion import weightings
from cvsi.evaluation.ranking import LOWEST, Ranking
from cvsi.evaluation.scores import Judge

DEFAULT_PARTS, DEFAULT_STEP = ("edited", "pseudo", "reference"), 0.1
BATCH = 32  # weightings of a sum
MEMORY = 512 * 2**20  # bytes of products at a time


@dataclass(frozen=True)
class Sweep:
    """What was found: a row a split and weighting, best first, and what that took.

    `frame` has `split`, `name` (the weighting's names, joined by commas, or empty), `PARTS` and the protocol's metrics
    in percent. `number` weightings took `seconds`, the reading of vectors included.
    """

    frame: pl.DataFrame
    protocol: Protocol
    number: int
    seconds: float

    @property
    def rate(self) -> float:
        """Weightings a minute."""
        return 60 * self.number / self.seconds


def build(
    name: str, backbone: str, params: Params, parts: Sequence[str] = DEFAULT_PARTS, step: float = DEFAULT_STEP,
    memory: int = MEMORY,
) -> Sweep:  # fmt: skip
    """Judge a grid of weightings and write `cache/<name>/<backbone>/sweep`: the table, a DVC plot, a picture.

    The grid is the simplex of the query parts that the dataset's fusion has and of `parts`, times the gallery's two, by
    `step`; named weightings come on top. Raises CvsiError for what cannot be searched.
    """
    began, fusion = time.perf_counter(), params.dataset(name).fusion
    params.backbone(backbone)  # one that params.yaml does not know is an error
    used = sweep_grid.used(parts, fusion)
    table = sweep_grid.points(used, step)
    lattice = pl.DataFrame(table, schema=PARTS)
    judge = Judge(name, backbone, params)
    if not judge.labelled:
        raise CvsiError(f"{name}: no split has labels, so no weighting can be judged; sweep a labelled dataset instead")
    if not judge.gallery.size:
        raise CvsiError(f"{judge.gallery.where}: no image is in the gallery; run the stage index again")
    missing = [part for part in used if part not in judge.vectors.column_names]
    if missing:
        raise CvsiError(f"{judge.where}: no column '{missing[0]}'; name other --parts, or run the stage query_vectors")
    names, table = sweep_grid.with_named(
        table, {key: value for key, value in weightings(fusion).items() if judge.can(value)}
    )
    say(f"{count(len(table), 'weighting')} on {', '.join(judge.labelled)}, {count(judge.gallery.size, 'image')}")
    frame = judged(judge, names, table, memory)
    found = Sweep(frame, judge.protocol, len(table), time.perf_counter() - began)
    recipe = {"fusion": fusion.model_dump(), "format": params.dataset(name).format, "parts": used, "step": step}
    columns = {"split": pa.string(), "name": pa.string()} | dict.fromkeys(frame.columns[2:], pa.float64())
    main, title = judge.protocol.main, f"{name}, {backbone}"
    with tables.output("sweep", name, backbone, recipe) as out:
        out.table("weightings.parquet", frame.to_arrow(), pa.schema(columns))
        out.json("plot.json", sweep_plots.records(frame, lattice, used, main))
        out.json("template.json", sweep_plots.TEMPLATE)
        sweep_plots.draw(frame, lattice, used, main, title, out.file("sweep.png"))
    return found


def judged(judge: Judge, names: Sequence[str], table: np.ndarray, memory: int = MEMORY) -> pl.DataFrame:
    """The metrics of weightings [w, PARTS] on every labelled split, best first, equal ones in the order given."""
    metrics, weights = judge.protocol.names(), {part: table[:, place] for place, part in enumerate(PARTS)}
    frames = []
    for split in judge.labelled:
        means = dict(zip(metrics, _means(judge, split, table, memory).T, strict=True))
        frames.append(pl.DataFrame({"split": [split] * len(table), "name": list(names)} | weights | means))
    frame = pl.concat(frames)
    return frame.sort("split", judge.protocol.main, descending=[False, True], maintain_order=True)


def _means(judge: Judge, split: str, table: np.ndarray, memory: int) -> np.ndarray:
    """The means over a split's queries of all metrics, [weightings, metrics], a group of queries at a time."""
    sides = [[part for part in side if table[:, PARTS.index(part)].any()] for side in (QUERY_PARTS, GALLERY_PARTS)]
    rows = np.flatnonzero((judge.queries["split"] == split).to_numpy())
    # Queries with many right answers first: those with a second one, say, are then one piece of memory.
    order = np.argsort(-(judge.targets[rows] >= 0).sum(axis=1), kind="stable")
    size = sweep_ranks.group_size(len(sides[0]) * len(sides[1]), judge.gallery.size, memory)
    sums = np.zeros((len(table), len(judge.protocol.names())))
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        if size < len(rows):
            say(f"{split}: queries {start + 1:,} to {start + len(chosen):,} of {len(rows):,}")
        sums += _of_group(judge, split, rows, chosen, sides, table)
    return np.asarray(sums / len(rows))


def _of_group(
    judge: Judge, split: str, rows: np.ndarray, chosen: np.ndarray, sides: list[list[str]], table: np.ndarray
) -> np.ndarray:
    """The sums of all metrics over the `chosen` of a split's `rows`, [weightings, metrics]."""
    parts = sweep_ranks.products(judge, rows[chosen], *sides)
    left, right = (table[:, [PARTS.index(part) for part in side]] for side in sides)
    sums = np.zeros((len(table), len(judge.protocol.names())))
    with Meter(len(table), "weightings") as meter:
        for run in _runs(left):
            rankings = _rankings(judge, rows[chosen], parts, left[run.start], right[run])
            values = [judge.values(split, ranking) for ranking in rankings]
            sums[run] = [[value[chosen].sum() for value in found.values()] for found in values]
            meter.advance(run.stop - run.start)
    return sums


def _runs(left: np.ndarray) -> Iterator[slice]:
    """Neighbours with the same query weights, at most `BATCH` at a time."""
    edges = np.flatnonzero((left[1:] != left[:-1]).any(axis=1)) + 1
    for start, stop in pairwise([0, *edges.tolist(), len(left)]):
        for first in range(start, stop, BATCH):
            yield slice(first, min(first + BATCH, stop))


def _rankings(
    judge: Judge, rows: np.ndarray, parts: torch.Tensor, left: np.ndarray, right: np.ndarray
) -> Iterator[Ranking]:
    """Rankings in which only the right answers of some queries stand, and the scores of their groups.

    There is one for the query weights [asked] with each of the gallery weights [w, shown].
    """
    place_of = np.full(judge.queries.height, -1)
    place_of[rows] = np.arange(len(rows))
    mine = judge.barred[place_of[judge.barred[:, 0]] >= 0]
    pairs = np.stack([place_of[mine[:, 0]], mine[:, 1]], axis=1)
    arrays = (left.astype(np.float32), right.astype(np.float32), judge.targets[rows], judge.groups[rows], pairs)
    query, gallery, targets, groups, barred = (torch.from_numpy(array).to(judge.device) for array in arrays)
    never = sweep_ranks.is_barred(groups, barred, parts.shape[3])
    ranks = sweep_ranks.ranks(parts, query, gallery, targets, barred).cpu().numpy()
    probed = sweep_ranks.scores_at(parts, query, gallery, groups, never).cpu().numpy()
    for place in range(len(right)):
        yield _ranking(judge, rows, ranks[:, place], probed[:, place])


def _ranking(judge: Judge, rows: np.ndarray, ranks: np.ndarray, probed: np.ndarray) -> Ranking:
    protocol = judge.protocol
    positions = np.full((judge.queries.height, max(*protocol.average_precision, *protocol.recall)), -1)
    query, place = np.nonzero(ranks < positions.shape[1])
    positions[rows[query], ranks[query, place]] = judge.targets[rows[query], place]
    scores = np.full((judge.queries.height, probed.shape[1]), LOWEST, dtype=np.float32)
    scores[rows] = probed
    return Ranking(torch.from_numpy(positions), torch.empty(positions.shape[0], 0), torch.from_numpy(scores))
