"""The index and the vectors to the metrics of hundreds of weightings: a search that encodes nothing and sorts nothing.

It is not a stage: it reads what stages (or another program) made, and no stage reads its output. Weights that were
chosen on the split on which they are reported are no result, so each call prints that.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from cvsi.commands import sweep_grid, sweep_plots, sweep_ranks
from cvsi.commands.sweep_grid import Components, Sweep
from cvsi.core import tables
from cvsi.core.console import Meter, count, info
from cvsi.core.devices import device
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Params
from cvsi.core.schema import PHI_PARTS
from cvsi.core.vector_columns import names_of
from cvsi.datasets.formats import format_of
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation import methods, queries, vectors
from cvsi.evaluation.fusion import Form
from cvsi.evaluation.metrics import with_ranks
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.ranking import group_ranks
from cvsi.evaluation.target_ranks import LAST
from cvsi.evaluation.vectors import RunVectors

DEFAULT_PARTS, DEFAULT_STEP = ("edited", "pseudo", "reference"), 0.1
BATCH = 32  # weightings of a sum
MEMORY = 512 * 2**20  # bytes of products at a time


@dataclass(frozen=True)
class Inputs:
    """What every weighting is evaluated on: labelled queries, vectors with their columns, and the metrics."""

    table: QueryTable
    vectors: RunVectors
    components: Components
    protocol: Protocol
    device: torch.device


def build(
    name: str, backbone: str, params: Params, parts: Sequence[str] = DEFAULT_PARTS, step: float = DEFAULT_STEP,
    memory: int = MEMORY,
) -> Sweep:  # fmt: skip
    """Evaluate a grid of weightings and write `cache/<name>/<backbone>/sweep`: the table, a DVC plot, a picture.

    The grid is the simplex of the query columns of the dataset's fusion and of `parts`, times that of the gallery's
    columns, by `step`; named methods are added. Raises CvsiError for what cannot be searched.
    """
    began = time.perf_counter()
    settings = params.backbone(backbone)  # a name that params.yaml does not define is an error
    forms = weights_by_name(params, name)
    own = forms[methods.own_name(params, name)]
    sweep_grid.check_step(step, len({*parts, *own.query}) or 1, max(len(own.gallery), 1))
    inputs = read(name, backbone, params)
    inputs.vectors.require(methods.fusion_of(params, name), settings)
    if settings.phi is None and tuple(parts) == DEFAULT_PARTS:
        parts = [part for part in parts if part in inputs.components.query or part not in PHI_PARTS]
    chosen = sweep_grid.used(inputs.components, parts, own)
    table = sweep_grid.points(inputs.components, chosen, step)
    lattice = pl.DataFrame(table, schema=inputs.components.names)
    columns = set(inputs.components.names)
    known = {key: form for key, form in forms.items() if {*form.query, *form.gallery} <= columns}
    names, table = sweep_grid.with_named(inputs.components, table, known)
    size = count(inputs.vectors.gallery.size, "image")
    info(f"{count(len(table), 'weighting')} on {', '.join(inputs.table.labelled)}, {size}")
    frame = evaluate(inputs, names, table, memory)
    result = Sweep(frame, inputs.components, inputs.protocol, len(table), time.perf_counter() - began)
    recipe = {
        "fusion": methods.fusion_of(params, name).recipe(), "format": params.dataset(name).format, "parts": chosen,
        "step": step,
    }  # fmt: skip
    schema = pa.schema({"split": pa.string(), "name": pa.string()} | dict.fromkeys(frame.columns[2:], pa.float64()))
    with tables.output("sweep", name, backbone, recipe) as out:
        out.table("weightings.parquet", frame.to_arrow(), schema)
        sweep_plots.write(out, result, lattice, chosen, f"{name}, {backbone}")
    return result


def weights_by_name(params: Params, name: str) -> dict[str, Form]:
    """The weights of all methods that are plain products; raises CvsiError where the dataset's fusion is none."""
    fusions = methods.table(params, name)
    forms = {key: fusion.weights for key, fusion in fusions.items()}
    own = methods.own_name(params, name)
    if forms[own] is None:
        kind = fusions[own].scorer.kind
        raise CvsiError(f"{PATH}: datasets.{name}.fusion: a sweep searches weights (score form sum), not '{kind}'")
    return {key: form for key, form in forms.items() if form is not None}


def read(name: str, backbone: str, params: Params) -> Inputs:
    """The inputs of a sweep; raises CvsiError without labels or without a gallery."""
    table, gallery = queries.read(name)
    if not table.labelled:
        raise CvsiError(f"{name}: no split has labels, so no weighting can be evaluated; sweep a labelled dataset")
    if not gallery.size:
        raise CvsiError(f"{gallery.where}: no image is in the gallery; run the stage index again")
    inputs = vectors.read(table.frame, gallery, backbone)
    columns = Components(names_of(inputs.queries.schema), names_of(inputs.gallery_schema))
    protocol = format_of(params.dataset(name), name).protocol
    return Inputs(table, inputs, columns, protocol, device(params.compute))


