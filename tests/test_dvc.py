"""The pipeline's description against the code: every stage lists exactly the modules it imports."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import ROOT, imported

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_lists_its_imports(stage: str) -> None:
    entry = STAGES[stage].get("do", STAGES[stage])
    listed = {dep for dep in entry["deps"] if dep.endswith(".py")}
    assert listed == imported(ROOT / "stages" / f"{stage}.py")


def test_stages_and_scripts_are_the_same() -> None:
    assert set(STAGES) == {path.stem for path in (ROOT / "stages").glob("*.py")}


@pytest.mark.parametrize("script", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40


def test_analytics_are_off() -> None:
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
