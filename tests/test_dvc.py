"""The pipelines' descriptions against the code: every stage lists exactly the modules it imports."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import ROOT, imported


def stages(file: str) -> dict[str, Any]:
    """The stages of a dvc.yaml, the pattern of a foreach in place of the whole."""
    content: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in content.items()}


STAGES, TRAINING = stages("dvc.yaml"), stages("training/dvc.yaml")


@pytest.mark.parametrize("stage", STAGES | TRAINING)
def test_stage_lists_its_imports(stage: str) -> None:
    entry = (STAGES | TRAINING)[stage]
    script = entry["cmd"].split()[1]
    if script == "-m":
        script = entry["cmd"].split()[2].replace(".", "/") + ".py"
    listed = [dep for dep in entry["deps"] if dep.endswith(".py")]
    assert set(listed) == imported(ROOT / script)
    assert len(set(listed)) == len(listed)


def test_stages_and_scripts_are_the_same() -> None:
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert set(STAGES) | {"train_phi"} == scripts
    assert all(f"stages/{name}.py" in entry["cmd"] for name, entry in STAGES.items())


def test_training_phi_stands_apart_from_the_pipeline() -> None:
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
