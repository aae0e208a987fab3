"""The preflight: each missing thing once, exact counts where the store is there, times from measured blocks, fast."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Workspace, environment, project_params

BENCHMARKS = ("circo", "cirr-val", "cirr-test1", "fashioniq-dress", "fashioniq-shirt", "fashioniq-toptee")
BACKBONES = ("vit-b-32", "vit-l-14", "vit-bigg-14")
MISSING = (
    "folder data/CIRCO", "folder data/CIRR", "folder data/FASHIONIQ", "captioner Salesforce/blip2-opt-6.7b-coco",
    "editor Qwen/Qwen2.5-7B-Instruct at revision", "file models/phi_best_base_openai.pt",
    "file models/phi_best_large_openai.pt", "file models/phi_best_giga_openclip.pt",
    "backbone ViT-B-32-quickgelu openai at revision", "backbone ViT-L-14-quickgelu openai at revision",
    "backbone ViT-bigG-14 laion2b_s39b_b160k at revision",
)  # fmt: skip


def check(folder: Path, code: int) -> str:
    command = [str(Path(sys.executable).parent / "cvsi"), "check"]
    hub = {"HF_HOME": str(folder / "hub")}
    done = subprocess.run(command, cwd=folder, env=environment(folder) | hub, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def write(folder: Path, **changes: Any) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(project_params() | changes, sort_keys=False), encoding="utf-8")


def section(text: str, title: str) -> str:
    return text.partition(title)[2]


def test_each_missing_thing_of_the_fifteen_runs_is_listed_once_within_seconds(tmp_path: Path) -> None:
    runs = {f"{name}-{tower}": {"dataset": name, "backbone": tower} for name in BENCHMARKS for tower in BACKBONES}
    write(tmp_path, active=list(BENCHMARKS), runs=runs)
    check(tmp_path, 1)  # reads the code from the disk
    began = time.monotonic()
    text = check(tmp_path, 1)
    assert time.monotonic() - began < 5
    missing = section(text, "missing: 11 things")
    for what in MISSING:
        assert missing.count(what) == 1, missing
    assert "miccunifi/CIRCO" in missing and "hf download Qwen/Qwen2.5-7B-Instruct" in missing
    assert "at most 123,403 of 123,403" in text and "at most 1,851,045 of 1,851,045" in text
    assert section(text, "terms of use").count("trained with LinCIR, which is for non-commercial use") == 1


def test_annotations_and_images_that_are_missing_are_named(tmp_path: Path) -> None:
    content = project_params()
    content["datasets"]["fashioniq-dress"]["root"] = "dresses"
    content["datasets"]["fashioniq-dress"] |= {key: content["datasets"]["demo"][key] for key in ("captioner", "editor")}
    write(tmp_path, active=["fashioniq-dress"], runs={}, datasets=content["datasets"])
    (tmp_path / "dresses/image_splits").mkdir(parents=True)
    assert "dresses/image_splits/split.dress.val.json" in section(check(tmp_path, 1), "missing: 1 thing")
    (tmp_path / "dresses/image_splits/split.dress.val.json").write_text('["A1", "B2"]')
    (tmp_path / "dresses/captions").mkdir()
    caption = '[{"candidate": "A1", "target": "B2", "captions": ["is red", "is long"]}]'
    (tmp_path / "dresses/captions/cap.dress.val.json").write_text(caption)
    (tmp_path / "dresses/images").mkdir()
    (tmp_path / "dresses/images/A1.jpg").write_bytes(b"\0")
    text = check(tmp_path, 1)
    assert "1 image of 2 below dresses (images/B2.png, ...)" in section(text, "missing: 1 thing")
    content["datasets"]["fashioniq-dress"]["missing_images"] = "drop"
    write(tmp_path, active=["fashioniq-dress"], runs={}, datasets=content["datasets"])
    assert "fashioniq-dress drops what is missing" in check(tmp_path, 0)


def test_counts_are_exact_and_times_come_from_measured_blocks(toy: Workspace) -> None:
    before = check(toy.path, 0)
    assert "at most 8 of 8" in before and "not measured yet" in before and "Nothing is missing" in before
    toy.run("index", "toy")
    toy.run("captions", "toy")
    assert "0 of 8" in check(toy.path, 0)
    for image in sorted((toy.path / "photos").glob("*.png"))[:2]:
        image.write_bytes(image.read_bytes() + b"more")
    toy.run("index", "toy")
    (line,) = [line for line in check(toy.path, 0).splitlines() if "images to 5 captions" in line]
    assert " 2 of 8" in line and line.rstrip().endswith(" s"), line


@pytest.mark.parametrize(("port", "missing"), [(1, 1), (None, 0)])
def test_an_editor_behind_a_server_is_knocked_at(toy: Workspace, port: int | None, missing: int) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{port or listening.getsockname()[1]}/v1"
        toy.params(datasets__toy__editor={"engine": "server", "address": address, "model": "m"})
        text = check(toy.path, missing)
    assert f"server {address}" in text if missing else "Nothing is missing" in text
