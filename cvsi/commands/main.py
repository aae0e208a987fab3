"""The command line `cvsi`: shows what the stages made. Importing it loads neither torch nor a model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cvsi import __version__
from cvsi.commands import next_step
from cvsi.commands.layout import print_all, say, terminal, tolerate_columns
from cvsi.commands.open_report import open_report, report_page
from cvsi.core import params, paths
from cvsi.core.console import count, encodable, encodable_json, info, plain, seconds, tolerate_encoding, warn
from cvsi.core.errors import CvsiError, cause

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command line; an error is one line on standard error."""
    tolerate_encoding()
    tolerate_columns()
    try:
        app()
    except CvsiError as error:
        warn(str(error))
        sys.exit(1)
    except OSError as error:  # most often the output itself, on a full disk
        warn(f"{error.filename or 'the output'}: {error.strerror or cause(error)}")
        sys.exit(1)


@app.callback()
def about() -> None:
    """Zero-shot composed image retrieval with CVSI. The stages are run by `dvc repro`."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
    next_step.after_version().print()


@app.command()
def show(
    run: str = typer.Argument(help="A run of params.yaml, e.g. demo-tiny."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for other programs instead of tables."),
    as_markdown: bool = typer.Option(False, "--markdown", help="Print only the table of methods, in Markdown."),
) -> None:
    """Print a run's methods and reranks, differences, values by aspect, fallbacks, its report, and what it ran on."""
    from cvsi.commands import show as shown
    from cvsi.commands import times as record
    from cvsi.commands.fallback_warning import fallback_warning
    from cvsi.commands.show_reranks import collect, rerank_lines, rerank_tables

    if as_json and as_markdown:
        raise CvsiError("--json and --markdown: give one of the two")
    settings = params.load()
    chosen, figures, console = settings.run(run), collect(run, settings), terminal()
    if as_json:
        typer.echo(encodable_json(figures.model_dump_json(indent=2)))
        return
    if as_markdown:
        from cvsi.commands import show_markdown

        for line in show_markdown.lines(figures) if figures.splits else [shown.without_metrics(chosen, settings)]:
            typer.echo(encodable(plain(line), sys.stdout))
        return
    print_all(console, shown.tables(figures))
    print_all(console, rerank_tables(figures))
    if not figures.splits:
        say(console, shown.without_metrics(chosen, settings))
    for line in (*shown.lines(figures), *record.environment(record.of_run(chosen.dataset, chosen.backbone))):
        say(console, line)
    if figures.edits and (line := fallback_warning(chosen.dataset, settings)):
        say(console, line, style="red")
    for line in rerank_lines(figures):
        say(console, line)
    say(console, f"Report: {report_page(chosen)}")
    for note in figures.notes:
        warn(note)
    next_step.after_show(run, settings).print()


@app.command("open")
def open_page(run: str = typer.Argument(help="A run of params.yaml, e.g. demo-tiny, or RUN:RERANK.")) -> None:
    """Open a run's report, or a rerank's page, in the browser; without a browser or a display, print its address."""
    settings, (name, _, rerank) = params.load(), run.partition(":")
    info(open_report(settings.run(name), settings.rerank_of(name, rerank) if ":" in run else ""))
    next_step.after_open(name, settings).print()


