"""The artifact tables on disk: one Parquet writer, and a stage's output folder, written whole or not at all.

The same rows give the same bytes: fixed row groups, no metadata of other libraries. Each file carries the version of
its schema; one of a later version is refused, one without is of version 1.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cvsi.core.errors import CvsiError, cause
from cvsi.core.paths import folder, whole_or_absent
from cvsi.core.run_log import spending
from cvsi.core.schema import VERSION

SHARD_ROWS = 4096
PART_ROWS = 65_536  # of narrow columns, that many fit in a few megabytes
VERSION_KEY = "cvsi.schema"
PROVENANCE = "provenance.json"


def write_parquet(table: pa.Table, target: Path | pa.NativeFile) -> None:
    """Write a table so that equal rows give equal bytes: combined chunks, fixed row groups, zstd, the version alone."""
    with spending("write"):
        plain = table.replace_schema_metadata({VERSION_KEY: str(VERSION)}).combine_chunks()
        # A dictionary of a vector's numbers saves nothing, and makes reading them three times slower.
        vectors = [field.name for field in plain.schema if pa.types.is_fixed_size_list(field.type)]
        worded = [name for name in plain.column_names if name not in vectors] if vectors else True
        pq.write_table(
            plain,
            target,
            compression="zstd",
            row_group_size=SHARD_ROWS,
            write_page_checksum=True,
            use_dictionary=worded,
        )


def check_version(metadata: Mapping[bytes, bytes] | None, where: str | Path) -> None:
    """Raise CvsiError for a Parquet file's metadata of a later version than this program knows."""
    known((metadata or {}).get(VERSION_KEY.encode(), b"1").decode("ascii", "replace"), where)


def known(version: Any, where: str | Path) -> None:
    """Raise CvsiError for a version, a number or its digits, that this program does not know."""
    if not str(version).isdecimal() or not 1 <= int(version) <= VERSION:
        raise CvsiError(f"{where}: schema version {str(version)[:20]}, this cvsi knows up to {VERSION}; update cvsi")


class Output:
    """A stage's output folder while it is being made."""

    def __init__(self, path: Path) -> None:
        """Remember where files go; use `output` to make one."""
        self.path = path
        self._shards = 0

    def file(self, name: str) -> Path:
        """The path of a file in this output, its folders made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def shard(self, table: pa.Table, schema: pa.Schema) -> None:
        """Append one shard, cast to its schema; shards are named so that they sort in row order."""
        write_parquet(table.select(schema.names).cast(schema), self.file(f"part-{self._shards:05d}.parquet"))
        self._shards += 1

    def table(self, name: str, table: pa.Table, schema: pa.Schema) -> None:
        """Write one whole table, cast to its schema."""
        write_parquet(table.select(schema.names).cast(schema), self.file(name))

    def json(self, name: str, content: Any) -> None:
        """Write JSON, keys in the order given, and a final newline; NaN is refused."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        self.file(name).write_text(text + "\n", encoding="utf-8")

    def recipe(self, facts: Mapping[str, Any]) -> None:
        """Keep what decided the content, never time or device, as `provenance.json`."""
        self.json(PROVENANCE, {"schema": VERSION, **facts})


@contextmanager
def output(
    stage: str, dataset: str, backbone: str | None = None, recipe: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Output]:
    """Make a stage's output folder, whole or not at all, with the recipe beside its rows."""
    with whole_or_absent(folder(stage, dataset, backbone)) as partial:
        out = Output(partial)
        yield out
        out.recipe(recipe)


def provenance(place: Path) -> dict[str, Any]:
    """The recipe that an output folder was made by; empty where another program left it out.

    Raises CvsiError for one that is no JSON object or of a later schema version.
    """
    path = place / PROVENANCE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CvsiError(f"{path}: not readable JSON ({cause(error)}); run its stage again (dvc repro)") from None
    if not isinstance(found, dict):
        raise CvsiError(f"{path}: not a JSON object; run its stage again (dvc repro)")
    known(found.pop("schema", 1), path)
    return found


