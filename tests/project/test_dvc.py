"""The pipelines' descriptions against the code: every stage lists the folders it imports from, and no others."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import ROOT, imported


def stages(file: str) -> dict[str, Any]:
    """The stages of a dvc.yaml; of a foreach, its pattern."""
    content: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in content.items()}


STAGES, TRAINING = stages("dvc.yaml"), stages("training/dvc.yaml")
# DVC compares no dependency of a stage that is always run, so listing its code would have no effect.
COMPARED = {name: entry for name, entry in (STAGES | TRAINING).items() if not entry.get("always_changed")}


def script_of(entry: dict[str, Any]) -> Path:
    """The script that a stage's command runs."""
    words: list[str] = entry["cmd"].split()
    name = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
    return ROOT / name


def code_of(entry: dict[str, Any]) -> list[Path]:
    """The code that a stage lists: files, and folders with Python files."""
    listed = [Path(dep) for dep in entry["deps"] if "$" not in dep and dep.split("/")[0] in ("cvsi", "demo", "stages")]
    return [path for path in listed if path.suffix == ".py" or list((ROOT / path).glob("*.py"))]


@pytest.mark.parametrize("stage", COMPARED)
def test_a_stage_lists_all_code_it_imports(stage: str) -> None:
    listed = code_of(COMPARED[stage])
    needed = [Path(name) for name in imported(script_of(COMPARED[stage])) if name.count("/") > 1 or "stages" in name]
    assert not [path for path in needed if not any(path.is_relative_to(entry) for entry in listed)]


@pytest.mark.parametrize("stage", COMPARED)
def test_a_stage_lists_no_code_it_does_not_import(stage: str) -> None:
    needed = [Path(name) for name in imported(script_of(COMPARED[stage]))]
    listed = code_of(COMPARED[stage])
    assert not [entry for entry in listed if not any(path.is_relative_to(entry) for path in needed)]
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("stage", COMPARED)
def test_no_stage_lists_code_for_people(stage: str) -> None:
    assert not {"cvsi/commands", "cvsi/explorer", "cvsi"} & set(COMPARED[stage]["deps"])


def test_dvc_yaml_is_short() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 220


def test_dvc_ignores_files_that_are_not_code() -> None:
    ignored = ["__pycache__/paths.cpython-311.pyc", ".DS_Store", ".paths.py.swp", "paths.py~"]
    names = [f"cvsi/core/{name}" for name in (*ignored, "paths.py")]
    done = subprocess.run(["dvc", "check-ignore", *names], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.splitlines() == names[:-1], done.stderr


def test_stages_and_scripts_are_the_same() -> None:
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert set(STAGES) | {"train_phi"} == scripts
    assert all(f"stages/{name}.py" in entry["cmd"] for name, entry in STAGES.items())


def test_training_phi_is_apart_from_the_pipeline() -> None:
    assert set(TRAINING) == {"demo_captions", "train_phi"}
    assert not set(STAGES) & set(TRAINING)
    for entry in TRAINING.values():
        assert entry["wdir"] == ".."
        (output,) = entry["outs"]
        assert list(output.values()) == [{"cache": False}]  # else `dvc pull` fails for a phi not trained yet


@pytest.mark.parametrize("script", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40


def test_analytics_are_off() -> None:
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
