"""A sweep's rows for people: a table, a DVC plot with its template, and a picture.

Both pictures show profiles: the best that some weight allows, whatever the others are. The dataset's own weighting,
for the benchmarks the published one, is marked everywhere.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from cvsi.commands.sweep_grid import PARTS
from cvsi.core.params import Fusion
from cvsi.core.schema import GALLERY_PARTS, QUERY_PARTS
from cvsi.datasets.metrics import Protocol
from cvsi.evaluation.fusion import describe

OWN = "cvsi"  # the name of the dataset's own weighting
WARNING = "weights chosen on the split they are reported on are no result; choose on one split, report on another"
ENVELOPE, BEST, NAMED, CHOSEN = "best at this weight", "best of all", "named weighting", "cvsi, as in params.yaml"
COLOURS = dict(
    zip(("edited", "pseudo", "reference", "source", "instruction", "image"),
        ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#444444"), strict=True)
)  # fmt: skip
ALARM = "#d62728"

TEMPLATE: dict[str, Any] = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "data": {"values": "<DVC_METRIC_DATA>"},
    "title": "<DVC_METRIC_TITLE>",
    "facet": {
        "row": {"field": "split", "title": None},
        "column": {"field": "part", "title": None, "sort": list(PARTS)},
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


def plot_command(place: Path, main: str) -> str:
    """The command that makes a page of a sweep's plot, beside it."""
    return f"dvc plots show {place / 'plot.json'} -t {place / 'template.json'} -x weight -y {main} -o {place / 'page'}"


def is_own() -> pl.Expr:
    """Whether a row is the dataset's own weighting."""
    return pl.col("name").str.split(", ").list.contains(OWN)


