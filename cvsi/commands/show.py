"""A run's `weightings.json` as tables for a terminal: named weightings by cut-off, and by aspect."""

import json
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from cvsi.core import paths
from cvsi.core.errors import CvsiError
from cvsi.core.params import Run


def content(run: Run) -> dict[str, Any]:
    """What the report of a run says of its weightings; raises CvsiError where there is none."""
    folder = paths.folder("report", run.dataset, run.backbone)
    try:
        return json.loads((folder / "weightings.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (FileNotFoundError, ValueError):
        raise CvsiError(f"{folder}: no table of weightings; run dvc repro first") from None


def tables(run: str, found: dict[str, Any]) -> Iterator[Table]:
    """Two tables for each labelled split."""
    for split, rows in found["splits"].items():
        yield _table(f"{run}, {split}, percent", rows, found["metric"])
        yield _aspects(rows, found["metric"])


def _table(title: str, rows: dict[str, dict[str, float]], metric: str) -> Table:
    """Weightings by the cut-offs of the main metric, with its interval; the report has the other metrics too."""
    family = metric.partition("@")[0]
    names = [
        name for name in next(iter(rows.values())) if name.partition("@")[0] == family and name.split("@")[1].isdigit()
    ]
    table = Table("weighting", *names, f"{metric}, 95% interval", title=title, box=box.SIMPLE_HEAD)
    for weighting, values in rows.items():
        interval = f"{values[f'{metric} low']:.1f} to {values[f'{metric} high']:.1f}"
        style = "bold" if weighting == "cvsi" else None
        table.add_row(weighting, *(f"{values[name]:.1f}" for name in names), interval, style=style)
    return table


def _aspects(rows: dict[str, dict[str, float]], metric: str) -> Table:
    names = [name for name in next(iter(rows.values())) if name.startswith(f"{metric}/")]
    table = Table("aspect", *rows, title=f"{metric} by aspect", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        aspect = name.removeprefix(f"{metric}/").replace("_", " ")
        table.add_row(aspect, *(f"{values[name]:.1f}" for values in rows.values()))
    return table
