"""A run's `weightings.json` as tables for a terminal: methods by cut-off, and by aspect."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvsi.commands.layout import Table
from cvsi.commands.summary import without_queries
from cvsi.core import paths
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params, Run
from cvsi.datasets.formats import format_of
from cvsi.evaluation import OWN


def content(run: Run) -> dict[str, Any]:
    """The table of methods in a run's report; raises CvsiError where there is none."""
    folder = paths.folder("report", run.dataset, run.backbone)
    try:
        return json.loads((folder / "weightings.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):
        raise CvsiError(f"{folder}: no table of methods; run dvc repro first") from None


def tables(run: str, content: dict[str, Any]) -> Iterator[Table]:
    """Two tables for each labelled split."""
    for split, rows in content["splits"].items():
        yield _cut_offs(f"{run}, {split}, percent", rows, content["metric"])
        yield _aspects(rows, content["metric"])


def without_metrics(run: Run, settings: Params) -> str:
    """Why a run has no table: its dataset has no queries, or none with labels."""
    if without_queries(run.dataset):
        dataset = settings.dataset(run.dataset)
        file = format_of(dataset, run.dataset).query_file
        add = f" Queries can be added in {Path(dataset.root) / file}." if file else ""
        return f"{run.dataset} has no queries: no rankings, no metrics; the report shows the gallery.{add}"
    return "No split has labels, so there are no metrics."


def left_out(content: dict[str, Any]) -> str:
    """A line about methods that the vectors do not allow, each with the reason; empty without any."""
    names = [f"{name} ({why})" for name, why in content.get("left_out", {}).items()]
    return f"Left out: {', '.join(names)}." if names else ""


def _cut_offs(title: str, rows: dict[str, dict[str, float]], metric: str) -> Table:
    """Methods by the cut-offs of the main metric, with its interval; the report has the other metrics too."""
    family = metric.partition("@")[0]
    names = [
        name for name in next(iter(rows.values())) if name.partition("@")[0] == family and name.split("@")[1].isdigit()
    ]
    table = Table(title).texts("method", key=True).figures(*names, f"{metric}, 95% interval")
    for method, values in rows.items():
        interval = f"{values[f'{metric} low']:.1f} to {values[f'{metric} high']:.1f}"
        style = "bold" if method == OWN else ""
        table.add_row(method, *(f"{values[name]:.1f}" for name in names), interval, style=style)
    return table


def _aspects(rows: dict[str, dict[str, float]], metric: str) -> Table:
    names = [name for name in next(iter(rows.values())) if name.startswith(f"{metric}/")]
    table = Table(f"{metric} by aspect").texts("aspect", key=True).figures(*rows)
    for name in names:
        aspect = name.removeprefix(f"{metric}/").replace("_", " ")
        table.add_row(aspect, *(f"{values[name]:.1f}" for values in rows.values()))
    return table
