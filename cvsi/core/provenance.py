"""The `provenance.json` files of a run's outputs: recipes by stage, and their fields by part for a comparison of runs.

The recipes of vectors and scores also contain the digests of their inputs' recipes under `from`, and that of scores the
digest of the queries, so that an output which is older than its inputs can be detected.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cvsi.core import paths, tables
from cvsi.core.digest import digest

STAGES = ("index", "captions", "edits", "gallery_vectors", "query_vectors", "scores")
RERANK_STAGES = ("verdicts", "rerank")  # one folder for each rerank of a run
OF_DATASET = ("index", "captions", "edits")  # one folder for all backbones
INPUTS = {
    "gallery_vectors": ("captions",),
    "query_vectors": ("captions", "edits"),
    "scores": ("gallery_vectors", "query_vectors"),
    "verdicts": ("scores",),
    "rerank": ("scores", "verdicts"),
}
PARTS = ("dataset", "captioner", "editor", "reader", "prompts", "backbone", "phi", "fusion", "judge", "rerank")
Recipes = Mapping[str, Mapping[str, Any]]


def inputs(stage: str, dataset: str, backbone: str) -> dict[str, dict[str, str]]:
    """The entry `from` of a stage's recipe: the digest of each input's own recipe; for scores, of the queries too."""
    digests = {name: digest(_read(name, dataset, backbone)) for name in INPUTS[stage]}
    return {"from": digests | ({"queries": queries_digest(dataset)} if stage == "scores" else {})}


def digests(stages: Mapping[str, str | None], dataset: str, backbone: str) -> dict[str, str]:
    """The digest of the recipe of each of these outputs of a run; the value is the name of a rerank, if any."""
    return {
        stage: digest(tables.provenance(paths.folder(stage, dataset, backbone, rerank)))
        for stage, rerank in stages.items()
    }


def queries_digest(dataset: str, cache: Path = paths.CACHE) -> str:
    """SHA-256 of the bytes of a dataset's `queries.parquet`; empty where there is none."""
    path = output_path("index", dataset, "", cache) / "queries.parquet"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def recipes(dataset: str, backbone: str, cache: Path = paths.CACHE) -> Recipes:
    """The recipe of each stage of a run, empty where it is not known; `cache` may be that of another workspace.

    Raises CvsiError for a provenance that is unreadable or of a later schema version.
    """
    return {stage: _read(stage, dataset, backbone, cache) for stage in STAGES}


def of_rerank(dataset: str, backbone: str, rerank: str, cache: Path = paths.CACHE) -> Recipes:
    """The recipes of a run, as `recipes` gives them, with those of the stages of one of its reranks."""
    own = {stage: tables.provenance(output_path(stage, dataset, backbone, cache, rerank)) for stage in RERANK_STAGES}
    return {**recipes(dataset, backbone, cache), **own}


def output_path(stage: str, dataset: str, backbone: str, cache: Path = paths.CACHE, rerank: str = "") -> Path:
    """The folder of a stage's output for a run, in the cache of this or another workspace."""
    here = paths.folder(stage, dataset, None if stage in OF_DATASET else backbone, rerank)
    return cache / here.relative_to(paths.CACHE)


def stale(recipes: Recipes) -> Iterator[tuple[str, str]]:
    """(stage, input) where a stage was made from another recipe of that input than the current one."""
    for stage, names in INPUTS.items():
        if stage not in recipes:  # of reranks
            continue
        used = recipes[stage].get("from", {})
        current = {name: digest(recipes[name]) for name in names}
        yield from ((stage, name) for name in names if used.get(name, current[name]) != current[name])


def flat(recipe: Mapping[str, Any]) -> dict[str, str]:
    """A recipe as dotted names and texts: texts unchanged, all other values as JSON."""
    fields: dict[str, str] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping) and value:
            fields |= {f"{name}.{below}": text for below, text in flat(value).items()}
        else:
            fields[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return fields


def by_part(recipes: Recipes) -> dict[str, dict[str, str]]:
    """`{part: {field: value}}` of a run; where stages differ in a field, it has all values, joined by ` | `."""
    values: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for stage, recipe in recipes.items():
        for name, text in flat(recipe).items():
            if (location := _part_of(stage, name)) is not None:
                part, field = location
                values[part].setdefault(field, []).append(text)
    return {
        part: {field: " | ".join(dict.fromkeys(texts)) for field, texts in fields.items()}
        for part, fields in values.items()
    }


def _part_of(stage: str, name: str) -> tuple[str, str] | None:
    """The part that a stage's field belongs to, and its name in it; None for a field that is no fact of the run."""
    first, _, rest = name.partition(".")
    if first == "from" or rest == "kind":
        return None
    if stage == "index" or name in ("format", "normalize_captions"):
        return "dataset", name
    if stage == "captions":
        return "captioner", name
    if stage == "edits" and first == "reader":
        return "reader", rest
    if stage == "edits":
        return ("prompts", rest) if first == "prompts" else ("editor", name)
    if stage == "scores":
        return "fusion", rest or name
    if stage in RERANK_STAGES:
        return ("judge", rest) if first == "judge" else ("rerank", name)
    if rest.startswith("phi.") or rest == "template" or first == "templates":
        return "phi", rest.removeprefix("phi.")
    return "backbone", rest or name


def _read(stage: str, dataset: str, backbone: str, cache: Path = paths.CACHE) -> dict[str, Any]:
    return tables.provenance(output_path(stage, dataset, backbone, cache))
