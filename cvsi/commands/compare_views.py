"""A comparison of two runs as tables for a terminal: metrics and counts by split, and what differs in the recipes."""

from collections.abc import Iterator

from rich import box
from rich.markup import escape
from rich.table import Table

from cvsi.commands.compare import Comparison, Row

COUNTS = ("queries", "dropped", "dropped images", "fallbacks")
LONGEST = 60  # characters of a value of a recipe: prompts are long, and their beginnings alike


def tables(found: Comparison) -> Iterator[Table]:
    """A table a split, and one of the fields that differ where any do."""
    for split, rows in found.splits.items():
        yield _metrics(found, split, rows)
    if found.differences:
        yield _recipes(found)


def _metrics(found: Comparison, split: str, rows: list[Row]) -> Table:
    title = f"{escape(split)}, percent; difference is second less first, with its 95% interval over the same queries"
    table = Table("", title=title, box=box.SIMPLE_HEAD)
    for head in (found.first, found.second, "difference"):
        table.add_column(escape(head), justify="right", overflow="fold")
    table.add_column("interval", no_wrap=True)
    for row in rows:
        if row.name in COUNTS:
            cells = (f"{row.first:,.0f}", f"{row.second:,.0f}", f"{row.difference:+,.0f}", "")
        else:
            apart = "-" if row.low is None or row.high is None else f"{row.low:+.2f} to {row.high:+.2f}"
            cells = (f"{row.first:.2f}", f"{row.second:.2f}", f"{row.difference:+.2f}", apart)
        clear = row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)
        table.add_row(escape(row.name.replace("_", " ")), *cells, style="bold" if clear else None)
    return table


def _recipes(found: Comparison) -> Table:
    table = Table("part", "field", title="what differs in their recipes", box=box.SIMPLE_HEAD)
    for head in (found.first, found.second):
        table.add_column(escape(head), overflow="fold")
    for part, fields in found.differences.items():
        for field, pair in fields.items():
            table.add_row(part, escape(field), *(escape(text) for text in _shown(*pair)))
    return table


def _shown(first: str, second: str) -> tuple[str, str]:
    """Two values in one line each, long ones from a little before where they part."""
    left, right = " ".join(first.split()), " ".join(second.split())
    same = next((place for place, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), 0)
    start = max(same - LONGEST // 2, 0) if max(len(left), len(right)) > LONGEST else 0
    return _cut(left, start), _cut(right, start)


def _cut(text: str, start: int) -> str:
    shown = text[start : start + LONGEST]
    return f"{'...' if start else ''}{shown}{'...' if len(text) > start + LONGEST else ''}" if text else "-"
