"""A comparison of two runs as data, and as tables and lines for a terminal of 80 columns or more."""

import re
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from cvsi.commands.layout import Prose, Table
from cvsi.commands.moved import DEEPEST, Changes, Moved
from cvsi.core.console import count, plain

COUNTS = ("queries", "dropped", "dropped images", "fallbacks", "judged", "failed")
LONGEST = 60  # characters of a value of a recipe or of an instruction: prompts are long, and their beginnings alike


class Row(BaseModel):
    """One metric or count of both runs; `low` and `high` are the 95% interval of the difference, second less first."""

    model_config = ConfigDict(frozen=True)

    name: str
    first: float
    second: float
    difference: float
    low: float | None = None
    high: float | None = None


class Comparison(BaseModel):
    """Two runs: rows and changes by split, `{part: {field: (first, second)}}` where recipes differ, and warnings.

    The rows of aspects are last but for the counts, the largest difference first. A split has no changes where the two
    runs' queries cannot be paired. The warnings are `doubts`.
    """

    first: str
    second: str
    splits: dict[str, list[Row]]
    changes: dict[str, Changes]
    differences: dict[str, dict[str, tuple[str, str]]]
    doubts: list[str]


def tables(comparison: Comparison) -> Iterator[Table | Prose]:
    """For each split its metrics and what moved, and the fields of the recipes that differ where any do."""
    for split, rows in comparison.splits.items():
        yield _metrics_table(comparison, split, rows)
        if split in comparison.changes:
            yield from _changes(comparison, split, comparison.changes[split])
    if comparison.differences:
        yield _recipes_table(comparison)


def _metrics_table(comparison: Comparison, split: str, rows: list[Row]) -> Table:
    table = Table(f"{split}, percent; difference is second less first, with its 95% interval over the same queries")
    table.texts("metric", key=True).figures(_head(comparison.first), _head(comparison.second), "difference", "interval")
    for row in rows:
        if row.name in COUNTS:
            cells = (f"{row.first:,.0f}", f"{row.second:,.0f}", f"{row.difference:+,.0f}", "")
        else:
            ends = "-" if row.low is None or row.high is None else f"{row.low:+.2f} to {row.high:+.2f}"
            cells = (f"{row.first:.2f}", f"{row.second:.2f}", f"{row.difference:+.2f}", ends)
        clear = row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)
        table.add_row(row.name.replace("_", " "), *cells, style="bold" if clear else "")
    return table


def _changes(comparison: Comparison, split: str, changes: Changes) -> Iterator[Table | Prose]:
    """How many queries are better, worse and the same, and a table of those that moved most."""
    yield Prose(
        f"{split}, {changes.metric}: {comparison.second} is better on "
        f"{count(changes.better, 'query')}, worse on {changes.worse:,}, the same on {changes.same:,}"
    )
    if not changes.moved:
        return
    table = Table(f"{split}: the queries that moved most; rank is that of the main target, >{DEEPEST:,} if deeper")
    table.texts("query", key=True).texts("instruction", least=16).figures(changes.metric, "rank")
    for query in changes.moved:
        instruction = _cut(" ".join(query.instruction.split()), 0)
        table.add_row(query.query_id, instruction, f"{query.before:.2f} -> {query.after:.2f}", _ranks(query))
    yield table


def _ranks(query: Moved) -> str:
    before, after = (f">{DEEPEST:,}" if rank is None else f"{rank:,}" for rank in (query.rank_before, query.rank_after))
    return f"{before} -> {after}"


def _recipes_table(comparison: Comparison) -> Table:
    table = Table("what differs in their recipes").texts("part", "field", key=True)
    table.texts(_head(comparison.first), _head(comparison.second), least=16)
    for part, fields in comparison.differences.items():
        for name, values in fields.items():
            table.add_row(part, name, *_shown(*values))
    return table


def _head(label: str) -> str:
    """A run's label, the state and its commit, or the folder, in lines of their own."""
    return re.sub(r" (at |in |\()", r"\n\1", plain(label))


def _shown(first: str, second: str) -> tuple[str, str]:
    """Two values in one line each, long ones from a little before the first difference."""
    left, right = " ".join(first.split()), " ".join(second.split())
    same = next((index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), 0)
    start = max(same - LONGEST // 2, 0) if max(len(left), len(right)) > LONGEST else 0
    return _cut(left, start), _cut(right, start)


def _cut(text: str, start: int) -> str:
    shown = text[start : start + LONGEST]
    return f"{'...' if start else ''}{shown}{'...' if len(text) > start + LONGEST else ''}" if text else "-"
