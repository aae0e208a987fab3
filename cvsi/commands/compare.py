"""Two runs side by side: metrics with their difference and its interval, what differs in the recipes, and warnings.

The interval is a paired bootstrap over queries, so there is one where both runs answer the same queries. The values per
query are those of the stage scores (`per_query.parquet`); no metric is computed again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.markup import escape
from rich.table import Table

from cvsi.commands import consistency
from cvsi.commands.summary import Metrics, read
from cvsi.core import parquet, paths, provenance
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.schema import QUERIES, RANKS
from cvsi.evaluation.metrics import interval

KEY = ["split", "query_id"]
ENDS = (" low", " high")
COUNTS = ("queries", "dropped", "dropped images", "fallbacks")
LONGEST = 60  # characters of a value of a recipe: prompts are long, and their beginnings alike


@dataclass(frozen=True)
class Side:
    """One of the two runs: its name, the cache it is in, its metrics and its recipes."""

    run: str
    dataset: str
    backbone: str
    cache: Path
    metrics: Metrics
    recipes: provenance.Recipes

    @property
    def label(self) -> str:
        """The run's name, with its cache where that is another workspace's."""
        return self.run if self.cache == paths.CACHE else f"{self.run} in {self.cache}"

    def path(self, stage: str, name: str) -> Path:
        """The path of a file of one of its outputs."""
        return provenance.output_path(stage, self.dataset, self.backbone, self.cache) / name


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
    """Two runs: rows by split, `{part: {field: (first, second)}}` where recipes differ, and warnings (`doubts`)."""

    first: str
    second: str
    splits: dict[str, list[Row]]
    differences: dict[str, dict[str, tuple[str, str]]]
    doubts: list[str]


def compare(settings: Params, first: str, second: str, other: Path | None = None) -> Comparison:
    """Compare two runs of `params.yaml`; the second one is in the cache `other` where that is given.

    Raises CvsiError where one is not defined or not scored, or where no labelled split is in both.
    """
    sides = _side(settings, first, paths.CACHE), _side(settings, second, other or paths.CACHE)
    shared = [split for split in sides[0].metrics if split in sides[1].metrics]
    if not shared:
        splits = " and ".join(f"{side.label} has {', '.join(side.metrics) or 'none'}" for side in sides)
        raise CvsiError(f"no labelled split in both runs: {splits}")
    differences = consistency.differences(sides[0].recipes, sides[1].recipes)
    if changed := _changed(sides):  # one dataset may have two names, each with a captioner or editor of its own
        names = {"name": (sides[0].dataset, sides[1].dataset)} if sides[0].dataset != sides[1].dataset else {}
        differences["dataset"] = names | changed | differences.get("dataset", {})
    warnings, values, rows = _warnings(sides, differences), [], {}
    for side in sides:
        table, problem = _values(side)
        values.append(table)
        warnings += [problem] if problem else []
    for split in shared:
        same = _queries(sides[0], split).equals(_queries(sides[1], split))
        if not same:
            warnings.append(f"{split}: not the same queries with the same right answers; no interval")
        paired = _paired(values, split) if same else {}
        rows[split] = [_row(name, sides, split, paired.get(name)) for name in _names(sides, split)]
    return Comparison(
        first=sides[0].label, second=sides[1].label, splits=rows, differences=differences,
        doubts=list(dict.fromkeys(warnings)),
    )  # fmt: skip


def tables(comparison: Comparison) -> Iterator[Table]:
    """A table per split for a terminal, and one of the fields that differ where any do."""
    for split, rows in comparison.splits.items():
        yield _metrics_table(comparison, split, rows)
    if comparison.differences:
        yield _recipes_table(comparison)


def _side(settings: Params, name: str, cache: Path) -> Side:
    run = settings.run(name)
    folder = provenance.output_path("scores", run.dataset, run.backbone, cache)
    metrics = read(folder / "metrics.json")
    if metrics is None:
        advice = "run dvc repro" if cache == paths.CACHE else "--other names another workspace's cache folder"
        raise CvsiError(f"{folder}: no scores of {name}; {advice}")
    recipes = provenance.recipes(run.dataset, run.backbone, cache)
    return Side(name, run.dataset, run.backbone, cache, metrics, recipes)


def _warnings(sides: tuple[Side, Side], differences: consistency.Differences) -> list[str]:
    lines = consistency.confounded(differences)
    for side in sides:
        lines += consistency.stale_outputs(side.label, side.recipes)
        if unknown := [stage for stage, recipe in side.recipes.items() if not recipe]:
            lines.append(f"{side.label}: the recipe of its {consistency.words(unknown)} is unknown: no provenance.json")
    return lines


def _changed(sides: tuple[Side, Side]) -> dict[str, tuple[str, str]]:
    """The tables of the index that differ between the two, with their numbers of rows."""
    changed = {}
    for name in ("images", "queries"):
        first, second = (parquet.read_file(side.path("index", f"{name}.parquet")) for side in sides)
        if not first.equals(second):
            changed[name] = f"{first.num_rows:,} rows", f"{second.num_rows:,} rows, not the same"
    return changed


def _names(sides: tuple[Side, Side], split: str) -> Iterator[str]:
    """What both runs have a number for, the ends of their own intervals left out, in the first run's order."""
    second = sides[1].metrics[split]
    yield from (name for name in sides[0].metrics[split] if name in second and not name.endswith(ENDS))


