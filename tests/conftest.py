"""Workspaces for tests: a toy dataset of eight drawn pictures, and a cut demo world that real stages run on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

from tests.imports import ROOT

# As `cvsi` does, but here before any test file loads torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
CUT_WORLD = {"seed": 1, "gallery": 260, "val": 24, "test": 8}
SMALL_BLOCKS = {"caption_batch": 20, "edit_batch": 4, "image_batch": 16, "text_batch": 32, "block_batches": 1}


def project_params() -> dict[str, Any]:
    """The repository's params.yaml, with the models' paths made absolute so that any working directory will do."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("demo/weights", str(ROOT / "demo" / "weights"))
    return yaml.safe_load(text)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Workspace:
    """A working directory with a params.yaml, in which stages are run as commands."""

    path: Path

    def params(self, **changes: Any) -> dict[str, Any]:
        """Change params.yaml by dotted names (`datasets__toy__root=...`); its content."""
        file = self.path / "params.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for name, value in changes.items():
            *places, last = name.split("__")
            part = content
            for place in places:
                part = part[place]
            part[last] = value
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return content  # type: ignore[no-any-return]

    def start(self, stage: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a stage in the background, the workspace's own script where it has one."""
        place = self.path if (self.path / "stages").is_dir() else ROOT
        command = [sys.executable, str(place / "stages" / f"{stage}.py"), *arguments]
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

    def error(self, stage: str, *arguments: str) -> str:
        """Run a stage that must fail; its single line on standard error."""
        process = self.start(stage, *arguments)
        _, err = process.communicate()
        assert process.returncode == 1, err
        lines = err.strip().splitlines()
        assert len(lines) == 1 and "Traceback" not in err, err
        return lines[0]

    def bytes_below(self, *places: str) -> dict[str, bytes]:
        """Every file below these folders of the cache, by name."""
        files = [
            file for place in places for file in sorted((self.path / "cache" / place).rglob("*")) if file.is_file()
        ]
        return {file.relative_to(self.path).as_posix(): file.read_bytes() for file in files}


def environment(folder: Path) -> dict[str, str]:
    """This environment with the virtual environment's commands first, and the folder's own copy of the code if any."""
    changes = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
    if (folder / "cvsi").is_dir():
        changes["PYTHONPATH"] = str(folder)
    return os.environ | changes


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


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy of the project with a cut world, after one `dvc repro` of everything, the real models included."""
    path = tmp_path_factory.mktemp("project")
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
    return workspace


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
    place = ROOT.parent / "shared"
    if not place.is_dir():
        pytest.skip(f"{place} is not there")
    yield place
