"""Compares a pack's recipes with those that this folder's datasets use: complete, or what differs and what to set.

A row is looked up under the recipe that params.yaml gives, so a pack is useful only where the two are equal. Nothing is
loaded.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import polars as pl

from cvsi.commands.pack_format import NOUNS, Kind, job_of
from cvsi.core import tables
from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.models.model_id import absent, record
from cvsi.pipeline.captions import caption_job
from cvsi.pipeline.edits import with_keys
from cvsi.pipeline.readings import ReadingJob
from cvsi.pipeline.verdicts import VerdictJob

MODEL = ("model", "revision", "weights")


def datasets(packed: str, params: Params) -> tuple[list[str], list[str]]:
    """The datasets that the pack is for: that of its name, else those that are active or in a run; second, the rest."""
    used = params.used_datasets
    return ([packed], [name for name in used if name != packed]) if packed in params.datasets else (used, [])


def fits(kind: Kind, recipe: Mapping[str, Any], name: str, params: Params) -> bool:
    """Whether a dataset, or a rerank for verdicts, uses the pack's recipe."""
    try:
        return job_of(kind, name, params).recipe() == recipe
    except CvsiError:  # its model is missing, and its digest is unknown
        return False


def alias_weights(kind: Kind, recipe: Mapping[str, Any], label: str | None, name: str, params: Params) -> str | None:
    """Store the pack's weights digest for a dataset's missing model of the same name; returns a line about it.

    Only the last parts of the two names are compared. A digest that the store already contains for it is kept.
    """
    if kind == "readings" and params.dataset(name).reader is None:
        return None
    job, weights = job_of(kind, name, params), recipe.get("weights")
    model = job.settings.model
    if not isinstance(weights, str) or label is None or not absent(model) or _identified_by_name(kind, name, params):
        return None
    if PurePosixPath(model).name != PurePosixPath(label).name:
        return None
    stored = record(model, weights, job.store)
    if stored == weights:
        return f"{NOUNS[kind]} {model} not found; using the pack's rows for it (weights {weights[:12]})"
    return (
        f"{NOUNS[kind]} {model} not found; used for it are weights {stored[:12]}, the pack's are {weights[:12]}; "
        f"give it another name in params.yaml that ends in /{PurePosixPath(label).name}, and unpack again"
    )


def line(kind: Kind, recipe: Mapping[str, Any], label: str | None, name: str, params: Params) -> str:
    """Which of the pack's rows of a kind a dataset uses, or what to set so that it does."""
    try:
        job = job_of(kind, name, params)
    except CvsiError as error:
        return f"{_of(kind, name)}: {kind} not used: {error}"
    try:
        ours = job.recipe()
    except CvsiError as error:
        return f"{_of(kind, name)}: {kind} not used: {error}{_renamed(kind, job.settings.model, label)}"
    if ours == recipe:
        return f"{_of(kind, name)}: {kind} {_complete(kind, name, params)}"
    wrong = [key for key in sorted({*ours, *recipe}) if ours.get(key, "") != recipe.get(key, "")]
    differences = list(dict.fromkeys(_difference(kind, key, ours, recipe, label) for key in wrong))
    return f"{_of(kind, name)}: {kind} not used, {'; '.join(differences)}"


def _of(kind: Kind, name: str) -> str:
    """What a line begins with."""
    return f"rerank {name}" if kind == "verdicts" else name


def _identified_by_name(kind: Kind, name: str, params: Params) -> bool:
    """Whether the engine identifies its model by name alone, a server's say, and never by weights."""
    try:
        return "model" in job_of(kind, name, params).recipe()
    except CvsiError:
        return False


def _renamed(kind: Kind, model: str, label: str | None) -> str:
    if label is None or PurePosixPath(model).name == PurePosixPath(label).name:
        return ""
    return f"; if it is the pack's {label}, {_elsewhere(NOUNS[kind], label)}"


