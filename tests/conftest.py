"""Workspaces for tests: a toy dataset of eight drawn pictures, and a small demo world that real stages run on."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from PIL import Image, ImageDraw

from tests.imports import ROOT

os.environ.pop("COLUMNS", None)  # pytest-xdist gives its workers one, and tables would have that width

# As `cvsi` does, but here before any test file loads torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Property tests and randomly drawn faults: few examples by default, many with CVSI_TEST_FULL=1 (`make test-slow`).
FULL = os.environ.get("CVSI_TEST_FULL") == "1"
# No deadline, since the cores may be busy; tests whose fixture is a folder leave it as it was.
CHECKS = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
LIMITS: dict[str, Any] = {"deadline": None, "suppress_health_check": CHECKS}
hypothesis.settings.register_profile("few", max_examples=15, **LIMITS)
hypothesis.settings.register_profile("full", max_examples=300, **LIMITS)
hypothesis.settings.load_profile("full" if FULL else "few")

# All stages after the world's, one after the other in one process, which saves a minute of imports.
ALL_STAGES = """
import sys
from cvsi.core import params
from cvsi.datasets import index
from cvsi.evaluation import scores
from cvsi.evaluation.report import build as report
from cvsi.pipeline import captions, edits, vectors
dataset, backbone = sys.argv[1:]
content = params.load()
for stage in (index.build, captions.write, edits.write):
    stage(dataset, content)
for stage in (vectors.write_gallery, vectors.write_queries, scores.build, report.build):
    stage(dataset, backbone, content)
"""
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
CUT_WORLD = {"seed": 1, "gallery": 260, "val": 24, "test": 8}
SMALL_BLOCKS = {"caption_batch": 20, "edit_batch": 4, "image_batch": 16, "text_batch": 32, "block_batches": 1}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With CVSI_TEST_FULL=1, property tests count as slow, so that `-m slow` runs them with the full count."""
    for item in items:
        if FULL and getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.slow)


