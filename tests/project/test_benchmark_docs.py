"""docs/benchmarks.md: every block of runs is a valid part of params.yaml, and together they are all benchmark runs."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvsi.core import params
from cvsi.datasets.formats import format_of
from cvsi.models.engines import captioner_of, editor_of
from tests.conftest import project_params
from tests.imports import ROOT

TEXT = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```yaml\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
SCORED = ("circo", "cirr-test1", "fashioniq-dress", "fashioniq-shirt", "fashioniq-toptee")
BACKBONES = ("vit-b-32", "vit-l-14", "vit-bigg-14")


def merged(block: str, folder: Path) -> params.Params:
    """The project's params.yaml with a block's keys in place of its own, read as the stages do."""
    content: dict[str, Any] = project_params() | yaml.safe_load(block)
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return params.load(file)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_a_valid_part_of_the_parameters(block: str, tmp_path: Path) -> None:
    assert set(yaml.safe_load(block)) == {"active", "runs"}
    settings = merged(block, tmp_path)
    assert {run.dataset for run in settings.runs.values()} == set(settings.active)
    for name, run in settings.runs.items():
        assert name == f"{run.dataset}-{run.backbone}"
        assert settings.dataset(run.dataset).benchmark


def test_the_blocks_are_the_fifteen_runs_and_the_validation_of_cirr(tmp_path: Path) -> None:
    runs = [run for block in BLOCKS for run in merged(block, tmp_path).runs.values()]
    pairs = [(run.dataset, run.backbone) for run in runs]
    assert sorted(pairs) == sorted(itertools.product((*SCORED, "cirr-val"), BACKBONES))


def test_sizes_and_files_are_those_of_parameters_and_code() -> None:
    settings = params.load(ROOT / "params.yaml")
    for name in (*SCORED, "cirr-val"):
        dataset = settings.dataset(name)
        assert f"{dataset.root}/" in TEXT
        for number in dataset.sizes.values():
            assert f"{number:,}" in TEXT, f"{name}: {number:,}"
        for submission in format_of(dataset, name).submissions:
            assert f".{submission.metric}.json" in TEXT


def test_every_model_of_the_benchmarks_is_named() -> None:
    settings = params.load(ROOT / "params.yaml")
    circo = settings.dataset("circo")
    for name in (
        captioner_of(circo, "circo").model,
        editor_of(circo, "circo").model,
        *(settings.backbone(name).pretrained for name in BACKBONES),
    ):
        assert name and name in TEXT
