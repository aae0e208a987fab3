"""Files on disk to what the index needs of them: which file a path names, its digest, width and height.

Digest, width and height are read from a file's bytes, which takes long. They are stored by path, size, modification
time, time of change and inode (the last two where the system has them), so a file is opened again only when one of
these changes, or when a stage recorded that its content did (see `store/changed`).
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from cvsi.core.console import count, info
from cvsi.core.errors import ChangedFile
from cvsi.core.images import Unreadable, contents, image_digest, use
from cvsi.core.params import Params
from cvsi.core.schema import STORED_FACTS
from cvsi.datasets.base import loose
from cvsi.datasets.roots import Roots, succeeds
from cvsi.store.changed import changes, record_change
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import RowStore, Store

FACTS_RECIPE = {"code": CODE_VERSIONS["files"]}
BEFORE = ({"code": 2},)  # recipes of earlier versions, whose keys end with the modification time
BLOCK = 512
NO_PART = "the part that is used is outside of the image"
STATUS_COLUMNS = {
    "path": pl.String, "file": pl.String, "size": pl.Int64, "modified": pl.Int64, "changed": pl.Int64,
    "inode": pl.UInt64, "refused": pl.String,
}  # fmt: skip


def stat_files(roots: Roots, paths: pl.Series) -> pl.DataFrame:
    """`STATUS_COLUMNS` of the files that exist; each folder is scanned once.

    `file` is the file's path relative to the root: `path` itself, or one that differs only in case, Unicode form or
    slashes where no file has the exact name, or one in a further root. `modified` and `changed` are in ns. `refused` is
    empty, or where a file is that may not be read, because a link, its own or its folder's, leaves the roots.
    """
    folders: dict[str, dict[str, str]] = {}
    for path in paths.to_list():
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, {})[name] = path
    rows: list[tuple[Any, ...]] = []
    missing = list[str]()
    for folder, names in folders.items():
        for base in roots:
            if names and succeeds((base / folder).is_dir):
                present = _scan(base / folder, names, roots, base)
                rows += present
                names = _left(names, present)
        missing += names.values()
    rows += _loosely(missing, {row[1] for row in rows}, roots) if missing else []
    columns = zip(*rows, strict=True) if rows else ([] for _ in STATUS_COLUMNS)
    return pl.DataFrame(dict(zip(STATUS_COLUMNS, columns, strict=True)), schema=STATUS_COLUMNS)


@dataclass(frozen=True, eq=False)
class FileFactsJob(RowJob):
    """Digest, width and height of a dataset's files, by path, size, times and inode.

    `files` has the columns `file`, `size`, `modified`, `changed` and `inode`.
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
        """Every file: `key`, `former` (how its key began in every version) and `path`."""
        known = changes(self.store)
        path = pl.concat_str(pl.lit("" if self.root == Path() else f"{self.root}/"), "file")
        files = self.files.with_columns(path=path).join(known, on="path", how="left", maintain_order="left")
        former = pl.concat_str("path", pl.lit(" "), "size", pl.lit(" "), "modified")
        times = pl.format("{} {} {} {}", former, "changed", "inode", pl.col("changes").fill_null(0))
        return files.select(key=times, former=former, path="file")

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
    """The files (columns of `stat_files`) with `digest`, `width`, `height` and `reason` added.

    A file is opened only where the store does not contain its facts. Prints how many were opened although size and
    modification time of a stored file are the same.
    """
    job = FileFactsJob(params.compute, Store(Path(params.store)), root, files)
    wanted, rows = job.wanted(), job.rows()
    again = _known_before(job, rows, wanted.filter(pl.col("key").is_in(rows.missing(wanted["key"]).implode())))
    facts = pl.DataFrame(compute_missing(job, rows).get(wanted["key"])).drop("key")
    if again:
        info(
            f"{count(again, 'file')} read again: the same size and date, but another inode or time of change, a change "
            "that a stage found, or facts of an earlier version"
        )
    return pl.concat([files, facts], how="horizontal")


def read_parts(root: Path, images: pl.DataFrame, params: Params) -> pl.DataFrame:
    """The same of images that are parts of files, with a column `crop`; each file is read once.

    Digests cover the crop, which is cut at the edges of the file; width and height are those of the file. A crop that
    is outside of the file has a reason.
    """
    files = read_facts(root, images.unique("file", keep="first", maintain_order=True), params)
    facts = files.select("file", "digest", "width", "height", "reason")
    parts = images.join(facts, on="file", how="left", maintain_order="left")
    x, y, width, height = (pl.col("crop").arr.get(index) for index in range(4))
    left, top = x.clip(lower_bound=0), y.clip(lower_bound=0)
    right, bottom = pl.min_horizontal(x + width, "width"), pl.min_horizontal(y + height, "height")
    box = pl.concat_arr(side.cast(pl.Float32) for side in (left, top, right - left, bottom - top))
    empty = (pl.col("reason") == "") & ((right - left < 1) | (bottom - top < 1))
    parts = parts.with_columns(crop=box, reason=pl.when(empty).then(pl.lit(NO_PART)).otherwise("reason"))
    digests = [image_digest(*row) for row in parts.select("digest", "crop").iter_rows()]
    return parts.with_columns(digest=pl.Series(digests, dtype=pl.String))


