"""Disk usage of the store by recipe, the last use of each; deletes unused recipes, or one that is named.

Only folders that the store itself makes are listed and deleted: a known kind, and below it a digest as a name.
"""

import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import filesize

from cvsi.commands.layout import Table
from cvsi.core.console import count
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.paths import CACHE, MODELS
from cvsi.core.tables import PROVENANCE, provenance
from cvsi.store.kinds import KINDS
from cvsi.store.locks import exclusive_lock
from cvsi.store.rows import DAMAGED

# Small kinds that are never removed: rows of a pack are looked up by `weights`; without `changed_files`, the facts of a
# changed file would be used again.
PERMANENT = frozenset({"weights", "changed_files"})
NAME = re.compile("[0-9a-f]{64}")
START = re.compile("[0-9a-f]{8,64}")
# The facts of a recipe that are shown, and how many characters of each.
SHOWN_FIELDS = {
    "model": 40,
    "pretrained": 40,
    "weights": 8,
    "revision": 8,
    "precision": 9,
    "n": 9,
    "seed": 9,
    "mode": 9,
    "code": 3,
}
DAY = 86_400.0


@dataclass(frozen=True)
class Part:
    """What the store contains of one recipe."""

    kind: str
    folder: Path
    files: int
    size: int
    used: float
    by: tuple[str, ...]
    made_by: str
    damaged: int

    def unused(self, days: float) -> bool:
        """Whether no output here was made from it, it was not used for so many days, and no other rows depend on it."""
        return self.kind not in PERMANENT and not self.by and time.time() - self.used >= days * DAY


def survey(store: Path, here: Sequence[Path] = (CACHE, MODELS)) -> list[Part]:
    """All parts of a store, the largest first within a kind; `here` are the folders of outputs that may use them.

    Raises CvsiError where there is no store.
    """
    if not store.is_dir():
        raise CvsiError(f"{store}: no store yet; dvc repro makes it")
    uses = _uses(here)
    parts = [_part(kind, folder, uses) for kind in KINDS for folder in _folders(store / kind)]
    return sorted(parts, key=lambda part: (KINDS.index(part.kind), -part.size, part.folder.name))


def remove(store: Path, days: float, here: Sequence[Path] = (CACHE, MODELS)) -> list[Part]:
    """Delete the parts that no output was made from and that were not used for so many days; the deleted ones.

    Raises CvsiError while any process is at work in the store.
    """
    with _alone(store):
        unused = [part for part in survey(store, here) if part.unused(days)]
        for part in unused:
            _delete(part)
        for left in _leftovers(store):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return unused


def part_of(store: Path, start: str, here: Sequence[Path] = (CACHE, MODELS)) -> Part:
    """The part whose recipe's digest begins so (8 digits or more); raises CvsiError where there is none, or several."""
    if not START.fullmatch(start):
        raise CvsiError(f"--remove {start}: give the first 8 or more digits of a recipe, as cvsi store prints them")
    parts = [part for part in survey(store, here) if part.folder.name.startswith(start)]
    if not parts:
        raise CvsiError(f"{store}: no recipe begins with {start}; cvsi store prints them")
    if len(parts) > 1:
        kinds = ", ".join(f"{part.kind}/{part.folder.name[:16]}" for part in parts)
        raise CvsiError(f"{store}: {len(parts)} recipes begin with {start} ({kinds}); give more digits")
    return parts[0]


def remove_part(store: Path, part: Part) -> None:
    """Delete a part, whether an output was made from it or not; raises CvsiError while any process uses the store."""
    with _alone(store):
        _delete(part)


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    with exclusive_lock(store) as held:
        if not held:
            raise CvsiError(f"{store}: another process uses this store (or it is not yours); try again later")
        yield


def _delete(part: Part) -> None:
    aside = part.folder.with_name(f".{part.folder.name}-{uuid.uuid4().hex[:12]}.partial")
    part.folder.rename(aside)  # one step, so that a kill leaves no half of it
    shutil.rmtree(aside)


def table(parts: Sequence[Part], title: str) -> Table:
    """The parts as a table: one row each, and the sum below."""
    shown = Table(title).texts("kind", "recipe", key=True, least=16).figures("files", "size")
    shown.texts("last use", "used by").texts("made by", least=60)
    for part in parts:
        ago = (time.time() - part.used) / DAY
        last = "today" if ago < 1 else f"{count(int(ago), 'day')} ago"
        files = f"{part.files:,}" + (f" + {part.damaged} damaged" if part.damaged else "")
        size, used_by = filesize.decimal(part.size), ", ".join(_used_by(part)) or "-"
        shown.add_row(part.kind, part.folder.name[:8], files, size, last, used_by, part.made_by)
    shown.add_section()
    total = filesize.decimal(sum(part.size for part in parts))
    shown.add_row("total", "", f"{sum(part.files for part in parts):,}", total, "", "", "")
    return shown


def _used_by(part: Part) -> list[str]:
    """The datasets, and their backbones, whose outputs here were made from a part: `demo`, `demo/tiny`."""
    return list(dict.fromkeys(output.rpartition("/")[0] or output for output in part.by))


def _folders(kind: Path) -> list[Path]:
    if kind.is_symlink() or not kind.is_dir():
        return []
    named = [folder for folder in kind.iterdir() if NAME.fullmatch(folder.name)]
    return [folder for folder in named if folder.is_dir() and not folder.is_symlink()]


def _part(kind: str, folder: Path, uses: Mapping[str, list[str]]) -> Part:
    files = [file for file in folder.rglob("*") if file.is_file()]
    damaged = [file for file in files if file.parent.name == DAMAGED]
    used = max([folder.stat().st_mtime, *(file.stat().st_mtime for file in files)])
    return Part(
        kind, folder, len(files) - len(damaged), sum(file.stat().st_size for file in files), used,
        tuple(uses.get(folder.name, ())), _made_by(folder), len(damaged),
    )  # fmt: skip


def _made_by(folder: Path) -> str:
    """The recipe's main facts in a few words, for people; a corrupt one is left out."""
    try:
        facts = json.loads((folder / "recipe.json").read_bytes())
        shown = {
            name: str(facts[name])[:length] for name, length in SHOWN_FIELDS.items() if facts.get(name) is not None
        }
        return ", ".join(f"{name} {value}" for name, value in shown.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return "?"


def _uses(here: Sequence[Path]) -> dict[str, list[str]]:
    """Outputs by the digest of each recipe that their provenance names."""
    uses: dict[str, list[str]] = {}
    for top in here:
        for path in sorted(top.rglob(PROVENANCE)):
            for facts in _recipes(provenance(path.parent)):
                uses.setdefault(digest(facts), []).append(path.parent.relative_to(top).as_posix())
    return uses


def _recipes(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A provenance and each object in it: any may be the recipe of rows."""
    yield facts
    for value in facts.values():
        if isinstance(value, dict):
            yield from _recipes(value)


def _leftovers(store: Path) -> list[Path]:
    """Incomplete files and folders of killed processes: no other process writes while the store is locked."""
    return [left for kind in KINDS if not (store / kind).is_symlink() for left in (store / kind).rglob(".*.partial")]
