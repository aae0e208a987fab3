"""Two runs side by side: metrics with their difference and its interval, what moved, recipes, and warnings.

`RUN:RERANK` names a rerank of a run, whose rankings are compared as those of a run are. Each run is one of this
workspace, of another workspace's cache, or of an earlier state (`revision.py`). The interval is
a paired bootstrap over queries, so there is one where both runs answer the same queries. The values per query are those
of the stage scores (`per_query.parquet`); no metric is computed again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cvsi.commands import consistency, moved
from cvsi.commands.comparison import COUNTS, Comparison, Row
from cvsi.commands.comparison import tables as tables
from cvsi.commands.moved import KEY, Changes
from cvsi.commands.revision import PastRun, run_at
from cvsi.commands.summary import Metrics, read
from cvsi.core import parquet, paths, provenance
from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.schema import OPTIONAL_RANKS, RANKS
from cvsi.evaluation.metrics import interval
from cvsi.evaluation.queries import read_frame

ENDS = (" low", " high")
TOP = 10  # queries that are named
Sides = tuple["Side", "Side"]


@dataclass(frozen=True)
class Side:
    """One of the two runs: its name, the cache it is in, its metrics and its recipes; `past` where a state has it.

    Of a rerank, `run` is RUN:RERANK.
    """

    run: str
    dataset: str
    backbone: str
    cache: Path
    metrics: Metrics
    recipes: provenance.Recipes
    past: PastRun | None = None

    @property
    def label(self) -> str:
        """The run's name, with its state, or with its cache where that is another workspace's."""
        if self.past is not None:
            return self.past.label
        return self.run if self.cache == paths.CACHE else f"{self.run} in {self.cache}"

    @property
    def stage(self) -> str:
        """The stage that wrote its metrics."""
        return "rerank" if ":" in self.run else "scores"

    def path(self, stage: str, name: str) -> Path:
        """The path of a file of one of its outputs."""
        rerank = self.run.partition(":")[2] if stage in provenance.RERANK_STAGES else ""
        return provenance.output_path(stage, self.dataset, self.backbone, self.cache, rerank) / name


def compare(
    settings: Params, first: str, second: str, other: Path | None = None, rev: str | None = None, top: int = TOP
) -> Comparison:
    """Compare two runs of `params.yaml`, or reranks as RUN:RERANK.

    The second one is in the cache `other`, or the first one at `rev`, if given.

    Raises CvsiError where one is not defined or not scored, where no labelled split is in both, and where the state
    `rev` had other queries; `top` queries that moved most are named.
    """
    after = _side(settings, second, other or paths.CACHE)
    if rev is None:
        return _compare((_side(settings, first, paths.CACHE), after), top)
    with run_at(rev, first) as past:
        before = _of(past.run, past.dataset, past.backbone, past.cache, past)
        check_same_queries((before, after))
        return _compare((before, after), top)


def check_same_queries(sides: Sides) -> None:
    """Raise CvsiError, with what differs, unless both runs have the same query ids, splits and targets."""
    first, second = (_queries(side).select(*KEY, "target_ids") for side in sides)
    alone = [one.join(two, on=KEY, how="anti") for one, two in ((first, second), (second, first))]
    both = first.join(second, on=KEY, suffix=" second")
    lines = [
        f"{count(rows.height, 'query')} only in {side.label}{_example(rows)}"
        for side, rows in zip(sides, alone, strict=True)
        if rows.height
    ]
    if (other := both.filter(pl.col("target_ids") != pl.col("target_ids second"))).height:
        lines.append(f"{count(other.height, 'query')} with other targets{_example(other)}")
    if lines:
        names = consistency.words(side.label for side in sides)
        raise CvsiError(f"{names} are not of the same dataset: {'; '.join(lines)}; compare runs with the same queries")


def _example(rows: pl.DataFrame) -> str:
    split, query = rows.select(KEY).row(0)
    return f" ({split} {query}{', ...' if rows.height > 1 else ''})"


def _compare(sides: Sides, top: int) -> Comparison:
    shared = [split for split in sides[0].metrics if split in sides[1].metrics]
    if not shared:
        splits = " and ".join(f"{side.label} has {', '.join(side.metrics) or 'none'}" for side in sides)
        raise CvsiError(f"no labelled split in both runs: {splits}")
    differences = consistency.differences(sides[0].recipes, sides[1].recipes)
    if changed := _changed(sides):  # one dataset may have two names, each with a captioner or editor of its own
        names = {"name": (sides[0].dataset, sides[1].dataset)} if sides[0].dataset != sides[1].dataset else {}
        differences["dataset"] = names | changed | differences.get("dataset", {})
    warnings, values = _warnings(sides, differences), []
    rows: dict[str, list[Row]] = {}
    changes: dict[str, Changes] = {}
    for side in sides:
        table, problem = _values(side)
        values.append(table)
        warnings += [problem] if problem else []
    for split in shared:
        queries = _queries(sides[1], split)
        same = _asked(_queries(sides[0], split)).equals(_asked(queries))
        if not same:
            warnings.append(f"{split}: not the same queries with the same right answers; no interval")
        paired = _paired(values, split) if same else {}
        metric = moved.main_metric(*(side.metrics[split] for side in sides))
        if metric in paired and values[0] is not None and values[1] is not None:
            pairs = moved.pair(values[0], values[1], queries, metric)
            changes[split] = moved.changes(pairs, metric, top)
            paired |= moved.by_aspect(pairs, metric)
        rows[split] = _sorted(_row(name, sides, split, paired.get(name)) for name in _names(sides, split))
    return Comparison(
        first=sides[0].label, second=sides[1].label, splits=rows, changes=changes, differences=differences,
        doubts=list(dict.fromkeys(warnings)),
    )  # fmt: skip


def _side(settings: Params, name: str, cache: Path) -> Side:
    run_name, _, rerank = name.partition(":")
    run = settings.run(run_name)
    if ":" in name:
        settings.rerank_of(run_name, rerank)
    return _of(name, run.dataset, run.backbone, cache)


def _of(name: str, dataset: str, backbone: str, cache: Path, past: PastRun | None = None) -> Side:
    rerank = name.partition(":")[2]
    stage = "rerank" if rerank else "scores"
    folder = provenance.output_path(stage, dataset, backbone, cache, rerank)
    metrics = read(folder / "metrics.json", stage)
    if metrics is None:
        advice = "run dvc repro" if cache == paths.CACHE else "--other names another workspace's cache folder"
        raise CvsiError(f"{folder}: no {'metrics' if rerank else 'scores'} of {name}; {advice}")
    if rerank:
        recipes = provenance.of_rerank(dataset, backbone, rerank, cache)
    else:
        recipes = provenance.recipes(dataset, backbone, cache)
    return Side(name, dataset, backbone, cache, metrics, recipes, past)


def _warnings(sides: Sides, differences: consistency.Differences) -> list[str]:
    lines = consistency.confounded(differences)
    for side in sides:
        lines += consistency.stale_outputs(side.label, side.recipes)
        if unknown := [stage for stage, recipe in side.recipes.items() if not recipe]:
            lines.append(f"{side.label}: the recipe of its {consistency.words(unknown)} is unknown: no provenance.json")
    return lines


def _changed(sides: Sides) -> dict[str, tuple[str, str]]:
    """The tables of the index that differ between the two, with their numbers of rows."""
    changed = {}
    for name in ("images", "queries"):
        first, second = (parquet.read_file(side.path("index", f"{name}.parquet")) for side in sides)
        if not first.equals(second):
            changed[name] = f"{first.num_rows:,} rows", f"{second.num_rows:,} rows, not the same"
    return changed


def _names(sides: Sides, split: str) -> Iterator[str]:
    """What both runs have a number for, the ends of their own intervals left out, in the first run's order."""
    second = sides[1].metrics[split]
    yield from (name for name in sides[0].metrics[split] if name in second and not name.endswith(ENDS))