@app.command()
def compare(
    first: str = typer.Argument(help="A run of params.yaml, or RUN:RERANK; with --rev, the run at that state."),
    second: str = typer.Argument(
        "", help="The run, or RUN:RERANK, to hold against it; the same one with --other or --rev."
    ),
    other: str = typer.Option("", help="The cache folder of another workspace, in which the second run lies."),
    rev: str | None = typer.Option(
        None, help="A git revision (HEAD~1, a tag, a branch) or a DVC experiment, from which the first run is read."
    ),
    top: int = typer.Option(10, min=0, help="How many of the queries that moved most to name."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for other programs instead of tables."),
) -> None:
    """Compare two runs or reranks, or one with its earlier state: metrics, moved queries, recipes; with warnings."""
    from cvsi.commands.compare import compare as compare_runs
    from cvsi.commands.comparison import tables

    if not (second or other or rev is not None):
        raise CvsiError("compare needs a second run, --rev with an earlier state, or --other with a cache folder")
    if other and rev is not None:
        raise CvsiError("--other and --rev: give one of the two")
    settings = params.load()
    comparison = compare_runs(settings, first, second or first, Path(other) if other else None, rev, top)
    if as_json:
        typer.echo(encodable_json(comparison.model_dump_json(indent=2)))
    else:
        print_all(terminal(), tables(comparison))
    if not comparison.differences:
        warn("their recipes are the same")
    for line in comparison.doubts:
        warn(f"warning: {line}")
    if not as_json:  # with --other, the second run is another workspace's
        next_step.after_compare(comparison, (first if other else second or first).partition(":")[0], settings).print()


@app.command()
def summary(
    as_json: bool = typer.Option(False, "--json", help="Print JSON for other programs instead of tables."),
    page: str = typer.Option("", help="Also write this page: benchmarks beside published figures."),
) -> None:
    """Print the metrics of all runs of params.yaml side by side, averages over categories, and what has none yet."""
    from cvsi.commands.summary import collect, tables, text

    settings = params.load()
    found = collect(settings)
    if page:
        from cvsi.commands import reproduction

        number = reproduction.write(Path(page), settings)
        (warn if as_json else info)(f"{page}: {count(number, 'run')} beside published figures")
    if as_json:
        typer.echo(encodable_json(text(found)))
        return
    console = terminal()
    print_all(console, tables(found))
    for unscored in found.without:
        say(console, f"{unscored.run}: {unscored.why}")
    for run, files in found.submissions.items():
        say(console, f"{run}, to submit: {', '.join(files)}")
    for line in found.fallbacks:
        say(console, line, style="red")
    for line in found.doubts:
        warn(f"warning: {line}")
    next_step.after_summary(found, settings).print()


@app.command()
def times(
    every: bool = typer.Option(False, "--all", help="All recorded runs, not only the latest of each stage."),
) -> None:
    """Print how long the stages took, on which device, and how many rows per second they computed."""
    from cvsi.commands.times import environment, records, tables

    runs, console = records(every), terminal()
    if not runs:
        raise CvsiError(f"{paths.runs_folder()}: no records yet; dvc repro makes them")
    print_all(console, tables(runs))
    for line in environment(runs):
        say(console, line)
    next_step.after_times().print()


@app.command()
def store(
    unused_for: float = typer.Option(
        -1.0, help="Delete rows that no output here was made from and that were not used for so many days; asks first."
    ),
    recipe: str = typer.Option(
        "", "--remove", help="Delete the rows of one recipe, by the first digits of its digest; asks first."
    ),
    check_models: bool = typer.Option(
        False,
        "--check-models",
        help="Name the model folders of params.yaml that do not fit, and the rows made with them.",
    ),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
) -> None:
    """Show what the store contains: size by kind and recipe, the last use, and which outputs here were made from it."""
    from cvsi.commands import store as usage

    folder, console = Path(params.load().store), terminal()
    if check_models:
        _check_models(folder)
        return
    if recipe:
        if unused_for >= 0:
            raise CvsiError("--remove and --unused-for: give one of the two")
        part = usage.part_of(folder, recipe)
        console.print(usage.table([part], f"{folder}: to delete"))
        if part.by:
            say(console, f"Outputs here that were made from it: {', '.join(part.by)}")
        if not yes and not typer.confirm("Delete these rows? They are computed again where they are needed."):
            raise typer.Exit(1)
        usage.remove_part(folder, part)
        info(f"{folder}: deleted {part.kind}/{part.folder.name}, {count(part.files, 'file')} ({part.made_by})")
        next_step.after_deletion(part.by).print()
        return
    parts = usage.survey(folder)
    if unused_for < 0:
        console.print(usage.table(parts, str(folder)))
        next_step.after_store(parts).print()
        return
    parts = [part for part in parts if part.unused(unused_for)]
    if parts:
        console.print(usage.table(parts, f"{folder}: to delete"))
        if not yes and not typer.confirm("Delete these? Outputs of other workspaces may need them again."):
            raise typer.Exit(1)
    deleted = usage.remove(folder, unused_for)  # also without any: it deletes incomplete files of killed processes
    info(f"{folder}: {count(len(deleted), 'part')} deleted that were not used for {unused_for:g} days")
    next_step.after_deletion().print()


def _check_models(folder: Path) -> None:
    from cvsi.commands import store as usage
    from cvsi.commands.store_check import misfits

    lines = list(misfits(params.load(), usage.survey(folder)))
    for line in lines:
        warn(line)
    if lines:
        raise typer.Exit(1)
    info("every model folder of params.yaml fits its model")
    next_step.after_version().print()


@app.command()
def check(
    download: bool = typer.Option(
        False,
        "--download",
        help="First download the models that are missing from the hub, continue what was begun, verify all of them.",
    ),
    of_methods: bool = typer.Option(
        False, "--methods", help="Print only what each method of each run would cost: model calls, and their time."
    ),
) -> None:
    """Check params.yaml and the folders it names: what is missing or changed, what would be computed, terms of use."""
    from cvsi.commands.check import check_blocks, report, report_methods

    settings, failed = params.load(), 0
    if of_methods:
        if download:
            raise CvsiError("--methods and --download: give one of the two")
        report_methods(settings, terminal())
        next_step.after_methods().print()
        return
    if download:
        from cvsi.commands.download import download as fetch

        check_blocks(settings)
        try:
            failed = fetch(settings)
        except KeyboardInterrupt:
            warn("stopped; the next cvsi check --download continues")
            raise typer.Exit(130) from None
    missing = report(settings, terminal())
    next_step.after_check(missing).print()
    if missing or failed:
        raise typer.Exit(1)


@app.command()
def add(
    folder: str | None = typer.Argument(None, help="A folder of photos; without one, the presets are printed."),
    preset: str = typer.Option(
        "", help="laptop, gpu-24gb, gpu-80gb, server or tiny; without it, chosen by the GPU's memory."
    ),
    name: str = typer.Option("", help="The dataset's name; without it, made from the folder's."),
    roots: Annotated[
        list[str] | None, typer.Option(help="A further folder, to which links in the photos' folder may lead.")
    ] = None,
    address: str = typer.Option("", help="Of --preset server: its address; without it, Ollama's on this machine."),
    model: str = typer.Option("", help="Of --preset server: the model for captions and edits; it must see images."),
    caption_model: str = typer.Option("", help="Of --preset server: another model for captions."),
    edit_model: str = typer.Option("", help="Of --preset server: another model for edits."),
    presets: bool = typer.Option(False, "--presets", help="Print the presets: models, memory, download, rates, terms."),
) -> None:
    """Add a folder of photos to params.yaml, with models that fit this machine; show the lines and what to run next."""
    from cvsi.commands import add as adding
    from cvsi.commands import preset_table

    console = terminal()
    if presets or folder is None:
        preset_table.show(console)
        next_step.after_presets().print()
        return
    options = adding.Options(preset, name, tuple(roots or ()), address, model, caption_model, edit_model)
    with _one_line():
        added = adding.add(folder, options)
    for line in added.facts:
        info(line)
    for line in added.diff:
        console.print(encodable(plain(line), sys.stdout), soft_wrap=True, highlight=False, markup=False)
    for step in next_step.after_add(added.run):
        step.print()


@app.command("set", context_settings={"ignore_unknown_options": True})  # a value may be negative
def set_parameter(
    key: str = typer.Argument(help="A key of params.yaml, e.g. captioners.tiny.n or active.0 for a list's first item."),
    value: str = typer.Argument(help="The new value as YAML, e.g. 9, fp32, '[demo, circo]', '{edited: 1}' or '*qwen'."),
) -> None:
    """Change one value of params.yaml, comments and aliases kept; print which datasets share it."""
    from cvsi.commands.set_value import set_value

    lines = set_value(key, value)
    for line in lines:
        info(line)
    next_step.after_set(key, lines).print()


@app.command("check-submission")
def check_submission(
    file: str = typer.Argument(help="A file of scores/submissions, or any other one."),
    queries: str = typer.Option(
        "", help="The queries it answers: a dataset's name, a queries.parquet, or the annotation file."
    ),
) -> None:
    """Print what a benchmark's server would refuse in a submission file, one line each; nothing is sent anywhere."""
    from cvsi.commands.check_submission import check

    kind, number, faults = check(Path(file), queries)
    for fault in faults:
        warn(f"{file}: {fault}")
    if faults:
        raise typer.Exit(1)
    info(f"{file}: {kind.benchmark}, metric {kind.metric}: {count(number, 'query')} of {kind.images} images, no fault")
    next_step.after_check_submission().print()


@app.command()
def pack(
    dataset: str = typer.Argument(help="A dataset with captions and edits, e.g. demo."),
    out: str = typer.Argument(help="The folder to write; it must not exist."),
    only: str = typer.Option("", help="captions, edits, readings or verdicts, to pack only these."),
    rerank: str = typer.Option("", help="The rerank whose verdicts are packed, where the judges of several differ."),
) -> None:
    """Write a dataset's captions, edits, readings and verdicts, with recipes and a README, into a folder to publish."""
    from cvsi.commands.pack import write

    if only not in ("", "captions", "edits", "readings", "verdicts"):
        raise CvsiError(f"--only {only}: give captions, edits, readings or verdicts, or leave it out for all of them")
    write(dataset, Path(out), params.load(), [only] if only else (), rerank)  # type: ignore[list-item]
    next_step.after_pack(Path(out)).print()


@app.command()
def unpack(folder: str = typer.Argument(help="A folder that cvsi pack wrote.")) -> None:
    """Check a pack and add its rows to the store; print which datasets use them, and what to set where one does not."""
    from cvsi.commands.unpack import unpack as add

    add(Path(folder), params.load())
    next_step.after_unpack().print()


@app.command("convert-phi")
def convert_phi(
    source: str = typer.Argument(help="A published checkpoint, e.g. models/phi_best_large_openai.pt."),
    target: str = typer.Argument(help="The file to write, a name that ends in .safetensors."),
    backbone: str = typer.Option("", help="A backbone of params.yaml whose sizes phi must have."),
    force: bool = typer.Option(False, "--force", help="Overwrite the target."),
) -> None:
    """Write a published phi as safetensors: the same numbers in float32, in a format that runs no code."""
    from cvsi.models import phi

    wanted, settings = None, params.load() if backbone else None
    if settings is not None:
        from cvsi.models.clip import embedding_dims

        wanted = embedding_dims(settings.backbone(backbone))
    width, token_width, before, after = phi.convert(Path(source), Path(target), wanted, force)
    info(f"{source}: phi from width {width} to token width {token_width}, SHA-256 {before}")
    info(f"{target}: written, SHA-256 {after}")
    next_step.after_convert_phi(target, backbone, settings).print()


@app.command()
def sweep(
    dataset: str = typer.Argument(help="A dataset with labels, e.g. fashioniq-dress; or, alone, a run of params.yaml."),
    backbone: str = typer.Argument("", help="A backbone whose vectors are there, e.g. vit-b-32."),
    parts: str = typer.Option("edited,pseudo,reference", help="Query parts to weigh, besides those of the fusion."),
    step: float = typer.Option(0.1, help="The grid's step; it must divide 1."),
    top: int = typer.Option(10, min=1, help="How many of the best to print."),
    method: str = typer.Option("", help="Search the numbers of this method: a name, or a YAML file with lists in it."),
    vary: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUES", help="Values of a number of the method, e.g. scale=0,0.5,1."),
    ] = None,
) -> None:
    """Evaluate a grid of weightings, or of a method's numbers, on the labelled splits, from existing vectors."""
    from cvsi.commands import sweep as search
    from cvsi.commands import sweep_plots as plots
    from cvsi.commands.sweep_findings import findings

    names = [part.strip() for part in parts.split(",") if part.strip()]
    settings = params.load()
    if not backbone:
        run = settings.run(dataset)
        dataset, backbone = run.dataset, run.backbone
    numbers = bool(method or vary)
    if numbers and (names != list(search.DEFAULT_PARTS) or step != search.DEFAULT_STEP):
        raise CvsiError("--parts and --step are for weightings; with --method, give lists by --set KEY=VALUE,VALUE")
    if numbers:
        result = search.build_method(dataset, backbone, settings, method, vary or [])
    else:
        result = search.build(dataset, backbone, settings, names, step)
    print_all(terminal(), plots.tables(result, top))
    for finding in findings(result, dataset):
        typer.echo(finding) if isinstance(finding, str) else terminal().print(finding)
    folder = paths.folder("sweep", dataset, backbone)
    table, noun = ("points.parquet", "value") if numbers else ("weightings.parquet", "weight")
    info(f"{count(result.number, result.noun)} in {seconds(result.seconds)}, {result.rate:,.0f} a minute")
    info(f"{folder / table} has all of them, {folder / 'sweep.png'} is a picture; for DVC's plot:")
    typer.echo(plots.plot_command(folder, result.protocol.main, noun))
    warn(f"{dataset}: {plots.WARNING}")
    next_step.after_sweep(result, dataset, backbone, settings).print()


