"""The metrics of all runs of `params.yaml` side by side: rows, averages over categories, and tables of them.

Runs of one protocol share a table. A format may say that its datasets are parts of one benchmark (FashionIQ's
categories); their average is over the parts that were run with one backbone, each counting the same.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat, TypeAdapter, ValidationError

from cvsi.commands import consistency
from cvsi.commands.fallback_warning import fallback_warning
from cvsi.commands.layout import Table
from cvsi.core import parquet, paths
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params, Run, explain
from cvsi.datasets.formats import FORMATS, format_of, settings_of
from cvsi.datasets.metrics import Protocol

COUNTS = ("queries", "dropped", "fallbacks")
Metrics = dict[str, dict[str, FiniteFloat]]
METRICS: TypeAdapter[Metrics] = TypeAdapter(Metrics)


class Line(BaseModel):
    """One run on one labelled split, or an average of several; metrics in percent, counts as they are."""

    model_config = ConfigDict(frozen=True)

    run: str
    backbone: str
    format: str
    split: str
    category: str | None
    metrics: dict[str, float]


class Unscored(BaseModel):
    """A run that has no metrics, and why."""

    model_config = ConfigDict(frozen=True)

    run: str
    why: str


class Summary(BaseModel):
    """All runs: those with metrics, their reranks, averages over categories, those without, submissions, and warnings.

    `doubts` are about the comparison, `fallbacks` about datasets of which too many edits fell back.
    """

    runs: list[Line]
    averages: list[Line]
    without: list[Unscored]
    submissions: dict[str, list[str]]
    doubts: list[str]
    fallbacks: list[str]
    reranks: list[Line] = []


def collect(settings: Params) -> Summary:
    """Read the metrics of every run in its order; raises CvsiError for a file that does not hold numbers by name."""
    lines, without, submissions = [], [], {}
    for name, run in settings.runs.items():
        folder = paths.folder("scores", run.dataset, run.backbone)
        metrics = read(folder / "metrics.json")
        files = [str(path) for path in sorted((folder / "submissions").glob("*.json"))]
        if files:
            submissions[name] = files
        if metrics is None:
            without.append(Unscored(run=name, why=f"no scores yet; dvc repro makes {folder}"))
        elif not metrics and without_queries(run.dataset):
            without.append(Unscored(run=name, why=f"no queries; its gallery is shown in {_page(run)}"))
        elif not metrics:
            where = f"its submission is in {folder / 'submissions'}" if files else f"its rankings are in {folder}"
            without.append(Unscored(run=name, why=f"no labelled split; {where}"))
        else:
            lines += _lines(name, run, settings, metrics, folder / "metrics.json")
    averages, left_out = _averages(lines)
    averaged = [names for average in averages if (names := _behind(average, lines))]
    datasets = dict.fromkeys(run.dataset for run in settings.runs.values())
    warnings = consistency.of_summary(settings, [line.run for line in lines], averaged)
    return Summary(
        runs=lines, averages=averages, without=without + left_out, submissions=submissions, doubts=warnings,
        fallbacks=[line for name in datasets if (line := fallback_warning(name, settings))],
        reranks=_reranks(settings),
    )  # fmt: skip


def _reranks(settings: Params) -> list[Line]:
    """The lines of every rerank that has metrics, by its name; they are part of no average."""
    lines = []
    for name, rerank in settings.reranks.items():
        folder = paths.folder("rerank", rerank.run.dataset, rerank.run.backbone, name)
        metrics = read(folder / "metrics.json", "rerank") or {}
        lines += _lines(f"rerank {name}", rerank.run, settings, metrics, folder / "metrics.json", "rerank")
    return lines


def without_queries(dataset: str) -> bool:
    """Whether a dataset was indexed and has no queries."""
    file = paths.folder("index", dataset) / "queries.parquet"
    return file.exists() and parquet.rows_of(file) == 0


def _page(run: Run) -> Path:
    return paths.folder("report", run.dataset, run.backbone) / "index.html"


def tables(summary: Summary) -> Iterator[Table]:
    """A table for each protocol among the runs: its main metric with interval, other cut-offs, and counts."""
    groups: dict[tuple[str, ...], list[Line]] = {}
    for line in summary.runs + summary.reranks + summary.averages:
        protocol = _protocol(line.format)
        groups.setdefault((protocol.main, *protocol.names()), []).append(line)
    for lines in groups.values():
        yield _table(_protocol(lines[0].format), lines, summary.averages)


def read(path: Path, stage: str = "scores") -> Metrics | None:
    """`{split: {name: number}}`, or None where there is no such file."""
    try:
        return METRICS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise CvsiError(f"{path}: {explain(error)}; run the stage {stage} again (dvc repro)") from None


def _protocol(dataset_format: str) -> Protocol:
    return FORMATS.get(dataset_format, "summary").protocol


def _lines(name: str, run: Run, settings: Params, metrics: Metrics, path: Path, stage: str = "scores") -> list[Line]:
    dataset = settings.dataset(run.dataset)
    wanted = [format_of(dataset, run.dataset).protocol.main, *COUNTS]
    category = settings_of(dataset, run.dataset).averaged_as
    lines = []
    for split, values in metrics.items():
        if missing := [metric for metric in wanted if metric not in values]:
            names = ", ".join(missing)
            raise CvsiError(f"{path}: split {split} without {names}; run the stage {stage} again (dvc repro)")
        lines.append(
            Line(
                run=name,
                backbone=run.backbone,
                format=dataset.format,
                split=split,
                category=category,
                metrics=values,
            )
        )
    return lines


def _averages(lines: Iterable[Line]) -> tuple[list[Line], list[Unscored]]:
    """Averages over the categories of one format, backbone and split; none where a category has two runs."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        if line.category is not None:
            groups.setdefault((line.format, line.backbone, line.split), []).append(line)
    averages, left_out = [], []
    for (form, backbone, split), group in groups.items():
        group = sorted(group, key=lambda line: line.category or "")
        categories = [line.category or "" for line in group]
        label = f"average of {', '.join(dict.fromkeys(categories))}"
        if len(set(categories)) < len(categories):
            runs = ", ".join(line.run for line in group)
            left_out.append(Unscored(run=f"{label}, {backbone}", why=f"a category has several runs: {runs}"))
        elif len(group) > 1:
            metrics = _mean(group)
            averages.append(
                Line(run=label, backbone=backbone, format=form, split=split, category=None, metrics=metrics)
            )
    return averages, left_out


