"""A run's reranks to what `cvsi show` prints of them: metrics beside the first stage's, paired differences, verdicts.

Metrics and values per query are those that the stages scores and rerank wrote; nothing is computed again. What cannot
be read is one line of `notes`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from cvsi.commands import show_figures
from cvsi.commands.layout import Table
from cvsi.commands.moved import KEY
from cvsi.commands.show import cut_offs, differences_table
from cvsi.commands.show_figures import Methods, Shown
from cvsi.commands.summary import Metrics, read
from cvsi.core import parquet, paths, provenance, tables
from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params, Run
from cvsi.core.statuses import counts
from cvsi.evaluation.paired import Difference, differences

COUNTS = ("judged", "failed")


class ShownRerank(BaseModel):
    """One rerank: its settings, how many verdicts have each status, its metrics and differences by split, its page.

    `top` and `mix` are those that its output was made with. `differences` are in the main metric, from the first stage
    over the queries that count in both.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    judge: str
    prompt: str
    top: int
    mix: float
    statuses: dict[str, int]
    splits: dict[str, dict[str, float]]
    differences: dict[str, Difference]
    page: str


class ShownRun(Shown):
    """A run as `cvsi show --json` prints it, with its reranks."""

    reranks: list[ShownRerank]


def collect(name: str, settings: Params) -> ShownRun:
    """All figures of a run of params.yaml and of its reranks; raises as `show_figures.collect` does."""
    shown, reranks = show_figures.collect(name, settings), list[ShownRerank]()
    notes, run = list(shown.notes), settings.run(name)
    for rerank, entry in settings.reranks.items():
        if entry.run == run:
            try:
                reranks.append(_rerank(rerank, settings, shown))
                notes += stale(rerank, run)
            except CvsiError as error:
                notes.append(f"rerank {rerank}: {error}")
    return ShownRun(**(shown.model_dump() | {"reranks": reranks, "notes": notes}))


def stale(rerank: str, run: Run) -> list[str]:
    """A line where a rerank was made from other scores or verdicts than the present ones."""
    recipes = provenance.of_rerank(run.dataset, run.backbone, rerank)
    return [
        f"rerank {rerank}: its {stage} were made from other {name} than the present ones; run dvc repro"
        for stage, name in provenance.stale(recipes)
        if stage in provenance.RERANK_STAGES
    ]


def rerank_tables(shown: ShownRun) -> Iterator[Table]:
    """For each split its reranks beside the first stage, and their differences from it."""
    for split in dict.fromkeys(split for rerank in shown.reranks for split in rerank.splits):
        of_split = {f"rerank {one.name}": one for one in shown.reranks if split in one.splits}
        first = shown.splits[split].methods.get(shown.own, {}) if split in shown.splits else {}
        rows: Methods = {shown.own: first} | {label: one.splits[split] for label, one in of_split.items()}
        yield cut_offs(f"{shown.run}, {split}, percent: reranks beside the first stage", rows, shown.metric, shown.own)
        paired = [
            one.differences[split].model_copy(update={"method": label})
            for label, one in of_split.items()
            if split in one.differences
        ]
        if paired:
            title = f"{split}, {shown.metric} of each rerank less the first stage, over the same queries"
            yield differences_table(title, paired, "rerank")


def rerank_lines(shown: ShownRun) -> Iterator[str]:
    """For each rerank its settings, the statuses of its verdicts, and its page."""
    for one in shown.reranks:
        pairs, failed = sum(one.statuses.values()), sum(one.statuses.values()) - one.statuses.get("ok", 0)
        statuses = ", ".join(f"{number:,} {status}" for status, number in one.statuses.items()) or "none"
        yield (
            f"Rerank {one.name}: judge {one.judge}, prompt {one.prompt}, top {one.top}, mix {one.mix:g}. Verdicts on "
            f"{count(pairs, 'pair')}: {statuses}; {failed:,} without a probability. Page: {one.page}"
        )


def _rerank(name: str, settings: Params, shown: Shown) -> ShownRerank:
    """The figures of one rerank; raises CvsiError where it was not run, or cannot be read."""
    entry = settings.rerank(name)
    run = entry.run
    folder = paths.folder("rerank", run.dataset, run.backbone, name)
    metrics = read(folder / "metrics.json", "rerank")
    if metrics is None:
        raise CvsiError(f"no metrics yet; dvc repro makes {folder}")
    recipe = tables.provenance(folder)
    statuses = pl.DataFrame(tables.whole("verdicts", run.dataset, run.backbone, name).select(["status"]))
    return ShownRerank(
        name=name, judge=str(entry.judge.get("model", "")), prompt=str(entry.judge.get("prompt", "match")),
        top=recipe.get("top", entry.top), mix=recipe.get("mix", entry.mix), statuses=counts(statuses["status"]),
        splits=metrics, differences=_differences(run, name, metrics, shown.metric), page=str(folder / "index.html"),
    )  # fmt: skip


def _differences(run: Run, rerank: str, metrics: Metrics, metric: str) -> dict[str, Difference]:
    """The difference of a rerank from the first stage in the main metric, by split; none where one has no values."""
    first = _values(paths.folder("scores", run.dataset, run.backbone), metric, "")
    second = _values(paths.folder("rerank", run.dataset, run.backbone, rerank), metric, rerank)
    paired = {}
    for split in metrics:
        values = pl.concat([first, second]).filter(split=split)
        if rows := differences(values, {rerank: {}}, ""):
            paired[split] = rows[0]
    return paired


def _values(folder: Path, metric: str, name: str) -> pl.DataFrame:
    """The main metric as `value` per query, with `name` as its method; raises CvsiError without such a column."""
    path = folder / "per_query.parquet"
    table: Any = parquet.read_file(path)
    if missing := [column for column in (*KEY, metric) if column not in table.column_names]:
        raise CvsiError(f"{path}: no column '{missing[0]}', so no paired differences; run dvc repro")
    value = pl.col(metric).cast(pl.Float64).alias("value")
    return pl.DataFrame(table).select(pl.lit(name).alias("method"), *KEY, value)
