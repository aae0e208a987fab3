"""The toy dataset under the project's own DVC file; its outputs are written by tests and committed as the stages'."""

import shutil

from dvc.repo import Repo

from tests.conftest import Workspace
from tests.imports import ROOT
from tests.project.collaboration import call


def track(toy: Workspace) -> None:
    """Put a workspace with the outputs of all stages of its run under git and DVC, every stage up to date."""
    for name in ("stages", "cvsi"):
        shutil.copytree(ROOT / name, toy.path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, toy.path)
    for name in ("demo/world", "demo/weights/clip", "data/demo/annotations"):
        (toy.path / name).mkdir(parents=True)
    for name in ("demo/world/a", "demo/weights/clip/a", "stages/world.py", "demo/weights/phi.safetensors"):
        (toy.path / name).touch()
    (toy.path / "data/demo/annotations/val.json").touch()
    (toy.path / ".gitignore").write_text("/cache\n/data\n/models\n__pycache__\n")
    for command in ("git init -q", "dvc init -q", "dvc config core.analytics false", "dvc commit -q -f"):
        call(toy, *command.split())


def changed_stages(toy: Workspace) -> list[str]:
    """The stages with a changed dependency or output, `index` left out, which always looks."""
    names = (
        name.rpartition(":")[2] for name in Repo(str(toy.path)).status()
    )  # a folder's, if it is not the working one
    return [name for name in names if not name.startswith("index@")]
