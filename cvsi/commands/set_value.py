"""The command `cvsi set`: params.yaml with one value changed, checked as `cvsi check` does before it replaces the file.

`dvc exp run -S` changes the same file, but not what stages read through a YAML alias; here the value is changed where
it is written, and all datasets that share it are named.
"""

import shutil
import stat
from itertools import groupby
from pathlib import Path

from cvsi.commands.check import check_blocks
from cvsi.core import params
from cvsi.core.atomic import atomic_file, flush
from cvsi.core.errors import CvsiError
from cvsi.core.yaml_edit import Change, Document, changed, one_line

SHOWN = 200  # characters of a value that are printed
ADDED = "revision"  # a key that a block may lack and that is set by name, since cvsi check --download says so
ALIASED = ("captioners", "editors", "readers")  # stages read these through the datasets alone


def set_value(key: str, value: str, path: Path = params.PATH) -> list[str]:
    """Change one value of params.yaml and describe the change, one line per fact; the file is replaced as a whole.

    The `revision` of a model's block is added where it is missing.

    Raises CvsiError, with the file unchanged, for a key that does not exist, a value that the checks of `cvsi check`
    refuse, a file that cannot be written, and a file that another program changed in the meantime.
    """
    before = read(path)
    try:
        document = Document(before.decode(), str(path))
        parent, _, name = key.rpartition(".")
        new = name == ADDED and not document.has(key) and document.has(f"{parent}.model")
        change = document.add(key, value) if new else document.set(key, value)
        after = Document(change.text, str(path))
    except RecursionError:
        raise CvsiError(f"{path}: nested too deeply for settings") from None
    lines = list(_words(key, change, document, after))
    if change.text != document.text:
        replace(path, before, change.text)
    return lines


def read(path: Path) -> bytes:
    """The bytes of params.yaml; raises CvsiError where it is missing, is no UTF-8 or cannot be replaced."""
    try:
        content, mode = path.read_bytes(), path.stat().st_mode
        content.decode()
    except FileNotFoundError:
        raise CvsiError(f"{path}: no such file; run in the project's folder, where params.yaml is") from None
    except UnicodeDecodeError as error:
        raise CvsiError(f"{path}: not UTF-8 text ({error})") from None
    except OSError as error:
        raise CvsiError(f"{path}: cannot be read ({error.strerror})") from None
    # A rename would replace a read-only file, too, and root may write any; the mode says what its owner wants.
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise CvsiError(f"{path}: the file is read-only and unchanged; to change it, run chmod u+w {path} first")
    return content


def replace(path: Path, before: bytes, text: str) -> None:
    """Check a new text of params.yaml and put it in place of the one that was read, completely or not at all.

    Raises CvsiError, with the file unchanged, if a check refuses the text or the file is not the one that was read.
    """
    try:
        check_blocks(params.parse(text, path))
    except CvsiError as error:
        raise CvsiError(f"{error}; {path} is unchanged") from None
    target = path.resolve()  # a link stays one
    try:
        with atomic_file(target) as partial:
            partial.write_bytes(text.encode())
            shutil.copymode(target, partial)
            flush(partial)  # so that little time passes between the comparison and the rename
            if target.read_bytes() != before:
                raise CvsiError(f"{path}: another program changed the file meanwhile; it keeps that; run again")
    except OSError as error:
        raise CvsiError(f"{path}: cannot be written ({error.strerror or error}); it is unchanged") from None


def _words(key: str, change: Change, before: Document, after: Document) -> list[str]:
    """What changed, from what to what, who shares it, and what to do next."""
    old, new = _shown(before.get(key)) if before.has(key) else "not set", _shown(after.get(key))
    if change.text == before.text:
        return [f"{key}: is {old} already; nothing changed"]
    facts = [f"{change.key}: {old} -> {new}"]
    if change.merged_from:
        facts.append(f"in place of the value merged from {change.merged_from}")
    sharers = _sharers(change.key, before, after)
    if sharers:
        facts.append(f"shared by {sharers}")
    elif change.key.split(".")[0] in ALIASED:
        facts.append("used by no dataset, so no result changes")
    lines = ["; ".join(facts)]
    if key != change.key and not change.merged_from:
        lines.insert(0, f"{key} is written at {change.key}")
    return lines


def _sharers(key: str, before: Document, after: Document) -> str:
    """The entries besides the changed one whose values changed with it: `the datasets a, b and the backbone c`."""
    entries = list(dict.fromkeys(path[:2] for path in changed(before.data, after.data)))
    names = {entry: f"{'.'.join(entry)}." for entry in entries}
    others = [entry for entry, name in names.items() if not (f"{key}.".startswith(name) or name.startswith(f"{key}."))]
    parts = []
    for section, group in groupby(others, key=lambda entry: entry[0]):
        sharing = [entry[-1] for entry in group]
        noun = section if len(sharing) > 1 else section.removesuffix("s")
        parts.append(f"the {noun} {', '.join(sharing)}")
    return " and ".join(parts)


def _shown(value: object) -> str:
    text = one_line(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
