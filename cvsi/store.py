"""The store: single rows of what is expensive, kept for good, found by key and recipe.

`<store>/<kind>/<recipe digest>/*.parquet` is an append-only set of immutable files. A row's key is the digest of what
it was computed from; the recipe covers everything else that decides its value. Each file is written under a temporary
name, flushed and renamed, so any number of writers may share a store; of two files with the same row the first by name
counts, and names begin with their time of writing.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvsi.errors import CvsiError, cause
from cvsi.places import whole_file
from cvsi.runs import spending
from cvsi.tables import write_parquet

READERS = 8  # files read at once: on a shared disk it is the waiting that takes long


def digest(*parts: Any) -> str:
    """SHA-256, in hex, of JSON-able parts in canonical form: sorted keys, no blanks, UTF-8."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Shelf:
    """The rows of one kind under one recipe."""

    def __init__(self, store: str | Path, kind: str, recipe: Mapping[str, Any], schema: pa.Schema) -> None:
        """Open a shelf for reading and appending; `schema` has a string column `key`."""
        self.kind, self.recipe, self.schema = kind, dict(recipe), schema
        self.folder = Path(store) / kind / digest(self.recipe)
        self._known = pl.DataFrame(schema={"key": pl.String, "file": pl.String, "row": pl.Int64})
        with spending("read"), ThreadPoolExecutor(READERS) as pool:
            self._new = list(pool.map(self._rows_of, sorted(self.folder.glob("*.parquet"))))

    def missing(self, keys: pl.Series) -> pl.Series:
        """The keys that have no row yet, in the order given."""
        return keys.filter(~keys.is_in(self._index()["key"].implode()))

    def add(self, rows: pa.Table) -> None:
        """Append rows as one immutable file; they can be taken at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._describe()
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
        final = self.folder / f"{name}.parquet"
        with whole_file(final) as partial:
            write_parquet(rows.select(self.schema.names).cast(self.schema), partial)
        self._new.append(_located(rows["key"], final))

    def take(self, keys: pl.Series) -> pa.Table:
        """The rows of these keys, in their order (a key may repeat); raises KeyError for one that is not there."""
        wanted = pl.DataFrame({"key": keys}).join(self._index(), on="key", how="left", maintain_order="left")
        if wanted["file"].has_nulls():
            raise KeyError(wanted.filter(pl.col("file").is_null())["key"][0])
        names = wanted["file"].unique(maintain_order=True)
        with spending("read"), ThreadPoolExecutor(READERS) as pool:
            pieces = list(pool.map(lambda name: _read(self.folder / name, self.schema), names))
        offsets, total = {}, 0
        for name, table in zip(names, pieces, strict=True):
            offsets[name], total = total, total + table.num_rows
        if not pieces:
            return self.schema.empty_table()
        places = wanted["row"] + wanted["file"].replace_strict(offsets, return_dtype=pl.Int64)
        return pa.concat_tables(pieces).take(pc.cast(places.to_arrow(), pa.int64())).combine_chunks()

    def _index(self) -> pl.DataFrame:
        """Where each row is: `key`, `file`, `row`; of files that hold the same row the first by name."""
        if self._new:
            self._known = pl.concat([self._known, *self._new]).unique("key", keep="first", maintain_order=True)
            self._new = []
        return self._known

    def _rows_of(self, file: Path) -> pl.DataFrame:
        return _located(_read(file, self.schema, ["key"])["key"], file)

    def _describe(self) -> None:
        """Keep the recipe readable beside its rows; whoever comes first writes it, all write the same."""
        path = self.folder / "recipe.json"
        if not path.exists():
            with whole_file(path) as partial:
                partial.write_text(json.dumps(self.recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _located(keys: pa.ChunkedArray, file: Path) -> pl.DataFrame:
    frame = pl.Series("key", keys, dtype=pl.String).to_frame()
    return frame.select("key", pl.lit(file.name).alias("file"), pl.int_range(pl.len()).alias("row"))


def _read(file: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    try:
        table = pq.read_table(file, columns=columns or schema.names, partitioning=None, page_checksum_verification=True)
        return table.cast(pa.schema([schema.field(name) for name in table.column_names]))
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, ValueError) as error:
        raise CvsiError(
            f"{file}: damaged store file ({cause(error)}); delete it, its rows are computed again"
        ) from None
