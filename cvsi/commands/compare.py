"""Two runs side by side: metrics with their difference and its interval, what differs in the recipes, what is doubtful.

The interval is a paired bootstrap over queries, so it is had where both runs answer the same queries. Values by query
come from the rankings and the index, and are used only where their mean is what `metrics.json` says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from cvsi.commands import consistency
from cvsi.commands.summary import Found, read
from cvsi.core import paths, provenance, tables
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params, run_named
from cvsi.core.schema import GROUP_RANKINGS, QUERIES, RANKINGS
from cvsi.datasets import metrics

NEAR = 1e-6  # of a mean in percent: rounding alone
KEY = ["split", "query_id"]
ENDS = (" low", " high")


@dataclass(frozen=True)
class Side:
    """One of the two runs: its name, whose cache it lies in, its metrics and its recipes."""

    run: str
    dataset: str
    backbone: str
    protocol: metrics.Protocol
    cache: Path
    found: Found
    recipes: provenance.Recipes

    @property
    def label(self) -> str:
        """The run's name, with the cache it lies in where that is another workspace's."""
        return self.run if self.cache == paths.CACHE else f"{self.run} in {self.cache}"

    def table(self, stage: str, name: str) -> Path:
        """Where a file of one of its outputs lies."""
        return provenance.place(stage, self.dataset, self.backbone, self.cache) / name


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
    """Two runs: rows by split, `{part: {field: (first, second)}}` where recipes differ, and what is doubtful."""

    first: str
    second: str
    splits: dict[str, list[Row]]
    differences: dict[str, dict[str, tuple[str, str]]]
    doubts: list[str]


def compare(settings: Params, first: str, second: str, other: Path | None = None) -> Comparison:
    """Compare two runs of `params.yaml`; the second one lies in the cache `other` where that is given.

    Raises CvsiError where one is not defined or not scored, or where no labelled split is in both.
    """
    sides = _side(settings, first, paths.CACHE), _side(settings, second, other or paths.CACHE)
    shared = [split for split in sides[0].found if split in sides[1].found]
    if not shared:
        splits = " and ".join(f"{side.label} has {', '.join(side.found) or 'none'}" for side in sides)
        raise CvsiError(f"no labelled split in both runs: {splits}")
    differences = consistency.differences(sides[0].recipes, sides[1].recipes)
    if changed := _changed(sides):  # one dataset may have two names, each with a captioner or editor of its own
        names = {"name": (sides[0].dataset, sides[1].dataset)} if sides[0].dataset != sides[1].dataset else {}
        differences["dataset"] = names | changed | differences.get("dataset", {})
    said = _doubts(sides, differences)
    rows = {}
    for split in shared:
        values, why = _paired(sides, split)
        rows[split] = [_row(name, sides, split, values.get(name)) for name in _names(sides, split)]
        said += why
    return Comparison(
        first=sides[0].label, second=sides[1].label, splits=rows, differences=differences,
        doubts=list(dict.fromkeys(said)),
    )  # fmt: skip


def _side(settings: Params, name: str, cache: Path) -> Side:
    run = run_named(settings, name)
    place = provenance.place("scores", run.dataset, run.backbone, cache)
    found = read(place / "metrics.json")
    if found is None:
        advice = "dvc repro makes them" if cache == paths.CACHE else "--other names another workspace's cache folder"
        raise CvsiError(f"{place}: no scores of {name}; {advice}")
    protocol = metrics.PROTOCOLS[settings.dataset(run.dataset).format]
    recipes = provenance.recipes(run.dataset, run.backbone, cache)
    return Side(name, run.dataset, run.backbone, protocol, cache, found, recipes)


def _doubts(sides: tuple[Side, Side], differences: consistency.Differences) -> list[str]:
    said = consistency.more_than_compared(differences)
    for side in sides:
        said += consistency.older(side.label, side.recipes)
        if unknown := [stage for stage, recipe in side.recipes.items() if not recipe]:
            said.append(f"{side.label}: what made its {consistency.words(unknown)} is not known: no provenance.json")
    return said


def _changed(sides: tuple[Side, Side]) -> dict[str, tuple[str, str]]:
    """The tables of the index that differ between the two, with their numbers of rows."""
    found = {}
    for name in ("images", "queries"):
        first, second = (tables.read_file(side.table("index", f"{name}.parquet")) for side in sides)
        if not first.equals(second):
            found[name] = f"{first.num_rows:,} rows", f"{second.num_rows:,} rows, not the same"
    return found


def _names(sides: tuple[Side, Side], split: str) -> Iterator[str]:
    """What both runs have a number for, the ends of their own intervals left out, in the first run's order."""
    there = sides[1].found[split]
    yield from (name for name in sides[0].found[split] if name in there and not name.endswith(ENDS))


