"""The command `cvsi check`: what is missing or changed, what a run would compute, on what terms of use.

It takes seconds: no model is loaded, and nothing is downloaded or computed.
"""

from collections.abc import Iterable

from rich.console import Console

from cvsi.commands import downloads, forecast, method_costs, requirements
from cvsi.commands.layout import Table, say
from cvsi.core import paths, tables
from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Params, Run
from cvsi.core.schema import ROLES
from cvsi.datasets import formats
from cvsi.evaluation import methods, published
from cvsi.evaluation.fusion import Fusion
from cvsi.models.encoder import composes, kind_of
from cvsi.models.engines import (
    captioner_of,
    captioner_settings,
    editor_of,
    editor_settings,
    judge_of,
    judge_settings,
    reader_of,
    reader_settings,
)
from cvsi.pipeline import prompting, readings
from cvsi.pipeline.components import GALLERY_COMPONENTS, QUERY_COMPONENTS
from cvsi.pipeline.verdicts import check_prompt
from cvsi.store.executors import check_executor

METHODS_NOTE = (
    "Methods share calls: dvc repro makes all calls of a run once, whatever its fusion. `<=` is the most there can be, "
    "where the tables that name the rows are not there yet; `over` is the part of a time whose rate is known."
)


def report(params: Params, console: Console) -> int:
    """Check every block of params.yaml and print the preflight of the active datasets and runs; how much is missing."""
    check_blocks(params)
    inventory = requirements.collect(params)
    _missing_roles(params, inventory)
    changes = forecast.changes_of(params, inventory)
    used = f"datasets {', '.join(params.used_datasets)}; runs {', '.join(params.runs) or 'none'}"
    stale = [line for name, changed in changes.items() if (line := changed.line(name))]
    for line in (used, *forecast.memory(params, inventory), forecast.disk(params, inventory), *inventory.notes, *stale):
        say(console, line)
    console.print()
    tasks = forecast.tasks(params, inventory, changes)
    console.print(todo(tasks))
    if sources := forecast.sources(tasks):
        for line in sources:
            say(console, line)
        console.print()
    if ranked := [name for name, run in params.runs.items() if not inventory.without_queries(run.dataset)]:
        for name in ranked:
            say(console, method_costs.short(name, params))
        console.print()
    if inventory.downloads:
        console.print(downloads.table(inventory.downloads))
        say(console, downloads.total(inventory.downloads))
        console.print()
    if inventory.terms:
        terms = {", ".join(dict.fromkeys(names)): text for text, names in inventory.terms.items()}
        console.print(listed("terms of use", terms))
    if inventory.missing:
        console.print(listed(f"missing: {count(len(inventory.missing), 'thing')}", inventory.missing))
    else:
        say(console, "Nothing is missing." + " The index is older than what it lists: dvc repro." * bool(stale))
    return len(inventory.missing)


def report_methods(params: Params, console: Console) -> None:
    """Check every block of params.yaml and print what each method of each run would cost, and what it lacks."""
    check_blocks(params)
    inventory = requirements.collect(params)
    changes = forecast.changes_of(params, inventory)
    if not params.runs:
        say(console, "No run in params.yaml, so no methods.")
    for name, run in params.runs.items():
        if inventory.without_queries(run.dataset):
            say(console, f"{name}: {run.dataset} has no queries, so no method is evaluated.")
            continue
        try:
            of_run = method_costs.RunCosts(name, params, inventory)
            costs = list(of_run.costs())
        except CvsiError as error:
            say(console, f"{name}: cannot be counted ({error})")
            continue
        console.print(method_costs.table(name, costs, of_run.answers_per_edit))
        for line in method_costs.lines(costs):
            say(console, line)
        if changes[run.dataset].line(run.dataset):
            say(console, f"The folder of {run.dataset} changed since its index was made; the numbers are the index's.")
        console.print()
    say(console, METHODS_NOTE)


def todo(tasks: Iterable[forecast.Task]) -> Table:
    """What is to be computed, as a table."""
    table = Table("to do").texts("of", key=True).texts("what").figures("to compute", "time")
    for task in tasks:
        table.add_row(*forecast.words(task))
    return table


def listed(title: str, lines: dict[str, str]) -> Table:
    """Names, each with a text beside it."""
    table = Table(title, names=False).texts("name", key=True).texts("text", least=40)
    for name, text in lines.items():
        table.add_row(name, text)
    return table


