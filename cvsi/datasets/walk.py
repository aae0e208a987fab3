"""A folder of photos to the files below it: images by suffix or content, and everything that is not read, by kind."""

import fnmatch
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cvsi.core.console import count
from cvsi.core.images import SIGNATURE_BYTES, SUFFIXES, is_image_start
from cvsi.datasets.base import OUTSIDE_ROOT, split_suffix
from cvsi.datasets.roots import Roots, succeeds

Folder = tuple[str, str, tuple[str, ...]]  # the beginning of its files' paths, where it is, real paths from the root on
Skipped = dict[tuple[str, str], list[str]]  # names by noun and kind
READERS = 16  # files opened at once: on a network disk most of the time is latency
SHOWN = 3  # names of a kind in a message
ROOTS_ADVICE = "to follow such a link, add the folder it leads to to the dataset's roots in params.yaml"


class Walk:
    """The files below a root, links to folders followed within the dataset's folders.

    A link to a folder is followed once per target, and never to a folder that contains the link: the paths stay few,
    whatever the links.
    """

    def __init__(self, roots: Roots, ignore: Sequence[str], annotations: Iterable[str]) -> None:
        """Walk the root; `annotations` are names of its files that are neither images nor skipped."""
        self.images: list[str] = []
        self.skipped: Skipped = {}
        self._roots, self._annotations, self._unnamed = roots, frozenset(annotations), list[str]()
        self._ignore = [(pattern, re.compile(fnmatch.translate(_composed(pattern.rstrip("/"))))) for pattern in ignore]
        self._linked = set[str]()
        pending: list[Folder] = [("", str(roots.root), (roots.real(roots.root),))]
        for folder in pending:  # level by level, as the list grows, so that of several links the shortest path counts
            pending += self._folder(*folder)
        self._recognise()
        self.images.sort()

    def _folder(self, prefix: str, folder: str, above: tuple[str, ...]) -> list[Folder]:
        """Sort the entries of a folder; the folders to go on with. `above` are the real paths from the root on."""
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            self._skip("folder", error.strerror or "unreadable", prefix.rstrip("/") or folder)
            return []
        below = []
        for entry in entries:
            path = prefix + entry.name
            is_folder = succeeds(entry.is_dir)
            if kind := self._left_out(path, entry.name):
                self._skip("folder" if is_folder else "file", kind, path)
            elif not is_folder:
                self._file(path, entry)
            elif (real := self._real(path, entry, above)) is not None:
                below.append((f"{path}/", entry.path, (*above, real)))
        return below

    def _left_out(self, path: str, name: str) -> str:
        """Why a name is not read at all, or nothing."""
        return self._ignored(path, name) or ("hidden" if name.startswith(".") else "")

    def _ignored(self, path: str, name: str) -> str:
        composed, whole = _composed(name), _composed(path)
        matching = (pattern for pattern, test in self._ignore if test.match(composed) or test.match(whole))
        return next((f"ignored as {pattern}" for pattern in matching), "")

    def _real(self, path: str, entry: os.DirEntry[str], above: tuple[str, ...]) -> str | None:
        """The real path of a folder to go on with; None where a link is not followed, which is counted."""
        real = self._roots.real(entry.path)
        if not entry.is_symlink():
            return real
        if self._roots.outside(entry.path, cache=False):
            self._skip("folder", OUTSIDE_ROOT, f"{path} -> {real}")
        elif real in above:
            self._skip("folder", "a link to a folder that contains it", path)
        elif real in self._linked:
            self._skip("folder", "a second link to the same folder", path)
        else:
            self._linked.add(real)
            return real
        return None

    def _file(self, path: str, entry: os.DirEntry[str]) -> None:
        suffix = split_suffix(entry.name)[1].lower()
        if suffix in SUFFIXES:
            self.images.append(path)
        elif path in self._annotations:
            pass
        elif suffix:
            self._skip("file", suffix, path)
        elif succeeds(entry.is_file) and not self._roots.outside(entry.path):
            self._unnamed.append(path)
        else:
            self._skip("file", OUTSIDE_ROOT if succeeds(entry.is_file) else "no regular file", path)

    def _recognise(self) -> None:
        """Sort the files without a suffix by their first bytes."""
        with ThreadPoolExecutor(READERS) as pool:
            for path, kind in zip(self._unnamed, pool.map(self._without_suffix, self._unnamed), strict=True):
                if kind:
                    self._skip("file", kind, path)
                else:
                    self.images.append(path)

    def _without_suffix(self, path: str) -> str:
        """Nothing for an image, else the kind of the file."""
        try:
            with (self._roots.root / path).open("rb") as file:
                return "" if is_image_start(file.read(SIGNATURE_BYTES)) else "without a suffix"
        except OSError as error:
            return error.strerror or "unreadable"

    def _skip(self, noun: str, kind: str, name: str) -> None:
        self.skipped.setdefault((noun, kind), []).append(name)


def skipped_lines(skipped: Skipped) -> list[str]:
    """A line for files and one for folders that are not read: how many of each kind, and the first names."""
    lines = []
    for noun in dict.fromkeys(noun for noun, _ in skipped):
        kinds = {kind: names for (own, kind), names in skipped.items() if own == noun}
        listed = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
        parts = [
            f"{len(names):,} {kind} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
            for kind, names in listed
        ]
        advice = f"; {ROOTS_ADVICE}" if OUTSIDE_ROOT in kinds else ""
        lines.append(f"{count(sum(map(len, kinds.values())), noun)} not read: {', '.join(parts)}{advice}")
    return lines


def _composed(text: str) -> str:
    """The Unicode form that most systems write, so that a pattern matches names of all."""
    return unicodedata.normalize("NFC", text)
