"""The real pipeline on a small world: every model real, vLLM included, run by DVC; which stages a change runs.

The models are loaded once, by the fixture. Later runs that need an editor use a local server in place of vLLM, except
in tests marked `slow`.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from tests.conftest import Workspace, environment, repro, write_queries
from tests.imports import ROOT

# One worker runs all tests on the shared project, which takes a minute to make.
pytestmark = pytest.mark.xdist_group("project")

PATIENCE = 120.0  # seconds for a process to end, also while the cores are busy


def read(project: Workspace, stage: str) -> pl.DataFrame:
    return pl.read_parquet(project.path / "cache" / "demo" / stage / "*.parquet")


def test_the_contract_is_kept(project: Workspace, shared: Path) -> None:
    check = [sys.executable, str(shared / "tools" / "check_contract.py"), "cache", "demo", "tiny"]
    done = subprocess.run(check, cwd=project.path, text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith("0 findings"), done.stdout


def test_captions_describe_and_edits_answer(project: Workspace) -> None:
    captions, edits = read(project, "captions"), read(project, "edits")
    assert captions["captions"].list.len().unique().to_list() == [5]
    words = set(" ".join(captions["captions"].explode()).split())
    assert {"circle", "red", "blue"} <= words
    assert edits.filter(pl.col("status") == "ok").height >= 0.9 * edits.height
    described = captions.select(reference_id="image_id", captions="captions")
    queries = pl.read_parquet(project.path / "cache/demo/index/queries.parquet")
    both = queries.join(described, on="reference_id").join(edits, on=["split", "query_id"])
    changed = [row["edited"] != row["captions"] for row in both.to_dicts()]
    assert sum(changed) >= 0.9 * len(changed)


def test_the_reader_names_what_goes_and_what_comes(project: Workspace) -> None:
    edits = read(project, "edits")
    assert edits.filter(pl.col("reader_status") == "ok").height >= 0.75 * edits.height  # a text twice is "repaired"
    assert edits["target"].list.len().mean() == pytest.approx(1.0, abs=0.1)
    assert {"red", "circle", "striped", "background"} <= set(" ".join(edits["preserve"].explode().drop_nulls()).split())
    gone, new = edits["forbidden"].list.join("; "), edits["desired"].list.join("; ")
    assert ((gone == "") & (new == "")).sum() <= 0.1 * edits.height  # every instruction changes something
    assert (gone == new).sum() <= 0.1 * edits.height


def test_vectors_are_what_the_design_says(project: Workspace) -> None:
    gallery = read(project, "tiny/gallery_vectors").with_columns(pl.col("image", "caption").cast(pl.List(pl.Float32)))
    queries = read(project, "tiny/query_vectors").with_columns(pl.col("pseudo", "source").cast(pl.List(pl.Float32)))

    def lengths(column: pl.Series) -> list[float]:
        return [sum(value * value for value in row) ** 0.5 for row in column.to_list()]

    assert lengths(gallery["image"]) == pytest.approx([1.0] * gallery.height, abs=2e-3)
    assert lengths(queries["pseudo"]) == pytest.approx([1.0] * queries.height, abs=1e-5)
    # Means of different unit vectors are shorter than one; CIRCO's protocol does not normalise them.
    assert max(lengths(gallery["caption"])) <= 1.001 and min(lengths(gallery["caption"])) < 0.999
    assert max(lengths(queries["source"])) <= 1.001


def test_the_right_answers_come_first_far_more_often_than_by_chance(project: Workspace) -> None:
    metrics = json.loads((project.path / "cache/demo/tiny/scores/metrics.json").read_text())
    assert list(metrics) == ["val"] and metrics["val"]["queries"] == 24
    # By chance AP@10 is about 2% with some 3 right answers among 260 images.
    assert metrics["val"]["mAP@10"] > 15
    submission = json.loads((project.path / "cache/demo/tiny/scores/submissions/test.map.json").read_text())
    assert len(submission) == 8 and all(len(set(images)) == 50 for images in submission.values())


def test_the_table_of_weightings_is_from_the_same_vectors(project: Workspace) -> None:
    table = json.loads((project.path / "cache/demo/tiny/report/weightings.json").read_text())
    metrics = json.loads((project.path / "cache/demo/tiny/scores/metrics.json").read_text())
    rows = table["splits"]["val"]
    weights = ["cvsi", "edited", "pseudo", "image", "text", "image+text", "pdv"]
    assert list(sorted(rows)) == sorted([*weights, "product", "adast", "seize", "soft", "osrcir", "sdr", "roles"])
    assert rows["cvsi"]["mAP@10"] == metrics["val"]["mAP@10"]
    assert len({round(values["mAP@10"], 6) for values in rows.values()}) > 4


def test_nothing_changed_and_nothing_runs_with_bytecode_beside_the_code(project: Workspace) -> None:
    for folder in ("core", "store", "models", "pipeline", "datasets", "evaluation"):
        assert list((project.path / "cvsi" / folder / "__pycache__").glob("*.pyc")), folder
    ran, _ = repro(project)
    assert ran == []


def test_a_fusion_weight_runs_scores_and_report_alone(project: Workspace) -> None:
    before = project.bytes_below("demo")
    project.params(
        datasets__demo__fusion={"query": {"edited": 0.5, "pseudo": 0.5}, "gallery": {"image": 0.8, "caption": 0.2}}
    )
    ran, _ = repro(project)
    assert ran == ["scores", "report"]
    assert project.bytes_below("demo/tiny/scores") != {
        n: b for n, b in before.items() if n.startswith("cache/demo/tiny/scores")
    }
    original = yaml.safe_load((ROOT / "params.yaml").read_text())["datasets"]["demo"]["fusion"]
    project.params(datasets__demo__fusion=original)
    assert repro(project)[0] == []
    assert project.bytes_below("demo") == before


@contextmanager
def another_prompt(project: Workspace) -> Iterator[None]:
    """Inside, the demo's edits have another prompt."""
    prompt = project.path / "cvsi" / "prompts" / "demo_edited.txt"
    original = prompt.read_text(encoding="utf-8")
    prompt.write_text(f"{original.strip()} Be brief.\n", encoding="utf-8")
    try:
        yield
    finally:
        prompt.write_text(original, encoding="utf-8")


