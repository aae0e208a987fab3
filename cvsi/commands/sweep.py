"""The index and the vectors to the metrics of hundreds of weightings: a search that encodes nothing and sorts nothing.

It is not a stage: it reads what stages (or another program) made, and no stage reads its output. Weights that were
chosen on the split on which they are reported are no result, so each call prints that.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor

from cvsi.commands import sweep_forms, sweep_grid, sweep_noise, sweep_plots, sweep_ranks, sweep_values
from cvsi.commands.sweep_grid import Components, Split, Sweep
from cvsi.commands.sweep_request import Numbers, request
from cvsi.commands.sweep_values import Inputs, Points, Wanted
from cvsi.core import tables
from cvsi.core.console import count, info
from cvsi.core.devices import device
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Params
from cvsi.core.schema import PHI_PARTS
from cvsi.core.vector_columns import names_of
from cvsi.datasets.formats import format_of
from cvsi.evaluation import methods, queries, vectors
from cvsi.evaluation.fusion import Form
from cvsi.evaluation.halves import in_first_half

DEFAULT_PARTS, DEFAULT_STEP = ("edited", "pseudo", "reference"), 0.1
BATCH = 32  # weightings of a sum
MEMORY = 512 * 2**20  # bytes of products at a time


@dataclass(frozen=True)
class Grid:
    """The points of a grid: `table` [points, columns] with the numbers of each, their names (or empty), and its own.

    `own` is the point with the numbers of params.yaml or of the method, where there is one.
    """

    columns: Sequence[str]
    names: Sequence[str]
    table: np.ndarray
    own: int | None


@dataclass(frozen=True)
class Weightings:
    """The weightings of a table [w, components], evaluated from products of components."""

    inputs: Inputs
    table: np.ndarray
    noun: str = "weightings"

    def __len__(self) -> int:
        """How many they are."""
        return len(self.table)

    @property
    def sides(self) -> list[list[str]]:
        """The components of queries and of the gallery that any weighting uses."""
        components = self.inputs.components
        return [
            [name for name in side if self.table[:, components.names.index(name)].any()]
            for side in (components.query, components.gallery)
        ]

    def group_size(self, memory: int) -> int:
        """How many queries' products take `memory` bytes."""
        query, gallery = self.sides
        return sweep_ranks.group_size(len(query) * len(gallery), self.inputs.vectors.gallery.size, memory)

    def of_group(self, rows: np.ndarray, wanted: Wanted) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Numbers of weightings [w], the targets' ranks from 0 [q, w, t] and the groups' scores [q, w, g]."""
        inputs, (query, gallery) = self.inputs, self.sides
        images = inputs.vectors.gallery.size
        left = sweep_ranks.query_columns(inputs.vectors, rows, query)
        shards = sweep_ranks.gallery_columns(inputs.vectors, gallery, left.shape[2])
        products = sweep_ranks.products(left, shards, len(gallery), images, inputs.device)
        never = sweep_ranks.is_excluded(wanted.groups, wanted.excluded, images)
        sides = (self.table[:, inputs.components.indices(side)].astype(np.float32) for side in (query, gallery))
        of_query, of_gallery = (torch.from_numpy(side).to(inputs.device) for side in sides)
        for run in _runs(self.table[:, inputs.components.indices(query)]):
            weights = (products, of_query[run.start], of_gallery[run])
            ahead = sweep_ranks.ranks(*weights, wanted.targets, wanted.excluded)
            yield np.arange(run.start, run.stop), ahead, sweep_ranks.scores_at(*weights, wanted.groups, never)


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
    own_row = next(index for index, shown in enumerate(names) if inputs.own in shown.split(", "))
    grid = Grid(inputs.components.names, names, table, own_row)
    frame, splits = evaluate(inputs, Weightings(inputs, table), grid, memory)
    result = Sweep(
        frame, inputs.components, inputs.protocol, len(table), time.perf_counter() - began, splits, inputs.own
    )
    recipe = {
        "fusion": methods.fusion_of(params, name).recipe(), "format": params.dataset(name).format, "parts": chosen,
        "step": step,
    }  # fmt: skip
    view = sweep_plots.of_weights(inputs.components, chosen)
    with tables.output("sweep", name, backbone, recipe) as out:
        out.table("weightings.parquet", frame.to_arrow(), _schema(frame))
        sweep_plots.write(out, result, lattice, view, f"{name}, {backbone}")
    return result


def build_method(
    name: str, backbone: str, params: Params, method: str, settings: Sequence[str], memory: int = MEMORY
) -> Sweep:
    """Evaluate a method at all points of its lists of numbers and write `cache/<name>/<backbone>/sweep`.

    `method` is a name or a YAML file, and `settings` (`KEY=VALUES`) put lists in place of its numbers. Raises CvsiError
    for what cannot be searched.
    """
    began = time.perf_counter()
    phi = params.backbone(backbone).phi
    asked = request(params, name, method, settings)
    inputs = read(name, backbone, params)
    for fusion in asked.fusions:
        for part, line in inputs.vectors.missing(fusion).items():
            why = f"; backbones.{backbone} has no phi" if part in PHI_PARTS and phi is None else ""
            raise CvsiError(f"{line}, which {asked.method} needs{why}")
    points = sweep_forms.form_points(inputs, asked.fusions)
    largest = max(inputs.table.of_split(split).height for split in inputs.table.labelled)
    group = min(points.group_size(memory), largest)
    held = points.bytes_of(group) / 2**30
    info(
        f"{count(len(points), 'point')} of {asked.method} on {', '.join(inputs.table.labelled)}, "
        f"{count(inputs.vectors.gallery.size, 'image')}; products of {group:,} queries at a time: {held:.2f} GiB"
    )
    numbers = Numbers(asked.block, asked.keys)
    grid = Grid(numbers.names, asked.names, asked.table, asked.own)
    frame, splits = evaluate(inputs, points, grid, memory)
    own = asked.method if asked.own is not None else ""
    took = time.perf_counter() - began
    result = Sweep(frame, numbers, inputs.protocol, len(points), took, splits, own, "point")
    recipe = {
        "method": asked.method, "block": asked.block, "format": params.dataset(name).format,
        "lists": dict(zip(numbers.names, asked.lists, strict=True)),
    }  # fmt: skip
    lattice = pl.DataFrame(asked.table, schema=numbers.names)
    for column, values in zip(numbers.names, asked.lists, strict=True):
        lattice = lattice.filter(pl.col(column).is_in(values))
    with tables.output("sweep", name, backbone, recipe) as out:
        out.table("points.parquet", frame.to_arrow(), _schema(frame))
        sweep_plots.write(out, result, lattice, sweep_plots.of_numbers(numbers), f"{name}, {backbone}, {asked.method}")
    return result


def weights_by_name(params: Params, name: str) -> dict[str, Form]:
    """The weights of all methods that are plain products; raises CvsiError where the dataset's fusion is none."""
    fusions = methods.table(params, name)
    forms = {key: fusion.weights for key, fusion in fusions.items()}
    own = methods.own_name(params, name)
    if forms[own] is None:
        kind = fusions[own].scorer.kind
        raise CvsiError(
            f"{PATH}: datasets.{name}.fusion: score form '{kind}' has no single weights; "
            "vary its numbers with --set KEY=VALUE,VALUE, or name another method with --method"
        )
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


