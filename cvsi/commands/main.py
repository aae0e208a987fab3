"""The command line `cvsi`: looks at what the stages made. Importing it loads neither torch nor a model."""

import sys
from pathlib import Path

import typer
from rich.console import Console

from cvsi import __version__
from cvsi.commands import pack_commands
from cvsi.core import params, paths
from cvsi.core.console import complain, count, say, seconds
from cvsi.core.errors import CvsiError

WIDE = 160  # columns of a table that goes into a file or a pipe

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
pack_commands.register(app)


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
    """Print a run's table of weightings, where its report lies, and what its stages ran on, with which versions."""
    from cvsi.commands import show as shown
    from cvsi.commands import times as record

    chosen = params.run_named(params.load(), run)
    content, console = shown.content(chosen), Console()
    for table in shown.tables(run, content):
        console.print(table)
    if not content["splits"]:
        console.print("No split has labels, so there are no metrics.")
    for line in record.circumstances(record.of_run(chosen.dataset, chosen.backbone)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    page = paths.folder("report", chosen.dataset, chosen.backbone) / "index.html"
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)


@app.command()
def compare(
    first: str = typer.Argument(help="A run of params.yaml."),
    second: str = typer.Argument("", help="The run to hold against it; the same one where --other is given."),
    other: str = typer.Option("", help="The cache folder of another workspace, in which the second run lies."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for other programs instead of tables."),
) -> None:
    """Set two runs side by side: metrics, differences with intervals, what differs in their recipes; warns of traps."""
    from cvsi.commands import compare as held
    from cvsi.commands.compare_views import tables

    if not (second or other):
        raise CvsiError("compare needs a second run, or --other with the cache folder of another workspace")
    found = held.compare(params.load(), first, second or first, Path(other) if other else None)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in () if as_json else tables(found):
        console.print(table)
    if not found.differences:
        complain("their recipes are the same")
    for line in found.doubts:
        complain(f"warning: {line}")


@app.command()
def summary(
    as_json: bool = typer.Option(False, "--json", help="Print JSON for other programs instead of tables."),
) -> None:
    """Print the metrics of all runs of params.yaml side by side, averages over categories, and what has none yet."""
    from cvsi.commands.summary import collect, tables, text

    found = collect(params.load())
    if as_json:
        typer.echo(text(found))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in tables(found):
        console.print(table)
    for unscored in found.without:
        console.print(f"{unscored.run}: {unscored.why}", soft_wrap=True, highlight=False, markup=False)
    for run, files in found.submissions.items():
        console.print(f"{run}, to submit: {', '.join(files)}", soft_wrap=True, highlight=False, markup=False)
    for line in found.doubts:
        complain(f"warning: {line}")


@app.command()
def times(
    every: bool = typer.Option(False, "--all", help="All runs on record, not just the latest of each."),
) -> None:
    """Print how long the stages took, on what, and how many rows a second they computed."""
    from cvsi.commands.times import circumstances, records, table

    found, console = records(every), Console(width=None if sys.stdout.isatty() else WIDE)
    if not found:
        raise CvsiError(f"{paths.runs_folder()}: no records yet; dvc repro makes them")
    console.print(table(found))
    for line in circumstances(found):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command()
def store(
    unused_for: float = typer.Option(
        -1.0, help="Remove what no output here was made from and nobody used for so many days; asks first."
    ),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
) -> None:
    """Show what the store holds: its size by kind and recipe, the last use, and which outputs here came from it."""
    from cvsi.commands import store

    place, console = Path(params.load().store), Console(width=None if sys.stdout.isatty() else WIDE)
    parts = store.survey(place)
    if unused_for < 0:
        console.print(store.table(parts, str(place)))
        return
    parts = [part for part in parts if part.unused(unused_for)]
    if parts:
        console.print(store.table(parts, f"{place}: to remove"))
        if not yes and not typer.confirm("Remove these for good? Outputs of other workspaces may need them again."):
            raise typer.Exit(1)
    gone = store.remove(place, unused_for)  # also without any: half-written files of killed processes go too
    say(f"{place}: {count(len(gone), 'part')} removed that nobody used for {unused_for:g} days")


@app.command()
def check() -> None:
    """Say what the active datasets and the runs still need, what they would compute, and on what terms they may."""
    from cvsi.commands.check import report

    if report(params.load(), Console(width=None if sys.stdout.isatty() else WIDE)):
        raise typer.Exit(1)


@app.command("check-submission")
def check_submission(
    file: str = typer.Argument(help="A file of scores/submissions, or one from anywhere."),
    queries: str = typer.Option(
        "", help="What it should answer: a dataset's name, a queries.parquet, or the annotation file."
    ),
) -> None:
    """Say what a benchmark's server would refuse in a submission file, a line each; nothing is sent anywhere."""
    from cvsi.commands import check_submission
    from cvsi.datasets.submissions import Known, inspect

    text = check_submission.read(Path(file))
    known = check_submission.known_of(queries, text, file) if queries else Known()
    kind, number, faults = inspect(text, known, file)
    for fault in faults:
        complain(f"{file}: {fault}")
    if faults:
        raise typer.Exit(1)
    say(f"{file}: {kind.benchmark}, metric {kind.metric}: {count(number, 'query')} of {kind.images} images, no fault")


@app.command("convert-phi")
def convert_phi(
    source: str = typer.Argument(help="A published checkpoint, models/phi_best_large_openai.pt say."),
    target: str = typer.Argument(help="The file to write, a name that ends in .safetensors."),
    backbone: str = typer.Option("", help="A backbone of params.yaml whose sizes phi must have."),
    force: bool = typer.Option(False, "--force", help="Overwrite the target."),
) -> None:
    """Write a published phi as safetensors: the same numbers in float32, and nothing that could run when it is read."""
    from cvsi.models import phi

    wanted = None
    if backbone:
        from cvsi.models.clip import sizes

        wanted = sizes(params.load().backbone(backbone))
    width, token_width, before, after = phi.convert(Path(source), Path(target), wanted, force)
    say(f"{source}: phi from width {width} to token width {token_width}, SHA-256 {before}")
    say(f"{target}: written, SHA-256 {after}")


@app.command()
def sweep(
    dataset: str = typer.Argument(help="A dataset with labels, fashioniq-dress say."),
    backbone: str = typer.Argument(help="A backbone whose vectors are there, vit-b-32 say."),
    parts: str = typer.Option("edited,pseudo,reference", help="Query parts to weigh, besides those of the fusion."),
    step: float = typer.Option(0.1, help="The grid's step; it must divide 1."),
    top: int = typer.Option(10, min=1, help="How many of the best to print."),
) -> None:
    """Judge a grid of weightings on the labelled splits, from vectors that are there: hundreds in a minute."""
    from cvsi.commands import sweep as search
    from cvsi.commands import sweep_plots as views

    asked = [part.strip() for part in parts.split(",") if part.strip()]
    found = search.build(dataset, backbone, params.load(), asked, step)
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in views.tables(found.frame, found.protocol, top):
        console.print(table)
    place = paths.folder("sweep", dataset, backbone)
    say(f"{count(found.number, 'weighting')} in {seconds(found.seconds)}, {found.rate:,.0f} a minute")
    say(f"{place / 'weightings.parquet'} has all of them, {place / 'sweep.png'} is a picture; for DVC's plot:")
    typer.echo(views.plot_command(place, found.protocol.main))
    complain(f"{dataset}: {views.WARNING}")