def _difference(kind: Kind, key: str, ours: Mapping[str, Any], recipe: Mapping[str, Any], label: str | None) -> str:
    """One key that differs, in words; keys that belong together give the same words."""
    noun, mine, theirs = NOUNS[kind], ours.get(key, "nothing"), recipe.get(key, "nothing")
    if key == "code":
        return f"computed by another version of cvsi (code {theirs}, this one's is {mine})"
    if key in MODEL:
        return f"the {noun} is {_named(ours)} here, {_named(recipe)} in the pack{_advice(noun, ours, recipe, label)}"
    if key == "prompts":
        tasks = [task for task in _tasks(theirs) if theirs.get(task) != mine.get(task)]
        return "; ".join(_prompt(kind, task, theirs[task]) for task in tasks) or "the prompts are of other tasks"
    if key == "prompt":
        return _prompt(kind, key, str(theirs))
    if key == "answers":
        theirs, mine = _answers(theirs), _answers(mine)
    value = f"{{{theirs}}}" if key == "roles" else theirs
    return f"{key} is {mine} here, {theirs} in the pack: set {key}: {value} for the {noun}"


def _answers(answers: Any) -> str:
    """A judge's two answers as in params.yaml, the positive one first."""
    pair = [answers.get(side) for side in ("positive", "negative")] if isinstance(answers, dict) else [answers]
    return f"[{', '.join(map(str, pair))}]"


def _tasks(prompts: Any) -> list[str]:
    return list(prompts) if isinstance(prompts, dict) else []


def _named(recipe: Mapping[str, Any]) -> str:
    if "weights" in recipe:
        return f"a folder of weights {str(recipe['weights'])[:12]}"
    at = f" at revision {recipe['revision']}" if recipe.get("revision") else " at no revision"
    return f"{recipe.get('model')}{at}"


def _advice(noun: str, ours: Mapping[str, Any], recipe: Mapping[str, Any], label: str | None) -> str:
    if "weights" not in recipe:
        return f": set model: {recipe.get('model')} and revision: {recipe.get('revision') or 'null'} for the {noun}"
    if "weights" in ours:
        return f": put the pack's weights there, or {_elsewhere(noun, label)}"
    return f": {_elsewhere(noun, label)}"


def _elsewhere(noun: str, label: str | None) -> str:
    return f"set model: ./packed/{_last(label)} for the {noun} (the folder may be missing), and unpack again"


def _last(label: str | None) -> str:
    return PurePosixPath(label or "model").name


def _prompt(kind: Kind, task: str, text: str) -> str:
    """The prompt of this project with the pack's text."""
    where = f"for the {NOUNS[kind]}" if kind in ("readings", "verdicts") else "in the dataset's prompts"
    for entry in (resources.files("cvsi") / "prompts").iterdir():
        if entry.name.endswith(".txt") and entry.read_text(encoding="utf-8").strip() == text:
            return f"{_named_prompt(task)} differs: set {task}: {entry.name.removesuffix('.txt')} {where}"
    return (
        f"{_named_prompt(task)} differs and is not in this project: write it from {kind}/recipe.json of the pack to "
        f"cvsi/prompts/NAME.txt and set {task}: NAME {where}"
    )


def _named_prompt(task: str) -> str:
    return "the prompt" if task == "prompt" else f"prompt {task}"


def _complete(kind: Kind, name: str, params: Params) -> str:
    """How many of a dataset's rows the store contains, in words."""
    job = job_of(kind, name, params)
    if not tables.exists("index", job.dataset):
        return "fit; how many are used is known once it is indexed (dvc repro)"
    if isinstance(job, VerdictJob) and not tables.exists("scores", job.dataset, job.backbone):
        return "fit; how many are used is known once its run is ranked (dvc repro)"
    of_captions = kind == "edits" or (isinstance(job, ReadingJob) and job.settings.sees == "captions")
    keys = _edit_keys(name, params) if of_captions else job.wanted()["key"]
    if keys is None:
        return "fit; how many are used is known once all references have captions"
    distinct = keys.unique(maintain_order=True)
    missing = job.rows().missing(distinct).len()
    total = count(distinct.len(), job.words.noun).replace(" ", " distinct ", 1)
    return f"complete: {total}" if not missing else f"fit, but {missing:,} of {total} are missing in the store"


def _edit_keys(name: str, params: Params) -> pl.Series | None:
    """The keys of the dataset's queries, from the stored captions of their references; None where one has none."""
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    queries = pl.DataFrame(tables.read("index", name, "queries.parquet"))
    digests = images.select(reference_id="image_id", digest="digest")
    queries = queries.join(digests, on="reference_id", how="left", maintain_order="left")
    try:
        job = caption_job(name, params)
        captions = job.columns(job.rows().get(queries["digest"]))["captions"]
    except (CvsiError, KeyError):  # an unknown captioner, or a reference without captions
        return None
    return with_keys(queries.with_columns(captions=pl.Series(captions)))["key"]
