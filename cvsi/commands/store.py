"""A store's folders to what they take, what made them, who used them last; and away with what nobody uses.

Only folders that the store itself makes are ever looked at: a known kind, and below it a digest as a name.
"""

import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box, filesize
from rich.table import Table

from cvsi.core.console import count
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.paths import CACHE, MODELS
from cvsi.core.tables import PROVENANCE, provenance
from cvsi.store.locks import alone
from cvsi.store.rows import DAMAGED

KINDS = (
    "files", "index", "captions", "edits", "image_vectors", "text_vectors", "pseudo_vectors", "keyword_spans", "phi",
    "weights",
)  # fmt: skip
KEPT = "weights"  # rows of a pack are found by it as long as they are there, and it is small
NAME = re.compile("[0-9a-f]{64}")
# Facts of a recipe that people know it by, and how many characters of each are told.
TOLD = {"model": 40, "pretrained": 40, "weights": 8, "revision": 8, "precision": 9, "n": 9, "seed": 9, "mode": 9}
DAY = 86_400.0


@dataclass(frozen=True)
class Part:
    """What one recipe has in the store, or one remembered index."""

    kind: str
    place: Path
    files: int
    size: int
    used: float
    by: tuple[str, ...]
    made_by: str
    damaged: int

    def unused(self, days: float) -> bool:
        """Whether no output here was made from it, nobody looked at it for so long, and no other rows rely on it."""
        return self.kind != KEPT and not self.by and time.time() - self.used >= days * DAY


def survey(store: Path, here: Sequence[Path] = (CACHE, MODELS)) -> list[Part]:
    """All parts of a store, the largest first within a kind; `here` is where outputs lie that may be made from them.

    Raises CvsiError where there is no store.
    """
    if not store.is_dir():
        raise CvsiError(f"{store}: no store there yet; dvc repro makes it")
    uses = _uses(here)
    found = [_part(kind, place, uses) for kind in KINDS for place in _folders(store / kind)]
    return sorted(found, key=lambda part: (KINDS.index(part.kind), -part.size, part.place.name))


def remove(store: Path, days: float, here: Sequence[Path] = (CACHE, MODELS)) -> list[Part]:
    """Remove the parts that no output was made from and nobody used for so many days; what went.

    Raises CvsiError while any process is at work in the store.
    """
    with alone(store) as held:
        if not held:
            raise CvsiError(f"{store}: somebody is at work in this store (or it is not yours); try again later")
        gone = [part for part in survey(store, here) if part.unused(days)]
        for part in gone:
            aside = part.place.with_name(f".{part.place.name}-{uuid.uuid4().hex[:12]}.partial")
            part.place.rename(aside)  # whole or not at all, also for who is killed now
            shutil.rmtree(aside)
        for left in _leftovers(store):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return gone


def table(parts: Sequence[Part], title: str) -> Table:
    """The parts as a table: a row each, and the sum below."""
    shown = Table("kind", "recipe", "made by", title=title, box=box.SIMPLE_HEAD, show_footer=True)
    for head, sum_of in (("files", sum(part.files for part in parts)), ("size", sum(part.size for part in parts))):
        shown.add_column(head, filesize.decimal(sum_of) if head == "size" else f"{sum_of:,}", justify="right")
    shown.add_column("last use")
    shown.add_column("outputs here", overflow="fold")
    for part in parts:
        ago = (time.time() - part.used) / DAY
        last = "today" if ago < 1 else f"{count(int(ago), 'day')} ago"
        files = f"{part.files:,}" + (f" + {part.damaged} damaged" if part.damaged else "")
        cells = (
            part.kind,
            part.place.name[:8],
            part.made_by,
            files,
            filesize.decimal(part.size),
            last,
            ", ".join(part.by),
        )
        shown.add_row(*cells)
    return shown


def _folders(kind: Path) -> list[Path]:
    if kind.is_symlink() or not kind.is_dir():
        return []
    named = [place for place in kind.iterdir() if NAME.fullmatch(place.name)]
    return [place for place in named if place.is_dir() and not place.is_symlink()]


def _part(kind: str, place: Path, uses: Mapping[str, list[str]]) -> Part:
    files = [file for file in place.rglob("*") if file.is_file()]
    damaged = [file for file in files if file.parent.name == DAMAGED]
    used = max([place.stat().st_mtime, *(file.stat().st_mtime for file in files)])
    return Part(
        kind, place, len(files) - len(damaged), sum(file.stat().st_size for file in files), used,
        tuple(uses.get(place.name, ())), _made_by(kind, place), len(damaged),
    )  # fmt: skip


def _made_by(kind: str, place: Path) -> str:
    """The recipe's main facts in a few words; for people alone, so that a damaged one is just not told."""
    path = place / ("memo.json" if kind == "index" else "recipe.json")
    try:
        facts = json.loads(path.read_bytes())
        if kind == "index":
            return str(facts["summary"])
        told = {name: str(facts[name])[:length] for name, length in TOLD.items() if facts.get(name) is not None}
        return ", ".join(f"{name} {value}" for name, value in told.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "?"


def _uses(here: Sequence[Path]) -> dict[str, list[str]]:
    """Outputs by the digest of each recipe that their provenance names."""
    found: dict[str, list[str]] = {}
    for top in here:
        for path in sorted(top.rglob(PROVENANCE)):
            for facts in _recipes(provenance(path.parent)):
                found.setdefault(digest(facts), []).append(path.parent.relative_to(top).as_posix())
    return found


def _recipes(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A provenance itself and each object in it: any may be the recipe of rows."""
    yield facts
    for value in facts.values():
        if isinstance(value, dict):
            yield from _recipes(value)


def _leftovers(store: Path) -> list[Path]:
    """Half-written files and folders of processes that were killed; all are, while the store is held alone."""
    return [left for kind in KINDS if not (store / kind).is_symlink() for left in (store / kind).rglob(".*.partial")]
