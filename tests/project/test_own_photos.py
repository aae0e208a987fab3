"""A photo folder from `cvsi add` to `cvsi search` under DVC: with a vision server, and every command of the docs."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from cvsi.core.yaml_edit import Document
from tests.conftest import Workspace, draw_pictures, environment
from tests.imports import ROOT
from tests.vision_server import serving

HEIC = ROOT / "tests" / "core" / "data"
BACKBONE = "model: local-dir:demo/weights/clip\nprecision: fp32"


@pytest.fixture
def clone(tmp_path: Path) -> Workspace:
    """A copy of the project's files as a fresh clone has them."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run(tmp_path, "git init -q")
    return Workspace(tmp_path)


def run(folder: Path, line: str, code: int = 0) -> str:
    """Run a command line in a folder; what it printed (both streams). Fails for another exit code."""
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, text=True, capture_output=True,
        env=environment(folder) | {"BROWSER": "true %s", "HOME": str(folder)}, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def only(clone: Workspace, dataset: str) -> None:
    """Leave the demo out, as docs/own_photos.md says."""
    run(clone.path, f"cvsi set active '[{dataset}]'")
    file = clone.path / "params.yaml"
    text, number = re.subn(r"^  demo-tiny: .*\n", "", file.read_text(encoding="utf-8"), flags=re.M)
    assert number == 1
    file.write_text(text, encoding="utf-8")


def test_a_folder_without_queries_and_phi_with_captions_from_a_vision_server(clone: Workspace) -> None:
    draw_pictures(clone.path / "My photos")
    shutil.copy(next(HEIC.glob("*.heic")), clone.path / "My photos" / "IMG_1.HEIC")
    (clone.path / "My photos" / "note.txt").write_text("no photo")
    with serving() as server:
        added = run(clone.path, f"cvsi add 'My photos' --preset server --address {server.address} --model colours")
        assert "9 images" in added and "1 file not read: 1 .txt (note.txt)" in added
        only(clone, "my-photos")
        file = clone.path / "params.yaml"
        # CLIP's published weights cannot be had in a test; the demo's stand in their place, without a phi.
        file.write_text(Document(file.read_text(), str(file)).append("backbones", "small", BACKBONE))
        run(clone.path, "cvsi set runs.my-photos-server.backbone small")
        checked = run(clone.path, "cvsi check")
        assert "Nothing is missing" in checked, checked
        run(clone.path, "dvc repro")
        ran = run(clone.path, "dvc repro")
        assert "Running stage 'captions" not in ran and "Running stage 'report" not in ran
        run(clone.path, "cvsi show my-photos-server")
    captions = pl.read_parquet(clone.path / "cache/my-photos/captions/*.parquet")
    red = captions.filter(image_id="red.png")["captions"][0].to_list()
    assert captions.height == 9 and len(red) == 3 and all("red" in caption for caption in red)
    queries = pl.read_parquet(clone.path / "cache/my-photos/small/query_vectors/*.parquet")
    assert queries.height == 0 and "pseudo" not in queries.columns
    assert json.loads((clone.path / "cache/my-photos/small/scores/metrics.json").read_text()) == {}
    found = run(clone.path, "cvsi search my-photos-server --like 'My photos/red.png' -k 3 --json 2>/dev/null")
    assert json.loads(found)["results"][0]["path"] == "red.png"
    words = run(clone.path, "cvsi search my-photos-server --text 'a red circle' -k 9 --json 2>/dev/null")
    assert {result["path"] for result in json.loads(words)["results"]} >= {"red.png", "IMG_1.HEIC"}


def documented() -> list[str]:
    """The command lines of docs/own_photos.md, with the demo's models in place of those that are downloaded."""
    text = (ROOT / "docs" / "own_photos.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in re.findall(r"^    ((?:cvsi|dvc) .*)$", text, flags=re.M)]
    return [
        line.replace("--preset laptop", "--preset tiny").replace("photographs-laptop", "photographs-tiny")
        for line in lines
    ]


@pytest.mark.slow
def test_every_command_of_the_docs_runs_as_it_is_written(clone: Workspace, shared: Path) -> None:
    """The photographs of the docs, and one in HEIC; the presets' own models cannot be downloaded in a test."""
    folder = clone.path / "data" / "photographs"
    shutil.copytree(shared / "photos", folder)
    shutil.copy(next(HEIC.glob("*.heic")), folder / "IMG_1.HEIC")
    lines = documented()
    assert len(lines) >= 10 and lines[0] == "cvsi add data/photographs --preset tiny"
    outputs = {}
    for number, line in enumerate(lines):
        outputs[line] = run(clone.path, line)
        if number == 0:
            only(clone, "photographs")
        words = shlex.split(line)
        if words[:2] == ["cvsi", "search"]:
            assert "13" in run(clone.path, f"{line} -k 13 --json 2>/dev/null") or "results" in outputs[line]
    assert "13 images" in outputs[lines[0]]
    index = pl.read_parquet(clone.path / "cache/photographs/index/images.parquet")
    assert index.height == 13 and "IMG_1.HEIC" in index["image_id"].to_list()