def tables(frame: pl.DataFrame, protocol: Protocol, top: int) -> Iterator[Table]:
    """The best `top` weightings of each split as a table, the named ones below with their ranks.

    Equal values share a rank.
    """
    metrics = [protocol.main, *protocol.cut_offs()]
    for (split,), rows in frame.group_by("split", maintain_order=True):
        ranked = rows.with_row_index("place").with_columns(rank=pl.col(protocol.main).rank("min", descending=True))
        parts = [part for part in PARTS if (rows[part] != 0).any()]
        table = Table(title=f"{split}, {rows.height:,} weightings, percent", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("rank", "weighting", *parts, *metrics):
            table.add_column(column.replace("_", "\n"), justify="left" if column == "weighting" else "right")
        shown = ranked.filter((pl.col("place") < top) | (pl.col("name") != ""))
        for row in shown.with_columns(own=is_own()).to_dicts():
            if row["place"] >= top and table.row_count == top:
                table.add_section()
            weights = (f"{row[part]:.3g}" if row[part] else "" for part in parts)
            values = (f"{row[metric]:.2f}" for metric in metrics)
            table.add_row(f"{row['rank']:,}", row["name"], *weights, *values, style="bold" if row["own"] else None)
        yield table


def records(frame: pl.DataFrame, lattice: pl.DataFrame, parts: Sequence[str], main: str) -> list[dict[str, Any]]:
    """Points for a DVC plot: the grid's best at each weight of each part, the best of all, and the named weightings.

    `lattice` holds the weights `PARTS` of the grid; a named weighting that needs other parts than `parts` has no point.
    """
    found = []
    for (split,), rows in frame.group_by("split", maintain_order=True):
        on_grid = rows.join(lattice, on=PARTS, how="semi", maintain_order="left")
        others = [part for part in QUERY_PARTS if part not in parts]
        named = rows.filter((pl.col("name") != "") & (pl.sum_horizontal(pl.col(others).abs(), pl.lit(0.0)) == 0))
        for part in (*parts, "image"):
            sets = [
                (ENVELOPE, on_grid.group_by(part, maintain_order=True).first().sort(part)),
                (NAMED, named.filter(~is_own())),
                (BEST, on_grid.head(1)),
                (CHOSEN, named.filter(is_own())),
            ]
            for kind, points in sets:
                for row in points.to_dicts():
                    place = {"split": split, "part": part, "weight": row[part], main: row[main], "kind": kind}
                    found.append(place | {"name": row["name"], "weighting": _words(row)})
    return found


def draw(frame: pl.DataFrame, lattice: pl.DataFrame, parts: Sequence[str], main: str, title: str, path: Path) -> None:
    """Write a picture of a sweep: for each split a map over two weights, and profiles of all."""
    splits = frame["split"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(13, 6 * len(splits)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(splits), 2, squeeze=False)
    for split, (left, right) in zip(splits, panels, strict=True):
        rows = frame.filter(pl.col("split") == split)
        on_grid = rows.join(lattice, on=PARTS, how="semi", maintain_order="left")
        own = rows.filter(is_own()).row(0, named=True)
        rank = int((rows[main] > own[main]).sum()) + 1
        _map(left, on_grid, own, parts, main)
        _profiles(right, on_grid, own, parts, main)
        heading = f"{title}, {split}: {rows.height:,} weightings, cvsi is number {rank:,}"
        left.set_title(heading, loc="left", fontsize=12, pad=44)
    figure.supxlabel(WARNING, fontsize=9, color="#555555")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _map(axes: Axes, on_grid: pl.DataFrame, own: dict[str, Any], parts: Sequence[str], main: str) -> None:
    """The best at each pair of weights: of the first two query parts, or of the image and the first one."""
    down, across, rest = (*parts[:2], ", ".join(parts[2:])) if len(parts) > 2 else ("image", parts[0], "")
    best = on_grid.group_by(across, down).agg(pl.col(main).max())
    xs, ys = (best[part].unique().sort() for part in (across, down))
    values = np.full((len(ys), len(xs)), np.nan)
    values[ys.search_sorted(best[down]).to_numpy(), xs.search_sorted(best[across]).to_numpy()] = best[main].to_numpy()
    half = (ys[1] - ys[0]) / 2  # the grid's step is the same everywhere, and a lone weight has no neighbour
    edges = [np.append(ticks.to_numpy() - half, ticks[-1] + half) for ticks in (xs, ys)]
    mesh = axes.pcolormesh(*edges, values, cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label=f"best {main}, percent, whatever the other weights")
    top, total = on_grid.row(0, named=True), sum(own[part] for part in parts)
    axes.plot(top[across], top[down], "*", color="white", markeredgecolor="black", markersize=20, linestyle="none",
              label=f"best, {top[main]:.2f}: {_words(top)}")  # fmt: skip
    if total > 0:  # the scale of a side changes no rank
        height = own[down] / ((own["image"] + own["caption"]) if down == "image" else total)
        axes.plot(own[across] / total, height, "D", color=ALARM, markeredgecolor="white", markersize=11,
                  linestyle="none", label=f"cvsi, {own[main]:.2f}: {_words(own)}")  # fmt: skip
    axes.set(xlabel=f"weight of {across}", ylabel=f"weight of {down}{f' (the rest is {rest})' if rest else ''}")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), fontsize=10, frameon=False)
    legend.set_in_layout(False)  # its long words are to take no width from the map; the title leaves it room


def _profiles(axes: Axes, on_grid: pl.DataFrame, own: dict[str, Any], parts: Sequence[str], main: str) -> None:
    """The best at each weight of each part, and where the dataset's own weighting stands."""
    for part in (*parts, "image"):
        best = on_grid.group_by(part).agg(pl.col(main).max()).sort(part)
        axes.plot(best[part], best[main], "o-", color=COLOURS[part], markersize=4, label=part)
        axes.plot(own[part], own[main], "D", color=COLOURS[part], markeredgecolor=ALARM, markersize=9)
    axes.axhline(own[main], color=ALARM, linestyle="--", linewidth=1, marker="D", markersize=0, label=CHOSEN)
    axes.set(xlabel="weight", ylabel=f"best {main}, percent, at this weight of the part")
    axes.set_title("each part's weight, the others at their best", loc="left", fontsize=12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=10)


def _words(row: dict[str, Any]) -> str:
    """A row's weights in words."""
    query, gallery = ({part: round(row[part], 4) for part in side} for side in (QUERY_PARTS, GALLERY_PARTS))
    return describe(Fusion.model_validate({"query": query, "gallery": gallery}))