def _row(name: str, sides: Sides, split: str, paired: np.ndarray | None) -> Row:
    first, second = (side.metrics[split][name] for side in sides)
    low, high = (None, None) if paired is None else interval(paired)
    return Row(name=name, first=first, second=second, difference=second - first, low=low, high=high)


def _sorted(rows: Iterator[Row]) -> list[Row]:
    """Metrics in their order, then aspects by the size of their difference, then counts."""

    def place(row: Row) -> tuple[int, float]:
        aspect = "/" in row.name
        return (2, 0.0) if row.name in COUNTS else (int(aspect), -abs(row.difference) if aspect else 0.0)

    return sorted(rows, key=place)


def _values(side: Side) -> tuple[pl.DataFrame | None, str]:
    """The values per query that the stage scores wrote; None and the reason where they cannot be used."""
    path = side.path(side.stage, "per_query.parquet")
    if not path.exists():
        if side.past is not None:
            return None, f"{side.label}: no {path.name} in its {side.stage}; no interval"
        return None, f"{path}: no such file; no interval; run the stage {side.stage} again (dvc repro)"
    used = side.recipes["scores"].get("from", {}).get("queries")
    if used is not None and used != provenance.queries_digest(side.dataset, side.cache):
        return (
            None,
            f"{side.label}: its scores were made from other queries than the index has; no interval; run dvc repro",
        )
    table = pl.DataFrame(parquet.read_file(path))
    if missing := [name for name in (*KEY, "target_ranks") if name not in table.columns]:
        return None, f"{side.label}: {path.name} has no column '{missing[0]}'; no interval"
    return table, ""


def _queries(side: Side, split: str = "") -> pl.DataFrame:
    """The queries of a split, or of all, in the index's order."""
    path = side.path("index", "queries.parquet")
    frame = read_frame(parquet.read_file(path), str(path))
    return frame.filter(pl.col("split") == split) if split else frame


def _asked(queries: pl.DataFrame) -> pl.DataFrame:
    """Queries and their right answers, without what is no part of the question."""
    return queries.select(*KEY, "reference_id", "instruction", "target_ids")


def _paired(values: list[pl.DataFrame | None], split: str) -> dict[str, np.ndarray]:
    """Second less first per query, for each metric that both have, over the queries that count in both."""
    first, second = values
    if first is None or second is None:
        return {}
    ranks = (*RANKS.names, *OPTIONAL_RANKS.names)
    names = [name for name in first.columns if name in second.columns and name not in ranks]
    rows = first.filter(pl.col("split") == split).join(second, on=KEY, suffix=" second", maintain_order="left")
    paired = {name: (rows[f"{name} second"] - rows[name]).drop_nulls().to_numpy() for name in names}
    return {name: differences for name, differences in paired.items() if len(differences)}
