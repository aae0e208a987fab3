"""A run's methods as tables in Markdown, for a document or a pull request: `cvsi show RUN --markdown`."""

from collections.abc import Iterator, Sequence

from cvsi.commands.show_figures import Figures, Shown


def lines(shown: Shown) -> Iterator[str]:
    """One table per labelled split: the main metric with its interval, its difference from the own fusion, cut-offs.

    A method that was left out has a row that says why.
    """
    for split, figures in shown.splits.items():
        yield f"{shown.run}, {split}, percent:"
        yield ""
        yield from _table(shown, figures)
        yield ""


def _table(shown: Shown, figures: Figures) -> Iterator[str]:
    metric = shown.metric
    family = metric.partition("@")[0]
    every = dict.fromkeys(name for values in figures.methods.values() for name in values)
    others = [name for name in every if name != metric and _is_cut_off(name, family)]
    less = f"less `{shown.own}`, paired"
    yield _row(["method", metric, "95% interval", less, *others])
    yield _row(["---"] * (4 + len(others)))
    differences = {row.method: row for row in figures.differences}
    for method, values in figures.methods.items():
        interval = _interval(values.get(f"{metric} low"), values.get(f"{metric} high"), "")
        difference = differences.get(method)
        paired = "-" if difference is None else f"{difference.difference:+.1f}"
        if difference is not None and difference.low is not None:
            paired += f" ({_interval(difference.low, difference.high, '+')})"
        yield _row([f"`{method}`", *_percents(values, [metric]), interval, paired, *_percents(values, others)])
    for method, why in shown.left_out.items():
        yield _row([f"`{method}`", "-", why, "-", *["-"] * len(others)])


def _percents(values: dict[str, float], names: Sequence[str]) -> list[str]:
    return ["-" if (value := values.get(name)) is None else f"{value:.1f}" for name in names]


def _interval(low: float | None, high: float | None, sign: str) -> str:
    return "-" if low is None or high is None else f"{low:{sign}.1f} to {high:{sign}.1f}"


def _is_cut_off(name: str, family: str) -> bool:
    kind, _, number = name.partition("@")
    return kind == family and number.isdigit()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