def evaluate(inputs: Inputs, names: Sequence[str], table: np.ndarray, memory: int = MEMORY) -> pl.DataFrame:
    """The metrics of weightings [w, components] on every labelled split, best first, equal ones in the order given."""
    weights = {name: table[:, index] for index, name in enumerate(inputs.components.names)}
    frames = []
    for split in inputs.table.labelled:
        means = _means(inputs, split, table, memory)
        frames.append(pl.DataFrame({"split": [split] * len(table), "name": list(names)} | weights | means))
    frame = pl.concat(frames)
    return frame.sort("split", inputs.protocol.main, descending=[False, True], maintain_order=True)


def _means(inputs: Inputs, split: str, table: np.ndarray, memory: int) -> dict[str, np.ndarray]:
    """The means of all metrics over a split's queries, [weightings] by name, a group of queries at a time."""
    components, names = inputs.components, inputs.protocol.names()
    sides = [
        [name for name in side if table[:, components.names.index(name)].any()]
        for side in (components.query, components.gallery)
    ]
    rows = np.flatnonzero((inputs.table.frame["split"] == split).to_numpy())
    # Queries with many right answers first: those with a second one, say, are then one piece of memory.
    rows = rows[np.argsort(-(inputs.table.named.targets[rows] >= 0).sum(axis=1), kind="stable")]
    size = sweep_ranks.group_size(len(sides[0]) * len(sides[1]), inputs.vectors.gallery.size, memory)
    sums, numbers = ({name: np.zeros(len(table)) for name in names} for _ in range(2))
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        if size < len(rows):
            info(f"{split}: queries {start + 1:,} to {start + len(group):,} of {len(rows):,}")
        for run, values in _values_of_group(inputs, group, sides, table):
            for name, percent in values.items():
                counts = ~np.isnan(percent)
                sums[name][run] += np.where(counts, percent, 0).sum(axis=1)
                numbers[name][run] += counts.sum(axis=1)
    return {name: sums[name] / numbers[name] for name in names}


def _values_of_group(
    inputs: Inputs, rows: np.ndarray, sides: list[list[str]], table: np.ndarray
) -> Iterator[tuple[slice, Mapping[str, np.ndarray]]]:
    """Some weightings, and their values of every metric for some queries, [weightings, rows] by name."""
    products = sweep_ranks.products(inputs.vectors, rows, sides[0], sides[1], inputs.device)
    left, right = (table[:, inputs.components.indices(side)] for side in sides)
    with Meter(len(table), "weightings") as meter:
        for run in _runs(left):
            yield run, _values(inputs, rows, products, left[run.start], right[run])
            meter.advance(run.stop - run.start)


def _runs(left: np.ndarray) -> Iterator[slice]:
    """Neighbours with the same query weights, at most `BATCH` at a time."""
    edges = np.flatnonzero((left[1:] != left[:-1]).any(axis=1)) + 1
    for start, stop in pairwise([0, *edges.tolist(), len(left)]):
        for first in range(start, stop, BATCH):
            yield slice(first, min(first + BATCH, stop))


def _values(
    inputs: Inputs, rows: np.ndarray, products: torch.Tensor, left: np.ndarray, right: np.ndarray
) -> dict[str, np.ndarray]:
    """The protocol's values for queries under the query weights [parts] with each of the gallery weights [w, parts]."""
    named, number = inputs.table.named, len(right)
    row_of = np.full(inputs.table.frame.height, -1)
    row_of[rows] = np.arange(len(rows))
    mine = named.excluded[row_of[named.excluded[:, 0]] >= 0]
    pairs = np.stack([row_of[mine[:, 0]], mine[:, 1]], axis=1)
    arrays = (left.astype(np.float32), right.astype(np.float32), named.targets[rows], named.groups[rows], pairs)
    query, gallery, targets, groups, excluded = (torch.from_numpy(array).to(inputs.device) for array in arrays)
    never = sweep_ranks.is_excluded(groups, excluded, products.shape[3])
    ahead = sweep_ranks.ranks(products, query, gallery, targets, excluded).transpose(0, 1).cpu().numpy()
    scores = sweep_ranks.scores_at(products, query, gallery, groups, never).transpose(0, 1).cpu().numpy()
    # One table for all weightings, since a protocol computes each row by itself.
    target_ranks = np.where(ahead < LAST, ahead + 1, 0).reshape(number * len(rows), -1)
    in_group = group_ranks(
        scores.reshape(number * len(rows), -1),
        np.tile(named.groups[rows], (number, 1)),
        np.tile(named.targets[rows, 0], number),
    )
    frame = pl.concat([inputs.table.frame[rows]] * number)
    values = inputs.protocol.values(with_ranks(frame, target_ranks, in_group))
    return {name: percent.reshape(number, len(rows)) for name, percent in values.items()}
