"""params.yaml, the index and the store to what a run would compute, and how long: before anything is started.

Counts are exact where the index and the captions are there, else the most that the listing allows. A time is given
only where this folder's records hold a measured block of the same recipe.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from cvsi.commands import requirements
from cvsi.commands.times import rates
from cvsi.core import paths, tables
from cvsi.core.console import seconds
from cvsi.core.devices import has_gpu, precision
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Backbone
from cvsi.core.params import Params, used_backbones, used_datasets
from cvsi.models import catalogue, recipes
from cvsi.pipeline import editor
from cvsi.pipeline.edits import questions
from cvsi.store.rows import Shelf

KEY = pa.schema({"key": pa.string()})
GIB = 1 << 30
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Task:
    """One kind of row that a dataset, or a run, needs: how many, how many the store has, and seconds for the rest."""

    name: str
    kind: str
    total: int
    todo: int
    exact: bool
    took: float | None = None


def kind_of_device(params: Params) -> str:
    """`cuda` or `cpu`, as the stages will most likely choose."""
    return "cuda" if params.compute.device == "cuda" or (params.compute.device == "auto" and has_gpu()) else "cpu"


def tasks(params: Params, found: requirements.Needs) -> list[Task]:
    """What is to be computed, dataset by dataset and run by run."""
    listed = []
    for name in used_datasets(params):
        try:
            listed += [_captions(name, params, found), _edits(name, params, found)]
            listed += [
                task
                for run in params.runs.values()
                if run.dataset == name
                for task in _vectors(name, run.backbone, params, found)
            ]
        except CvsiError:  # something is missing, and `needs` has said what
            listed.append(Task(name, "cannot be counted: something is missing", 0, 0, False))
    return listed


def _images(name: str, params: Params, found: requirements.Needs) -> tuple[pl.Series | None, int]:
    """Distinct digests of the indexed images, or None; and how many images there are or will be."""
    if tables.exists("index", name):
        digests = _digests(name)
        return digests, digests.len()
    if name in found.listings:
        return None, found.listings[name].images.height
    if Path(params.dataset(name).root) == paths.WORLD:
        return None, params.world.gallery
    if "images" in params.dataset(name).sizes:
        return None, params.dataset(name).sizes["images"]
    raise CvsiError(f"{name}: no images to count")


@cache
def _digests(name: str) -> pl.Series:
    return pl.Series(tables.read("index", name, "images.parquet")["digest"]).unique(maintain_order=True)


def _count(shelf: Shelf, keys: pl.Series | None, most: int, name: str, kind: str) -> Task:
    todo = most if keys is None else shelf.missing(keys).len()
    rate = rates().get((shelf.kind, shelf.folder.name))
    took = todo / rate if rate else None
    return Task(name, kind, most, todo, keys is not None, took)


def captions_recipe(name: str, params: Params) -> dict[str, Any]:
    """The recipe that the stage captions would look under; raises CvsiError where nobody knows the model."""
    captioner = params.dataset(name).captioner
    return recipes.captions(captioner, precision(captioner.precision, kind_of_device(params)), params.store)


def edits_recipe(name: str, params: Params) -> dict[str, Any]:
    """The recipe that the stage edits would look under; raises CvsiError where nobody knows the model."""
    dataset = params.dataset(name)
    used = precision(dataset.editor.precision, kind_of_device(params))
    return recipes.edits(dataset.editor, editor.few_shots(dataset.prompts), used, params.store)


def _captions(name: str, params: Params, found: requirements.Needs) -> Task:
    captioner = params.dataset(name).captioner
    keys, most = _images(name, params, found)
    shelf = Shelf(params.store, "captions", captions_recipe(name, params), KEY)
    return _count(shelf, keys, most, name, f"images to {captioner.n} captions")


def _edits(name: str, params: Params, found: requirements.Needs) -> Task:
    shelf = Shelf(params.store, "edits", edits_recipe(name, params), KEY)
    if tables.exists("index", name) and tables.exists("captions", name):
        keys = questions(name)["key"].unique(maintain_order=True)
        return _count(shelf, keys, keys.len(), name, "queries to edit")
    return _count(shelf, None, _queries(name, params, found), name, "queries to edit")


def _queries(name: str, params: Params, found: requirements.Needs) -> int:
    """How many queries there are or will be."""
    dataset = params.dataset(name)
    if tables.exists("index", name):
        return tables.read("index", name, "queries.parquet").num_rows  # type: ignore[no-any-return]
    if name in found.listings:
        return found.listings[name].queries.height
    if Path(dataset.root) == paths.WORLD:
        return params.world.val + params.world.test
    return sum(number for what, number in dataset.sizes.items() if what != "images")


def _vectors(name: str, backbone: str, params: Params, found: requirements.Needs) -> list[Task]:
    settings = params.backbone(backbone)
    used = precision(settings.precision, kind_of_device(params))
    keys, most = _images(name, params, found)
    image = Shelf(params.store, "image_vectors", recipes.vectors(settings, "image", used), KEY)
    run = f"{name}, {backbone}"
    most_texts = most * params.dataset(name).captioner.n
    texts = 0 if tables.exists("gallery_vectors", name, backbone) else most_texts
    rate = rates().get(("text_vectors", digest(recipes.vectors(settings, "text", used))))
    took = texts / rate if rate else None
    return [
        _count(image, keys, most, run, "image vectors"),
        Task(run, "caption vectors", most_texts, texts, texts == 0, took),
    ]


def memory(params: Params) -> list[str]:
    """A line for each model that is known to be larger than the memory it has to fit in, and one for what is there."""
    on = kind_of_device(params)
    there = _gpu_bytes() if on == "cuda" else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = [f"{'GPU' if on == 'cuda' else 'main'} memory {there / GIB:.0f} GiB, {os.cpu_count()} processors"]
    models = {}
    for name in used_datasets(params):
        dataset = params.dataset(name)
        models[dataset.captioner.model] = (catalogue.of_model(dataset.captioner.model), dataset.captioner.precision)
        if dataset.editor.engine == "vllm":
            models[dataset.editor.model] = (catalogue.of_model(dataset.editor.model), dataset.editor.precision)
    for name in used_backbones(params):
        backbone = params.backbone(name)
        models[backbone.model] = (catalogue.of_backbone(backbone), backbone.precision)
    for model, (source, asked) in models.items():
        size = (source.parameters or 0) * 1_000_000 * BYTES[precision(asked, on)]
        if size > there:
            lines.append(f"{model} takes {size / GIB:.0f} GiB in {precision(asked, on)}, more than there is")
    return lines


def disk(params: Params, found: requirements.Needs) -> str:
    """Free disk beside what the runs' vectors will take, outputs and store together, at most."""
    wanted = 0
    for run in params.runs.values():
        try:
            _, images = _images(run.dataset, params, found)
        except CvsiError:
            continue
        wanted += images * _width(params.backbone(run.backbone)) * (8 + 4 * params.dataset(run.dataset).captioner.n)
    place = Path(params.store)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    short = "" if wanted < free else ", which is NOT enough"
    return f"disk {free / GIB:.0f} GiB free, vectors take {wanted / GIB:.1f} GiB at most{short}"


def _width(backbone: Backbone) -> int:
    return catalogue.of_backbone(backbone).width or 1280


def _gpu_bytes() -> int:
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=3, check=True,
        )  # fmt: skip
        return int(said.stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def words(task: Task) -> tuple[str, str, str, str]:
    """A task for a table: whose, what, how many of how many, and how long."""
    number = f"{'' if task.exact else 'at most '}{task.todo:,} of {task.total:,}" if task.total else ""
    took = "nothing" if not task.todo else seconds(task.took) if task.took is not None else "not measured yet"
    return task.name, task.kind, number, took if task.total else ""