def evaluate(inputs: Inputs, points: Points, grid: Grid, memory: int = MEMORY) -> tuple[pl.DataFrame, dict[str, Split]]:
    """The metrics of the points of a grid on every labelled split, and what they are worth there.

    The rows are best first, equal ones in the order given. A split of which no query counts in the main metric is left
    out with a message; raises CvsiError where that is every split.
    """
    main, table = inputs.protocol.main, grid.table
    numbers = {name: table[:, index] for index, name in enumerate(grid.columns)}
    frames, splits = [], {}
    for split in inputs.table.labelled:
        means, values = sweep_values.means(inputs, split, points, memory)
        if np.isnan(means[main] if grid.own is None else means[main][grid.own]).all():
            info(f"{split}: no query counts in {main}, so no weighting can be evaluated on it")
            continue
        queries = inputs.table.of_split(split)["query_id"]
        splits[split] = judged(table, queries, means[main], values, grid.own)
        columns = {"split": [split] * len(table), "name": list(grid.names)} | numbers | means
        frames.append(pl.DataFrame(columns).with_columns(noise_columns(splits[split])))
    if not frames:
        raise CvsiError(f"no query of {', '.join(inputs.table.labelled)} counts in {main}; no weights can be compared")
    order = [pl.col("split"), pl.col(main).fill_nan(None)]
    frame = pl.concat(frames).sort(order, descending=[False, True], nulls_last=True, maintain_order=True)
    return frame, splits


def judged(table: np.ndarray, ids: pl.Series, means: np.ndarray, values: np.ndarray | None, own: int | None) -> Split:
    """What the main metric's means [w] over a split's queries are worth, by its values [w, queries], NaN among them.

    Without the values, which were too large to keep, nothing is computed.
    """
    number = len(ids)
    if values is None:
        size = 8 * len(table) * number / 2**30
        advice = "take a larger --step, fewer --parts or shorter lists"
        why = f"the values of {count(number, 'query')} take {size:.1f} GiB; {advice}"
        return Split(table, number, own, None, None, f"no noise band and no halves: {why}")
    counted = sweep_noise.counting(values)
    if counted.sum() < 2:
        why = f"{count(int(counted.sum()), 'query')} counts" if counted.any() else "no query counts"
        return Split(table, number, own, None, None, f"no noise band and no halves: {why} under every weighting")
    if not counted.all():
        values, ids = values[:, counted], ids.filter(counted)
    best = int(np.nanargmax(means))
    halves = sweep_noise.halves_of(values, in_first_half(ids.to_list()), own, best)
    few = f"no halves: {count(len(ids), 'query')}, and each half needs {sweep_noise.FEWEST}"
    return Split(table, number, own, sweep_noise.noise_of(values, best), halves, few if halves is None else "")


def _schema(frame: pl.DataFrame) -> pa.Schema:
    kinds = {"split": pa.string(), "name": pa.string(), "in_noise": pa.bool_()}
    return pa.schema({column: kinds.get(column, pa.float64()) for column in frame.columns})


def noise_columns(split: Split) -> list[pl.Series]:
    """The columns of `sweep_grid.NOISE` of a split's weightings, in the order of its table."""
    noise, size = split.noise, len(split.table)
    if noise is None:
        return [pl.Series(name, [None] * size, kind) for name, kind in sweep_grid.NOISE.items()]
    columns = (noise.difference, noise.low, noise.high, noise.within)
    return [
        pl.Series(name, column, kind) for (name, kind), column in zip(sweep_grid.NOISE.items(), columns, strict=True)
    ]


def _runs(left: np.ndarray) -> Iterator[slice]:
    """Neighbours with the same query weights, at most `BATCH` at a time."""
    edges = np.flatnonzero((left[1:] != left[:-1]).any(axis=1)) + 1
    for start, stop in pairwise([0, *edges.tolist(), len(left)]):
        for first in range(start, stop, BATCH):
            yield slice(first, min(first + BATCH, stop))
