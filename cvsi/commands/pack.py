"""A dataset's captions and edits to a pack: rows in the store's form, their recipes, a manifest and a card.

The same rows give the same bytes, wherever they lie: rows stand in the order of their keys, and nothing of the machine,
no path, time, version or key, goes in.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from cvsi.commands import pack_format
from cvsi.commands.pack_format import CARD, MANIFEST, NOUNS, RECIPE, SCHEMAS, VERSION, Kind, settings_of
from cvsi.commands.pack_readme import card
from cvsi.core import tables
from cvsi.core.console import complain, count, say
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset, Params
from cvsi.core.paths import folder, whole_or_absent
from cvsi.core.schema import CAPTIONS, EDITS
from cvsi.models import catalogue
from cvsi.models.model_id import identify
from cvsi.pipeline.edits import questions
from cvsi.store.rows import Shelf


def write(name: str, out: Path, params: Params, kinds: Sequence[Kind] = ("captions", "edits")) -> None:
    """Write the pack `out` of a dataset, whole or not at all.

    Raises CvsiError where `out` exists, where an output is missing or older than what it was made from, and where a
    recipe names a path of this machine.
    """
    dataset = params.dataset(name)
    if out.exists() or out.is_symlink():
        raise CvsiError(f"{out}: exists already; give a folder that is not there yet")
    recipes = {kind: _recipe(kind, name) for kind in kinds}
    made = {"captions": _captions, "edits": _edits}
    frames = {kind: made[kind](name, recipes[kind], params) for kind in kinds}
    labels = {kind: _label(kind, recipes[kind], dataset, params) for kind in kinds}
    terms = _terms(dataset, recipes, labels)
    with whole_or_absent(out) as partial:
        for kind in kinds:
            _store(partial / kind, kind, frames[kind], recipes[kind])
        (partial / CARD).write_text(card(name, recipes, labels, frames, terms), encoding="utf-8")
        listed = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {
            "schema": VERSION,
            "dataset": name,
            "kinds": {
                kind: {"rows": frames[kind].height, "recipe": digest(recipes[kind]), "model": labels[kind]}
                for kind in kinds
            },
            "terms": terms,
            "files": {path.relative_to(partial).as_posix(): _facts(path) for path in listed},
        }
        (partial / MANIFEST).write_text(_json(manifest), encoding="utf-8")
        written = pack_format.open_pack(partial)
        written.check()  # what others would refuse is not handed out
    for kind, frame in frames.items():
        say(f"{out}: {count(frame.height, 'row')} of {kind}, recipe {digest(recipes[kind])[:12]}")
    say(f"{out}: manifest SHA-256 {written.sum}, which stands for all of it")


def _captions(name: str, recipe: dict[str, Any], params: Params) -> pl.DataFrame:
    place = folder("captions", name)
    table = pl.DataFrame(tables.fit(tables.whole("captions", name), CAPTIONS, str(place)))
    rows = table.select(key="digest", captions="captions").unique(maintain_order=True)
    return _one_each(rows, place)


def _edits(name: str, recipe: dict[str, Any], params: Params) -> pl.DataFrame:
    """The edits by question, which index and captions tell; the store, where it has them, says whether they agree."""
    place = folder("edits", name)
    table = pl.DataFrame(tables.fit(tables.whole("edits", name), EDITS, str(place)))
    asked = questions(name)
    old = f"{place}: not made from the index and the captions that lie here; run dvc repro first"
    if not asked.select("query_id", "split").equals(table.select("query_id", "split")):
        raise CvsiError(old)
    rows = table.with_columns(key=asked["key"]).select(SCHEMAS["edits"].names)
    shelf = Shelf(params.store, "edits", recipe, SCHEMAS["edits"])
    lost = shelf.missing(rows["key"])
    known = rows.filter(~pl.col("key").is_in(lost.implode()))
    if not pl.DataFrame(shelf.take(known["key"])).equals(known):
        raise CvsiError(old)
    if lost.len():
        complain(
            f"{place}: {count(lost.len(), 'edit')} of {rows.height:,} are not in the store {params.store}, so nothing "
            "shows that they belong to these captions; run dvc status to be sure"
        )
    return _one_each(rows.unique(maintain_order=True), place)


def _one_each(rows: pl.DataFrame, place: Path) -> pl.DataFrame:
    twice = rows.filter(rows["key"].is_duplicated())
    if twice.height:
        raise CvsiError(f"{place}: two different rows of key {twice['key'][0]}; run dvc repro, or tell who wrote them")
    return rows.sort("key")


def _recipe(kind: Kind, name: str) -> dict[str, Any]:
    place = folder(kind, name)
    if not place.is_dir():
        raise CvsiError(f"{place}: no such folder; run the stage {kind} first (dvc repro), or pack with --only")
    recipe = tables.provenance(place)
    if not recipe:
        raise CvsiError(f"{place}: no {tables.PROVENANCE}, so nobody knows what made these rows; run dvc repro first")
    model = recipe.get("model")
    if isinstance(model, str) and (PurePosixPath(model).is_absolute() or model.startswith("~")):
        raise CvsiError(
            f"{place}: its recipe names the model by a path of this machine, '{model}', which would be published; "
            "have the server serve it under a name, set that as the editor's model and run dvc repro"
        )
    return recipe


def _label(kind: Kind, recipe: dict[str, Any], dataset: Dataset, params: Params) -> str | None:
    """How params.yaml names the model, if it still is the recipe's; of a path outside the project its last part."""
    settings = settings_of(kind, dataset)
    if "weights" not in recipe:
        return str(recipe.get("model"))
    try:
        same = identify(settings.model, settings.revision, params.store).get("weights") == recipe["weights"]
    except CvsiError:  # it is gone, and nobody knows what it was
        same = False
    path = PurePosixPath(settings.model)
    inside = not (path.is_absolute() or settings.model.startswith("~") or ".." in path.parts)
    return (path.as_posix() if inside else path.name) if same else None


def _terms(dataset: Dataset, recipes: dict[Kind, dict[str, Any]], labels: dict[Kind, str | None]) -> dict[str, str]:
    """What is known of the terms of the models by name, and of the dataset by its benchmark."""
    found = {f"{NOUNS[kind]} {labels[kind]}": catalogue.of_model(labels[kind] or "") for kind in recipes}
    if dataset.benchmark:
        found[f"dataset {dataset.benchmark}"] = catalogue.of_benchmark(dataset.benchmark)
    return {who: source.terms for who, source in found.items() if source.terms}


def _store(place: Path, kind: Kind, rows: pl.DataFrame, recipe: dict[str, Any]) -> None:
    place.mkdir()
    (place / RECIPE).write_text(_json(recipe), encoding="utf-8")
    for number, part in enumerate(rows.iter_slices(tables.SHARD_ROWS)):
        table = part.to_arrow().select(SCHEMAS[kind].names).cast(SCHEMAS[kind])
        tables.write_parquet(table, place / f"part-{number:05d}.parquet")


def _facts(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
