"""A pack's recipes against what this folder's datasets look for: complete, or what differs and what to set.

The recipe of a row is found by what params.yaml says, so a pack is of use only where the two agree. Nothing is loaded.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from cvsi.commands.forecast import captions_recipe, edits_recipe
from cvsi.commands.pack_format import NOUNS, SCHEMAS, Kind, settings_of
from cvsi.core import tables
from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset, Params, used_datasets
from cvsi.models.model_id import absent, record
from cvsi.pipeline.edits import keyed
from cvsi.store.rows import Shelf

ITEMS = {"captions": "image", "edits": "query"}
MODEL = ("model", "revision", "weights")


def datasets(packed: str, params: Params) -> tuple[list[str], list[str]]:
    """The datasets that the pack is for: that of its name, else those that are active or in a run; second, the rest."""
    used = used_datasets(params)
    return ([packed], [name for name in used if name != packed]) if packed in params.datasets else (used, [])


def fits(kind: Kind, recipe: Mapping[str, Any], named: str, params: Params) -> bool:
    """Whether a dataset looks under the pack's recipe."""
    try:
        return _sought(kind, named, params) == recipe
    except CvsiError:  # its model is not here, and nobody knows what it was
        return False


def stand_in(kind: Kind, recipe: Mapping[str, Any], label: str | None, named: str, params: Params) -> str | None:
    """Take the pack's weights for a dataset's model that is not here and has their name; a line that says so.

    Only a name whose last part is the pack's is taken, and the store keeps the first digest that it had for it.
    """
    dataset, weights = params.dataset(named), recipe.get("weights")
    model = settings_of(kind, dataset).model
    if not isinstance(weights, str) or label is None or not absent(model) or _runs_elsewhere(kind, dataset):
        return None
    if PurePosixPath(model).name != PurePosixPath(label).name:
        return None
    kept = record(model, weights, params.store)
    if kept == weights:
        return f"{NOUNS[kind]} {model} is not here; it stands for the pack's from now on (weights {weights[:12]})"
    return (
        f"{NOUNS[kind]} {model} is not here and stands for other weights ({kept[:12]}, the pack's are {weights[:12]}); "
        f"give it another name in params.yaml that ends in /{PurePosixPath(label).name}, and unpack again"
    )


def line(kind: Kind, recipe: Mapping[str, Any], label: str | None, named: str, params: Params) -> str:
    """What a dataset gets from the pack's rows of a kind, or what to set so that it gets them."""
    dataset = params.dataset(named)
    try:
        sought = _sought(kind, named, params)
    except CvsiError as error:
        model = settings_of(kind, dataset).model
        return f"{named}: {kind} not found: {error}{_renamed(kind, model, label)}"
    if sought == recipe:
        return f"{named}: {kind} {_complete(kind, named, recipe, params)}"
    wrong = [key for key in sorted({*sought, *recipe}) if sought.get(key, "") != recipe.get(key, "")]
    told = list(dict.fromkeys(_difference(kind, key, sought, recipe, label) for key in wrong))
    return f"{named}: {kind} not found, {'; '.join(told)}"


def _runs_elsewhere(kind: Kind, dataset: Dataset) -> bool:
    return kind == "edits" and dataset.editor.engine == "server"


def _sought(kind: Kind, named: str, params: Params) -> dict[str, Any]:
    """The recipe that the stage would look under."""
    return captions_recipe(named, params) if kind == "captions" else edits_recipe(named, params)


def _renamed(kind: Kind, model: str, label: str | None) -> str:
    if label is None or PurePosixPath(model).name == PurePosixPath(label).name:
        return ""
    return f"; if it is the pack's {label}, {_elsewhere(NOUNS[kind], label)}"