def read(stage: str, dataset: str, name: str) -> pa.Table:
    """Read one table file, `images.parquet` of `index` say; raises CvsiError where it is missing or damaged."""
    return read_file(folder(stage, dataset) / name)


def optional(stage: str, dataset: str, name: str, schema: pa.Schema) -> pa.Table:
    """Read a table file that another program's index may leave out; without it, no rows."""
    return read(stage, dataset, name) if (folder(stage, dataset) / name).exists() else schema.empty_table()


def shards(stage: str, dataset: str, backbone: str | None = None) -> Iterator[pa.Table]:
    """A stage's output in row order, at most 4,096 rows at a time, however large its files are."""
    place = folder(stage, dataset, backbone)
    files = sorted(place.glob("*.parquet"))
    if not files:
        raise CvsiError(f"{place}: no Parquet files; run the stage {stage} first (dvc repro)")
    for file in files:
        yield from parts(file, size=SHARD_ROWS)


def parts(path: Path, columns: list[str] | None = None, size: int = PART_ROWS) -> Iterator[pa.Table]:
    """A Parquet file in row order, `size` rows at a time at most; without rows, one empty table.

    Raises CvsiError where it is missing or damaged; of `columns` those that are there are read.
    """
    with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        check_version(parquet.schema_arrow.metadata, path)
        if not parquet.metadata.num_rows:  # it still says which columns there are
            yield _plain(parquet.schema_arrow.empty_table())
        batches = parquet.iter_batches(batch_size=size, columns=columns)
        while True:
            with spending("read"):
                batch = next(batches, None)
            if batch is None:
                return
            yield _plain(pa.Table.from_batches([batch]))


def whole(stage: str, dataset: str, backbone: str | None = None) -> pa.Table:
    """All shards of a small output as one table."""
    try:
        return pa.concat_tables(shards(stage, dataset, backbone), promote_options="none")
    except pa.ArrowInvalid as error:
        raise CvsiError(
            f"{folder(stage, dataset, backbone)}: files that differ in their columns ({cause(error)})"
        ) from None


def exists(stage: str, dataset: str, backbone: str | None = None) -> bool:
    """Whether a stage's output lies there."""
    return folder(stage, dataset, backbone).is_dir()


def read_file(path: Path) -> pa.Table:
    """Read one Parquet file, strings and lists in their plain Arrow types; CvsiError where it is missing or damaged."""
    with _readable(path), spending("read"):
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
        check_version(table.schema.metadata, path)
        return _plain(table)


def fit(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The schema's columns of a table that another program may have written, cast to its types, other columns left out.

    Raises CvsiError for a column that is missing, cannot be cast or has nulls.
    """
    lost = [name for name in schema.names if name not in table.column_names]
    if lost:
        raise CvsiError(f"{where}: no column '{lost[0]}'; there are: {', '.join(table.column_names)}")
    try:
        cast = table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise CvsiError(f"{where}: columns of other types than docs/artifacts.md says ({cause(error)})") from None
    empty = [name for name in schema.names if cast[name].null_count]
    if empty:
        raise CvsiError(
            f"{where}: column '{empty[0]}' has {cast[empty[0]].null_count:,} nulls; write a value everywhere"
        )
    return cast


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one line."""
    try:
        yield
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; run the stage {path.parent.name} first (dvc repro)") from None
    except (pa.ArrowException, OSError, ValueError) as error:  # damage makes Arrow raise many kinds
        raise CvsiError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from None


def _plain(table: pa.Table) -> pa.Table:
    """The table with dictionaries, views and large forms, which other programs write, as plain strings and lists."""
    wanted = pa.schema([field.with_type(_plain_type(field.type)) for field in table.schema])
    return table.replace_schema_metadata(None) if wanted.equals(table.schema) else table.cast(wanted)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind
