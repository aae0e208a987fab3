"""A sweep's rows as a table for a terminal, a DVC plot with its template, and a picture.

Both pictures show profiles: the best value at a weight, or at one of a method's numbers, over all others. The dataset's
own weighting, for the benchmarks the published one, or the point with a method's own numbers, is marked everywhere.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cvsi.commands.layout import Table
from cvsi.commands.sweep_grid import Components, Sweep
from cvsi.commands.sweep_request import Numbers
from cvsi.core.console import count
from cvsi.core.tables import Output

WARNING = "weights chosen on the split they are reported on are no result; choose on one split, report on another"
ENVELOPE, BEST, NAMED, CHOSEN = "best at this weight", "best of all", "named weighting", "cvsi, as in params.yaml"
ITS_OWN = "the method's own numbers"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
IN_NOISE = "cannot be told from the best"
GREY, ALARM = "#444444", "#d62728"

TEMPLATE: dict[str, Any] = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "data": {"values": "<DVC_METRIC_DATA>"},
    "title": "<DVC_METRIC_TITLE>",
    "facet": {
        "row": {"field": "split", "title": None},
        "column": {"field": "part", "title": None},
    },
    "spec": {
        "width": 240,
        "height": 260,
        "encoding": {
            "x": {"field": "<DVC_METRIC_X>", "type": "quantitative", "title": "<DVC_METRIC_X_LABEL>"},
            "y": {
                "field": "<DVC_METRIC_Y>",
                "type": "quantitative",
                "title": "<DVC_METRIC_Y_LABEL>",
                "scale": {"zero": False},
            },
            "color": {
                "field": "kind",
                "type": "nominal",
                "title": None,
                "scale": {"domain": [ENVELOPE, NAMED, BEST, CHOSEN], "range": ["#0072b2", "#888888", "#009e73", ALARM]},
            },
            "tooltip": [
                {"field": "kind"},
                {"field": "name"},
                {"field": "weighting"},
                {"field": "noise"},
                {"field": "<DVC_METRIC_Y>", "format": ".2f"},
            ],
        },
        "layer": [
            {"transform": [{"filter": {"field": "kind", "equal": ENVELOPE}}], "mark": {"type": "line", "point": True}},
            {
                "transform": [{"filter": {"not": {"field": "kind", "equal": ENVELOPE}}}],
                "mark": {"type": "point", "filled": True, "size": 120, "opacity": 1},
                "encoding": {
                    "shape": {
                        "field": "kind",
                        "type": "nominal",
                        "title": None,
                        "scale": {
                            "domain": [ENVELOPE, NAMED, BEST, CHOSEN],
                            "range": ["circle", "square", "triangle-up", "diamond"],
                        },
                    }
                },
            },
        ],
    },
}


@dataclass(frozen=True)
class View:
    """What of a sweep is drawn: the columns with a profile, the two of the map, and which columns are no part of it.

    `down` is None where a single number varies, which has no map. `sums` has the columns of each side of a weighting:
    the scale of a side changes no rank. `rest` says what the map's two columns leave, and `own` what the marked point
    is.
    """

    profiles: tuple[str, ...]
    across: str
    down: str | None
    noun: str
    others: tuple[str, ...] = ()
    sums: tuple[tuple[str, ...], ...] = ()
    rest: str = ""
    own: str = CHOSEN

    def place(self, row: dict[str, Any], column: str) -> float:
        """Where a row is on an axis of the map."""
        total = next((sum(row[name] for name in side) for side in self.sums if column in side), 1.0)
        return float(row[column] / total) if total else math.nan


def of_weights(components: Components, chosen: Sequence[str]) -> View:
    """The view of a sweep over the `chosen` query components."""
    image = components.gallery[0]
    by_gallery = len(chosen) < 3
    down, across = (image, chosen[0]) if by_gallery else chosen[:2]
    others = tuple(name for name in components.query if name not in chosen)
    rest = "" if by_gallery else f" (the rest is {', '.join(chosen[2:])})"
    return View((*chosen, image), across, down, "weight", others, (tuple(chosen), components.gallery), rest)


def of_numbers(numbers: Numbers) -> View:
    """The view of a sweep over a method's numbers."""
    across, *others = numbers.names
    return View(tuple(numbers.names), across, others[0] if others else None, "value", own=ITS_OWN)


def write(out: Output, sweep: Sweep, lattice: pl.DataFrame, view: View, title: str) -> None:
    """Write the plot, its template and the picture of a sweep, whose grid has the rows of `lattice`."""
    sweep = replace(sweep, frame=sweep.frame.filter(pl.col(sweep.protocol.main).is_not_nan()))
    out.json("plot.json", records(sweep, lattice, view))
    out.json("template.json", template(sweep.components.names, view.own))
    draw(sweep, lattice, view, title, out.file("sweep.png"))


