"""A sweep's rows as a table for a terminal, a DVC plot with its template, and a picture.

Both pictures show profiles: the best value at a weight over all other weights. The dataset's own weighting, for the
benchmarks the published one, is marked everywhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from cvsi.core.tables import Output

WARNING = "weights chosen on the split they are reported on are no result; choose on one split, report on another"
ENVELOPE, BEST, NAMED, CHOSEN = "best at this weight", "best of all", "named weighting", "cvsi, as in params.yaml"
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


def write(out: Output, sweep: Sweep, lattice: pl.DataFrame, chosen: Sequence[str], title: str) -> None:
    """Write the plot, its template and the picture of a sweep over the `chosen` query components."""
    sweep = replace(sweep, frame=sweep.frame.filter(pl.col(sweep.protocol.main).is_not_nan()))
    facet = TEMPLATE["facet"]
    columns = facet["column"] | {"sort": sweep.components.names}
    out.json("plot.json", records(sweep, lattice, chosen))
    out.json("template.json", TEMPLATE | {"facet": facet | {"column": columns}})
    draw(sweep, lattice, chosen, title, out.file("sweep.png"))


def plot_command(folder: Path, main: str) -> str:
    """The command that makes a page of a sweep's plot, beside it."""
    files = f"{folder / 'plot.json'} -t {folder / 'template.json'}"
    return f"dvc plots show {files} -x weight -y {main} -o {folder / 'page'}"


def tables(sweep: Sweep, top: int) -> Iterator[Table]:
    """The best `top` weightings of each split as a table, the named ones below with their ranks.

    Equal values share a rank.
    """
    main = sweep.protocol.main
    metrics = [main, *sweep.protocol.cut_offs()]
    for (split,), rows in sweep.frame.group_by("split", maintain_order=True):
        ranked = rows.with_row_index("row").with_columns(rank=pl.col(main).rank("min", descending=True))
        weighted = [name for name in sweep.components.names if (rows[name] != 0).any()]
        table = Table(f"{split}, {rows.height:,} weightings, percent").figures("rank", key=True)
        table.texts("weighting", key=True).figures(*metrics, group="metrics").figures(*weighted, group="weights")
        shown = ranked.filter((pl.col("row") < top) | (pl.col("name") != ""))
        for row in shown.with_columns(own=sweep.is_own).to_dicts():
            if row["row"] >= top and len(table.rows) == top:
                table.add_section()
            weights = (f"{row[name]:.3g}" if row[name] else "" for name in weighted)
            values = (f"{row[metric]:.2f}" for metric in metrics)
            table.add_row(f"{row['rank']:,}", row["name"], *values, *weights, style="bold" if row["own"] else "")
        yield table


