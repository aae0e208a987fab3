"""The preflight: each missing thing once, exact counts where the store exists, times of measured blocks, no model."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.commands.times import rates
from cvsi.core import params, run_log
from cvsi.core.schema import STORED_CAPTIONS
from cvsi.datasets import index
from cvsi.pipeline import captions
from cvsi.pipeline.captions import CaptionJob
from cvsi.store.jobs import BlockWorker
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
# A preflight takes seconds, since it imports none of these.
HEAVY = ("torch", "transformers", "open_clip", "vllm", "spacy", "matplotlib")


@pytest.fixture(autouse=True)
def no_known_rates() -> Iterator[None]:
    """Forget the rates that a test before this one has read."""
    rates.cache_clear()
    yield
    rates.cache_clear()


def check(code: int) -> str:
    """Run `cvsi check` in this process and the working directory; what it printed."""
    rates.cache_clear()
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def write(folder: Path, **changes: Any) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(project_params() | changes, sort_keys=False), encoding="utf-8")


def section(text: str, title: str) -> str:
    return text.partition(title)[2]


def test_each_missing_thing_of_the_fifteen_runs_is_listed_once_and_no_model_library_is_imported(tmp_path: Path) -> None:
    runs = {f"{name}-{tower}": {"dataset": name, "backbone": tower} for name in BENCHMARKS for tower in BACKBONES}
    write(tmp_path, active=list(BENCHMARKS), runs=runs)
    code = f"""
import json, sys
from cvsi.commands.main import main
sys.argv = ["cvsi", "check"]
try:
    main()
finally:
    print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))))
"""
    hub = {"HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path) | hub, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    text, _, imported = done.stdout.rstrip().rpartition("\n")
    assert json.loads(imported) == []
    missing = section(text, "missing: 11 things")
    for what in MISSING:
        assert missing.count(what) == 1, missing
    assert "miccunifi/CIRCO" in missing and "hf download Qwen/Qwen2.5-7B-Instruct" in missing
    assert "at most 123,403 of 123,403" in text and "at most 1,851,045 of 1,851,045" in text
    assert section(text, "terms of use").count("trained with LinCIR, which is for non-commercial use") == 1


def test_annotations_and_images_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = project_params()
    content["datasets"]["fashioniq-dress"]["root"] = "dresses"
    content["datasets"]["fashioniq-dress"] |= {key: content["datasets"]["demo"][key] for key in ("captioner", "editor")}
    write(tmp_path, active=["fashioniq-dress"], runs={}, datasets=content["datasets"])
    (tmp_path / "dresses/image_splits").mkdir(parents=True)
    assert "dresses/image_splits/split.dress.val.json" in section(check(1), "missing: 1 thing")
    (tmp_path / "dresses/image_splits/split.dress.val.json").write_text('["A1", "B2"]')
    (tmp_path / "dresses/captions").mkdir()
    caption = '[{"candidate": "A1", "target": "B2", "captions": ["is red", "is long"]}]'
    (tmp_path / "dresses/captions/cap.dress.val.json").write_text(caption)
    (tmp_path / "dresses/images").mkdir()
    (tmp_path / "dresses/images/A1.jpg").write_bytes(b"\0")
    assert "1 image of 2 below dresses (images/B2.png, ...)" in section(check(1), "missing: 1 thing")
    content["datasets"]["fashioniq-dress"]["missing_images"] = "drop"
    write(tmp_path, active=["fashioniq-dress"], runs={}, datasets=content["datasets"])
    assert "fashioniq-dress drops missing images" in check(0)


def test_counts_are_exact_and_times_come_from_measured_blocks(toy: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = check(0)
    assert "at most 8 of 8" in before and "not measured yet" in before and "Nothing is missing" in before
    content = params.load()
    index.build("toy", content)
    monkeypatch.setattr(run_log, "_steps", [])
    monkeypatch.setattr(CaptionJob, "load", lambda job, worker: BlockWorker(describe))
    captions.write("toy", content)
    run_log.save("captions", ["toy"], time.time(), "done")
    assert "0 of 8" in check(0)
    for image in sorted((toy.path / "photos").glob("*.png"))[:2]:
        image.write_bytes(image.read_bytes() + b"more")
    index.build("toy", content)
    (line,) = [line for line in check(0).splitlines() if "images to 5 captions" in line]
    assert " 2 of 8" in line and line.rstrip().endswith(" s"), line


def describe(block: pl.DataFrame) -> pa.Table:
    """Five captions for each image of a block."""
    lines = [[f"{path} {number}" for number in range(5)] for path in block["path"]]
    return pa.table({"key": block["key"].to_list(), "captions": lines}, schema=STORED_CAPTIONS)


@pytest.mark.parametrize(("port", "missing"), [(1, 1), (None, 0)])
def test_the_server_of_an_editor_is_connected_to(toy: Workspace, port: int | None, missing: int) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{port or listening.getsockname()[1]}/v1"
        toy.params(datasets__toy__editor={"engine": "server", "address": address, "model": "m"})
        text = check(missing)
    assert f"server {address}" in text if missing else "Nothing is missing" in text
