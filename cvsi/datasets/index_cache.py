"""An index made before from the same files, parameters and code, found again without opening anything.

`index` always runs, so what it takes when nothing changed is what everybody waits for. The fingerprint covers
the parameters, this package's code, and path, size and modification time of every file below the dataset's root;
the index made then lies in the store under it. Nothing but the standard library and YAML is loaded here.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cvsi.core.console import complain, say
from cvsi.core.paths import folder, once, whole_or_absent
from cvsi.store.locks import note_use, share

PARAMS = Path("params.yaml")


def recall(dataset: str, remembered: Path | None) -> bool:
    """Put the index remembered in this place, see `place_of`, where the dataset's belongs; whether there was one."""
    if remembered is None or not remembered.exists():
        return False
    share(remembered.parent.parent)
    memo = _whole(remembered)
    if memo is None:
        complain(f"{remembered}: damaged; the index is made anew")
        shutil.rmtree(remembered, ignore_errors=True)
        return False
    note_use(remembered)
    with whole_or_absent(folder("index", dataset)) as partial:
        shutil.copytree(remembered / "files", partial, dirs_exist_ok=True)
    say(f"{memo['summary']} (no file, parameter or code changed since the last look)")
    for warning in memo["warnings"]:
        complain(warning)
    return True


def remember(dataset: str, place: Path | None, summary: str, warnings: list[str]) -> None:
    """Keep the index that was just made in a place taken before it was, with a line about it and what was warned of."""
    if place is None or place.exists():
        return
    store = place.parent.parent
    if store.exists() and not os.access(store, os.W_OK):
        return  # a team's store that this user may only read
    with once(place) as partial:
        shutil.copytree(folder("index", dataset), partial / "files")
        memo: dict[str, Any] = {"summary": summary, "warnings": warnings, "digests": _digests(partial / "files")}
        memo["digest"] = _digest(memo)
        (partial / "memo.json").write_text(json.dumps(memo, indent=2) + "\n", encoding="utf-8")


def _whole(remembered: Path) -> dict[str, Any] | None:
    """What is remembered, or None where its files are not those that were written."""
    try:
        memo: dict[str, Any] = json.loads((remembered / "memo.json").read_bytes())
        sound = memo.pop("digest") == _digest(memo) and memo["digests"] == _digests(remembered / "files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return memo if sound else None


def place_of(dataset: str) -> Path | None:
    """Where the index of things as they are now is remembered; None where the parameters do not even say so much.

    To be asked before the index is made: a file that changes meanwhile must not stand for the index made without it.
    """
    try:
        text = PARAMS.read_bytes()
        params = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        root, store = Path(params["datasets"][dataset]["root"]), Path(params.get("store", "cache/store"))
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return store / "index" / _fingerprint(dataset, text, root)


def _fingerprint(dataset: str, params: bytes, root: Path) -> str:
    # All of the parameters, so that a fault anywhere in them is found by whoever reads them in full.
    total = hashlib.sha256(dataset.encode() + b"\0" + params)
    for source in sorted(Path(__file__).parent.parent.rglob("*.py")):
        total.update(source.read_bytes())
    for line in sorted(_files(os.fspath(root), set())):
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _files(place: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """A line for every file below a folder; links are followed, each folder once."""
    try:
        here = Path(place).stat()
        entries = list(os.scandir(place)) if (here.st_dev, here.st_ino) not in seen else []
    except OSError as error:
        yield f"{place}\0{error.errno}\n"
        return
    seen.add((here.st_dev, here.st_ino))
    for entry in entries:
        try:
            if entry.is_dir():
                yield from _files(entry.path, seen)
                continue
            facts = entry.stat()
            yield f"{entry.path}\0{facts.st_size}\0{facts.st_mtime_ns}\0{entry.is_symlink()}\n"
        except OSError as error:
            yield f"{entry.path}\0{error.errno}\n"


def _digest(memo: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(memo, sort_keys=True).encode()).hexdigest()


def _digests(place: Path) -> dict[str, str]:
    files = sorted(file for file in place.rglob("*") if file.is_file())
    return {file.relative_to(place).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
