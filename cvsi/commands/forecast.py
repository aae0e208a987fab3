"""Estimates how many rows each stage must compute, and how long, before anything is started.

The rows are those of the stages' own jobs. Counts are exact where the tables that a job reads are there and the
dataset's folder has not changed since, else the most that the listing allows. A time follows from this folder's records
where they contain enough measured rows of the same recipe, else from a rate of the catalogue, which is named.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cvsi.commands.changes import Changes, since_index
from cvsi.commands.requirements import Inventory, engines, judges
from cvsi.commands.times import rate_of
from cvsi.core import paths
from cvsi.core.console import seconds
from cvsi.core.devices import device_kind, precision
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Params, Precision
from cvsi.core.tables import exists, read
from cvsi.models import catalogue
from cvsi.pipeline.captions import caption_job
from cvsi.pipeline.edits import edit_job
from cvsi.pipeline.readings import reading_job
from cvsi.pipeline.vectors import gallery_jobs
from cvsi.pipeline.verdicts import verdict_job
from cvsi.store.jobs import RowJob

GIB = 1 << 30
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
COUNTED = 200_000  # rows that are counted exactly; the keys of more take too long for a preflight


@dataclass(frozen=True)
class Task:
    """One kind of row that a dataset, or a run, needs: how many, how many are not stored, and seconds for these.

    `source` names where the rate was measured, if not here.
    """

    name: str
    kind: str
    total: int
    todo: int
    exact: bool
    seconds: float | None = None
    source: str = ""


def changes_of(params: Params, inventory: Inventory) -> dict[str, Changes]:
    """What changed in each dataset's folder since its index was made; nothing for a damaged index."""
    found = {}
    for name in params.used_datasets:
        try:
            found[name] = since_index(name, params, inventory)
        except CvsiError:  # `tasks` says that it cannot be counted
            found[name] = Changes()
    return found


def tasks(params: Params, inventory: Inventory, changes: Mapping[str, Changes] = MappingProxyType({})) -> list[Task]:
    """What is to be computed, dataset by dataset and run by run; `changes` are those since the indexes."""
    listed = []
    for name in params.used_datasets:
        try:
            listed += _of_dataset(name, params, inventory, changes.get(name, Changes()))
        except CvsiError:  # something is missing, which the inventory lists
            listed.append(Task(name, "cannot be counted: something is missing", 0, 0, False))
    for name in params.reranks:
        try:
            listed.append(_of_rerank(name, params, inventory, changes))
        except CvsiError:
            listed.append(Task(name, "cannot be counted: something is missing", 0, 0, False))
    return listed


def _of_rerank(name: str, params: Params, inventory: Inventory, changes: Mapping[str, Changes]) -> Task:
    """The pairs that a rerank's judge is shown: exact where its run is ranked, else `top` per query and its group."""
    job = verdict_job(name, params)
    queries, changed = query_number(job.dataset, params, inventory), changes.get(job.dataset, Changes())
    ranked = exists("scores", job.dataset, job.backbone) and not (changed.files or changed.queries)
    known = known_rate(catalogue.of_model(job.settings.model), "verdicts", device_kind(params.compute))
    groups = read("index", job.dataset, "queries.parquet")["group_ids"] if exists("index", job.dataset) else []
    most = queries * job.top + sum(map(len, groups))
    return _task(job, name, "pairs to judge", most, ranked, _More(0, 0), known)


def _of_dataset(name: str, params: Params, inventory: Inventory, changes: Changes) -> list[Task]:
    images, queries = image_number(name, params, inventory), query_number(name, params, inventory)
    captions = caption_job(name, params)
    n = captions.settings.n
    indexed, captioned = exists("index", name), exists("index", name) and exists("captions", name)
    of_images, of_texts = _More(changes.files, changes.new), _More(changes.files * n, changes.new * n)
    of_queries = _More(changes.edits, max(changes.queries - changes.removed_queries, 0))
    on = device_kind(params.compute)
    captioning = known_rate(catalogue.of_model(captions.settings.model), "captions", on, n)
    listed = [_task(captions, name, f"images to {n} captions", images, indexed, of_images, captioning)]
    if queries or of_queries.todo:
        edits = edit_job(name, params)
        editing = known_rate(catalogue.of_model(edits.settings.model), "edits", on)
        listed.append(_task(edits, name, "queries to edit", queries, captioned, of_queries, editing))
        if (reading := reading_job(name, params)) is not None:
            model, countable = reading.settings.model, captioned or (indexed and reading.settings.sees == "image")
            known = known_rate(catalogue.of_model(model), "readings", on)
            listed.append(_task(reading, name, "queries to read", queries, countable, of_queries, known))
    else:  # the editor is not needed and need not be there
        listed.append(Task(name, "no queries to edit", 0, 0, True))
    for run in params.runs.values():
        if run.dataset == name:
            for job in gallery_jobs(name, run.backbone, params):
                of_run = f"{name}, {run.backbone}"
                embedding = known_rate(catalogue.of_backbone(params.backbone(run.backbone)), job.kind, on)
                if job.words.noun == "image":
                    listed.append(_task(job, of_run, "image vectors", images, indexed, of_images, embedding))
                else:
                    listed.append(_task(job, of_run, "caption vectors", images * n, captioned, of_texts, embedding))
    return listed


class _More(NamedTuple):
    """Rows that a folder's changes add at most: to what is to be computed, and to all."""

    todo: int
    total: int


