"""The eight stages, where each writes, and a workspace in which all of them ran once without faults.

The stages are run as plain commands, without DVC, on the cut world of tests/conftest.py. The workspace has its own
copy of the package, so that an edit in the repository does not change a run that lasts half an hour.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import CUT_WORLD, SMALL_BLOCKS, Workspace
from tests.faults.answers import EDITOR
from tests.imports import ROOT

COPIED = ("cvsi", "stages", "demo", "params.yaml")
MADE = ("data", "cache")


@dataclass(frozen=True)
class Case:
    """A stage: its arguments, its output below the working directory, its kinds of rows."""

    stage: str
    arguments: tuple[str, ...]
    output: str
    kinds: tuple[str, ...] = ()


IN_ORDER = (
    Case("world", (), "data/demo"),
    Case("index", ("demo",), "cache/demo/index", ("files",)),
    Case("captions", ("demo",), "cache/demo/captions", ("captions",)),
    Case("edits", ("demo",), "cache/demo/edits", ("edits",)),
    Case("gallery_vectors", ("demo", "tiny"), "cache/demo/tiny/gallery_vectors", ("image_vectors", "text_vectors")),
    Case(
        "query_vectors", ("demo", "tiny"), "cache/demo/tiny/query_vectors",
        ("image_vectors", "text_vectors", "pseudo_vectors"),
    ),
    Case("scores", ("demo", "tiny"), "cache/demo/tiny/scores"),
    Case("report", ("demo", "tiny"), "cache/demo/tiny/report"),
)  # fmt: skip
CASES = {case.stage: case for case in IN_ORDER}


def make(path: Path, address: str) -> Workspace:
    """Make a workspace below `path` and run every stage in it; `address` is the editor's server."""
    path.mkdir(parents=True)
    for name in COPIED:
        _copy(ROOT / name, path / name)
    workspace = Workspace(path)
    workspace.params(
        world=CUT_WORLD,
        compute={"device": "auto"} | SMALL_BLOCKS,
        datasets__demo__editor=EDITOR | {"address": address},
        datasets__demo__reader=None,  # one start of vLLM less in every run
    )
    for case in IN_ORDER:
        workspace.run(case.stage, *case.arguments)
    return workspace


def copy(source: Workspace, path: Path, address: str | None = None) -> Workspace:
    """A copy of a workspace below `path`, times of files included; the editor's address may be another."""
    for name in (*COPIED, *MADE):
        _copy(source.path / name, path / name)
    workspace = Workspace(path)
    if address is not None:
        workspace.params(datasets__demo__editor__address=address)
    return workspace


def snapshot(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by its name in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
