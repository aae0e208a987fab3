"""A dataset's captions and edits to a pack: rows in the store's form, their recipes, a manifest and a README.

The same rows give the same bytes on any machine: rows are in the order of their keys, and no path, time, version or API
key is written.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from cvsi.commands import pack_format
from cvsi.commands.pack_format import CARD, MANIFEST, NOUNS, RAW, RECIPE, SCHEMAS, VERSION, Kind, job_of
from cvsi.commands.pack_readme import readme
from cvsi.core import parquet, tables
from cvsi.core.atomic import atomic_dir
from cvsi.core.console import count, info, warn
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset, Params
from cvsi.core.paths import folder
from cvsi.core.schema import CAPTIONS, EDITS
from cvsi.models import catalogue
from cvsi.models.model_id import identify
from cvsi.pipeline.edits import queries_with_captions
from cvsi.store.rows import RowStore


def write(name: str, out: Path, params: Params, kinds: Sequence[Kind] = ("captions", "edits")) -> None:
    """Write the pack `out` of a dataset, completely or not at all; without queries, of its captions alone.

    Raises CvsiError where `out` exists, where an output is missing or older than what it was made from, and where a
    recipe names a path of this machine.
    """
    dataset = params.dataset(name)
    if out.exists() or out.is_symlink():
        raise CvsiError(f"{out}: exists already; give a folder that is not there yet")
    if "edits" in kinds and not tables.read("index", name, "queries.parquet").num_rows:
        kinds = [kind for kind in kinds if kind != "edits"]
        if not kinds:
            raise CvsiError(f"{name}: no queries, so there are no edits to pack; pack its captions (--only captions)")
        info(f"{name} has no queries: only its captions are packed")
    recipes = {kind: _recipe(kind, name) for kind in kinds}
    read = {"captions": _captions, "edits": _edits}
    frames = {kind: read[kind](name, recipes[kind], params) for kind in kinds}
    labels = {kind: _label(kind, recipes[kind], name, params) for kind in kinds}
    terms = _terms(dataset, recipes, labels)
    with atomic_dir(out) as partial:
        for kind in kinds:
            _store(partial / kind, kind, frames[kind], recipes[kind])
        (partial / CARD).write_text(readme(name, recipes, labels, frames, terms), encoding="utf-8")
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
        written.check()  # no pack is published that unpack would refuse
    for kind, frame in frames.items():
        info(f"{out}: {count(frame.height, 'row')} of {kind}, recipe {digest(recipes[kind])[:12]}")
    info(f"{out}: manifest SHA-256 {written.sum}, which covers all files")


def _captions(name: str, recipe: dict[str, Any], params: Params) -> pl.DataFrame:
    path = folder("captions", name)
    table = pl.DataFrame(parquet.fit(tables.whole("captions", name), CAPTIONS, str(path)))
    rows = table.select(key="digest", captions="captions").unique(maintain_order=True)
    return _one_per_key(rows, path)


def _edits(name: str, recipe: dict[str, Any], params: Params) -> pl.DataFrame:
    """The edits by the key of their query, from index and captions, and compared with the store where it has them."""
    path = folder("edits", name)
    table = pl.DataFrame(parquet.fit(tables.whole("edits", name), EDITS, str(path)))
    queries = queries_with_captions(name)
    old = f"{path}: not made from the present index and captions; run dvc repro first"
    if not queries.select("query_id", "split").equals(table.select("query_id", "split")):
        raise CvsiError(old)
    rows = table.with_columns(key=queries["key"]).select(SCHEMAS["edits"].names)
    store = RowStore(Path(params.store), "edits", recipe, SCHEMAS["edits"])
    missing = store.missing(rows["key"])
    known = rows.filter(~pl.col("key").is_in(missing.implode()))
    stored = pl.DataFrame(store.get(known["key"]))
    if not stored.select(RAW["edits"]).equals(known.select(RAW["edits"])):  # texts and statuses are parsed anew
        raise CvsiError(old)
    if missing.len():
        warn(
            f"{path}: {count(missing.len(), 'edit')} of {rows.height:,} are not in the store {params.store}, so it is "
            "not certain that they belong to these captions; run dvc status to check"
        )
    return _one_per_key(rows.unique(maintain_order=True), path)


def _one_per_key(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    duplicates = rows.filter(rows["key"].is_duplicated())
    if duplicates.height:
        raise CvsiError(f"{path}: two different rows of key {duplicates['key'][0]}; run dvc repro")
    return rows.sort("key")


def _recipe(kind: Kind, name: str) -> dict[str, Any]:
    path = folder(kind, name)
    if not path.is_dir():
        raise CvsiError(f"{path}: no such folder; run the stage {kind} first (dvc repro), or pack with --only")
    recipe = tables.provenance(path)
    if not recipe:
        raise CvsiError(f"{path}: no {tables.PROVENANCE}, so the recipe of these rows is unknown; run dvc repro first")
    model = recipe.get("model")
    if isinstance(model, str) and (PurePosixPath(model).is_absolute() or model.startswith("~")):
        raise CvsiError(
            f"{path}: its recipe names the model by a path of this machine, '{model}', which would be published; "
            "let the server serve it under a name, set that as the editor's model and run dvc repro"
        )
    return recipe


def _label(kind: Kind, recipe: dict[str, Any], name: str, params: Params) -> str | None:
    """The model's name in params.yaml, if it still is the recipe's; for a path outside the project its last part."""
    job = job_of(kind, name, params)
    settings = job.settings
    if "weights" not in recipe:
        return str(recipe.get("model"))
    try:
        same = identify(settings.model, settings.revision, job.store).get("weights") == recipe["weights"]
    except CvsiError:  # it is missing, and its digest is unknown
        same = False
    path = PurePosixPath(settings.model)
    inside = not (path.is_absolute() or settings.model.startswith("~") or ".." in path.parts)
    return (path.as_posix() if inside else path.name) if same else None


def _terms(dataset: Dataset, recipes: dict[Kind, dict[str, Any]], labels: dict[Kind, str | None]) -> dict[str, str]:
    """The known terms of the models by name, and of the dataset by its benchmark."""
    sources = {f"{NOUNS[kind]} {labels[kind]}": catalogue.of_model(labels[kind] or "") for kind in recipes}
    if dataset.benchmark:
        sources[f"dataset {dataset.benchmark}"] = catalogue.of_benchmark(dataset.benchmark)
    return {who: source.terms.value for who, source in sources.items() if source.terms}


def _store(folder: Path, kind: Kind, rows: pl.DataFrame, recipe: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / RECIPE).write_text(_json(recipe), encoding="utf-8")
    for number, part in enumerate(rows.iter_slices(parquet.SHARD_ROWS)):
        table = part.to_arrow().select(SCHEMAS[kind].names).cast(SCHEMAS[kind])
        parquet.write_parquet(table, folder / f"part-{number:05d}.parquet")


def _facts(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
