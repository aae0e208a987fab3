"""The command line `cvsi`: looks at what the stages made. Importing it loads neither torch nor a model."""

import json
import sys

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cvsi import __version__, params, places
from cvsi.console import complain
from cvsi.errors import CvsiError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command line; an error is one line on standard error."""
    try:
        app()
    except CvsiError as error:
        complain(str(error))
        sys.exit(1)


@app.callback()
def about() -> None:
    """Zero-shot composed image retrieval with CVSI. The stages are run by `dvc repro`."""


@app.command()
def version() -> None:
    """Print the version."""
    Console().print(__version__, highlight=False)


@app.command()
def show(run: str = typer.Argument(help="A run of params.yaml, demo-tiny say.")) -> None:
    """Print a run's table of weightings and where its report lies."""
    settings = params.load()
    if run not in settings.runs:
        raise CvsiError(f"params.yaml: no run '{run}'; there are: {', '.join(settings.runs)}")
    chosen = settings.runs[run]
    folder = places.folder("report", chosen.dataset, chosen.backbone)
    try:
        content = json.loads((folder / "weightings.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise CvsiError(f"{folder}: no table of weightings; run dvc repro first") from None
    console = Console()
    for split, rows in content["splits"].items():
        console.print(_table(f"{run}, {split}, percent", rows, content["metric"]))
        console.print(_aspects(rows, content["metric"]))
    if not content["splits"]:
        console.print("No split has labels, so there are no metrics.")
    console.print(f"Report: {folder / 'index.html'}", soft_wrap=True, highlight=False)


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
