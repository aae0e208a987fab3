"""Names of images without folder and suffix to the files that a user's copy of a dataset has for them."""

import os
from collections.abc import Iterable, Sequence

from cvsi.datasets.base import loose, split_suffix
from cvsi.datasets.roots import Roots, succeeds


def existing(roots: Roots, names: Iterable[str], folders: Sequence[str], suffixes: Sequence[str]) -> dict[str, str]:
    """The file of each name as a path below the root, where there is one in one of these folders ("": the root itself).

    The best one has content (it is not empty and no dead link), the exact name, and the first folder and suffix.
    """
    listed = list(names)
    wanted = {loose(name): name for name in listed} | {name: name for name in listed}
    best: dict[str, tuple[tuple[bool, bool, int, int], str]] = {}
    for place, (folder, base) in enumerate((folder, base) for folder in folders for base in roots):
        if not (base / folder).is_dir():
            continue
        with os.scandir(base / folder) as entries:
            for entry in entries:
                stem, suffix = split_suffix(entry.name)
                name = wanted.get(stem) or wanted.get(loose(stem))
                if name is None or suffix.lower() not in suffixes:
                    continue
                empty = not (succeeds(entry.is_file) and entry.stat().st_size > 0)
                exact = stem == name and suffix in suffixes
                rank = (empty, not exact, place, suffixes.index(suffix.lower()))
                if name not in best or (rank, entry.name) < best[name]:
                    best[name] = rank, f"{folder}/{entry.name}".lstrip("/")
    return {name: path for name, (_, path) in best.items()}
