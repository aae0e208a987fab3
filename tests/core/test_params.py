"""params.yaml: the project's own file, and one clear line for each way to get it wrong."""

from pathlib import Path
from typing import Any

import dvc.utils.serialize as dvc_yaml
import pytest
import yaml
from dvc.exceptions import DvcException

from cvsi.core import params, paths
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


TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("store: cache/store", "store: cache/store\nactive: [circo]", r"key active is given twice, in lines 3 and \d+"),
        ("  seed: 1\n", "  seed: 1\n  seed: 2\n", "key world.seed is given twice, in lines 9 and 10; keep one"),
        (
            "{dataset: demo, ",
            "{dataset: demo, dataset: demo, ",
            "key runs.demo-tiny.dataset is given twice, in line 6;",
        ),
        ("active: [demo]  ", "active: [demo]\n'active': [demo]\n", "key active is given twice, in lines 3 and 4;"),
        ("methods: {}", "methods: {a: [{b: 1, b: 2, b: 3}]}", r"key methods.a\[0\].b is given 3 times, in line \d+;"),
        ("    <<: *cirr\n", "    <<: *cirr\n    <<: *cirr\n", "key datasets.cirr-test1.<< is given twice, in lines"),
        ("methods: {}", "methods: {1: {}, 1: {}}", "key methods.1 is given twice"),
        (
            "methods: {}",
            "methods: {}\nruns: {}\nactive: []",
            r"key active is given twice, in lines 3 and \d+; key runs is given twice, in lines 5 and \d+; keep one",
        ),
        ("    n: 5\n", "    n: 5\n    ? n\n    : 6\n", "key captioners.tiny.n is given twice"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_lines_as_dvc_refuses_it(
    tmp_path: Path, before: str, after: str, expected: str
) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(TEXT.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(CvsiError, match=expected) as error:
        params.load(file)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{file}: key ")
    with pytest.raises(DvcException):
        dvc_yaml.load_yaml(str(file))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("    <<: *cirr\n", "    <<: [*cirr, *benchmark]\n    root: elsewhere\n"),  # merged keys may be overridden
        ("methods: {}", "methods: {a: &a {x: 1}, b: *a, c: *a}"),  # one mapping, several times
        ("methods: {}", "methods: {a: {x: 1}, b: {x: 1}}"),
        ("methods: {}", 'methods: {a: {x: "methods: {}"}}  # methods: {}'),
    ],
)
def test_merges_aliases_and_equal_keys_of_other_mappings_are_allowed(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(TEXT.replace(before, after, 1), encoding="utf-8")
    assert TEXT != file.read_text(encoding="utf-8") and params.load(file).active == ("demo",)
    assert dvc_yaml.load_yaml(str(file))["active"] == ["demo"]


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: &a {b: *a}", "? [1, 2]\n: 3", "a: !!python/object:os.x {}", "[" * 5000]
)
def test_other_yaml_is_one_line_too(tmp_path: Path, text: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CvsiError) as error:
        params.load(file)
    assert "\n" not in str(error.value)


def renamed(tmp_path: Path, noun: str, name: str) -> str:
    """The one line for a dataset or a backbone of this name, besides those that there are; empty where it is taken."""
    content = project_params()
    content[noun][name] = next(iter(content[noun].values()))
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        params.load(file)
    except CvsiError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("noun", ["datasets", "backbones"])
@pytest.mark.parametrize(
    "name",
    [
        "store",
        "Store",
        "STORE",
        "store.",
        "store..",
        ".runs",
        "README.md",
        "readme.MD",
        "Index",
        "edits",
        "verdicts",
        *sorted(paths.reserved()),
    ],
)
def test_a_reserved_name_is_refused(tmp_path: Path, noun: str, name: str) -> None:
    line = renamed(tmp_path, noun, name)
    assert f"{noun}.{name}" in line and "\n" not in line
    assert "the name is reserved" in line or name == ".runs"  # no name begins with a dot


@pytest.mark.parametrize("noun", ["datasets", "backbones"])
@pytest.mark.parametrize("name", ["stores", "my-store", "captions2", "index-1", "runs", "v1.0"])
def test_names_that_only_resemble_reserved_ones_are_allowed(tmp_path: Path, noun: str, name: str) -> None:
    assert renamed(tmp_path, noun, name) == ""


@pytest.mark.parametrize(
    ("noun", "name", "other"),
    [("datasets", "Demo", "demo"), ("datasets", "CIRR-Val", "cirr-val"), ("datasets", "demo.", "demo"),
     ("backbones", "ViT-B-32", "vit-b-32"), ("phis", "TINY", "tiny")],
)  # fmt: skip
def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path, noun: str, name: str, other: str) -> None:
    line = renamed(tmp_path, noun, name)
    assert f"{noun}.{name} and {noun}.{other} would share a folder" in line or f"{other} and {noun}.{name}" in line


def test_every_stage_of_the_pipelines_is_reserved() -> None:
    described = [yaml.safe_load((ROOT / file).read_text())["stages"] for file in ("dvc.yaml", "training/dvc.yaml")]
    stages = {name for content in described for name in content} | {path.stem for path in (ROOT / "stages").glob("*")}
    assert stages - {"__pycache__"} <= set(paths.reserved())
    assert {path.name for path in (paths.STORE, paths.runs_folder())} <= set(paths.reserved())


@pytest.mark.parametrize(
    "store",
    ["cache/demo", "cache/demo/store", "./cache/../cache/demo/x", "cache/Demo", "cache", "./cache/", "cache/.runs/x",
     "data/demo", "data/demo/store", "models/tiny", "link/store"],
)  # fmt: skip
def test_a_store_inside_an_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "cache" / "demo")
    for spelling in (store, str(tmp_path / store)):
        Path("params.yaml").write_text(TEXT.replace("store: cache/store", f"store: {spelling}"), encoding="utf-8")
        with pytest.raises(CvsiError, match=rf"store: \S*{Path(store).name}\S* (lies in|is the folder)") as error:
            params.load()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("store", ["cache/store", "cache/store2", "cache/demo2", "../team", "store", "models/store"])
def test_a_store_of_its_own_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TEXT.replace("store: cache/store", f"store: {store}"), encoding="utf-8")
    assert params.load().store == store
