"""A params.yaml from before the code was divided into packages: it is read unchanged, and each stricter rule is named.

docs/upgrading.md lists the differences.
"""

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.datasets import formats
from cvsi.evaluation import methods
from cvsi.evaluation.fusion import read_fusion
from cvsi.models.engines import captioner_of, editor_of
from tests.conftest import Workspace, environment
from tests.imports import ROOT

OLD = Path(__file__).parent / "data" / "params_67f3d76.yaml"  # named by the commit that it is from


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The old file beside the demo's models."""
    (tmp_path / "params.yaml").write_bytes(OLD.read_bytes())
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)


def test_the_old_file_passes_the_check(workspace: Workspace) -> None:
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Nothing is missing" in result.output


def test_every_old_value_keeps_its_meaning() -> None:
    """Where the two files differ, only new keys are added; and each block gives the settings that it states.

    Changed on purpose: the published backbones' precision, which was not set, what an editor in chat style gets, and
    that the demo has a reader.
    """
    before: dict[str, Any] = yaml.safe_load(OLD.read_text(encoding="utf-8"))
    now: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name in ("vit-b-32", "vit-l-14", "vit-bigg-14"):
        assert now["backbones"][name].pop("precision") == "fp32" and "precision" not in before["backbones"][name]
    now["backbones"] = {name: now["backbones"][name] for name in before["backbones"]}  # there are further ones
    expected = copy.deepcopy(before)
    assert expected["editors"]["qwen"].pop("max_tokens") == 700
    for dataset in [
        dataset for dataset in expected["datasets"].values() if dataset["editor"]["model"].startswith("Qwen/")
    ]:
        dataset["editor"].pop("max_tokens", None)
        dataset["prompts"] = {task: f"chat_{name}" for task, name in dataset["prompts"].items()}
    expected["datasets"]["demo"]["reader"] = now["readers"]["tiny"]
    assert {key: now[key] for key in before} == expected
    content = params.load(OLD)
    for name, block in before["datasets"].items():
        dataset = content.dataset(name)
        assert captioner_of(dataset, name).model_dump().items() >= block["captioner"].items()
        assert editor_of(dataset, name).model_dump().items() >= block["editor"].items()
        assert formats.settings_of(dataset, name).model_dump(exclude_defaults=True) == {
            key: block[key] for key in dataset.own
        }
        form = methods.fusion_of(content, name)
        assert form == read_fusion(block["fusion"], name)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        # Stricter than before: a key that had no effect, or that was needed only later.
        ({"datasets__demo__category": "dress"}, "datasets.demo.category: unknown key"),
        ({"editors__tiny__address": None}, "editors.tiny.address: unknown key"),
        ({"datasets__fashioniq-dress__category": None}, "datasets.fashioniq-dress.category: Input should be 'dress', "),
        # Refused before, too; now by the engine or the registry that the block belongs to.
        ({"editors__tiny__address": "http://localhost:1/v1"}, "editors.tiny.address: unknown key"),
        ({"editors__tiny__engine": "server"}, "editors.tiny.address: key is missing"),
        (
            {"captioners__tiny__engine": "vllm", "captioners__tiny__decoding": "beam-sample"},
            "captioners.tiny.decoding: ",
        ),
        ({"captioners__tiny__engine": "vllm", "captioners__tiny__beams": 5}, "captioners.tiny.beams: "),
        ({"captioners__tiny__engine": "vllm", "captioners__tiny__temperature": 0.001}, "captioners.tiny.temperature: "),
        ({"captioners__tiny__engine": "jax"}, "captioners.tiny.engine: unknown captioner engine 'jax'"),
        ({"datasets__demo__format": "coco"}, "datasets.demo.format: unknown format 'coco'"),
        ({"compute__executor": "slurm"}, "compute.executor: unknown executor 'slurm'"),
    ],
)
def test_a_value_that_is_no_longer_accepted_is_one_line_with_its_key(
    workspace: Workspace, changes: dict[str, Any], line: str
) -> None:
    workspace.params(**changes)
    result = CliRunner().invoke(app, ["check"])
    assert isinstance(result.exception, CvsiError), result.output
    text = str(result.exception)
    assert text.startswith("params.yaml: ") and line in text and "\n" not in text and len(text) < 400, text


@pytest.mark.xdist_group("project")
def test_a_file_without_the_new_key_methods_is_one_line_of_dvc(project: Workspace) -> None:
    """`cvsi` reads the file without it, but the stages `scores` and `report` track it."""
    file = project.path / "params.yaml"
    original = file.read_text(encoding="utf-8")
    content = yaml.safe_load(original)
    del content["methods"]
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    command = ["dvc", "repro", "--single-item", "scores@demo-tiny"]
    done = subprocess.run(
        command, cwd=project.path, env=environment(project.path), text=True, capture_output=True, check=False
    )
    file.write_text(original, encoding="utf-8")
    assert done.returncode != 0
    assert "Parameters 'methods' are missing from 'params.yaml'" in done.stderr and "Traceback" not in done.stderr
