"""A run's metrics and values per query to two pictures, which `dvc plots show` and `dvc plots diff` show."""

import polars as pl
from matplotlib.axes import Axes

from cvsi.core.console import plain
from cvsi.core.figures import COLOURS, INK, PALE, svg
from cvsi.datasets.metrics import Protocol

DEEPEST = 1000  # `per_query` has no ranks past this
ROWS = 40  # aspects that are drawn; a file of tags may have thousands
MARKS = (1, 10, 100)
INCHES = 0.24  # of one bar
Metrics = dict[str, dict[str, float]]

UNLABELLED = "No split has labels, so there are no metrics."


def pictures(protocol: Protocol, metrics: Metrics, per_query: pl.DataFrame) -> dict[str, str]:
    """Every picture as SVG by file name: the metrics of each labelled split, and how far down the targets are."""
    return {"metrics.svg": metrics_picture(protocol, metrics), "ranks.svg": ranks_picture(per_query)}


def metrics_picture(protocol: Protocol, metrics: Metrics) -> str:
    """Bars of each split's metrics and of its main metric by aspect; the main one has its interval."""
    if not metrics:
        return _without_labels()
    bars = {split: _bars(protocol, values) for split, values in metrics.items()}
    heights = [max(len(rows), 4) for rows in bars.values()]
    with svg(7.5, INCHES * sum(heights) + 0.9 * len(bars)) as (figure, text):
        panels = figure.subplots(len(bars), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (split, rows) in zip(panels, bars.items(), strict=True):
            _draw_bars(axes, rows, protocol.main, metrics[split])
            queries = f", {metrics[split]['queries']:,.0f} queries" if "queries" in metrics[split] else ""
            axes.set_title(f"{plain(split)}{queries}, percent", loc="left", fontsize=11)
    return text.getvalue()


def ranks_picture(per_query: pl.DataFrame) -> str:
    """For each split, the share of its queries whose first target is within the first k images, for every k."""
    if not per_query.height:
        return _without_labels()
    with svg(7.5, 4) as (figure, text):
        axes = figure.subplots()
        for number, (split, rows) in enumerate(_shares(per_query).items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.step(range(1, DEEPEST + 1), rows, where="post", color=colour, label=plain(split))
            for k in MARKS:
                axes.annotate(f"{rows[k - 1]:.1f}", (k, rows[k - 1]), (4, -12 - 12 * number), fontsize=9,
                              textcoords="offset points", color=colour)  # fmt: skip
        axes.set(xscale="log", xlim=(1, DEEPEST), ylim=(0, 105), xlabel="k (images shown)")
        axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
        axes.set_title("Queries whose first target is within the first k images, percent", loc="left", fontsize=11)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", frameon=False)
    return text.getvalue()


def _bars(protocol: Protocol, values: dict[str, float]) -> list[tuple[str, float]]:
    """What is drawn of a split from top to bottom: its metrics, then the main one by aspect."""
    by_aspect = [name for name in values if name.startswith(f"{protocol.main}/")]
    names = [name for name in protocol.names() if name in values]
    rows = [(name, values[name]) for name in (*names, *by_aspect[:ROWS])]
    hidden = len(by_aspect) - ROWS
    return [*rows, (f"({hidden:,} more aspects)", 0.0)] if hidden > 0 else rows


def _draw_bars(axes: Axes, rows: list[tuple[str, float]], main: str, values: dict[str, float]) -> None:
    names = [name for name, _ in rows]
    heights = list(range(len(rows)))
    axes.barh(heights, [value for _, value in rows], color=[INK if "/" not in name else PALE for name in names])
    if main in names and {f"{main} low", f"{main} high"} <= set(values):
        ends = [values[main] - values[f"{main} low"]], [values[f"{main} high"] - values[main]]
        axes.errorbar([values[main]], [names.index(main)], xerr=ends, color="black", capsize=3)
    for height, (name, value) in zip(heights, rows, strict=True):
        if not name.startswith("("):
            axes.text(101, height, f"{value:.2f}", va="center", fontsize=9)
    axes.set_yticks(heights, [plain(name) for name in names], fontsize=9)
    axes.set(xlim=(0, 112), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xticks(range(0, 101, 20))
    axes.spines[["top", "right"]].set_visible(False)


def _shares(per_query: pl.DataFrame) -> dict[str, list[float]]:
    """By split: percent of the queries whose first target has at most rank k, k from 1 to `DEEPEST`."""
    first = per_query.select("split", rank=pl.col("target_ranks").list.first())
    shares = {}
    for (split,), rows in first.group_by("split", maintain_order=True):
        ranks = rows["rank"].drop_nulls().sort()
        within = ranks.search_sorted(pl.Series(range(1, DEEPEST + 1)), side="right")
        shares[str(split)] = (within * (100 / rows.height)).to_list()
    return shares


def _without_labels() -> str:
    with svg(7.5, 0.6) as (figure, text):
        figure.text(0.02, 0.5, UNLABELLED, va="center", fontsize=11)
    return text.getvalue()
