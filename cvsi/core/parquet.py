"""Parquet files: the one writer, and readers that check what they read.

The same rows give the same bytes: fixed row groups, no metadata of other libraries. Each file carries the version of
its schema; one of a later version is refused, one without is of version 1.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cvsi.core.errors import CvsiError, cause
from cvsi.core.run_log import timed
from cvsi.core.schema import VERSION

SHARD_ROWS = 4096
PART_ROWS = 65_536  # of narrow columns, that many fit in a few megabytes
VERSION_KEY = "cvsi.schema"


def write_parquet(table: pa.Table, target: Path | pa.NativeFile) -> None:
    """Write a table so that equal rows give equal bytes: combined chunks, fixed row groups, zstd, the version alone."""
    with timed("write"):
        plain = table.replace_schema_metadata({VERSION_KEY: str(VERSION)}).combine_chunks()
        # A dictionary of a vector's numbers saves nothing, and reading them takes three times as long.
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
    """Raise CvsiError for a Parquet file's metadata of a later schema version."""
    check_known((metadata or {}).get(VERSION_KEY.encode(), b"1").decode("ascii", "replace"), where)


def check_known(version: Any, where: str | Path) -> None:
    """Raise CvsiError for an unknown version, a number or its digits."""
    if not str(version).isdecimal() or not 1 <= int(version) <= VERSION:
        raise CvsiError(f"{where}: schema version {str(version)[:20]}, this cvsi reads up to {VERSION}; update cvsi")


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
            with timed("read"):
                batch = next(batches, None)
            if batch is None:
                return
            yield _plain(pa.Table.from_batches([batch]))


def columns_of(path: Path) -> pa.Schema:
    """The columns of a Parquet file, from its footer; raises CvsiError where it is missing or damaged."""
    with _readable(path):
        columns = pq.read_schema(path)
        check_version(columns.metadata, path)
        return columns


def rows_of(path: Path) -> int:
    """The number of rows of a Parquet file, from its footer; raises CvsiError where it is missing or damaged."""
    with _readable(path):
        metadata = pq.read_metadata(path)
        check_version(metadata.metadata, path)
        return int(metadata.num_rows)


def read_file(path: Path) -> pa.Table:
    """Read one Parquet file, strings and lists in their plain Arrow types; CvsiError where it is missing or damaged."""
    with _readable(path), timed("read"):
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
        check_version(table.schema.metadata, path)
        return _plain(table)


def fit(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The schema's columns of a table that another program may have written, cast to its types, other columns left out.

    Raises CvsiError for a column that is missing, cannot be cast or has nulls.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise CvsiError(f"{where}: no column '{missing[0]}'; there are: {', '.join(table.column_names)}")
    try:
        cast = table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise CvsiError(f"{where}: columns of other types than in docs/artifacts.md ({cause(error)})") from None
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