@contextmanager
def changes_recorded(params: Params) -> Iterator[None]:
    """Record a file whose content is not the indexed one, so that the next index reads it again; the error goes on."""
    try:
        yield
    except ChangedFile as change:
        record_change(Store(Path(params.store)), change)
        raise


def _known_before(job: FileFactsJob, rows: RowStore, missing: pl.DataFrame) -> int:
    """How many of these files have facts under the same path, size and modification time."""
    if not missing.height:
        return 0
    keys = [rows.keys().str.replace(r" \d+ \d+ \d+$", "")]
    for recipe in BEFORE:
        if (before := job.store.rows(job.kind, recipe, job.schema)).folder.is_dir():
            keys.append(before.keys())
    return int(missing["former"].is_in(pl.concat(keys).implode()).sum())


def _scan(folder: Path, names: dict[str, str], roots: Roots, base: Path) -> list[tuple[Any, ...]]:
    """Rows of the files of a folder below `base` whose names are in `names`, which maps them to their paths."""
    rows, own = list[tuple[Any, ...]](), base == roots.root
    outside_folder = roots.target_outside(folder) if roots.outside(folder) else ""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = names.get(entry.name)
            if path is None or not succeeds(entry.is_file):
                continue
            outside = f"{outside_folder}/{entry.name}" if outside_folder else ""
            if not outside and entry.is_symlink():
                outside = roots.outside(entry.path)
            file = path if own else roots.from_root(Path(entry.path))
            rows.append((path, file, *_status(entry.stat()), outside))
    return rows


def _left(names: dict[str, str], present: list[tuple[Any, ...]]) -> dict[str, str]:
    """The names whose files are not among these rows."""
    if len(present) in (0, len(names)):
        return {} if present else names
    paths = {row[0] for row in present}
    return {name: path for name, path in names.items() if path not in paths}


def _status(status: os.stat_result) -> tuple[int, int, int, int]:
    """Size, modification time, time of change and inode; the last two are 0 where the system has none."""
    return status.st_size, status.st_mtime_ns, getattr(status, "st_ctime_ns", 0) or 0, status.st_ino or 0


def _loosely(paths: list[str], used: set[str], roots: Roots) -> list[tuple[Any, ...]]:
    """Rows of the files that these paths name in other case, another Unicode form or with backslashes.

    A file is taken where it is the only one, no other path names it exactly, and no second path names it so.
    """
    folders: dict[Path, dict[str, list[str]]] = {}
    pairs = [(path, file) for path in paths if (file := _loose_file(path, roots, folders)) and str(file) not in used]
    times, rows = Counter(file for _, file in pairs), []
    for path, file in pairs:
        if times[file] == 1:
            outside, full = roots.outside(roots.root / file), roots.root / file
            rows.append((path, str(file), *_status(full.stat()), outside))
    return rows


def _loose_file(path: str, roots: Roots, folders: dict[Path, dict[str, list[str]]]) -> str | None:
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        return None
    for base in roots:
        place = base
        for part in parts:
            candidates = _names_in(place, folders).get(loose(part), [])
            name = part if part in candidates else candidates[0] if len(candidates) == 1 else None
            if name is None:
                break
            place /= name
        else:
            if succeeds(place.is_file):
                return place.relative_to(base).as_posix() if base == roots.root else roots.from_root(place)
    return None


def _names_in(folder: Path, folders: dict[Path, dict[str, list[str]]]) -> dict[str, list[str]]:
    """The names in a folder by their loose form; listed once."""
    if folder not in folders:
        names: dict[str, list[str]] = {}
        try:
            for name in os.listdir(folder):
                names.setdefault(loose(name), []).append(name)
        except OSError:  # no folder, or not a readable one
            pass
        folders[folder] = names
    return folders[folder]


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"digest": "", "width": 0, "height": 0, "reason": ""}
    try:
        with contents(path) as data:
            facts["digest"] = hashlib.sha256(data).hexdigest()
            width, height = use(data, lambda image: image.size)
    except Unreadable as reason:
        return facts | {"reason": str(reason)}
    return facts | {"width": width, "height": height}
