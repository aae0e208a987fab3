"""params.yaml: the project's own file, and one clear line for each way to get it wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cvsi.core import params
from cvsi.core.errors import CvsiError
from tests.conftest import project_params
from tests.imports import ROOT


def test_the_project_file_is_valid_and_only_demo_is_active() -> None:
    settings = params.load(ROOT / "params.yaml")
    assert settings.active == ("demo",)
    assert settings.dataset("demo").own == {}
    assert settings.dataset("fashioniq-dress").own == {"category": "dress"}  # the key of its format alone
    assert settings.used_datasets == ["demo"] and settings.used_backbones == ["tiny"]


def change(content: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        content = content[parent]
    content[last] = value


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("fusion", 1, "fusion: unknown key"),
        (
            "datasets.demo.captioner",
            "blip2",
            "datasets.demo.captioner: Input should be a valid dictionary (got 'blip2')",
        ),
        (
            "datasets.demo.fusion",
            1,
            "datasets.demo.fusion: must be weights (query and gallery) or the name of a method",
        ),
        ("datasets.demo.prompts", {"editd": "general"}, "datasets.demo.prompts.editd: unknown key"),
        ("datasets.demo.bad_images", "ignore", "datasets.demo.bad_images: Input should be 'stop' or 'drop'"),
        ("datasets.demo.format", ["circo"], "datasets.demo.format: Input should be a valid string"),
        ("active", ["nothing"], "active names 'nothing'"),
        ("runs.demo-tiny.backbone", "huge", "runs.demo-tiny names backbone 'huge'"),
        ("compute.device", "tpu", "compute.device"),
        ("world.seed", -1, "world.seed"),
        ("store", "s3://team/store", "store: not a folder; the store is one on a disk"),
        ("store", "", "store: String should have at least 1 character"),
        ("runs", {"../up": {"dataset": "demo", "backbone": "tiny"}}, "runs.../up"),
    ],
)
def test_one_line_names_key_and_value(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    content = project_params()
    change(content, key, value)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(CvsiError) as error:
        params.load(file)
    assert expected in str(error.value) and str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    content = project_params()
    del content["datasets"]["demo"]["editor"]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(CvsiError, match=r"datasets\.demo\.editor: key is missing"):
        params.load(file)


def test_broken_yaml_and_no_file(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    with pytest.raises(CvsiError, match="no such file"):
        params.load(file)
    file.write_text("active: [demo\nruns: {", encoding="utf-8")
    with pytest.raises(CvsiError, match="not valid YAML") as error:
        params.load(file)
    assert "\n" not in str(error.value)


def test_unknown_names_list_the_known_ones() -> None:
    settings = params.load(ROOT / "params.yaml")
    with pytest.raises(CvsiError, match=r"no dataset 'flickr'; there are: .*demo"):
        settings.dataset("flickr")
    with pytest.raises(CvsiError, match=r"no backbone 'huge'; there are: .*tiny"):
        settings.backbone("huge")


class Own(params.Settings):
    number: int = 1


def test_a_block_is_checked_by_what_it_belongs_to() -> None:
    assert params.checked(Own, {"number": 2}, "datasets.demo") == Own(number=2)
    with pytest.raises(CvsiError) as error:
        params.checked(Own, {"number": "x", "nubmer": 2}, "datasets.demo")
    assert str(error.value) == (
        "params.yaml: datasets.demo.number: Input should be a valid integer, unable to parse string as an integer "
        "(got 'x'); datasets.demo.nubmer: unknown key"
    )
