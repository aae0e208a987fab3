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

from cvsi.commands import sweep_grid, sweep_noise, sweep_plots, sweep_ranks
from cvsi.commands.sweep_grid import Components, Split, Sweep
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
KEPT = 2**30  # bytes of the main metric's values per weighting and query of a split


@dataclass(frozen=True)
class Inputs:
    """What every weighting is evaluated on: labelled queries, vectors with their columns, and the metrics.

    `own` is the name of the dataset's own weighting.
    """

    table: QueryTable
    vectors: RunVectors
    components: Components
    protocol: Protocol
    device: torch.device
    own: str


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
    frame, splits = evaluate(inputs, names, table, memory)
    result = Sweep(
        frame, inputs.components, inputs.protocol, len(table), time.perf_counter() - began, splits, inputs.own
    )
    recipe = {
        "fusion": methods.fusion_of(params, name).recipe(), "format": params.dataset(name).format, "parts": chosen,
        "step": step,
    }  # fmt: skip
    kinds = {"split": pa.string(), "name": pa.string(), "in_noise": pa.bool_()}
    schema = pa.schema({column: kinds.get(column, pa.float64()) for column in frame.columns})
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
    return Inputs(table, inputs, columns, protocol, device(params.compute), methods.own_name(params, name))


def evaluate(
    inputs: Inputs, names: Sequence[str], table: np.ndarray, memory: int = MEMORY
) -> tuple[pl.DataFrame, dict[str, Split]]:
    """The metrics of weightings [w, components] on every labelled split, and what they are worth there.

    The rows are best first, equal ones in the order given. A split of which no query counts in the main metric is left
    out with a message; raises CvsiError where that is every split.
    """
    main = inputs.protocol.main
    weights = {name: table[:, index] for index, name in enumerate(inputs.components.names)}
    own = next(index for index, name in enumerate(names) if inputs.own in name.split(", "))
    frames, splits = [], {}
    for split in inputs.table.labelled:
        means, values = _means(inputs, split, table, memory)
        if np.isnan(means[main][own]):
            info(f"{split}: no query counts in {main}, so no weighting can be evaluated on it")
            continue
        queries = inputs.table.of_split(split)["query_id"]
        splits[split] = judged(table, queries, means[main], values, own)
        columns = {"split": [split] * len(table), "name": list(names)} | weights | means
        frames.append(pl.DataFrame(columns).with_columns(noise_columns(splits[split])))
    if not frames:
        raise CvsiError(f"no query of {', '.join(inputs.table.labelled)} counts in {main}; no weights can be compared")
    order = [pl.col("split"), pl.col(main).fill_nan(None)]
    frame = pl.concat(frames).sort(order, descending=[False, True], nulls_last=True, maintain_order=True)
    return frame, splits


def judged(table: np.ndarray, ids: pl.Series, means: np.ndarray, values: np.ndarray | None, own: int) -> Split:
    """What the main metric's means [w] over a split's queries are worth, by its values [w, queries], NaN among them.

    Without the values, which were too large to keep, nothing is computed.
    """
    number = len(ids)
    if values is None:
        size = 8 * len(table) * number / 2**30
        why = f"the values of {count(number, 'query')} take {size:.1f} GiB; take a larger --step or fewer --parts"
        return Split(table, number, own, None, None, f"no noise band and no halves: {why}")
    counted = sweep_noise.counting(values)
    if counted.sum() < 2:
        why = f"{count(int(counted.sum()), 'query')} counts" if counted.any() else "no query counts"
        return Split(table, number, own, None, None, f"no noise band and no halves: {why} under every weighting")
    if not counted.all():
        values, ids = values[:, counted], ids.filter(counted)
    best = int(np.nanargmax(means))
    halves = sweep_noise.halves_of(values, sweep_noise.in_first_half(ids.to_list()), own, best)
    few = f"no halves: {count(len(ids), 'query')}, and each half needs {sweep_noise.FEWEST}"
    return Split(table, number, own, sweep_noise.noise_of(values, best), halves, few if halves is None else "")


def noise_columns(split: Split) -> list[pl.Series]:
    """The columns of `sweep_grid.NOISE` of a split's weightings, in the order of its table."""
    noise, size = split.noise, len(split.table)
    if noise is None:
        return [pl.Series(name, [None] * size, kind) for name, kind in sweep_grid.NOISE.items()]
    columns = (noise.difference, noise.low, noise.high, noise.within)
    return [
        pl.Series(name, column, kind) for (name, kind), column in zip(sweep_grid.NOISE.items(), columns, strict=True)
    ]


def _means(
    inputs: Inputs, split: str, table: np.ndarray, memory: int
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The means of all metrics over a split's queries, [weightings] by name, a group of queries at a time.

    Also the main metric's values, [weightings, queries] in the index's order, where they take at most `KEPT` bytes.
    """
    components, names, main = inputs.components, inputs.protocol.names(), inputs.protocol.main
    sides = [
        [name for name in side if table[:, components.names.index(name)].any()]
        for side in (components.query, components.gallery)
    ]
    of_split = np.flatnonzero((inputs.table.frame["split"] == split).to_numpy())
    # Queries with many right answers first: those with a second one, say, are then one piece of memory.
    rows = of_split[np.argsort(-(inputs.table.named.targets[of_split] >= 0).sum(axis=1), kind="stable")]
    size = sweep_ranks.group_size(len(sides[0]) * len(sides[1]), inputs.vectors.gallery.size, memory)
    sums, numbers = ({name: np.zeros(len(table)) for name in names} for _ in range(2))
    kept = np.empty((len(table), len(rows))) if 8 * len(table) * len(rows) <= KEPT else None
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        columns = np.searchsorted(of_split, group)
        if size < len(rows):
            info(f"{split}: queries {start + 1:,} to {start + len(group):,} of {len(rows):,}")
        for run, values in _values_of_group(inputs, group, sides, table):
            for name, percent in values.items():
                counts = ~np.isnan(percent)
                sums[name][run] += np.where(counts, percent, 0).sum(axis=1)
                numbers[name][run] += counts.sum(axis=1)
            if kept is not None:
                kept[run, columns] = values[main]
    means = {name: np.full(len(table), np.nan) for name in names}
    for name, mean in means.items():
        np.divide(sums[name], numbers[name], out=mean, where=numbers[name] > 0)
    return means, kept


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
    values = inputs.protocol.values(with_ranks(frame, target_ranks, in_group, named.negatives))
    return {name: percent.reshape(number, len(rows)) for name, percent in values.items()}
