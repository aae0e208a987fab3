"""The store: single rows of expensive results, kept permanently, found by key and recipe.

`<store>/<kind>/<recipe digest>/*.parquet` is an append-only set of immutable files. A row's key is the digest of what
it was computed from; the recipe covers everything else that decides its value. Each file is written under a temporary
name, flushed and renamed, so any number of writers may share a store; if two files
contain the same row, the file that is first by name counts. Names begin with the time of writing and end with the
beginning of the file's SHA-256.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvsi.core.atomic import atomic_file
from cvsi.core.console import warn
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError, cause
from cvsi.core.parquet import check_version, write_parquet
from cvsi.core.run_log import timed
from cvsi.core.schema import LATER_COLUMNS, with_later_columns
from cvsi.store.locks import shared_lock, touch

READERS = 8  # files read at once: on a shared disk most of the time is latency
SUM = re.compile("[0-9]{20}-([0-9a-f]{16})")  # names of earlier versions have twelve other digits
DAMAGED = "damaged"
HELD = Path("held")  # in place of a file: rows that only this process has
EMPTY = pl.DataFrame(schema={"key": pl.String, "file": pl.String, "row": pl.Int64})


class Damaged(CvsiError):
    """A file of the store is not what was written."""


@dataclass(frozen=True)
class Store:
    """A store's folder, by its path."""

    path: Path

    def rows(self, kind: str, recipe: Mapping[str, Any], schema: pa.Schema) -> "RowStore":
        """The rows of one kind under one recipe."""
        return RowStore(self.path, kind, recipe, schema)