def _behind(average: Line, lines: Iterable[Line]) -> list[str]:
    """The runs that an average is of."""
    same = (average.format, average.backbone, average.split)
    return [line.run for line in lines if line.category and (line.format, line.backbone, line.split) == same]


def _mean(group: list[Line]) -> dict[str, float]:
    """The mean of every metric that all have, and the sum of the counts; means alone give no interval."""
    names = [name for name in _protocol(group[0].format).names() if all(name in line.metrics for line in group)]
    means = {name: sum(line.metrics[name] for line in group) / len(group) for name in names}
    return means | {name: sum(line.metrics[name] for line in group) for name in COUNTS}


def _table(protocol: Protocol, lines: list[Line], averages: list[Line]) -> Table:
    others = protocol.cut_offs()
    table = Table("percent, with 95% interval").texts("run", key=True, least=16).texts("split", key=True)
    table.figures(protocol.main, "interval").figures(*others, group="others").figures(*COUNTS, group="counts")
    for line in lines:
        low, high = (line.metrics.get(f"{protocol.main} {end}") for end in ("low", "high"))
        interval = "-" if low is None or high is None else f"{low:.1f} to {high:.1f}"
        values = (f"{line.metrics[name]:.1f}" if name in line.metrics else "-" for name in others)
        counts = (f"{line.metrics[name]:,.0f}" for name in COUNTS)
        main = f"{line.metrics[protocol.main]:.2f}"
        label = f"{line.run}, {line.backbone}" if line in averages else line.run
        table.add_row(label, line.split, main, interval, *values, *counts)
    return table


def text(summary: Summary) -> str:
    """The summary as JSON."""
    return json.dumps(summary.model_dump(), indent=2, ensure_ascii=False)
