"""The runs of params.yaml that have a benchmark, each beside the published figures of its backbone, as one page.

A run that was not computed has its row, too: what is published, and the commands that compute it.
"""

from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from cvsi.core import paths, tables
from cvsi.core.atomic import atomic_file
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params, Run, explain
from cvsi.evaluation.published import rows
from cvsi.evaluation.report.published_section import section
from cvsi.evaluation.report.templates import template

COMPARED = ("near", "off")  # verdicts of figures that can be compared; others say why they cannot


class Report(BaseModel):
    """What is read of a report's `weightings.json`."""

    model_config = ConfigDict(frozen=True)

    splits: dict[str, dict[str, dict[str, float]]]


def write(target: Path, settings: Params) -> int:
    """Write the page and give the number of runs on it; raises CvsiError where no run has a benchmark."""
    runs = [found for name, run in _possible(settings).items() if (found := _run(name, run, settings)) is not None]
    if not runs:
        raise CvsiError("params.yaml: no dataset names a benchmark; docs/benchmarks.md says how to add one")
    try:
        with atomic_file(target) as partial:
            partial.write_text(template("reproduction.html").render(runs=runs, shown=10), encoding="utf-8")
    except OSError as error:
        raise CvsiError(f"{target}: {error.strerror or error}; name another file") from None
    return len(runs)


def _possible(settings: Params) -> dict[str, Run]:
    """The runs on benchmarks, then every other pair of a benchmark's dataset and a backbone with published figures."""
    datasets = [name for name, dataset in settings.datasets.items() if dataset.benchmark is not None]
    runs = {name: run for name, run in settings.runs.items() if run.dataset in datasets}
    for dataset in datasets:
        for backbone, block in settings.backbones.items():
            run = Run(dataset=dataset, backbone=backbone)
            if run not in runs.values() and rows(str(settings.dataset(dataset).benchmark), block):
                runs[f"{dataset}-{backbone}"] = run
    return runs


def _run(name: str, run: Run, settings: Params) -> dict[str, Any] | None:
    """One run: its commands, its published rows with this run's values, and how many of them are near; None without."""
    dataset, backbone = settings.dataset(run.dataset), settings.backbone(run.backbone)
    measured = _measured(run)
    splits = _splits(run) or list(measured)
    found = section(run.dataset, dataset, backbone, splits, measured)
    if found is None:
        return None
    verdicts = [ours["verdict"] for row in found["rows"] for ours in row["ours"]]
    main = found["metrics"][0]
    figures = [row["figures"][main] for row in found["rows"] if main in row["figures"]]
    own = [values[main] for split in measured.values() for method, values in split.items() if main in values]
    return found | {
        "run": name, "backbone": run.backbone, "computed": bool(measured) or _scored(run), "main": main,
        "entry": _entry(name, run, settings), "commands": ["cvsi check", f"dvc repro report@{name}"],
        "published": (min(figures), max(figures)) if figures else None,
        "measured": (min(own), max(own)) if own else None,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in COMPARED},
        "others": sum(verdict not in COMPARED for verdict in verdicts),
        "submissions": [str(path) for path in sorted(_scores(run).glob("submissions/*.json"))],
    }  # fmt: skip


def _entry(name: str, run: Run, settings: Params) -> str:
    """What params.yaml needs for a run, as YAML; empty where the run is there."""
    if name in settings.runs:
        return ""
    active = list(dict.fromkeys([*settings.active, run.dataset]))
    return f"active: [{', '.join(active)}]\nruns:\n  {name}: {{dataset: {run.dataset}, backbone: {run.backbone}}}\n"


def _measured(run: Run) -> dict[str, dict[str, dict[str, float]]]:
    """The metrics of the report's table by split and method; none before there is a report."""
    file = paths.folder("report", run.dataset, run.backbone) / "weightings.json"
    if not file.exists():
        return {}
    try:
        return Report.model_validate_json(file.read_bytes()).splits
    except ValidationError as error:
        raise CvsiError(f"{file}: {explain(error)}; run the stage report again (dvc repro)") from None


def _splits(run: Run) -> list[str]:
    """The splits of an index, in order; none before there is one."""
    if not tables.exists("index", run.dataset):
        return []
    queries = pl.DataFrame(tables.read("index", run.dataset, "queries.parquet"))
    return queries["split"].unique(maintain_order=True).to_list()


def _scores(run: Run) -> Path:
    return paths.folder("scores", run.dataset, run.backbone)


def _scored(run: Run) -> bool:
    return (_scores(run) / "metrics.json").exists()