def test_a_prompt_runs_edits_and_what_follows_and_going_back_runs_nothing(
    project: Workspace, server_editor: dict[str, Any]
) -> None:
    before, vllm = project.bytes_below("demo"), project.params()["datasets"]["demo"]["editor"]
    with another_prompt(project):
        assert changed_stages(project) == ["edits@demo"]
        project.params(datasets__demo__editor=server_editor)
        ran, printed = repro(project)
        project.params(datasets__demo__editor=vllm)
    assert ran == ["edits", "query_vectors", "scores", "report"]
    assert "32 queries: 0 in the store, 32 to edit" in printed
    assert repro(project)[0] == []
    assert project.bytes_below("demo") == before


@pytest.mark.slow  # loads vLLM once more
def test_a_prompt_alone_runs_edits_with_the_real_engine(project: Workspace) -> None:
    before = project.bytes_below("demo")
    with another_prompt(project):
        ran, printed = repro(project)
    assert ran == ["edits", "query_vectors", "scores", "report"]
    assert "32 queries: 0 in the store, 32 to edit" in printed
    assert repro(project)[0] == []
    assert project.bytes_below("demo") == before


def changed_stages(project: Workspace) -> list[str]:
    """The stages with a changed dependency, by `dvc status`, index left out."""
    command = ["dvc", "status", "--json"]
    done = subprocess.run(
        command, cwd=project.path, env=environment(project.path), text=True, capture_output=True, check=True
    )
    return [name for name in json.loads(done.stdout) if not name.startswith("index@")]


def test_ten_more_images_make_ten_captions(project: Workspace) -> None:
    before = project.bytes_below("demo/captions", "demo/edits")
    world = project.params()["world"]
    project.params(world__gallery=world["gallery"] + 10)
    ran, printed = repro(project)
    assert "270 images: 260 in the store, 10 to caption" in printed
    assert "0 to edit" in printed and "captions" in ran and "gallery_vectors" in ran
    project.params(world__gallery=world["gallery"])
    assert repro(project)[0] == []
    assert project.bytes_below("demo/captions", "demo/edits") == before


KINDS = {
    "captions": (["demo"], ["captions"], "demo/captions"),
    "edits": (["demo"], ["edits"], "demo/edits"),
    "gallery_vectors": (["demo", "tiny"], ["image_vectors", "text_vectors"], "demo/tiny/gallery_vectors"),
    "query_vectors": (["demo", "tiny"], ["image_vectors", "text_vectors", "pseudo_vectors"], "demo/tiny/query_vectors"),
}
# The mechanism is the same for every kind, and `make test-faults` kills each of them 26 times.
KILLED = ["captions", *(pytest.param(stage, marks=pytest.mark.slow) for stage in KINDS if stage != "captions")]