@app.command()
def search(
    run: str = typer.Argument(help="A run of params.yaml whose vectors are there, e.g. demo-tiny."),
    words: str = typer.Argument(
        "", metavar="TEXT", help="What changes in the image of --image; without one, what to search for."
    ),
    image: str = typer.Option("", help="The reference: an image file, or an image_id of the dataset."),
    text: str = typer.Option("", help="The text, in place of TEXT; alone, it searches by text."),
    like: str = typer.Option("", help="Search by this image alone: a file, or an image_id of the dataset."),
    edited: Annotated[
        list[str] | None,
        typer.Option(help="The edited description, so that no language model is called; may be given several times."),
    ] = None,
    k: int = typer.Option(20, "-k", help="How many images."),
    html: str = typer.Option("", help="Also write a page with pictures to this file."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for other programs instead of a table."),
    interactive: bool = typer.Option(False, "--interactive", help="Read one query per line, with the models loaded."),
) -> None:
    """Search a run's gallery for a new query: an image and a text, a text alone, or an image alone."""
    from cvsi.commands import search as searching

    options = searching.Options(words, image, text, like, tuple(edited or ()), k)
    target = Path(html) if html else None
    try:
        with _one_line():
            session = searching.Search(run, params.load())
            if options.given or not interactive:
                searching.show(session, options, terminal(), as_json, target)
            if interactive:
                searching.loop(session, options, terminal(), as_json, target)
            if not as_json:
                next_step.after_search(session).print()
    except KeyboardInterrupt:
        warn("stopped")
        raise typer.Exit(130) from None


@app.command()
def serve(
    run: str = typer.Argument(help="A run of params.yaml whose vectors are there, e.g. demo-tiny."),
    port: int = typer.Option(0, help="The port on 127.0.0.1; 0 is any free one."),
) -> None:
    """Keep a run's models loaded on this machine, so that `cvsi search` answers at once; Ctrl-C ends it."""
    try:
        with _one_line():
            from cvsi.commands.serve import run_server

            run_server(run, port)
    except KeyboardInterrupt:
        warn("stopped")
        raise typer.Exit(130) from None


@app.command()
def explore(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs of params.yaml over the same queries; without any, the first one that has scores and those "
            "over its queries."
        ),
    ] = None,
    port: int = typer.Option(0, help="The port on 127.0.0.1; 0 is any free one."),
) -> None:
    """Look at the queries of runs in the browser: failures, results side by side, scores; Ctrl-C ends it."""
    try:
        with _one_line():
            from cvsi.commands.explore import run_explorer

            run_explorer(runs or [], port)
    except KeyboardInterrupt:
        warn("stopped")
        raise typer.Exit(130) from None


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn an error of the system into one line."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CvsiError(f"{error.filename or 'input or output'}: {error.strerror or error}") from None