def _row(name: str, sides: tuple[Side, Side], split: str, paired: np.ndarray | None) -> Row:
    first, second = (side.metrics[split][name] for side in sides)
    low, high = (None, None) if paired is None else interval(paired)
    return Row(name=name, first=first, second=second, difference=second - first, low=low, high=high)


def _values(side: Side) -> tuple[pl.DataFrame | None, str]:
    """The values per query that the stage scores wrote; None and the reason where they cannot be used."""
    path = side.path("scores", "per_query.parquet")
    if not path.exists():
        return None, f"{path}: no such file; no interval; run the stage scores again (dvc repro)"
    used = side.recipes["scores"].get("from", {}).get("queries")
    if used is not None and used != provenance.queries_digest(side.dataset, side.cache):
        return (
            None,
            f"{side.label}: its scores were made from other queries than the index has; no interval; run dvc repro",
        )
    return pl.DataFrame(parquet.read_file(path)), ""


def _queries(side: Side, split: str) -> pl.DataFrame:
    """A split's queries and their right answers, in the index's order."""
    path = side.path("index", "queries.parquet")
    frame = pl.DataFrame(parquet.fit(parquet.read_file(path), QUERIES, str(path)))
    return frame.filter(pl.col("split") == split).select(*KEY, "reference_id", "instruction", "target_ids")


def _paired(values: list[pl.DataFrame | None], split: str) -> dict[str, np.ndarray]:
    """Second less first per query, for each metric that both have, over the queries that count in both."""
    first, second = values
    if first is None or second is None:
        return {}
    names = [name for name in first.columns if name in second.columns and name not in RANKS.names]
    rows = first.filter(pl.col("split") == split).join(second, on=KEY, suffix=" second", maintain_order="left")
    paired = {name: (rows[f"{name} second"] - rows[name]).drop_nulls().to_numpy() for name in names}
    return {name: differences for name, differences in paired.items() if len(differences)}


def _metrics_table(comparison: Comparison, split: str, rows: list[Row]) -> Table:
    title = f"{escape(split)}, percent; difference is second less first, with its 95% interval over the same queries"
    table = Table("", title=title, box=box.SIMPLE_HEAD)
    for head in (comparison.first, comparison.second, "difference"):
        table.add_column(escape(head), justify="right", overflow="fold")
    table.add_column("interval", no_wrap=True)
    for row in rows:
        if row.name in COUNTS:
            cells = (f"{row.first:,.0f}", f"{row.second:,.0f}", f"{row.difference:+,.0f}", "")
        else:
            ends = "-" if row.low is None or row.high is None else f"{row.low:+.2f} to {row.high:+.2f}"
            cells = (f"{row.first:.2f}", f"{row.second:.2f}", f"{row.difference:+.2f}", ends)
        clear = row.low is not None and row.high is not None and (row.low > 0 or row.high < 0)
        table.add_row(escape(row.name.replace("_", " ")), *cells, style="bold" if clear else None)
    return table


def _recipes_table(comparison: Comparison) -> Table:
    table = Table("part", "field", title="what differs in their recipes", box=box.SIMPLE_HEAD)
    for head in (comparison.first, comparison.second):
        table.add_column(escape(head), overflow="fold")
    for part, fields in comparison.differences.items():
        for field, pair in fields.items():
            table.add_row(part, escape(field), *(escape(text) for text in _shown(*pair)))
    return table


def _shown(first: str, second: str) -> tuple[str, str]:
    """Two values in one line each, long ones from a little before the first difference."""
    left, right = " ".join(first.split()), " ".join(second.split())
    same = next((index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), 0)
    start = max(same - LONGEST // 2, 0) if max(len(left), len(right)) > LONGEST else 0
    return _cut(left, start), _cut(right, start)


def _cut(text: str, start: int) -> str:
    shown = text[start : start + LONGEST]
    return f"{'...' if start else ''}{shown}{'...' if len(text) > start + LONGEST else ''}" if text else "-"
