"""The artifact tables on disk: one Parquet writer, and a stage's output folder, written whole or not at all.

The same rows give the same bytes: fixed row groups, no metadata of other libraries.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cvsi.errors import CvsiError
from cvsi.places import folder, whole_or_absent

SHARD_ROWS = 4096


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table so that equal rows give equal bytes: combined chunks, fixed row groups, zstd, no metadata."""
    plain = table.replace_schema_metadata(None).combine_chunks()
    pq.write_table(plain, path, compression="zstd", row_group_size=SHARD_ROWS, write_page_checksum=True)


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


@contextmanager
def output(
    stage: str, dataset: str, backbone: str | None = None, recipe: Mapping[str, Any] | None = None
) -> Iterator[Output]:
    """Make a stage's output folder, whole or not at all.

    `recipe` (facts that decide the content, never time or device) is kept beside the rows as `provenance.json`.
    """
    with whole_or_absent(folder(stage, dataset, backbone)) as partial:
        out = Output(partial)
        yield out
        if recipe is not None:
            out.json("provenance.json", recipe)


def read(stage: str, dataset: str, name: str) -> pa.Table:
    """Read one table file, `images.parquet` of `index` say; raises CvsiError where it is missing or damaged."""
    return _read(folder(stage, dataset) / name)


def optional(stage: str, dataset: str, name: str, schema: pa.Schema) -> pa.Table:
    """Read a table file that another program's index may leave out; without it, no rows."""
    return read(stage, dataset, name) if (folder(stage, dataset) / name).exists() else schema.empty_table()


def shards(stage: str, dataset: str, backbone: str | None = None) -> Iterator[pa.Table]:
    """The shards of a stage's output in row order, one at a time."""
    place = folder(stage, dataset, backbone)
    files = sorted(place.glob("*.parquet"))
    if not files:
        raise CvsiError(f"{place}: no Parquet files; run the stage {stage} first (dvc repro)")
    for file in files:
        yield _read(file)


def whole(stage: str, dataset: str, backbone: str | None = None) -> pa.Table:
    """All shards of a small output as one table."""
    return pa.concat_tables(shards(stage, dataset, backbone), promote_options="none")


def exists(stage: str, dataset: str, backbone: str | None = None) -> bool:
    """Whether a stage's output lies there."""
    return folder(stage, dataset, backbone).is_dir()


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, partitioning=None)
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; run the stage {path.parent.name} first (dvc repro)") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise CvsiError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from None
