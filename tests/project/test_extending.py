"""docs/extending.md as a test: its six examples, installed as a package outside cvsi, run through the stages."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.conftest import Workspace, environment, project_params
from tests.imports import ROOT

DOCUMENT = ROOT / "docs" / "extending.md"
FILE = re.compile(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLOURS = ("red", "green", "blue", "darkred", "darkgreen", "navy", "salmon", "lime", "skyblue")


def install(folder: Path) -> None:
    """Write the document's files into a folder, with the metadata that an installed package has."""
    files = dict(FILE.findall(DOCUMENT.read_text(encoding="utf-8")))
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8")
    groups = project["entry-points"].items()
    text = "\n".join(f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in points.items()) for group, points in groups)
    (info / "entry_points.txt").write_text(text, encoding="utf-8")


class Extended(Workspace):
    """A workspace whose stages find the package."""

    def start(self, stage: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *arguments]
        return subprocess.Popen(
            command, cwd=self.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment()
        )

    def environment(self) -> dict[str, str]:
        return environment(self.path) | {"PYTHONPATH": os.pathsep.join([str(self.path / "toys"), str(ROOT)])}

    def cvsi(self, *arguments: str) -> str:
        command = [sys.executable, "-c", "from cvsi.commands.main import main; main()", *arguments]
        return subprocess.run(
            command, cwd=self.path, text=True, capture_output=True, env=self.environment(), check=False
        ).stdout


def example_params() -> dict[str, Any]:
    """The project's params.yaml with the blocks of the document."""
    content = project_params()
    methods, dataset = YAML.findall(DOCUMENT.read_text(encoding="utf-8"))
    content |= yaml.safe_load(methods)
    blocks = yaml.safe_load(dataset.replace("*tiny_editor", "{}"))
    blocks["datasets"]["toys"] |= {"root": "photos", "editor": content["datasets"]["demo"]["editor"]}
    content["datasets"] |= blocks.pop("datasets")
    content |= blocks
    return content


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Extended:
    """A workspace with the package, nine plain images and three queries; index and captions were run."""
    folder = tmp_path_factory.mktemp("extending")
    install(folder / "toys")
    (folder / "photos").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (40, 40), colour).save(folder / "photos" / f"{colour}.png")
    lines = ["reference,instruction,target", "red.png,is green,green.png", "blue.png,is red,red.png"]
    (folder / "photos" / "pairs.csv").write_text("\n".join([*lines, "lime.png,is blue,skyblue.png"]) + "\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(example_params(), sort_keys=False), encoding="utf-8")
    workspace = Extended(folder)
    workspace.run("index", "toys")
    workspace.params(compute={"executor": "backwards", "caption_batch": 2, "block_batches": 1})
    workspace.run("captions", "toys")
    return workspace


def edit(workspace: Workspace) -> None:
    """Edits as another program would write them: the language model is tested elsewhere."""
    queries = pl.read_parquet(workspace.path / "cache/toys/index/queries.parquet")
    edits = queries.select(
        "query_id", "split", edited=pl.concat_list("instruction"), added=pl.lit(""), status=pl.lit("ok")
    )
    folder = workspace.path / "cache/toys/edits"
    folder.mkdir(exist_ok=True)
    pq.write_table(edits.to_arrow().cast(edits.to_arrow().schema), folder / "part-00000.parquet", store_schema=False)


def test_the_format_and_the_engine_work_through_index_and_captions(toys: Extended) -> None:
    images = pl.read_parquet(toys.path / "cache/toys/index/images.parquet")
    assert images["image_id"].to_list() == sorted(f"{colour}.png" for colour in COLOURS)
    captions = dict(pl.read_parquet(toys.path / "cache/toys/captions/*.parquet")["image_id", "captions"].iter_rows())
    assert captions["navy.png"] == ["the blue picture"] * 2 and captions["lime.png"] == ["the green picture"] * 2


def test_the_executor_computed_the_last_block_first(toys: Extended) -> None:
    files = sorted((toys.path / "cache/store/captions").glob("*/*.parquet"))
    digests = pl.read_parquet(toys.path / "cache/toys/index/images.parquet")["digest"].to_list()
    stored = [digests.index(key) for file in files for key in pl.read_parquet(file)["key"]]
    assert stored == [8, 6, 7, 4, 5, 2, 3, 0, 1]


def test_the_component_the_methods_and_the_score_form_reach_the_report(toys: Extended) -> None:
    edit(toys)
    for stage in ("gallery_vectors", "query_vectors", "scores", "report"):
        toys.run(stage, "toys", "tiny")
    vectors = pl.read_parquet(toys.path / "cache/toys/tiny/query_vectors/*.parquet")
    assert "first_caption" in vectors.columns
    metrics = json.loads((toys.path / "cache/toys/tiny/scores/metrics.json").read_text())["val"]
    ranks = pl.read_parquet(toys.path / "cache/toys/tiny/scores/per_query.parquet")
    reciprocal = (100 / ranks["target_ranks"].list.first()).to_list()
    assert metrics["MRR"] == pytest.approx(sum(reciprocal) / 3) and ranks["MRR"].to_list() == pytest.approx(reciprocal)
    methods = pl.read_parquet(toys.path / "cache/toys/tiny/report/methods.parquet")
    assert {"cvsi", "first-caption", "clipped-edit", "pdv"} <= set(methods["method"])
    of = {name: rows for (name,), rows in methods.group_by("method")}
    assert methods["method"][0] == "first-caption"  # the dataset's own fusion
    assert of["first-caption"]["target_ranks"].to_list() == ranks["target_ranks"].to_list()


def test_check_packs_and_clean_up_work_with_the_new_names(toys: Extended) -> None:
    shown = toys.cvsi("check")
    assert "9 of 9" in shown or "0 of 9" in shown, shown
    assert "nothing" in shown  # every caption is stored
    toys.cvsi("pack", "toys", "packed", "--only", "captions")
    recipe = json.loads((toys.path / "packed/captions/recipe.json").read_text())
    assert recipe["engine"] == "colours" and recipe["article"] == "the"
    assert "captions complete: 9 distinct images" in toys.cvsi("unpack", "packed")
    assert re.search(r"captions .* toys ", toys.cvsi("store"))