def records(sweep: Sweep, lattice: pl.DataFrame, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """Points for a DVC plot: the best at each weight of each component, the best of all, and the named weightings.

    `lattice` has the weights of the grid; a named weighting that needs other components than `chosen` has no point.
    """
    points, components, main = [], sweep.components, sweep.protocol.main
    for (split,), rows in sweep.frame.group_by("split", maintain_order=True):
        on_grid = rows.join(lattice, on=components.names, how="semi", maintain_order="left")
        others = [name for name in components.query if name not in chosen]
        named = rows.filter((pl.col("name") != "") & (pl.sum_horizontal(pl.col(others).abs(), pl.lit(0.0)) == 0))
        for name in (*chosen, components.gallery[0]):
            sets = [
                (ENVELOPE, on_grid.group_by(name, maintain_order=True).first().sort(name)),
                (NAMED, named.filter(~sweep.is_own)),
                (BEST, on_grid.head(1)),
                (CHOSEN, named.filter(sweep.is_own)),
            ]
            for kind, selected in sets:
                for row in selected.to_dicts():
                    point = {"split": split, "part": name, "weight": row[name], main: row[main], "kind": kind}
                    noise = IN_NOISE if row["in_noise"] else ""
                    points.append(point | {"noise": noise, "name": row["name"], "weighting": components.words(row)})
    return points


def draw(sweep: Sweep, lattice: pl.DataFrame, chosen: Sequence[str], title: str, path: Path) -> None:
    """Write a picture of a sweep: for each split a map over two weights, and profiles of all."""
    main = sweep.protocol.main
    splits = sweep.frame["split"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(13, 6 * len(splits)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(splits), 2, squeeze=False)
    for split, (left, right) in zip(splits, panels, strict=True):
        rows = sweep.frame.filter(pl.col("split") == split)
        on_grid = rows.join(lattice, on=sweep.components.names, how="semi", maintain_order="left")
        own = rows.filter(sweep.is_own).row(0, named=True)
        rank = int((rows[main] > own[main]).sum()) + 1
        _map(left, on_grid, own, chosen, sweep.components, main)
        _profiles(right, on_grid, own, chosen, sweep.components, main)
        heading = f"{title}, {split}: {rows.height:,} weightings, {sweep.own} is number {rank:,}"
        left.set_title(heading, loc="left", fontsize=12, pad=62 if rows["in_noise"].any() else 44)
    figure.supxlabel(WARNING, fontsize=9, color="#555555")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _map(
    axes: Axes, on_grid: pl.DataFrame, own: dict[str, Any], chosen: Sequence[str], components: Components, main: str
) -> None:
    """The best at each pair of weights: of the first two query components, or of the first one and the gallery's."""
    by_gallery = len(chosen) < 3
    down, across = (components.gallery[0], chosen[0]) if by_gallery else chosen[:2]
    best = on_grid.group_by(across, down).agg(pl.col(main).max())
    xs, ys = (best[name].unique().sort() for name in (across, down))
    values = np.full((len(ys), len(xs)), np.nan)
    values[ys.search_sorted(best[down]).to_numpy(), xs.search_sorted(best[across]).to_numpy()] = best[main].to_numpy()
    # The grid's step is the same everywhere; a single weight has no neighbour.
    half = next(((ticks[1] - ticks[0]) / 2 for ticks in (ys, xs) if len(ticks) > 1), 0.5)
    edges = [np.append(ticks.to_numpy() - half, ticks[-1] + half) for ticks in (xs, ys)]
    mesh = axes.pcolormesh(*edges, values, cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label=f"best {main}, percent, over all other weights")
    top, total = on_grid.row(0, named=True), sum(own[name] for name in chosen)
    axes.plot(top[across], top[down], "*", color="white", markeredgecolor="black", markersize=20, linestyle="none",
              label=f"best, {top[main]:.2f}: {components.words(top)}")  # fmt: skip
    if total > 0:  # the scale of a side changes no rank
        height = own[down] / (sum(own[name] for name in components.gallery) if by_gallery else total)
        axes.plot(own[across] / total, height, "D", color=ALARM, markeredgecolor="white", markersize=11,
                  linestyle="none", label=f"cvsi, {own[main]:.2f}: {components.words(own)}")  # fmt: skip
    noise = on_grid.filter("in_noise").unique([across, down], maintain_order=True)
    if noise.height:
        axes.plot(noise[across], noise[down], "o", color="black", markersize=4, linestyle="none", label=IN_NOISE)
    rest = "" if by_gallery else f" (the rest is {', '.join(chosen[2:])})"
    axes.set(xlabel=f"weight of {across}", ylabel=f"weight of {down}{rest}")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), fontsize=10, frameon=False)
    legend.set_in_layout(False)  # its long texts must take no width from the map; the title leaves space for it


def _profiles(
    axes: Axes, on_grid: pl.DataFrame, own: dict[str, Any], chosen: Sequence[str], components: Components, main: str
) -> None:
    """The best at each weight of each component, and the dataset's own weighting."""
    colours = dict(zip(components.query, cycle(COLOURS), strict=False)) | {components.gallery[0]: GREY}
    for name in (*chosen, components.gallery[0]):
        best = on_grid.group_by(name, maintain_order=True).first().sort(name)  # the rows are best first
        noise = best.filter("in_noise")
        axes.plot(best[name], best[main], "o-", color=colours[name], markersize=5, markerfacecolor="white", label=name)
        axes.plot(noise[name], noise[main], "o", color=colours[name], markersize=6)
        axes.plot(own[name], own[main], "D", color=colours[name], markeredgecolor=ALARM, markersize=9)
    axes.axhline(own[main], color=ALARM, linestyle="--", linewidth=1, marker="D", markersize=0, label=CHOSEN)
    if on_grid["in_noise"].any():
        axes.plot([], [], "o", color=GREY, markersize=6, label=f"filled: {IN_NOISE}")
    axes.set(xlabel="weight", ylabel=f"best {main}, percent, at this weight")
    axes.set_title("each weight, the others at their best", loc="left", fontsize=12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=10)
