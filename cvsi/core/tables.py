"""The tables of a stage on disk: its output folder, written completely or not at all, and reading what stages wrote."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from cvsi.core import parquet
from cvsi.core.atomic import atomic_dir
from cvsi.core.errors import CvsiError, cause
from cvsi.core.paths import folder
from cvsi.core.schema import VERSION

PROVENANCE = "provenance.json"


class Output:
    """A stage's output folder while it is being made."""

    def __init__(self, path: Path) -> None:
        """An output in a folder; use `output` to make one."""
        self.path = path
        self._shards = 0

    def file(self, name: str) -> Path:
        """The path of a file in this output, its folders made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def folder(self, name: str) -> None:
        """Make a folder in this output, which may stay empty."""
        (self.path / name).mkdir(parents=True, exist_ok=True)

    def shard(self, table: pa.Table, schema: pa.Schema) -> None:
        """Append one shard, cast to its schema; shards are named so that they sort in row order."""
        parquet.write_parquet(table.select(schema.names).cast(schema), self.file(f"part-{self._shards:05d}.parquet"))
        self._shards += 1

    def shards(self, table: pa.Table, schema: pa.Schema) -> None:
        """Append a whole table as shards; a table without rows gives one empty shard."""
        for start in range(0, max(table.num_rows, 1), parquet.SHARD_ROWS):
            self.shard(table.slice(start, parquet.SHARD_ROWS), schema)

    def table(self, name: str, table: pa.Table, schema: pa.Schema) -> None:
        """Write one whole table, cast to its schema."""
        parquet.write_parquet(table.select(schema.names).cast(schema), self.file(name))

    def json(self, name: str, content: Any) -> None:
        """Write JSON, keys in the order given, and a final newline; NaN is refused."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        self.file(name).write_text(text + "\n", encoding="utf-8")

    def recipe(self, facts: Mapping[str, Any]) -> None:
        """Write what decided the content, never time or device, as `provenance.json`."""
        self.json(PROVENANCE, {"schema": VERSION, **facts})


@contextmanager
def output(
    stage: str, dataset: str, backbone: str | None = None, recipe: Mapping[str, Any] = MappingProxyType({}),
    rerank: str | None = None,
) -> Iterator[Output]:  # fmt: skip
    """Make a stage's output folder, completely or not at all, with the recipe beside its rows."""
    with atomic_dir(folder(stage, dataset, backbone, rerank)) as partial:
        out = Output(partial)
        yield out
        out.recipe(recipe)


def provenance(folder: Path) -> dict[str, Any]:
    """The recipe of an output folder; empty where another program left it out.

    Raises CvsiError for one that is no JSON object or of a later schema version.
    """
    path = folder / PROVENANCE
    if not path.exists():
        return {}
    try:
        recipe = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CvsiError(f"{path}: not readable JSON ({cause(error)}); run its stage again (dvc repro)") from None
    if not isinstance(recipe, dict):
        raise CvsiError(f"{path}: not a JSON object; run its stage again (dvc repro)")
    parquet.check_known(recipe.pop("schema", 1), path)
    return recipe


def read(stage: str, dataset: str, name: str) -> pa.Table:
    """Read one table file, `images.parquet` of `index` say; raises CvsiError where it is missing or damaged."""
    return parquet.read_file(folder(stage, dataset) / name)


def optional(stage: str, dataset: str, name: str, schema: pa.Schema) -> pa.Table:
    """Read a table file that another program's index may leave out; without it, no rows."""
    return read(stage, dataset, name) if (folder(stage, dataset) / name).exists() else schema.empty_table()


def shards(stage: str, dataset: str, backbone: str | None = None, rerank: str | None = None) -> Iterator[pa.Table]:
    """A stage's output in row order, at most 4,096 rows at a time, however large its files are."""
    for file in _files(stage, dataset, backbone, rerank):
        yield from parquet.parts(file, size=parquet.SHARD_ROWS)


def whole(stage: str, dataset: str, backbone: str | None = None, rerank: str | None = None) -> pa.Table:
    """All shards of a small output as one table."""
    try:
        return pa.concat_tables(shards(stage, dataset, backbone, rerank), promote_options="none")
    except pa.ArrowInvalid as error:
        raise CvsiError(
            f"{folder(stage, dataset, backbone, rerank)}: files that differ in their columns ({cause(error)})"
        ) from None


def schema_of(stage: str, dataset: str, backbone: str | None = None) -> pa.Schema:
    """The columns of a stage's output, from its first file's footer; raises CvsiError where there is no such file."""
    return parquet.columns_of(_files(stage, dataset, backbone)[0])


def exists(stage: str, dataset: str, backbone: str | None = None) -> bool:
    """Whether a stage has an output."""
    return folder(stage, dataset, backbone).is_dir()


def _files(stage: str, dataset: str, backbone: str | None, rerank: str | None = None) -> list[Path]:
    path = folder(stage, dataset, backbone, rerank)
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise CvsiError(f"{path}: no Parquet files; run the stage {stage} first (dvc repro)")
    return files