def part_of(project: Workspace, path: Path, *names: str) -> Workspace:
    """A workspace below `path` with some of the project's files and folders."""
    for name in names:
        source, target = project.path / name, path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return Workspace(path)


@pytest.mark.parametrize("stage", KILLED)
def test_killed_at_any_instant_and_run_again_is_byte_identical(project: Workspace, tmp_path: Path, stage: str) -> None:
    arguments, kinds, output = KINDS[stage]
    workspace = part_of(project, tmp_path, "stages", "demo", "data", "cache", "params.yaml")
    wanted = project.bytes_below(output)
    for kind in kinds:
        shutil.rmtree(tmp_path / "cache" / "store" / kind)
    shutil.rmtree(tmp_path / "cache" / output)
    process = workspace.start(stage, *arguments)
    while process.poll() is None and not stored(tmp_path, kinds):
        time.sleep(0.01)
    time.sleep(random.random() * 1.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    some = stored(tmp_path, kinds)
    assert some, "the kill came before the first block"
    printed = workspace.run(stage, *arguments)
    assert workspace.bytes_below(output) == wanted
    assert len(stored(tmp_path, kinds)) > len(some) or "0 to" in printed
    assert not list((tmp_path / "cache" / output).parent.glob(".*.partial"))


def stored(folder: Path, kinds: list[str]) -> list[Path]:
    return [file for kind in kinds for file in (folder / "cache" / "store" / kind).glob("*/*.parquet")]


def test_own_photos_end_in_a_report(
    project: Workspace, shared: Path, tmp_path: Path, server_editor: dict[str, Any]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in sorted((shared / "photos").iterdir()):
        if file.suffix in (".png", ".jpg"):
            shutil.copy(file, photos / file.name)
    instructions = {
        "chelsea.png": "is asleep", "coffee.png": "is empty", "rocket.jpg": "is on the ground",
        "astronaut.png": "is in space", "moon.png": "is seen by day",
    }  # fmt: skip
    queries = [{"reference": name, "instruction": text} for name, text in instructions.items()]
    write_queries(photos, queries[0] | {"targets": ["camera.png"]}, *queries[1:])
    workspace = part_of(project, tmp_path, "demo", "params.yaml")
    content = workspace.params()
    dataset = content["datasets"]["demo"] | {
        "format": "folder",
        "root": "photos",
        "editor": server_editor,
        "reader": None,
    }
    content["datasets"]["photos"] = dataset
    content |= {"active": ["photos"], "runs": {"photos-tiny": {"dataset": "photos", "backbone": "tiny"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    workspace.run_all("photos", "tiny")
    rankings = pl.read_parquet(tmp_path / "cache/photos/tiny/scores/rankings.parquet")
    assert rankings.group_by("split", "query_id").len()["len"].to_list() == [11] * 5
    page = (tmp_path / "cache/photos/tiny/report/index.html").read_text(encoding="utf-8")
    assert all(text in page for text in instructions.values()) and page.count("data:image/jpeg") >= 50


@pytest.mark.parametrize("stage", ["captions", pytest.param("edits", marks=pytest.mark.slow)])
def test_a_stage_stops_on_ctrl_c_with_a_model_loaded(project: Workspace, tmp_path: Path, stage: str) -> None:
    workspace = part_of(project, tmp_path, "demo", "data", "params.yaml", "cache/demo/index", "cache/demo/captions")
    if stage == "captions":
        shutil.rmtree(tmp_path / "cache" / "demo" / "captions")
        workspace.params(datasets__demo__captioner__n=100)  # so that many blocks are left when the signal comes
    process = workspace.start(stage, "demo")
    while process.poll() is None and not stored(tmp_path, [stage]):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "stopped by SIGINT" in err
    assert "Traceback" not in err and len(err.splitlines()) == 1
    rows = pl.read_parquet(stored(tmp_path, [stage])).height
    assert rows < read(project, stage).height, "it ended only when all rows were computed"
    assert not list((tmp_path / "cache" / "demo").glob(f".{stage}*"))
    assert not (tmp_path / "cache" / "demo" / stage).exists()


def test_the_command_shows_the_table(project: Workspace) -> None:
    done = subprocess.run(
        ["cvsi", "show", "demo-tiny"], cwd=project.path, env=environment(project.path), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert "cvsi" in done.stdout and "image+text" in done.stdout
    assert "Report: cache/demo/tiny/report/index.html" in done.stdout
    done = subprocess.run(
        ["cvsi", "show", "nothing"], cwd=project.path, env=environment(project.path), text=True, capture_output=True
    )
    assert done.returncode == 1 and "no run 'nothing'; there are: demo-tiny" in done.stderr
