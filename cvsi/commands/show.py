"""A run's figures as tables and lines for a terminal of 80 columns or more."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cvsi.commands.layout import Table
from cvsi.commands.show_figures import Edits, Label, Methods, Readings, Shown
from cvsi.commands.summary import without_queries
from cvsi.core.params import Params, Run
from cvsi.datasets.formats import format_of
from cvsi.evaluation.paired import Difference

ROWS = 40  # aspects or tags that are shown; a file of tags may have thousands


def tables(shown: Shown) -> Iterator[Table]:
    """For each labelled split its methods, their differences from the own fusion, and values by aspect and tag."""
    for split, figures in shown.splits.items():
        yield cut_offs(f"{shown.run}, {split}, percent", figures.methods, shown.metric, shown.own)
        if figures.differences:
            yield differences_table(
                f"{split}, {shown.metric} of each method less {shown.own}, over the same queries", figures.differences
            )
        yield from _by_label(f"{split}, {shown.metric} by aspect", "aspect", figures.aspects, figures.methods)
        yield from _by_label(f"{split}, {shown.metric} by tag", "tag", figures.tags, figures.methods)


def lines(shown: Shown) -> Iterator[str]:
    """Lines below the tables: statuses of edits and readings, and methods that the vectors do not allow, by reason."""
    if shown.edits is not None:
        yield edits_text(shown.edits)
    if shown.readings is not None:
        yield readings_text(shown.readings)
    reasons: dict[str, list[str]] = {}
    for name, why in shown.left_out.items():
        reasons.setdefault(why, []).append(name)
    names = [f"{', '.join(names)} ({why})" for why, names in reasons.items()]
    if names:
        yield f"Left out: {', '.join(names)}."


def edits_text(edits: Edits) -> str:
    """The edits by status, and how many fell back to the captions, with the dataset's limit."""
    statuses = _statuses(edits.statuses, edits.queries)
    fallen = f"{edits.fallbacks:,} of {edits.queries:,} ({edits.percent:.1f}%), limit {edits.limit:g}%"
    return f"Edits: {statuses}. Fallbacks: {fallen}."


def readings_text(readings: Readings) -> str:
    """The readings by status, how many have no usable text, and how many queries have texts of each role."""
    statuses = _statuses(readings.statuses, readings.queries)
    unusable = f"{readings.unusable:,} of {readings.queries:,} ({100 * readings.unusable / readings.queries:.1f}%)"
    roles = ", ".join(f"{role} {number:,}" for role, number in readings.roles.items())
    return f"Readings: {statuses}. Without a usable text: {unusable}. Queries with texts: {roles}."


def _statuses(statuses: dict[str, int], number: int) -> str:
    return ", ".join(f"{rows:,} {status} ({100 * rows / number:.1f}%)" for status, rows in statuses.items())


def without_metrics(run: Run, settings: Params) -> str:
    """Why a run has no table: its dataset has no queries, or none with labels."""
    if without_queries(run.dataset):
        dataset = settings.dataset(run.dataset)
        file = format_of(dataset, run.dataset).query_file
        add = f" Queries can be added in {Path(dataset.root) / file}." if file else ""
        return f"{run.dataset} has no queries: no rankings, no metrics; the report shows the gallery.{add}"
    return "No split has labels, so there are no metrics."


def cut_offs(title: str, rows: Methods, metric: str, own: str) -> Table:
    """Methods by the cut-offs of the main metric, with its interval; the report has the other metrics too."""
    family = metric.partition("@")[0]
    every = dict.fromkeys(name for values in rows.values() for name in values)
    names = [name for name in every if name == metric or _cut_off_of(name, family)]
    table = Table(title).texts("method", key=True).figures(*names, f"{metric}, 95% interval")
    for method, values in rows.items():
        low, high = (values.get(f"{metric} {end}") for end in ("low", "high"))
        interval = "-" if low is None or high is None else f"{low:.1f} to {high:.1f}"
        style = "bold" if method == own else ""
        table.add_row(method, *(_percent(values.get(name)) for name in names), interval, style=style)
    return table


def _cut_off_of(name: str, family: str) -> bool:
    kind, _, number = name.partition("@")
    return kind == family and number.isdigit()


def differences_table(title: str, rows: Sequence[Difference], noun: str = "method") -> Table:
    """Methods with their paired difference from the own fusion; bold where the interval leaves out 0."""
    table = Table(title).texts(noun, key=True)
    table.figures("difference", "95% interval", "better", "worse", "same")
    for row in rows:
        interval, clear = "-", False
        if row.low is not None and row.high is not None:
            interval, clear = f"{row.low:+.2f} to {row.high:+.2f}", not row.low <= 0 <= row.high
        numbers = (f"{number:,}" for number in (row.better, row.worse, row.same))
        style = "bold" if clear else ""
        table.add_row(row.method, f"{row.difference:+.2f}", interval, *numbers, style=style)
    return table


def _by_label(title: str, noun: str, labels: Sequence[Label], methods: Methods) -> Iterator[Table]:
    """A table of aspects or of tags, where there are any: numbers of queries, and the methods' values."""
    if any(label.queries is not None for label in labels):
        title += ", the most queries first"
    if len(labels) > ROWS:
        title += f"; {len(labels) - ROWS:,} more in --json"
    table = Table(title).texts(noun, key=True).figures("queries", key=True).figures(*methods)
    for label in labels[:ROWS]:
        size = "-" if label.queries is None else f"{label.queries:,}"
        table.add_row(label.name.replace("_", " "), size, *(_percent(label.values.get(method)) for method in methods))
    if labels:
        yield table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