def project_params() -> dict[str, Any]:
    """The repository's params.yaml, with the models' paths made absolute so that any working directory will do.

    The demo has no reader: tests of readers bring their own, and to the others it would be one more start of vLLM.
    """
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("demo/weights", str(ROOT / "demo" / "weights"))
    content = yaml.safe_load(text)
    del content["datasets"]["demo"]["reader"]
    return content  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Workspace:
    """A working directory with a params.yaml, in which stages are run as commands."""

    path: Path

    def params(self, **changes: Any) -> dict[str, Any]:
        """Change params.yaml by dotted names (`datasets__toy__root=...`); its content."""
        file = self.path / "params.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for name, value in changes.items():
            *parents, last = name.split("__")
            part = content
            for parent in parents:
                part = part[parent]
            part[last] = value
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return content  # type: ignore[no-any-return]

    def start(self, stage: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a stage in the background, the workspace's own script where it has one."""
        root = self.path if (self.path / "stages").is_dir() else ROOT
        command = [sys.executable, str(root / "stages" / f"{stage}.py"), *arguments]
        return subprocess.Popen(
            command,
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(self.path),
        )

    def run(self, stage: str, *arguments: str, code: int = 0) -> str:
        """Run a stage to its end; what it printed (both streams). Fails when the exit code is another one."""
        process = self.start(stage, *arguments)
        out, err = process.communicate()
        assert process.returncode == code, f"{stage}: exit {process.returncode}\n{out}\n{err}"
        return out + err

    def run_all(self, dataset: str, backbone: str) -> str:
        """Run all stages of a dataset in one process; what they printed."""
        command = [sys.executable, "-c", ALL_STAGES, dataset, backbone]
        done = subprocess.run(command, cwd=self.path, env=environment(self.path), text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def error(self, stage: str, *arguments: str) -> str:
        """Run a stage that must fail; its single line on standard error."""
        process = self.start(stage, *arguments)
        _, err = process.communicate()
        assert process.returncode == 1, err
        lines = err.strip().splitlines()
        assert len(lines) == 1 and "Traceback" not in err, err
        return lines[0]

    def bytes_below(self, *folders: str) -> dict[str, bytes]:
        """Every file below these folders of the cache, by name."""
        files = [
            file for folder in folders for file in sorted((self.path / "cache" / folder).rglob("*")) if file.is_file()
        ]
        return {file.relative_to(self.path).as_posix(): file.read_bytes() for file in files}


def environment(folder: Path) -> dict[str, str]:
    """This environment with the virtual environment's commands first, and the folder's own copy of the code if any.

    Bytecode is written beside the code, as it is for most users: DVC must not take it for code, and without it each
    process compiles the libraries again.
    """
    changes = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
    if (folder / "cvsi").is_dir():
        changes["PYTHONPATH"] = str(folder)
    without = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    return {name: value for name, value in os.environ.items() if name not in without} | changes


def draw_pictures(folder: Path) -> list[str]:
    """Eight pictures of one coloured disc each; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, colour in enumerate(COLOURS):
        image = Image.new("RGB", (64, 48 + 4 * number), "grey")
        ImageDraw.Draw(image).ellipse((10, 10, 40, 40), fill=colour)
        names.append(f"{colour}.png")
        image.save(folder / names[-1])
    return names


def write_queries(folder: Path, *queries: dict[str, Any]) -> None:
    """Write `queries.jsonl`."""
    lines = [json.dumps(query) for query in queries]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose dataset `toy` is a folder of eight pictures with two labelled queries and a hidden one."""
    monkeypatch.chdir(tmp_path)
    draw_pictures(tmp_path / "photos")
    write_queries(
        tmp_path / "photos",
        {"reference": "red.png", "instruction": "is green", "targets": ["green.png", "blue.png"]},
        {"reference": "blue.png", "instruction": "is yellow", "targets": ["yellow.png"]},
        {"reference": "black.png", "instruction": "costs $5 & is <b>white</b>"},
    )
    content = project_params()
    content["datasets"]["toy"] = content["datasets"]["demo"] | {"format": "folder", "root": "photos"}
    content |= {"active": ["toy"], "runs": {"toy-tiny": {"dataset": "toy", "backbone": "tiny"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Workspace(tmp_path)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one worker of this test run makes; the other workers wait for it, and all of them only read it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, partial = base / name, base / f"{name}.partial"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy of the project with a small world, after one `dvc repro` of everything, the real models included.

    That run is made once, and each worker has its own copy; a test leaves it as it was.
    """
    path = tmp_path_factory.mktemp("own") / "project"
    shutil.copytree(made_once(tmp_path_factory, "reproduced", reproduce), path, symlinks=True)
    return Workspace(path)


def reproduce(path: Path) -> None:
    """Copy the project to a folder and run everything there."""
    copied = ["stages", "cvsi", "demo", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"]
    for name in copied:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, path / name)
    workspace = Workspace(path)
    workspace.params(world=CUT_WORLD, compute={"device": "auto"} | SMALL_BLOCKS)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "config", "core.analytics", "false"]):
        subprocess.run(command, cwd=path, check=True, env=environment(path), capture_output=True)
    repro(workspace)


def repro(workspace: Workspace, *arguments: str) -> tuple[list[str], str]:
    """Run `dvc repro`; the stages that ran, index and world left out, and everything printed."""
    done = subprocess.run(
        ["dvc", "repro", *arguments],
        cwd=workspace.path,
        env=environment(workspace.path),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    ran = [line.split("'")[1].split("@")[0] for line in lines if line.startswith("Running stage")]
    return [stage for stage in ran if stage not in ("index", "world")], done.stdout


@pytest.fixture
def shared() -> Iterator[Path]:
    """The folder of shared material beside the project, or a skip."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    yield folder
