"""What the `provenance.json` of a run's outputs say of how it came about: by stage to be read, by part to be compared.

Vectors and scores also name the recipes of what they were made from, by digest under `from`: so an output that is older
than what it was made from is seen.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cvsi.core import paths, tables
from cvsi.core.digest import digest

STAGES = ("index", "captions", "edits", "gallery_vectors", "query_vectors", "scores")
OF_DATASET = ("index", "captions", "edits")  # one folder for all backbones
INPUTS = {
    "gallery_vectors": ("captions",),
    "query_vectors": ("captions", "edits"),
    "scores": ("gallery_vectors", "query_vectors"),
}
PARTS = ("dataset", "captioner", "editor", "prompts", "backbone", "phi", "fusion")
Recipes = Mapping[str, Mapping[str, Any]]


def inputs(stage: str, dataset: str, backbone: str) -> dict[str, dict[str, str]]:
    """The entry `from` of a stage's recipe: the digest of each input's own recipe."""
    return {"from": {name: digest(_read(name, dataset, backbone)) for name in INPUTS[stage]}}


def recipes(dataset: str, backbone: str, cache: Path = paths.CACHE) -> Recipes:
    """The recipe of each stage of a run, empty where it is not known; `cache` may be another workspace's.

    Raises CvsiError for a provenance that is unreadable or of a later schema version.
    """
    return {stage: _read(stage, dataset, backbone, cache) for stage in STAGES}


def place(stage: str, dataset: str, backbone: str, cache: Path = paths.CACHE) -> Path:
    """Where a stage's output for a run lies, in this or another workspace's cache."""
    mine = paths.folder(stage, dataset, None if stage in OF_DATASET else backbone)
    return cache / mine.relative_to(paths.CACHE)


def stale(found: Recipes) -> Iterator[tuple[str, str]]:
    """(stage, input) where a stage was made from another recipe of that input than lies there now."""
    for stage, names in INPUTS.items():
        named = found[stage].get("from", {})
        yield from ((stage, name) for name in names if named.get(name, digest(found[name])) != digest(found[name]))


def flat(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A recipe as dotted names and values in words: texts as they are, all else as JSON."""
    found: dict[str, str] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{below}": text for below, text in flat(value).items()}
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def by_part(found: Recipes) -> dict[str, dict[str, str]]:
    """`{part: {field: value}}` of a run; a field that its stages do not agree about has all values, joined by ` | `."""
    values: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for stage in STAGES:
        for name, text in flat(found[stage]).items():
            if (kept := _kept(stage, name)) is not None:
                part, field = kept
                values[part].setdefault(field, []).append(text)
    return {
        part: {field: " | ".join(dict.fromkeys(texts)) for field, texts in fields.items()}
        for part, fields in values.items()
    }


def _kept(stage: str, name: str) -> tuple[str, str] | None:
    """The part that a stage's field belongs to, and its name there; None for what says nothing of the run."""
    first, _, rest = name.partition(".")
    if first == "from" or rest == "kind":
        return None
    if stage == "index" or name in ("format", "normalize_captions"):
        return "dataset", name
    if stage == "captions":
        return "captioner", name
    if stage == "edits":
        return ("prompts", rest) if first == "prompts" else ("editor", name)
    if stage == "scores":
        return "fusion", rest or name
    if rest.startswith("phi.") or rest == "template":
        return "phi", rest.removeprefix("phi.")
    return "backbone", rest or name


def _read(stage: str, dataset: str, backbone: str, cache: Path = paths.CACHE) -> dict[str, Any]:
    return tables.provenance(place(stage, dataset, backbone, cache))