class KnownRate(NamedTuple):
    """Rows a second that were measured elsewhere, and where; None and nothing if that is unknown."""

    per_second: float | None
    source: str


def known_rate(entry: catalogue.Entry, kind: str, on: str, texts: int = 1) -> KnownRate:
    """The catalogue's rate of a kind of row, each of which has so many texts."""
    rate = entry.rate(kind, on)
    return KnownRate(rate.per_second / texts, rate.source) if rate else KnownRate(None, "")


def _task(job: RowJob, name: str, kind: str, most: int, countable: bool, more: _More, known: KnownRate) -> Task:
    """The rows of one job: counted by key where its tables are there and not too large, else the most there can be."""
    counted = countable and most <= COUNTED
    total, todo, recipe = most, most, job.recipe()
    if counted:
        keys = job.wanted()["key"].unique(maintain_order=True)
        total, todo = keys.len(), job.store.rows(job.kind, recipe, job.schema).missing(keys).len()
        total += more.total
        todo = min(todo + more.todo, total)
    rate = rate_of(job.kind, digest(recipe), todo)
    source = known.source if rate is None and todo else ""
    rate = rate or known.per_second
    return Task(name, kind, total, todo, counted and not more.todo, todo / rate if rate else None, source)


def image_number(name: str, params: Params, inventory: Inventory) -> int:
    """How many images there are or will be; raises CvsiError where nothing says so."""
    dataset = params.dataset(name)
    if exists("index", name):
        return read("index", name, "images.parquet").num_rows  # type: ignore[no-any-return]
    if name in inventory.listings:
        return inventory.listings[name].images.height
    if Path(dataset.root) == paths.WORLD:
        return params.world.gallery
    if "images" in dataset.sizes:
        return dataset.sizes["images"]
    raise CvsiError(f"{name}: no images to count")


def query_number(name: str, params: Params, inventory: Inventory) -> int:
    """How many queries there are or will be."""
    dataset = params.dataset(name)
    if exists("index", name):
        return read("index", name, "queries.parquet").num_rows  # type: ignore[no-any-return]
    if name in inventory.listings:
        return inventory.listings[name].queries.height
    if Path(dataset.root) == paths.WORLD:
        return params.world.val + params.world.test
    return sum(number for what, number in dataset.sizes.items() if what != "images")


def memory(params: Params, inventory: Inventory) -> list[str]:
    """A line for each model that is known to need more memory than there is, and one for the machine."""
    on = device_kind(params.compute)
    available = gpu_bytes() if on == "cuda" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = [f"{'GPU' if on == 'cuda' else 'main'} memory {available / GIB:.0f} GiB, {os.cpu_count()} processors"]
    models: dict[str, tuple[catalogue.Entry, Precision]] = {}
    for name in params.used_datasets:
        for _, requirements in engines(name, params.dataset(name), inventory.without_queries(name)):
            models |= {model.name: (catalogue.of_model(model.name), model.precision) for model in requirements.models}
    for _, requirements in judges(params):
        models |= {model.name: (catalogue.of_model(model.name), model.precision) for model in requirements.models}
    for name in params.used_backbones:
        backbone = params.backbone(name)
        models[backbone.model] = (catalogue.of_backbone(backbone), backbone.precision)
    for model, (entry, chosen) in models.items():
        size = weights_bytes(entry, precision(chosen, on)) or 0
        if size > available:
            lines.append(f"{model} takes {size / GIB:.0f} GiB in {precision(chosen, on)}, more than there is")
    return lines


def weights_bytes(entry: catalogue.Entry, precision: str) -> int | None:
    """The memory that a model's weights take, without its activations; None where its size is unknown."""
    return entry.parameters.value * BYTES[precision] if entry.parameters else None


def disk(params: Params, inventory: Inventory) -> str:
    """Free disk beside what the runs' vectors will take, outputs and store together, at most."""
    needed = 0
    for run in params.runs.values():
        try:
            images, n = image_number(run.dataset, params, inventory), caption_job(run.dataset, params).settings.n
        except CvsiError:
            continue
        needed += images * _width(params.backbone(run.backbone)) * (8 + 4 * n)
    folder = Path(params.store)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    short = "" if needed < free else ", which is NOT enough"
    return f"disk {free / GIB:.0f} GiB free, vectors take {needed / GIB:.1f} GiB at most{short}"


def _width(backbone: Backbone) -> int:
    return catalogue.of_backbone(backbone).width or 1280


def gpu_bytes() -> int:
    """The memory of the first GPU by nvidia-smi, 0 without one."""
    try:
        output = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=3, check=True,
        )  # fmt: skip
        return int(output.stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def words(task: Task) -> tuple[str, str, str, str]:
    """A task as the cells of a table: whose, what, how many of how many, and how long."""
    number = f"{'' if task.exact else 'at most '}{task.todo:,} of {task.total:,}" if task.total else ""
    took = "nothing" if not task.todo else seconds(task.seconds) if task.seconds is not None else "not measured yet"
    estimated = "about " * bool(task.source and task.seconds is not None)
    return task.name, task.kind, number, estimated + took if task.total else ""


def sources(listed: list[Task]) -> list[str]:
    """A line for each rate of the catalogue that a time follows from."""
    named: dict[str, list[str]] = {}
    for task in listed:
        if task.source:
            named.setdefault(task.source, []).append(task.kind)
    return [f"time of {', '.join(dict.fromkeys(kinds))}: {source}" for source, kinds in named.items()]
