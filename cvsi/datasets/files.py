"""Files on disk to what the index needs of them: size and modification time, digest, width and height.

Digest, width and height are read from a file's bytes, which takes long. They are stored by path, size and modification
time, so a file is opened again only when one of these changes.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from cvsi.core.images import Unreadable, contents, use
from cvsi.core.params import Params
from cvsi.core.schema import STORED_FACTS
from cvsi.datasets.base import OUTSIDE_ROOT, escapes_root
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store

FACTS_RECIPE = {"code": CODE_VERSIONS["files"]}
BLOCK = 512
STATUS_COLUMNS = {"path": pl.String, "size": pl.Int64, "modified": pl.Int64, "refused": pl.String}


def stat_files(root: Path, paths: pl.Series) -> pl.DataFrame:
    """`path`, `size` and `modified` (ns) of the files that exist; each folder is scanned once.

    `refused` is empty, or the reason why a file may not be read: a link, its own or its folder's, may not leave the
    root.
    """
    folders: dict[str, dict[str, str]] = {}
    for path in paths.to_list():
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, {})[name] = path
    tables = [pl.DataFrame(schema=STATUS_COLUMNS)]
    for folder, names in folders.items():
        if _is((root / folder).is_dir):
            tables.append(_scan(root / folder, names, root))
    return pl.concat(tables)


@dataclass(frozen=True, eq=False)
class FileFactsJob(RowJob):
    """Digest, width and height of a dataset's files, by path, size and modification time.

    `files` has the columns `path`, `size` and `modified`.
    """

    kind: ClassVar[str] = "files"
    words: ClassVar[Words] = Words("file", "to read", "read")

    root: Path
    files: pl.DataFrame

    @property
    def schema(self) -> pa.Schema:
        """`key`, `digest`, `width`, `height`, and `reason` (empty, or why the file is not a usable image)."""
        return STORED_FACTS

    @property
    def block_rows(self) -> int:
        """A fixed number of files."""
        return BLOCK

    @property
    def workers(self) -> int:
        """One: a block is read by threads."""
        return 1

    def recipe(self) -> dict[str, Any]:
        """The version of this code."""
        return FACTS_RECIPE

    def wanted(self) -> pl.DataFrame:
        """Every file: `key` and `path`."""
        key = pl.concat_str(pl.lit(f"{self.root}/"), "path", pl.lit(" "), "size", pl.lit(" "), "modified")
        return self.files.select(key=key, path="path")

    def load(self, worker: int) -> BlockWorker:
        """Nothing to load."""
        return BlockWorker(self._read)

    def _read(self, block: pl.DataFrame) -> pa.Table:
        """Read and decode every file of a block."""
        with ThreadPoolExecutor(max_workers=max(self.compute.workers, os.cpu_count() or 1)) as pool:
            facts = pool.map(lambda path: _facts(self.root / path), block["path"])
        rows = [{"key": key} | row for key, row in zip(block["key"], facts, strict=True)]
        return pa.Table.from_pylist(rows, STORED_FACTS)


def read_facts(root: Path, files: pl.DataFrame, params: Params) -> pl.DataFrame:
    """The files (`path`, `size`, `modified`) with `digest`, `width`, `height` and `reason` added.

    A file is opened only where the store does not contain its facts.
    """
    job = FileFactsJob(params.compute, Store(Path(params.store)), root, files)
    facts = pl.DataFrame(compute_missing(job).get(job.wanted()["key"])).drop("key")
    return pl.concat([files, facts], how="horizontal")


def _scan(folder: Path, names: dict[str, str], root: Path) -> pl.DataFrame:
    """`STATUS_COLUMNS` of the files of a folder whose names are in `names`, which maps them to their paths."""
    outside_folder = escapes_root(folder, root)
    paths, sizes, times, refused = list[str](), list[int](), list[int](), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            path = names.get(entry.name)
            if path is None or not _is(entry.is_file):
                continue
            outside = outside_folder or (entry.is_symlink() and escapes_root(Path(entry.path), root))
            status = entry.stat()
            paths.append(path)
            sizes.append(status.st_size)
            times.append(status.st_mtime_ns)
            refused.append(OUTSIDE_ROOT if outside else "")
    columns = (paths, sizes, times, refused)
    return pl.DataFrame(dict(zip(STATUS_COLUMNS, columns, strict=True)), schema=STATUS_COLUMNS)


def _is(test: Callable[[], bool]) -> bool:
    """The result of a test of the file system; no where it fails, for a name that is too long or a circle of links."""
    try:
        return test()
    except OSError:
        return False


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"digest": "", "width": 0, "height": 0, "reason": ""}
    try:
        with contents(path) as data:
            facts["digest"] = hashlib.sha256(data).hexdigest()
            width, height = use(data, lambda image: image.size)
    except Unreadable as reason:
        return facts | {"reason": str(reason)}
    return facts | {"width": width, "height": height}