def _row(name: str, sides: tuple[Side, Side], split: str, paired: np.ndarray | None) -> Row:
    first, second = (side.found[split][name] for side in sides)
    low, high = (None, None) if paired is None else metrics.interval(paired)
    return Row(name=name, first=first, second=second, difference=second - first, low=low, high=high)


def _paired(sides: tuple[Side, Side], split: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Second less first by query for each metric that both have, and why some or all are left out."""
    asked = [_asked(side, split) for side in sides]
    if sides[0].protocol != sides[1].protocol or not asked[0].equals(asked[1]):
        return {}, [f"{split}: not the same queries with the same right answers, so differences have no interval"]
    values, said = [], []
    for side, queries in zip(sides, asked, strict=True):
        said_by = side.found[split]
        mine = {name: value for name, value in _values(side, queries).items() if name in said_by}
        wrong = [name for name, value in mine.items() if abs(value.mean() - said_by[name]) > NEAR]
        if wrong:
            said.append(f"{side.label}, {split}: rankings and index do not give its {', '.join(wrong)}; no interval")
        values.append({name: value for name, value in mine.items() if name not in wrong})
    return {name: values[1][name] - value for name, value in values[0].items() if name in values[1]}, said


def _asked(side: Side, split: str) -> pl.DataFrame:
    """A split's queries and their right answers, in the index's order."""
    path = side.table("index", "queries.parquet")
    frame = pl.DataFrame(tables.fit(tables.read_file(path), QUERIES, str(path)))
    return frame.filter(pl.col("split") == split).select(*KEY, "reference_id", "instruction", "target_ids")


def _values(side: Side, queries: pl.DataFrame) -> dict[str, np.ndarray]:
    """Every metric of the protocol by query, in percent; those of groups only where their rankings were kept."""
    asked = queries.with_row_index("row").with_columns(main=pl.col("target_ids").list.first())
    path = side.table("scores", "rankings.parquet")
    ranked = pl.DataFrame(tables.fit(tables.read_file(path), RANKINGS, str(path))).join(asked, on=KEY)
    shape = queries.height, int(ranked.select(pl.col("rank").max()).item() or 1)
    hits, main = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    right = ranked.filter(pl.col("image_id").is_in(pl.col("target_ids")))
    hits[_places(right)] = True
    first = ranked.filter(pl.col("image_id") == pl.col("main"))
    main[_places(first)] = True
    subset = np.zeros(queries.height, dtype=np.int64)
    path = side.table("scores", "group_rankings.parquet")
    if path.exists():
        grouped = pl.DataFrame(tables.fit(tables.read_file(path), GROUP_RANKINGS, str(path))).join(asked, on=KEY)
        grouped = grouped.filter(pl.col("image_id") == pl.col("main"))
        subset[grouped["row"].to_numpy()] = grouped["rank"].to_numpy()
    numbers = queries["target_ids"].list.len().to_numpy()
    values = metrics.per_query(side.protocol, hits, main, numbers, subset)
    if not path.exists():
        values = {name: value for name, value in values.items() if not name.startswith("Recall_subset")}
    return values


def _places(ranked: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return ranked["row"].to_numpy(), ranked["rank"].to_numpy() - 1