class RowStore:
    """The rows of one kind under one recipe."""

    def __init__(self, store: str | Path, kind: str, recipe: Mapping[str, Any], schema: pa.Schema) -> None:
        """Open it for reading and appending; `schema` has a string column `key`."""
        self.kind, self.recipe, self.schema = kind, dict(recipe), schema
        self.store = Path(store)
        self.folder = self.store / kind / digest(self.recipe)
        if self.store.is_dir():
            shared_lock(self.store)
        self._known, self._new, self._unreadable = EMPTY, list[pl.DataFrame](), list[Path]()
        self._held = schema.empty_table()
        self._scan()

    def keys(self) -> pl.Series:
        """The keys of all rows, each once."""
        return self._index()["key"]

    def missing(self, keys: pl.Series) -> pl.Series:
        """The keys that have no row yet, in the order given."""
        return keys.filter(~keys.is_in(self._index()["key"].implode()))

    def quarantine_corrupt(self, keys: pl.Series) -> list[str]:
        """Compare the files that contain these rows with their checksums, and move corrupt ones aside.

        Prints and returns one line for each: its rows are missing from now on. Counts as a use of these rows.
        """
        messages: list[str] = []
        while bad := [*self._unreadable, *self._corrupt_files(keys)]:
            (self.folder / DAMAGED).mkdir(exist_ok=True)
            for file in bad:
                aside = self.folder / DAMAGED / file.name
                if file.exists():  # else another process was faster
                    file.rename(aside)
                messages.append(f"{aside}: damaged, put aside; its rows are computed again")
                warn(messages[-1])
            self._scan()  # another file may contain the same rows
        if self.folder.is_dir():
            touch(self.folder)
        return messages

    def append(self, rows: pa.Table) -> None:
        """Append rows as one immutable file; `get` returns them from now on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shared_lock(self.store)
        self._write_recipe()
        sink = pa.BufferOutputStream()
        write_parquet(rows.select(self.schema.names).cast(self.schema), sink)
        content = sink.getvalue()
        final = self.folder / f"{time.time_ns():020d}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
        with atomic_file(final) as partial:
            partial.write_bytes(content)
        self._new.append(_located(rows["key"], final))

    def hold(self, rows: pa.Table) -> None:
        """Let `get` return rows that are not stored, in this process alone: what failed may succeed in the next run."""
        self._held = pa.concat_tables([self._held, rows.select(self.schema.names).cast(self.schema)])

    def get(self, keys: pl.Series) -> pa.Table:
        """The rows of these keys, in their order (a key may repeat); raises KeyError for a missing one."""
        index = pl.concat([self._index(), _located(self._held["key"], HELD)]).unique("key", keep="first")
        wanted = pl.DataFrame({"key": keys}).join(index, on="key", how="left", maintain_order="left")
        if wanted["file"].has_nulls():
            raise KeyError(wanted.filter(pl.col("file").is_null())["key"][0])
        names = wanted["file"].unique(maintain_order=True)
        with timed("read"), ThreadPoolExecutor(READERS) as pool:
            pieces = list(pool.map(self._rows_in, names))
        offsets, total = {}, 0
        for name, table in zip(names, pieces, strict=True):
            offsets[name], total = total, total + table.num_rows
        if not pieces:
            return self.schema.empty_table()
        positions = wanted["row"] + wanted["file"].replace_strict(offsets, return_dtype=pl.Int64)
        return pa.concat_tables(pieces).take(pc.cast(positions.to_arrow(), pa.int64())).combine_chunks()

    def _rows_in(self, name: str) -> pa.Table:
        """All rows of a file, or those that are held."""
        return self._held if name == HELD.name else _read(self.folder / name, self.schema)

    def _index(self) -> pl.DataFrame:
        """Where each row is: `key`, `file`, `row`; of files that contain the same row, the first by name."""
        if self._new:
            self._known = pl.concat([self._known, *self._new]).unique("key", keep="first", maintain_order=True)
            self._new = []
        return self._known

    def _scan(self) -> None:
        """Read the keys of all files; those that cannot be read are listed, and their rows are missing."""
        self._known, self._unreadable = EMPTY, []
        with timed("read"), ThreadPoolExecutor(READERS) as pool:
            located = pool.map(self._rows_of, sorted(self.folder.glob("*.parquet")))
            self._new = [rows for rows in located if rows is not None]

    def _rows_of(self, file: Path) -> pl.DataFrame | None:
        try:
            return _located(_read(file, self.schema, ["key"])["key"], file)
        except Damaged:
            self._unreadable.append(file)
            return None

    def _corrupt_files(self, keys: pl.Series) -> list[Path]:
        """The files with any of these rows whose bytes do not have the sum in their names."""
        wanted = self._index().filter(pl.col("key").is_in(keys.implode()))["file"].unique(maintain_order=True)
        with ThreadPoolExecutor(READERS) as pool:
            files = [self.folder / name for name in wanted]
            return [file for file, intact in zip(files, pool.map(_is_intact, files), strict=True) if not intact]

    def _write_recipe(self) -> None:
        """Write the recipe beside its rows, for people; every process writes the same."""
        path = self.folder / "recipe.json"
        if not path.exists():
            with atomic_file(path) as partial:
                partial.write_text(json.dumps(self.recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _located(keys: pa.ChunkedArray, file: Path) -> pl.DataFrame:
    frame = pl.Series("key", keys, dtype=pl.String).to_frame()
    return frame.select("key", pl.lit(file.name).alias("file"), pl.int_range(pl.len()).alias("row"))


def _is_intact(file: Path) -> bool:
    """Whether a file exists and has the checksum in its name; a name without a checksum needs only to exist."""
    try:
        with file.open("rb") as stream:
            name = SUM.fullmatch(file.stem)
            return name is None or hashlib.file_digest(stream, "sha256").hexdigest().startswith(name[1])
    except OSError:
        return False


def _check_version(table: pa.Table, file: Path) -> None:
    """Raise CvsiError for a later version, and Damaged where damage makes it look like one."""
    try:
        check_version(table.schema.metadata, file)
    except CvsiError:
        if _is_intact(file):
            raise
        raise Damaged(f"{file}: damaged store file (its checksum)") from None


def _read(file: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    try:
        wanted = columns or schema.names
        if not set(LATER_COLUMNS).isdisjoint(wanted):
            there = set(pq.read_schema(file).names)
            columns = [name for name in wanted if name in there or name not in LATER_COLUMNS]
        table = pq.read_table(file, columns=columns or wanted, partitioning=None, page_checksum_verification=True)
        _check_version(table, file)
        chosen = pa.schema([schema.field(name) for name in wanted])
        table = with_later_columns(table, chosen)
        if missing := set(wanted) - set(table.column_names):
            raise ValueError(f"no column {min(missing)!r}")
        return table.select(wanted).cast(chosen)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(
            f"{file}: damaged store file ({cause(error)}); run it again: the file is put aside, its rows computed again"
        ) from None
