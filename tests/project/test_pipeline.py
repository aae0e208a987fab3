"""The real pipeline on a cut world: every model real, vLLM included, run by DVC; what reruns, what survives a kill."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.conftest import Workspace, environment, repro, write_queries
from tests.imports import ROOT

# One worker runs all tests on the shared project, which takes a minute to make.
pytestmark = pytest.mark.xdist_group("project")


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


def test_vectors_are_what_the_design_says(project: Workspace) -> None:
    gallery = read(project, "tiny/gallery_vectors").with_columns(pl.col("image", "caption").cast(pl.List(pl.Float32)))
    queries = read(project, "tiny/query_vectors").with_columns(pl.col("pseudo", "source").cast(pl.List(pl.Float32)))

    def lengths(column: pl.Series) -> list[float]:
        return [sum(value * value for value in row) ** 0.5 for row in column.to_list()]

    assert lengths(gallery["image"]) == pytest.approx([1.0] * gallery.height, abs=2e-3)
    assert lengths(queries["pseudo"]) == pytest.approx([1.0] * queries.height, abs=1e-5)
    # Means of different unit vectors are shorter than one; CIRCO's protocol leaves them so.
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
    assert list(sorted(rows)) == sorted(["cvsi", "edited", "pseudo", "image", "text", "image+text", "pdv"])
    assert rows["cvsi"]["mAP@10"] == metrics["val"]["mAP@10"]
    assert len({round(values["mAP@10"], 6) for values in rows.values()}) > 4


def test_nothing_changed_and_nothing_runs(project: Workspace) -> None:
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


def test_a_prompt_runs_edits_and_what_follows_and_back_is_free(project: Workspace) -> None:
    before = project.bytes_below("demo")
    prompt = project.path / "cvsi" / "prompts" / "demo_edited.txt"
    text = prompt.read_text(encoding="utf-8")
    prompt.write_text(f"{text.strip()} Be brief.\n", encoding="utf-8")
    ran, said = repro(project)
    assert ran == ["edits", "query_vectors", "scores", "report"]
    assert "32 queries: 0 in the store, 32 to edit" in said
    prompt.write_text(text, encoding="utf-8")
    ran, _ = repro(project)
    assert ran == []
    assert project.bytes_below("demo") == before


def test_ten_more_images_make_ten_captions(project: Workspace) -> None:
    before = project.bytes_below("demo/captions", "demo/edits")
    world = project.params()["world"]
    project.params(world__gallery=world["gallery"] + 10)
    ran, said = repro(project)
    assert "270 images: 260 in the store, 10 to caption" in said
    assert "0 to edit" in said and "captions" in ran and "gallery_vectors" in ran
    project.params(world__gallery=world["gallery"])
    assert repro(project)[0] == []
    assert project.bytes_below("demo/captions", "demo/edits") == before


KINDS = {
    "captions": (["demo"], ["captions"], "demo/captions"),
    "edits": (["demo"], ["edits"], "demo/edits"),
    "gallery_vectors": (["demo", "tiny"], ["image_vectors", "text_vectors"], "demo/tiny/gallery_vectors"),
    "query_vectors": (["demo", "tiny"], ["image_vectors", "text_vectors", "pseudo_vectors"], "demo/tiny/query_vectors"),
}


@pytest.mark.parametrize("stage", KINDS)
def test_killed_at_any_instant_and_run_again_is_byte_identical(project: Workspace, tmp_path: Path, stage: str) -> None:
    arguments, kinds, place = KINDS[stage]
    for name in ("stages", "demo", "data", "cache", "params.yaml"):
        source = project.path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    workspace = Workspace(tmp_path)
    wanted = project.bytes_below(place)
    for kind in kinds:
        shutil.rmtree(tmp_path / "cache" / "store" / kind)
    shutil.rmtree(tmp_path / "cache" / place)
    process = workspace.start(stage, *arguments)
    while process.poll() is None and not stored(tmp_path, kinds):
        time.sleep(0.01)
    time.sleep(random.random() * 1.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    some = stored(tmp_path, kinds)
    assert some, "the kill came before the first block"
    said = workspace.run(stage, *arguments)
    assert workspace.bytes_below(place) == wanted
    assert len(stored(tmp_path, kinds)) > len(some) or "0 to" in said
    assert not list((tmp_path / "cache" / place).parent.glob(".*.partial"))


def stored(folder: Path, kinds: list[str]) -> list[Path]:
    return [file for kind in kinds for file in (folder / "cache" / "store" / kind).glob("*/*.parquet")]


def test_own_photos_end_in_a_report(project: Workspace, shared: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in sorted((shared / "photos").iterdir()):
        if file.suffix in (".png", ".jpg"):
            shutil.copy(file, photos / file.name)
    wishes = {
        "chelsea.png": "is asleep", "coffee.png": "is empty", "rocket.jpg": "is on the ground",
        "astronaut.png": "is in space", "moon.png": "is seen by day",
    }  # fmt: skip
    queries = [{"reference": name, "instruction": wish} for name, wish in wishes.items()]
    write_queries(photos, queries[0] | {"targets": ["camera.png"]}, *queries[1:])
    workspace = Workspace(tmp_path)
    content = yaml.safe_load((project.path / "params.yaml").read_text())
    content["datasets"]["photos"] = content["datasets"]["demo"] | {"format": "folder", "root": "photos"}
    content |= {"active": ["photos"], "runs": {"photos-tiny": {"dataset": "photos", "backbone": "tiny"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(project.path / "demo", tmp_path / "demo")
    for stage in ("index", "captions", "edits"):
        workspace.run(stage, "photos")
    for stage in ("gallery_vectors", "query_vectors", "scores", "report"):
        workspace.run(stage, "photos", "tiny")
    rankings = pl.read_parquet(tmp_path / "cache/photos/tiny/scores/rankings.parquet")
    assert rankings.group_by("split", "query_id").len()["len"].to_list() == [11] * 5
    page = (tmp_path / "cache/photos/tiny/report/index.html").read_text(encoding="utf-8")
    assert all(wish in page for wish in wishes.values()) and page.count("data:image/jpeg") >= 50


def test_a_stage_stops_on_ctrl_c_with_a_model_loaded(project: Workspace, tmp_path: Path) -> None:
    for name in ("demo", "data", "params.yaml"):
        source = project.path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    shutil.copytree(project.path / "cache" / "demo" / "index", tmp_path / "cache" / "demo" / "index")
    shutil.copytree(project.path / "cache" / "demo" / "captions", tmp_path / "cache" / "demo" / "captions")
    process = Workspace(tmp_path).start("edits", "demo")
    while process.poll() is None and not stored(tmp_path, ["edits"]):
        time.sleep(0.05)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode == 130 and "stopped by SIGINT" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "cache" / "demo").glob(".edits*")) and not (tmp_path / "cache/demo/edits").exists()


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