def template(columns: Sequence[str], own: str) -> dict[str, Any]:
    """The template of a plot with these columns, in which the marked point has this name."""
    text = json.dumps(TEMPLATE).replace(json.dumps(CHOSEN), json.dumps(own))
    made: dict[str, Any] = json.loads(text)
    made["facet"]["column"]["sort"] = list(columns)
    return made


def plot_command(folder: Path, main: str, noun: str = "weight") -> str:
    """The command that makes a page of a sweep's plot, beside it."""
    files = f"{folder / 'plot.json'} -t {folder / 'template.json'}"
    return f"dvc plots show {files} -x {noun} -y {main} -o {folder / 'page'}"


def tables(sweep: Sweep, top: int) -> Iterator[Table]:
    """The best `top` weightings of each split as a table, the named ones below with their ranks.

    Equal values share a rank.
    """
    main = sweep.protocol.main
    metrics = [main, *sweep.protocol.cut_offs()]
    for (split,), rows in sweep.frame.group_by("split", maintain_order=True):
        ranked = rows.with_row_index("row").with_columns(rank=pl.col(main).rank("min", descending=True))
        ends = dict(zip(sweep.components.names, sweep.components.short, strict=True))
        weighted = [name for name in ends if (rows[name] != 0).any()]
        table = Table(f"{split}, {count(rows.height, sweep.noun)}, percent").figures("rank", key=True)
        table.texts(sweep.noun, key=True).figures(*metrics, group="metrics")
        table.figures(*(ends[name] for name in weighted), group="weights" if sweep.noun == "weighting" else "numbers")
        shown = ranked.filter((pl.col("row") < top) | (pl.col("name") != ""))
        for row in shown.with_columns(own=sweep.is_own).to_dicts():
            if row["row"] >= top and len(table.rows) == top:
                table.add_section()
            empty = "" if sweep.noun == "weighting" else "0"
            weights = (f"{row[name]:.3g}" if row[name] else empty for name in weighted)
            values = (f"{row[metric]:.2f}" for metric in metrics)
            table.add_row(f"{row['rank']:,}", row["name"], *values, *weights, style="bold" if row["own"] else "")
        yield table


def records(sweep: Sweep, lattice: pl.DataFrame, view: View) -> list[dict[str, Any]]:
    """Points for a DVC plot: the best at each value of each profile, the best of all, and the named points.

    `lattice` has the rows of the grid; a named weighting that needs other components than those of the view has none.
    """
    points, components, main = [], sweep.components, sweep.protocol.main
    for (split,), rows in sweep.frame.group_by("split", maintain_order=True):
        on_grid = rows.join(lattice, on=components.names, how="semi", maintain_order="left")
        others = pl.sum_horizontal(pl.col(view.others).abs(), pl.lit(0.0)) if view.others else pl.lit(0.0)
        named = rows.filter((pl.col("name") != "") & (others == 0))
        for name in view.profiles:
            sets = [
                (ENVELOPE, on_grid.group_by(name, maintain_order=True).first().sort(name)),
                (NAMED, named.filter(~sweep.is_own)),
                (BEST, on_grid.head(1)),
                (view.own, named.filter(sweep.is_own)),
            ]
            for kind, selected in sets:
                for row in selected.to_dicts():
                    point = {"split": split, "part": name, view.noun: row[name], main: row[main], "kind": kind}
                    noise = IN_NOISE if row["in_noise"] else ""
                    points.append(point | {"noise": noise, "name": row["name"], "weighting": components.words(row)})
    return points


