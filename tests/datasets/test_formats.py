"""The registry of formats: their own keys of params.yaml, and a format of another package, found by its entry point."""

import json
import subprocess

import polars as pl
import pytest

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.datasets import formats
from tests.conftest import Workspace, draw_pictures, environment
from tests.imports import ROOT

QUERIES = "query_id,reference_id,instruction,target\nq1,red.png,is green,green.png\nq2,blue.png,is black,black.png\n"


def dataset(format: str, **keys: object) -> Dataset:
    known = params.load(ROOT / "params.yaml").dataset("demo").model_dump(exclude_defaults=True)
    return Dataset.model_validate(known | {"format": format} | keys)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (dataset("circo", captoner={}), "params.yaml: datasets.toy.captoner: unknown key"),
        (dataset("folder", category="dress"), "params.yaml: datasets.toy.category: unknown key"),
        (dataset("fashioniq"), "params.yaml: datasets.toy.category: key is missing"),
        (dataset("fashioniq", category="hat"), "datasets.toy.category: Input should be 'dress', 'shirt' or 'toptee'"),
        (dataset("coco"), "params.yaml: datasets.toy.format: unknown format 'coco'; there are: circo, cirr, fashioniq"),
    ],
)
def test_one_line_names_a_key_that_the_format_does_not_have(known: Dataset, expected: str) -> None:
    with pytest.raises(CvsiError) as error:
        formats.settings_of(known, "toy")
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_every_dataset_of_the_project_file_fits_its_format() -> None:
    settings = {
        name: formats.settings_of(known, name) for name, known in params.load(ROOT / "params.yaml").datasets.items()
    }
    parts = {name: known.averaged_as for name, known in settings.items() if known.averaged_as}
    assert parts == {f"fashioniq-{part}": part for part in ("dress", "shirt", "toptee")}


@pytest.fixture
def other_package(toy: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a dataset of format `toy`, which an installed package adds."""
    installed = toy.path / "site-packages" / "toy_format-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-format\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[cvsi.formats]\ntoy = tests.datasets.toy_format:FORMAT\n")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{installed.parent}")
    draw_pictures(toy.path / "data" / "art")
    (toy.path / "data" / "queries.csv").write_text(QUERIES)
    toy.params(datasets__toy__format="toy", datasets__toy__root="data", datasets__toy__folder="art")
    return toy


def test_a_format_of_another_package_is_indexed_and_its_keys_are_checked(other_package: Workspace) -> None:
    assert "8 images, 2 queries, 2 of 2 references among the gallery" in other_package.run("index", "toy")
    folder = other_package.path / "cache" / "toy" / "index"
    queries = pl.read_parquet(folder / "queries.parquet")
    assert queries.select("query_id", "split", "target_ids").rows() == [
        ("q1", "val", ["green.png"]), ("q2", "val", ["black.png"]),
    ]  # fmt: skip
    assert pl.read_parquet(folder / "images.parquet")["path"][0] == "art/black.png"
    assert json.loads((folder / "provenance.json").read_bytes())["folder"] == "art"
    other_package.params(datasets__toy__fodler="art")
    assert other_package.error("index", "toy").endswith("params.yaml: datasets.toy.fodler: unknown key")


def test_its_metric_is_computed_from_the_ranks(other_package: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(other_package.path / "site-packages")
    monkeypatch.setattr(formats.FORMATS, "_registered", {})
    protocol = formats.format_of(params.load().dataset("toy"), "toy").protocol
    ranks = pl.DataFrame({"target_ranks": [[4], [None]]}, schema={"target_ranks": pl.List(pl.Int32)})
    assert {name: values.tolist() for name, values in protocol.values(ranks).items()} == {
        "MRR": [25, 0],
        "Recall@1": [0, 0],
    }


def test_its_submission_is_recognised_and_checked_against_its_own_annotations(other_package: Workspace) -> None:
    (other_package.path / "a.json").write_text(json.dumps({"task": "toy", "q1": ["green.png"], "q3": [1]}))
    (other_package.path / "queries.json").write_text(QUERIES)  # an annotation file has this suffix, whatever is in it
    done = subprocess.run(
        ["cvsi", "check-submission", "a.json", "--queries", "queries.json"],
        cwd=other_package.path, env=environment(other_package.path), text=True, capture_output=True,
    )  # fmt: skip
    assert done.stderr.splitlines() == [
        "cvsi: a.json: query q3: image 1 is 1, the server expects a string",
        "cvsi: a.json: query q2 is missing",
        "cvsi: a.json: query 'q3' is not one of the split's",
    ]


def test_a_format_whose_module_does_not_load_is_one_line(other_package: Workspace) -> None:
    points = next(other_package.path.glob("site-packages/*/entry_points.txt"))
    points.write_text("[cvsi.formats]\ntoy = no_such_module:FORMAT\n")
    line = other_package.error("index", "toy")
    assert "params.yaml: datasets.toy.format: format 'toy' (no_such_module:FORMAT) does not load: No module" in line
