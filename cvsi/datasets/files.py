"""Files on disk: size and modification time of those that exist, and which of them may not be read."""

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from cvsi.datasets.base import leaves

LEAVES = "a link that leaves the dataset's folder"


def stat_files(root: Path, paths: pl.Series) -> pl.DataFrame:
    """`path`, `size` and `modified` (ns) of the files that exist, one scan a folder.

    `refused` is empty, or says why a file may not be read: a link, its own or its folder's, may not leave the root.
    """
    wanted = set(paths)
    rows: list[tuple[str, int, int, str]] = []
    for place in dict.fromkeys(os.path.dirname(path) for path in wanted):
        folder = root / place
        if not _is(folder.is_dir):
            continue
        astray = leaves(folder, root)
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{place}/{entry.name}" if place else entry.name
                if path not in wanted or not _is(entry.is_file):
                    continue
                outside = astray or (entry.is_symlink() and leaves(Path(entry.path), root))
                facts = entry.stat()
                rows.append((path, facts.st_size, facts.st_mtime_ns, LEAVES if outside else ""))
    schema = {"path": pl.String, "size": pl.Int64, "modified": pl.Int64, "refused": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _is(what: Callable[[], bool]) -> bool:
    """An answer of the file system, no where it has none: a name that is too long, links in a circle."""
    try:
        return what()
    except OSError:
        return False
