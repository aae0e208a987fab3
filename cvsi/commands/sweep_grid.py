"""Columns and a step to the weightings of a sweep: a grid of weights that sum to 1, with the named methods in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any
from typing import Protocol as Interface

import numpy as np
import polars as pl

from cvsi.commands.sweep_noise import Halves, Noise
from cvsi.core.errors import CvsiError
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation import OWN
from cvsi.evaluation.fusion import Form

MOST = 200_000
# The main metric less that of the best weighting with its interval, and whether that is noise; nulls where unknown.
NOISE = {"difference": pl.Float64, "low": pl.Float64, "high": pl.Float64, "in_noise": pl.Boolean}


@dataclass(frozen=True)
class Components:
    """The vector columns of both tables, in their order: the columns of a table of weightings [w, columns]."""

    query: tuple[str, ...]
    gallery: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of them, those of the queries first."""
        return [*self.query, *self.gallery]

    @property
    def short(self) -> list[str]:
        """The names themselves."""
        return self.names

    def indices(self, names: Sequence[str]) -> list[int]:
        """The columns of these components in a table of weightings."""
        return [self.names.index(name) for name in names]

    def form_of(self, row: Mapping[str, float]) -> dict[str, Any]:
        """Weights by column as a block `fusion` of params.yaml, zeros left out."""
        sides = (("query", self.query), ("gallery", self.gallery))
        return {key: {name: row[name] for name in side if row[name]} for key, side in sides}

    def words(self, row: Mapping[str, float]) -> str:
        """Weights by column in words: `0.6 edited + 0.4 pseudo, on 0.8 image + 0.2 caption`."""
        sides = self.form_of(row).values()
        return ", on ".join(
            " + ".join(f"{round(weight, 4):g} {name}" for name, weight in side.items()) for side in sides
        )

    def weights_of(self, form: Form) -> tuple[float, ...]:
        """The weights of a form as a row of such a table."""
        return tuple(
            weights.get(name, 0.0) for side, weights in ((self.query, form.query), (self.gallery, form.gallery))
            for name in side
        )  # fmt: skip


class Space(Interface):
    """What a row of a sweep consists of: weights by component, or a method's numbers."""

    @property
    def names(self) -> list[str]:
        """The columns of a table of points."""
        ...

    @property
    def short(self) -> list[str]:
        """What they are called where there is little room."""
        ...

    def form_of(self, row: Mapping[str, float]) -> dict[str, Any]:
        """A row as a block `fusion` of params.yaml."""
        ...

    def words(self, row: Mapping[str, float]) -> str:
        """A row in words."""
        ...


@dataclass(frozen=True)
class Split:
    """What the figures of one split are worth; `table` [weightings, components] has the weights, as numbered here.

    Without `noise` or `halves`, `why` says why. `queries` is the number of the split's queries, `own` the dataset's
    own weighting, or the point with a method's own numbers where it has any.
    """

    table: np.ndarray
    queries: int
    own: int | None
    noise: Noise | None
    halves: Halves | None
    why: str


@dataclass(frozen=True)
class Sweep:
    """The outcome: a row per split and weighting, best first, what the splits' figures are worth, and the time.

    `frame` has `split`, `name` (the methods with these weights, joined by commas, or empty), the components, the
    protocol's metrics in percent and the columns of `NOISE`. `number` weightings took `seconds`, the reading of
    vectors included. `noun` is what a row is called.
    """

    frame: pl.DataFrame
    components: Space
    protocol: Protocol
    number: int
    seconds: float
    splits: Mapping[str, Split] = field(default_factory=dict)
    own: str = OWN
    noun: str = "weighting"

    @property
    def is_own(self) -> pl.Expr:
        """Whether a row of the frame is the one with the name `own`; no row is where that is empty."""
        if not self.own:
            return pl.col("name").is_null()
        return pl.col("name").str.split(", ").list.contains(self.own)

    @property
    def rate(self) -> float:
        """Weightings per minute."""
        return 60 * self.number / self.seconds


def used(components: Components, names: Sequence[str], own: Form) -> list[str]:
    """The query columns of a grid: the named ones and those of the fusion; raises CvsiError for an unknown one."""
    unknown = [name for name in names if name not in components.query]
    if unknown:
        raise CvsiError(f"--parts: no query component '{unknown[0]}'; there are: {', '.join(components.query)}")
    chosen = [name for name in components.query if name in names or name in own.query]
    if not chosen:
        raise CvsiError(
            f"--parts: no component to weigh, and the dataset's fusion has none; there are: "
            f"{', '.join(components.query)}"
        )
    return chosen


def points(components: Components, chosen: Sequence[str], step: float) -> np.ndarray:
    """All weights of the chosen query columns that sum to 1, times those of the gallery columns: [w, columns] float64.

    Raises CvsiError for a step that does not divide 1 or gives more than `MOST` weightings.
    """
    steps = check_step(step, len(chosen), len(components.gallery))
    left, right = _compositions(steps, len(chosen)), _compositions(steps, len(components.gallery))
    table = np.zeros((len(left), len(right), len(components.names)))
    table[:, :, components.indices(chosen)] = left[:, None]
    table[:, :, components.indices(components.gallery)] = right[None]
    return table.reshape(-1, len(components.names)) / steps


def check_step(step: float, query: int, gallery: int) -> int:
    """How often a step is in 1; raises CvsiError where it does not divide 1 or gives more than `MOST` weightings."""
    steps = round(1 / step) if 1e-6 <= step <= 1 else 0
    if not steps or abs(steps * step - 1) > 1e-9:
        raise CvsiError(f"--step {step:g}: a step must divide 1, as 0.1, 0.05 and 0.25 do")
    number = math.comb(steps + query - 1, query - 1) * math.comb(steps + gallery - 1, gallery - 1)
    if number > MOST:
        raise CvsiError(
            f"--step {step:g}: {number:,} weightings of {query} query parts, more than {MOST:,}; "
            "take a larger step or fewer --parts"
        )
    return steps


def with_named(components: Components, table: np.ndarray, named: Mapping[str, Form]) -> tuple[list[str], np.ndarray]:
    """A grid with names at named weightings, and those outside the grid at its end; equal ones share a row."""
    rows = {tuple(row): "" for row in table.tolist()}
    for name, form in named.items():
        key = components.weights_of(form)
        rows[key] = f"{rows[key]}, {name}" if rows.get(key) else name
    return list(rows.values()), np.array(list(rows))


def _compositions(steps: int, parts: int) -> np.ndarray:
    """All ways to write `steps` as an ordered sum of `parts` numbers from 0, [ways, parts]."""
    bars = np.array(list(combinations(range(steps + parts - 1), parts - 1)), dtype=np.int64)
    ends = np.full((len(bars), 1), steps + parts - 1)
    return np.diff(np.concatenate([np.full_like(ends, -1), bars, ends], axis=1), axis=1) - 1