def _difference(kind: Kind, key: str, sought: Mapping[str, Any], recipe: Mapping[str, Any], label: str | None) -> str:
    """One key that differs, in words; keys that belong together give the same words."""
    noun, ours, theirs = NOUNS[kind], sought.get(key, "nothing"), recipe.get(key, "nothing")
    if key == "code":
        return f"made by another version of cvsi (code {theirs}, this one's is {ours})"
    if key in MODEL:
        return (
            f"the {noun} is {_named(sought)} here, {_named(recipe)} in the pack{_advice(noun, sought, recipe, label)}"
        )
    if key == "prompts":
        tasks = [task for task in _tasks(theirs) if theirs.get(task) != ours.get(task)]
        return "; ".join(_prompt(task, theirs[task]) for task in tasks) or "the prompts are of other tasks"
    hint = " (any address will do where all is found)" if (key, theirs) == ("engine", "server") else ""
    return f"{key} is {ours} here, {theirs} in the pack: set {key}: {theirs} for the {noun}{hint}"


def _tasks(prompts: Any) -> list[str]:
    return list(prompts) if isinstance(prompts, dict) else []


def _named(recipe: Mapping[str, Any]) -> str:
    if "weights" in recipe:
        return f"a folder of weights {str(recipe['weights'])[:12]}"
    at = f" at revision {recipe['revision']}" if recipe.get("revision") else " at no revision"
    return f"{recipe.get('model')}{at}"


def _advice(noun: str, sought: Mapping[str, Any], recipe: Mapping[str, Any], label: str | None) -> str:
    if "weights" not in recipe:
        return f": set model: {recipe.get('model')} and revision: {recipe.get('revision') or 'null'} for the {noun}"
    if "weights" in sought:
        return f": put the pack's weights there, or {_elsewhere(noun, label)}"
    return f": {_elsewhere(noun, label)}"


def _elsewhere(noun: str, label: str | None) -> str:
    return f"set model: ./packed/{_last(label)} for the {noun}, a folder that need not be there, and unpack again"


def _last(label: str | None) -> str:
    return PurePosixPath(label or "model").name


def _prompt(task: str, text: str) -> str:
    """Which prompt of this project is the pack's."""
    for entry in (resources.files("cvsi") / "prompts").iterdir():
        if entry.name.endswith(".txt") and entry.read_text(encoding="utf-8").strip() == text:
            return (
                f"prompt {task} is another one: set {task}: {entry.name.removesuffix('.txt')} in the dataset's prompts"
            )
    return (
        f"prompt {task} is another one, which this project has not: write it from edits/recipe.json of the pack to "
        f"cvsi/prompts/NAME.txt and set {task}: NAME in the dataset's prompts"
    )


def _complete(kind: Kind, named: str, recipe: Mapping[str, Any], params: Params) -> str:
    """How many of a dataset's rows the store has, in words."""
    if not tables.exists("index", named):
        return "fit; how many are found is known once it is indexed (dvc repro)"
    shelf = Shelf(params.store, kind, recipe, SCHEMAS[kind])
    images = pl.DataFrame(tables.read("index", named, "images.parquet"))
    keys = images["digest"].unique(maintain_order=True)
    if kind == "edits":
        found = _questions(named, images, params)
        if found is None:
            return "fit; how many are found is known once all references have captions"
        keys = found.unique(maintain_order=True)
    lost = shelf.missing(keys).len()
    total = count(keys.len(), ITEMS[kind]).replace(" ", " distinct ", 1)
    return f"complete: {total}" if not lost else f"fit, but the store lacks {lost:,} of {total}"


def _questions(named: str, images: pl.DataFrame, params: Params) -> pl.Series | None:
    """The keys of the dataset's queries from the captions that the store has of their references, or None."""
    queries = pl.DataFrame(tables.read("index", named, "queries.parquet"))
    digests = images.select(reference_id="image_id", digest="digest")
    asked = queries.join(digests, on="reference_id", how="left", maintain_order="left")
    try:
        shelf = Shelf(params.store, "captions", captions_recipe(named, params), SCHEMAS["captions"])
        captions = shelf.take(asked["digest"])["captions"]
    except (CvsiError, KeyError):  # no captioner to look under, or a reference without captions
        return None
    return keyed(asked.with_columns(captions=pl.Series(captions)))["key"]