def draw(sweep: Sweep, lattice: pl.DataFrame, view: View, title: str, path: Path) -> None:
    """Write a picture of a sweep: for each split a map over two columns, where there are two, and all profiles."""
    main = sweep.protocol.main
    splits = sweep.frame["split"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(13, 6 * len(splits)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(splits), 1 if view.down is None else 2, squeeze=False)
    for split, row in zip(splits, panels, strict=True):
        rows = sweep.frame.filter(pl.col("split") == split)
        on_grid = rows.join(lattice, on=sweep.components.names, how="semi", maintain_order="left")
        own = rows.filter(sweep.is_own).to_dicts()
        if view.down is not None:
            _map(row[0], on_grid, own, sweep, view, view.down)
        if view.sums or view.down is None:
            _profiles(row[-1], on_grid, own, sweep, view, view.profiles)
        else:  # numbers have scales of their own
            for axes, name in _divided(row[-1], view.profiles):
                _profiles(axes, on_grid, own, sweep, view, [name])
                if name == view.across:
                    axes.set_title("each value, the others at their best", loc="left", fontsize=12)
        words = "".join(f", {sweep.own} is number {int((rows[main] > one[main]).sum()) + 1:,}" for one in own)
        heading = f"{title}, {split}: {count(rows.height, sweep.noun)}{words}"
        pad = 6 if view.down is None else 62 if rows["in_noise"].any() else 44
        row[0].set_title(heading, loc="left", fontsize=12, pad=pad)
    figure.supxlabel(WARNING, fontsize=9, color="#555555")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _map(axes: Axes, on_grid: pl.DataFrame, own: list[dict[str, Any]], sweep: Sweep, view: View, down: str) -> None:
    """The best at each pair of values of two columns."""
    main, across, components = sweep.protocol.main, view.across, sweep.components
    best = on_grid.group_by(across, down).agg(pl.col(main).max())
    xs, ys = (best[name].unique().sort() for name in (across, down))
    values = np.full((len(ys), len(xs)), np.nan)
    values[ys.search_sorted(best[down]).to_numpy(), xs.search_sorted(best[across]).to_numpy()] = best[main].to_numpy()
    # A single value has no neighbour; it is as wide as the other axis's step.
    half = next(((ticks[1] - ticks[0]) / 2 for ticks in (ys, xs) if len(ticks) > 1), 0.5)
    mesh = axes.pcolormesh(*(_edges(ticks.to_numpy(), half) for ticks in (xs, ys)), values, cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label=f"best {main}, percent, over all other {view.noun}s")
    top = on_grid.row(0, named=True)
    axes.plot(top[across], top[down], "*", color="white", markeredgecolor="black", markersize=20, linestyle="none",
              label=f"best, {top[main]:.2f}: {components.words(top)}")  # fmt: skip
    for row in own:
        x, y = view.place(row, across), view.place(row, down)
        if math.isfinite(x) and math.isfinite(y):
            axes.plot(x, y, "D", color=ALARM, markeredgecolor="white", markersize=11, linestyle="none",
                      label=f"{sweep.own}, {row[main]:.2f}: {components.words(row)}")  # fmt: skip
    noise = on_grid.filter("in_noise").unique([across, down], maintain_order=True)
    if noise.height:
        axes.plot(noise[across], noise[down], "o", color="black", markersize=4, linestyle="none", label=IN_NOISE)
    axes.set(xlabel=f"{view.noun} of {across}", ylabel=f"{view.noun} of {down}{view.rest}")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), fontsize=10, frameon=False)
    legend.set_in_layout(False)  # its long texts must take no width from the map; the title leaves space for it


def _edges(ticks: np.ndarray, half: float) -> np.ndarray:
    """The edges of cells around values: in the middle between two, and as far beyond the first and the last."""
    if len(ticks) < 2:
        return np.array([ticks[0] - half, ticks[0] + half])
    middles = (ticks[1:] + ticks[:-1]) / 2
    return np.array([2 * ticks[0] - middles[0], *middles, 2 * ticks[-1] - middles[-1]])


def _divided(axes: Axes, names: Sequence[str]) -> Iterator[tuple[Axes, str]]:
    """Axes beside and below each other in place of one, with the same heights, and the name that each is for."""
    columns = 1 if len(names) < 4 else 2
    place, figure = axes.get_subplotspec(), axes.figure
    assert place is not None  # it was made by subplots
    axes.remove()
    grid, first = place.subgridspec(-(-len(names) // columns), columns), None
    for number, name in enumerate(names):
        one = figure.add_subplot(grid[divmod(number, columns)], sharey=first)
        first = first or one
        yield one, name


def _profiles(
    axes: Axes, on_grid: pl.DataFrame, own: list[dict[str, Any]], sweep: Sweep, view: View, names: Sequence[str]
) -> None:
    """The best at each value of columns, and the dataset's or the method's own point."""
    main = sweep.protocol.main
    order = [name for name in sweep.components.names if name in (*view.profiles, *view.others)]
    colours = dict(zip(order, cycle(COLOURS), strict=False)) | ({view.profiles[-1]: GREY} if view.sums else {})
    for name in names:
        best = on_grid.group_by(name, maintain_order=True).first().sort(name)  # the rows are best first
        noise = best.filter("in_noise")
        axes.plot(best[name], best[main], "o-", color=colours[name], markersize=5, markerfacecolor="white", label=name)
        axes.plot(noise[name], noise[main], "o", color=colours[name], markersize=6)
        for row in own:
            axes.plot(row[name], row[main], "D", color=colours[name], markeredgecolor=ALARM, markersize=9)
    for row in own:
        axes.axhline(row[main], color=ALARM, linestyle="--", linewidth=1, marker="D", markersize=0, label=view.own)
    axes.grid(alpha=0.3)
    if names != view.profiles:
        ends = dict(zip(sweep.components.names, sweep.components.short, strict=True))
        axes.set(xlabel=f"{view.noun} of {ends[names[0]]}", ylabel=f"best {main}")
        return
    if on_grid["in_noise"].any():
        axes.plot([], [], "o", color=GREY, markersize=6, label=f"filled: {IN_NOISE}")
    noun = view.noun if view.sums else f"{view.noun} of {names[0]}"
    axes.set(xlabel=noun, ylabel=f"best {main}, percent, at this {view.noun}")
    if view.sums:
        axes.set_title(f"each {view.noun}, the others at their best", loc="left", fontsize=12)
    axes.legend(fontsize=10)
