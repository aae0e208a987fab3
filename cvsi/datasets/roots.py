"""A dataset's `root` and `roots` to the folders in which its files, and the targets of their links, may be.

A dataset comes from others, so a link in it may lead only into the dataset's folder, into a folder that `roots` of
params.yaml names, or into the files of this project's DVC cache, to which DVC links data. Nothing in a dataset can add
a folder.
"""

import configparser
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Dataset
from cvsi.core.paths import DVC_CACHE

MAX_LINKS = 40  # links in one path, as in Linux
CACHE_FILES = Path("files", "md5")  # below a cache folder of DVC: its files, by digest


class Roots:
    """The folders of one dataset; real paths of folders are looked up once each."""

    def __init__(self, root: Path, further: Iterable[str | Path] = ()) -> None:
        """`root` of a dataset, and its `roots`."""
        self.root, self.further = root, tuple(map(Path, further))
        self._real: dict[str, str] = {}
        self._own = tuple(self.real(folder) for folder in (root, *self.further))
        self._within = tuple(f"{folder.rstrip('/')}/" for folder in self._own)
        self._in_cache = tuple(f"{self.real(folder)}/" for folder in dvc_cache_files())

    def __iter__(self) -> Iterator[Path]:
        """The root, then the further ones."""
        return iter((self.root, *self.further))

    def real(self, path: str | Path, links: int = 0) -> str:
        """The absolute path with every link followed; raises OSError for a circle of links."""
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
        full = os.fspath(path)
        parent, name = os.path.split(full if full.startswith("/") else os.path.join(Path.cwd(), full))
        if not name:
            return parent if parent == os.path.dirname(parent) else self.real(parent, links)
        folder = self._real.get(parent)
        if folder is None:
            folder = self._real[parent] = self.real(parent, links)
        if name in (".", ".."):
            return folder if name == "." else os.path.dirname(folder)
        joined = os.path.join(folder, name)
        try:
            target = os.readlink(joined)
        except OSError:  # no link, or nothing at all
            return joined
        return self.real(os.path.join(folder, target), links + 1)

    def outside(self, path: str | Path, cache: bool = True) -> str:
        """The real path where it is in none of the folders, else nothing; with `cache`, DVC's cache is one of them."""
        real = self.real(path)
        allowed = self._within + self._in_cache if cache else self._within
        return "" if real.startswith(allowed) or real in self._own else real

    def target_outside(self, path: Path) -> str:
        """Where the first link of a path below one of the folders leads that leaves them; nothing if none does."""
        base = next(folder for folder in self if path.is_relative_to(folder))
        place = base
        for part in path.relative_to(base).parts:
            place /= part
            if target := self.outside(place):
                return target
        return ""

    def inside(self, path: str) -> str | None:
        """A path that is absolute or has `..` as one relative to the root; None where it is in none of the folders."""
        if "\0" in path:
            return None
        for base in dict.fromkeys((os.path.normpath(self.root.absolute()), self._own[0])):
            below = os.path.relpath(os.path.join(base, path), base)
            if below.split("/", 1)[0] not in ("..", "."):
                return below
        if not Path(path).is_absolute() or not self.further or self.outside(path, cache=False):
            return None
        return self.from_root(Path(path))

    def from_root(self, path: Path) -> str:
        """A file of a further root as a path relative to the root, which every later stage opens."""
        return os.path.relpath(self.real(path.parent), self.real(self.root)) + f"/{path.name}"


def roots_of(dataset: Dataset, name: str) -> Roots:
    """The folders of a dataset; raises CvsiError for one of `roots` that does not exist."""
    for folder in dataset.roots:
        if not Path(folder).is_dir():
            raise CvsiError(
                f"{PATH}: datasets.{name}.roots: {folder}: no such folder; connect its disk or correct the path"
            )
    return Roots(Path(dataset.root), dataset.roots)


def succeeds(test: Callable[[], bool]) -> bool:
    """The result of a test of the file system; no where it fails, for a name that is too long or a circle of links."""
    try:
        return test()
    except OSError:
        return False


def dvc_cache_files() -> list[Path]:
    """The folders with the files of this project's DVC cache: the default one and one that DVC's settings name."""
    project = next(
        (folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / DVC_CACHE.parent).is_dir()), None
    )
    if project is None:
        return []
    settings, folders = project / DVC_CACHE.parent, [project / DVC_CACHE]
    for file in (*_shared_settings(), settings / "config", settings / "config.local"):
        if named := _cache_folder(file):
            folders.append(file.parent / Path(named).expanduser())
    return [folder / CACHE_FILES for folder in folders if (folder / CACHE_FILES).is_dir()]


def _shared_settings() -> tuple[Path, Path]:
    """DVC's settings of this machine and of this user."""
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or "/etc/xdg/dvc"
    configs = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or f"{configs}/dvc"
    return Path(system, "config"), Path(user, "config").expanduser()


def _cache_folder(file: Path) -> str:
    """`dir` of the section `cache` of a settings file of DVC, or nothing."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):  # no file, or one that DVC refuses with its own message
        return ""
    return parser.get(DVC_CACHE.name, "dir", fallback="").strip().strip("\"'")
