"""A dataset's captions, edits, readings and verdicts to a pack: rows as in the store, recipes, a manifest, a README.

The same rows give the same bytes on any machine: rows are in the order of their keys, and no path, time, version or API
key is written.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
import pyarrow as pa

from cvsi.commands import pack_format, pack_verdicts
from cvsi.commands.pack_format import CARD, MANIFEST, NOUNS, RAW, RECIPE, SCHEMAS, VERSION, Kind, job_of
from cvsi.commands.pack_readme import readme
from cvsi.core import parquet, tables
from cvsi.core.atomic import atomic_dir
from cvsi.core.console import count, info, warn
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset, Params
from cvsi.core.paths import folder
from cvsi.core.schema import CAPTIONS, EDITS, reading_columns
from cvsi.models import catalogue
from cvsi.models.model_id import identify
from cvsi.pipeline.edits import queries_with_captions
from cvsi.pipeline.readings import reading_job, references
from cvsi.pipeline.stored_answers import FAILED_ONCE
from cvsi.store.rows import RowStore

KEYS_OF_QUERY = pa.schema([EDITS.field("query_id"), EDITS.field("split")])


def write(name: str, out: Path, params: Params, kinds: Sequence[Kind] = (), rerank: str = "") -> None:
    """Write the pack `out` of a dataset, completely or not at all; without `kinds`, of all that the dataset has.

    Without queries these are its captions alone; readings are there where it names a reader, verdicts where one of its
    reranks was run. `rerank` names the rerank whose verdicts are packed, where the judges of several differ.

    Raises CvsiError where `out` exists, where an output is missing or older than what it was made from, and where a
    recipe names a path of this machine.
    """
    dataset = params.dataset(name)
    if out.exists() or out.is_symlink():
        raise CvsiError(f"{out}: exists already; give a folder that is not there yet")
    reranks = pack_verdicts.chosen(name, params, rerank) if not kinds or "verdicts" in kinds else []
    kinds = _kinds(name, dataset, kinds, reranks)
    if {"edits", "readings", "verdicts"} & set(kinds) and not tables.read("index", name, "queries.parquet").num_rows:
        kinds, other = [kind for kind in kinds if kind == "captions"], kinds[0]
        if not kinds:
            raise CvsiError(f"{name}: no queries, so there are no {other} to pack; pack its captions (--only captions)")
        info(f"{name} has no queries: only its captions are packed")
    made_by = {kind: reranks[0] if kind == "verdicts" else name for kind in kinds}
    recipes = {kind: _recipe(kind, made_by[kind], params) for kind in kinds}
    read = {"captions": _captions, "edits": _edits, "readings": _readings}
    frames: dict[Kind, pl.DataFrame] = {
        kind: read[kind](name, recipes[kind], params) for kind in kinds if kind != "verdicts"
    }
    if "verdicts" in kinds:
        frames["verdicts"] = pack_verdicts.rows_of(reranks, recipes["verdicts"], params)
    labels = {kind: _label(kind, recipes[kind], made_by[kind], params) for kind in kinds}
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


def _kinds(name: str, dataset: Dataset, kinds: Sequence[Kind], reranks: Sequence[str]) -> list[Kind]:
    """The kinds that are packed; raises CvsiError where verdicts are wanted and no rerank was run."""
    if "verdicts" in kinds and not reranks:
        raise CvsiError(f"{name}: no rerank of it was run, so there are no verdicts to pack; run dvc repro first")
    with_reader: list[Kind] = ["readings"] if dataset.reader is not None else []
    with_judge: list[Kind] = ["verdicts"] if reranks else []
    return list(kinds) or ["captions", "edits", *with_reader, *with_judge]


def _captions(name: str, recipe: dict[str, Any], params: Params) -> pl.DataFrame:
    path = folder("captions", name)
    table = pl.DataFrame(parquet.fit(tables.whole("captions", name), CAPTIONS, str(path)))
    rows = table.select(key="digest", captions="captions").unique(maintain_order=True)
    return _one_per_key(rows, path)


def _edits(name: str, recipe: dict[str, Any], params: Params) -> pl.DataFrame:
    """The edits by the key of their query, from index and captions, and compared with the store where it has them."""
    path = folder("edits", name)
    table = pl.DataFrame(parquet.fit(tables.whole("edits", name), EDITS, str(path)))
    return _compared("edits", table, queries_with_captions(name), recipe, params, path)


def _readings(name: str, recipe: dict[str, Any], params: Params) -> pl.DataFrame:
    """The readings by the key of their query, compared with the store where it has them.

    Failures that may pass are left out, so that a clone that unpacks the rows sends these queries again.
    """
    path, job = folder("edits", name), reading_job(name, params)
    assert job is not None  # `_recipe` found one
    columns = pa.schema([*KEYS_OF_QUERY, *reading_columns(job.roles)])
    table = pl.DataFrame(parquet.fit(tables.whole("edits", name), columns, str(path)))
    table = table.with_columns(answers=pl.concat_list("reader_answer"), finish=pl.concat_list("reader_finish"))
    rows = _compared("readings", table, job.with_keys(references(name)), recipe, params, path)
    return rows.filter(~FAILED_ONCE)


def _compared(
    kind: Kind, table: pl.DataFrame, queries: pl.DataFrame, recipe: dict[str, Any], params: Params, path: Path
) -> pl.DataFrame:
    """The stored rows of a table of edits, by the keys of the queries; raises CvsiError for an older table."""
    old = f"{path}: not made from the present index and captions; run dvc repro first"
    if not queries.select("query_id", "split").equals(table.select("query_id", "split")):
        raise CvsiError(old)
    rows = table.with_columns(key=queries["key"]).select(SCHEMAS[kind].names)
    store = RowStore(Path(params.store), kind, recipe, SCHEMAS[kind])
    missing = store.missing(rows["key"])
    known = rows.filter(~pl.col("key").is_in(missing.implode()))
    stored = pl.DataFrame(store.get(known["key"]))
    if not stored.select(RAW[kind]).equals(known.select(RAW[kind])):  # texts and statuses are parsed anew
        raise CvsiError(old)
    if missing.len():
        warn(
            f"{path}: {count(missing.len(), kind.removesuffix('s'))} of {rows.height:,} are not in the store "
            f"{params.store}, so it is not certain that they belong to these captions; run dvc status to check"
        )
    return _one_per_key(rows.unique(maintain_order=True), path)


def _one_per_key(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    duplicates = rows.filter(rows["key"].is_duplicated())
    if duplicates.height:
        raise CvsiError(f"{path}: two different rows of key {duplicates['key'][0]}; run dvc repro")
    return rows.sort("key")


def _recipe(kind: Kind, name: str, params: Params) -> dict[str, Any]:
    if kind == "verdicts":
        recipe = pack_verdicts.recipe(name, params)
        _require_publishable(recipe, kind, f"rerank {name}")
        return recipe
    stage = "captions" if kind == "captions" else "edits"
    path = folder(stage, name)
    if not path.is_dir():
        raise CvsiError(f"{path}: no such folder; run the stage {stage} first (dvc repro), or pack with --only")
    recipe = tables.provenance(path)
    reader = recipe.pop("reader", {}) if stage == "edits" else {}
    if kind == "readings" and recipe and not reader:
        raise CvsiError(f"{path}: no readings; name a reader for {name} and run dvc repro first, or pack with --only")
    recipe = reader if kind == "readings" else recipe
    if not recipe:
        raise CvsiError(f"{path}: no {tables.PROVENANCE}, so the recipe of these rows is unknown; run dvc repro first")
    _require_publishable(recipe, kind, path)
    return recipe


def _require_publishable(recipe: dict[str, Any], kind: Kind, path: Path | str) -> None:
    """Raise CvsiError for a model by a path of this machine."""
    model = recipe.get("model")
    if isinstance(model, str) and (PurePosixPath(model).is_absolute() or model.startswith("~")):
        raise CvsiError(
            f"{path}: its recipe names the model by a path of this machine, '{model}', which would be published; "
            f"let the server serve it under a name, set that as the {NOUNS[kind]}'s model and run dvc repro"
        )


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
