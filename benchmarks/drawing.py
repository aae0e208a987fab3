"""What growth measured to one picture: time and peak memory of each stage against images or queries, on log scales."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")  # Okabe and Ito's
PANELS = (("median_seconds", "seconds, whole process"), ("peak_mb", "peak memory, MB"))
APART = 0.055  # of the panel's height, between two labels

Curves = Mapping[str, Sequence[tuple[int, float]]]


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw a record of growth as two panels with one line per stage, labelled at its end."""
    picture = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    panels = picture.subplots(1, 2)
    for panel, (figure, words) in zip(panels, PANELS, strict=True):
        curves = {case["case"]: _points(case, figure) for case in record["cases"]}
        _panel(panel, curves, words)
    _slope(panels[0])
    picture.suptitle(
        f"{record['machine']['processor']}, {record['machine']['cores']} cores, the demo's models", fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path)


def _points(case: Mapping[str, Any], figure: str) -> list[tuple[int, float]]:
    """(size, figure) of a case whose variants are named `3,000 images`."""
    named = case["variants"].items()
    return [(int(name.split()[0].replace(",", "")), values[figure]) for name, values in named]


def _panel(panel: Axes, curves: Curves, words: str) -> None:
    panel.set(xscale="log", yscale="log", ylabel=words, xlabel="images (edits, query_vectors: queries)")
    for (stage, points), colour in zip(curves.items(), COLOURS, strict=False):
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.6, color=colour, label=stage)
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:,g}")
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(which="major", linewidth=0.4, color="#dddddd")
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_ylim(panel.get_ylim())  # fixed before positions are read from it
    heights = _spread([panel.transLimits.transform((0, np.log10(points[-1][1])))[1] for points in curves.values()])
    for (stage, points), colour, height in zip(curves.items(), COLOURS, heights, strict=False):
        panel.annotate(
            stage, points[-1], (1.03, height), textcoords="axes fraction", color=colour, fontsize=9, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5},
        )  # fmt: skip


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights moved as little as keeps each `APART` from the next, in the order given."""
    order = np.argsort(heights)
    placed = np.array(heights, dtype=float)
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + APART)
    shift = max(placed.max() - 1, 0)
    return [float(height) for height in placed - shift]


def _slope(panel: Axes) -> None:
    """A grey line of slope 1, along which time grows in proportion to size."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    sizes = np.array([left, right])
    panel.plot(sizes, top * sizes / right, color="#999999", linestyle="--", linewidth=1, zorder=0)
    panel.set(xlim=(left, right), ylim=(bottom, top))
    panel.annotate("in proportion", (right, top), (-70, -8), textcoords="offset points", color="#777777", fontsize=8)