def check_blocks(params: Params) -> None:
    """Check the blocks of every format, engine and fusion, used or not; raises CvsiError for the first wrong one."""
    for name, block in params.captioners.items():
        captioner_settings(block, f"captioners.{name}")
    for name, block in params.editors.items():
        editor_settings(block, f"editors.{name}")
    for name, block in params.judges.items():
        check_prompt(judge_settings(block, f"judges.{name}"))
    for name, rerank in params.reranks.items():
        check_prompt(judge_of(rerank, name))
    roles = _check_readers(params)
    for name, dataset in params.datasets.items():
        formats.settings_of(dataset, name)
        captioner_of(dataset, name)
        editor_of(dataset, name)
        published.check_benchmark(dataset.benchmark, name)
        _check_components(methods.fusion_of(params, name), f"datasets.{name}.fusion", roles)
    for name, backbone in params.backbones.items():
        kind_of(backbone, f"backbones.{name}")
    for run in params.runs.values():
        _check_parts(methods.fusion_of(params, run.dataset), run, params, roles)
    for name, method in methods.methods(params).items():
        for fusion in method.fusions.values():
            _check_components(fusion, f"methods.{name}", roles)
    check_executor(params.compute)


def _check_readers(params: Params) -> frozenset[str]:
    """Check every reader; the roles that there are, which methods may name besides the components."""
    blocks = {f"readers.{name}": reader_settings(block, f"readers.{name}") for name, block in params.readers.items()}
    for name, dataset in params.datasets.items():
        if (of_dataset := reader_of(dataset, name)) is not None:
            blocks[f"datasets.{name}.reader"] = of_dataset
    for where, settings in blocks.items():
        readings.check_roles(settings, where)
        prompting.few_shot(settings.prompt)
    return frozenset(ROLES).union(*(settings.roles for settings in blocks.values()))


def _check_components(fusion: Fusion, where: str, roles: frozenset[str]) -> None:
    """Raise CvsiError for a weight of a component that does not exist."""
    for component in fusion.query_columns:
        if component not in roles:
            QUERY_COMPONENTS.get(component, f"{PATH}: {where}.query")
    for component in fusion.gallery_columns:
        GALLERY_COMPONENTS.get(component, f"{PATH}: {where}.gallery")


def _missing_roles(params: Params, inventory: requirements.Inventory) -> None:
    """Add the roles that a run's fusion needs, and that neither the dataset's reader nor the query vectors have."""
    for run in params.runs.values():
        components = {*QUERY_COMPONENTS.names(), *readings.roles_of(params.dataset(run.dataset), run.dataset)}
        needed = [name for name in methods.fusion_of(params, run.dataset).query_columns if name not in components]
        if needed and any(paths.folder("query_vectors", run.dataset, run.backbone).glob("*.parquet")):
            columns = tables.schema_of("query_vectors", run.dataset, run.backbone).names  # of another program, say
            needed = [name for name in needed if name not in columns]
        for name in needed:
            advice = "name a reader with this role for the dataset (docs/readers.md), or choose another fusion"
            inventory.add_missing(f"role {name} in the fusion of {run.dataset}", advice)


def _check_parts(fusion: Fusion, run: Run, params: Params, roles: frozenset[str]) -> None:
    """Raise CvsiError for a weight of a component that needs phi or composed vectors, on a backbone without them."""
    backbone, where = params.backbone(run.backbone), f"{PATH}: datasets.{run.dataset}"
    components = {name: QUERY_COMPONENTS.get(name, where) for name in fusion.query_columns if name not in roles}
    if needing := [name for name, component in components.items() if component.uses_phi and backbone.phi is None]:
        raise CvsiError(
            f"{PATH}: datasets.{run.dataset}.fusion has a weight for {', '.join(needing)}, but "
            f"backbones.{run.backbone} has no phi; add a phi, or remove the weight"
        )
    if needing := [name for name, component in components.items() if component.composes and not composes(backbone)]:
        raise CvsiError(
            f"{PATH}: datasets.{run.dataset}.fusion has a weight for {', '.join(needing)}, but "
            f"backbones.{run.backbone} is of kind {backbone.kind}, which makes no composed vectors; name a backbone "
            "that does (docs/backbones.md), or remove the weight"
        )
