"""The preflight: each missing thing once, exact counts where the store exists, times of measured blocks, no model."""

import json
import os
import re
import shutil
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

from cvsi.commands import forecast
from cvsi.commands.main import app
from cvsi.commands.times import rate_of, rates
from cvsi.core import params, run_log
from cvsi.core.schema import STORED_CAPTIONS
from cvsi.datasets import index
from cvsi.pipeline import captions
from cvsi.pipeline.captions import CaptionJob
from cvsi.store.jobs import BlockWorker
from tests.conftest import Workspace, draw_pictures, environment, project_params, write_queries
from tests.imports import ROOT

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
    assert "miccunifi/CIRCO" in missing and "Qwen/Qwen2.5-7B-Instruct" in missing
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


@pytest.mark.parametrize("noun", ["captioner", "editor"])
@pytest.mark.parametrize(("port", "missing"), [(1, 1), (None, 0)])
def test_the_server_of_an_engine_is_connected_to(toy: Workspace, port: int | None, missing: int, noun: str) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{port or listening.getsockname()[1]}/v1"
        toy.params(**{f"datasets__toy__{noun}": {"engine": "server", "address": address, "model": "m"}})
        text = check(missing)
    words = " ".join(text.split())
    assert (f"server {address}" in words) == bool(missing) and (f"change the {noun}'s address" in words) == bool(
        missing
    )
    assert missing or "Nothing is missing" in text


def line_of(text: str, what: str) -> str:
    """The row of the table, or the line, that contains these words."""
    (line,) = [line for line in text.splitlines() if what in line]
    return " ".join(line.split())


@pytest.fixture
def captioned(toy: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The toy dataset with its index and captions."""
    index.build("toy", params.load())
    monkeypatch.setattr(CaptionJob, "load", lambda job, worker: BlockWorker(describe))
    captions.write("toy", params.load())
    return toy


def test_an_index_that_is_up_to_date_is_not_reported(captioned: Workspace) -> None:
    text = check(0)
    assert "not yet indexed" not in text and "Nothing is missing." in text and "older" not in text
    assert "0 of 8 nothing" in line_of(text, "images to 5 captions")


def test_new_files_that_the_index_does_not_have_are_counted(captioned: Workspace) -> None:
    draw_pictures(captioned.path / "photos" / "more")
    for name in ("white.png", "black.png"):
        (captioned.path / "photos" / f"copy-{name}").write_bytes((captioned.path / "photos" / name).read_bytes())
    text = check(0)
    assert "toy: 10 new files, not yet indexed; the index is older" in text
    assert "at most 10 of 18" in line_of(text, "images to 5 captions")
    assert "at most 10 of 18" in line_of(text, "image vectors") or "at most 18 of 18" in line_of(text, "image vectors")
    assert "Nothing is missing. The index is older than what it lists" in text
    index.build("toy", params.load())
    again = check(0)  # all of them are copies
    assert "not yet indexed" not in again and "0 of 8 nothing" in line_of(again, "images to 5 captions")


def test_removed_changed_and_renamed_files_are_counted(captioned: Workspace) -> None:
    photos = captioned.path / "photos"
    (photos / "white.png").unlink()
    (photos / "purple.png").write_bytes((photos / "purple.png").read_bytes() + b"more")
    text = check(0)
    assert "toy: 1 file that changed, or that this store has not seen yet, 1 removed file, not yet indexed" in text
    assert "at most 1 of 8" in line_of(text, "images to 5 captions")
    assert "edit 3 of 3" in line_of(text, "queries to edit")
    (photos / "orange.png").rename(photos / "fruit.png")
    assert "toy: 1 new file, 1 file that changed, or that this store has not seen yet, 2 removed files" in check(0)
    (photos / "blue.png").write_bytes((photos / "blue.png").read_bytes() + b"more")  # a query's reference
    assert "at most 3 of 3" in line_of(check(0), "queries to edit")


def test_a_file_changed_back_is_a_changed_file(captioned: Workspace) -> None:
    file = captioned.path / "photos" / "purple.png"
    original, times = file.read_bytes(), file.stat()
    file.write_bytes((captioned.path / "photos" / "green.png").read_bytes())
    index.build("toy", params.load())
    file.write_bytes(original)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert re.search("toy: 1 (changed file|file that changed, or that this store has not seen yet), not yet", check(0))


def test_new_and_changed_queries_are_counted(captioned: Workspace) -> None:
    query = {"reference": "red.png", "instruction": "is green", "targets": ["green.png", "blue.png"]}
    hidden = {"reference": "black.png", "instruction": "costs $5 & is <b>white</b>"}
    changed = {"reference": "blue.png", "instruction": "is orange", "targets": ["yellow.png"]}
    write_queries(
        captioned.path / "photos", {"reference": "white.png", "instruction": "is old"}, query, hidden, changed
    )
    text = check(0)
    assert "toy: 2 new or changed queries, not yet indexed" in text  # the others only moved to other lines
    assert "at most" in line_of(text, "queries to edit")
    write_queries(captioned.path / "photos", query)
    assert "toy: 2 removed queries, not yet indexed" in check(0)


def test_with_a_store_that_knows_no_file_nothing_is_called_new(captioned: Workspace) -> None:
    captioned.params(store="elsewhere")
    text = check(0)
    assert "toy: 8 files that changed, or that this store has not seen yet, not yet indexed" in text


def measured(folder: Path, number: int, recipe: str, computed: int, seconds: float, **facts: Any) -> None:
    """A record of one step of captions."""
    step = {"kind": "captions", "recipe": recipe, "computed": computed, "load_seconds": 60.0, "seconds": 60.0 + seconds}
    record = {"stage": "captions", "arguments": ["toy"], "began": "2026", "seconds": 99.0, "outcome": "done"}
    (folder / f"{number}.json").write_text(json.dumps(record | {"steps": [step]} | facts), encoding="utf-8")


@pytest.mark.parametrize(
    ("records", "todo", "expected"),
    [
        ([(1, 0.4)], 40, None),  # one text: mostly what precedes the first
        ([(1, 0.4)], 1, 2.5),
        ([(1, 0.4)] * 100, 1000, None),  # however often
        ([(3, 0.6), (1, 0.5)], 4, None),
        ([(1, 0.4), (2000, 20.0)], 1000, 100.0),  # the few rows do not count, wherever they are
        ([(2000, 20.0), (1, 0.4)], 1000, 100.0),
        ([(100, 1.0), (900, 19.0)], 1000, 50.0),  # by rows
        ([(8, 4.0)], 2, 2.0),
        ([(8, 4.0)], 9, None),
        ([(5, 100.0)], 5000, 0.05),  # few rows that take long each
        ([(1, 100.0)], 5000, None),
        ([(64, 0.0)], 5000, 64_000.0),
        ([], 5, None),
    ],
)
def test_rates_come_from_enough_rows_alone(
    toy: Workspace, records: list[tuple[int, float]], todo: int, expected: float | None
) -> None:
    folder = toy.path / "cache" / ".runs"
    folder.mkdir(parents=True)
    for number, (computed, seconds) in enumerate(records):
        measured(folder, number, "r", computed, seconds)
    assert rate_of("captions", "r", todo) == (None if expected is None else pytest.approx(expected))
    assert rate_of("captions", "other", 1) is None and rate_of("edits", "r", 1) is None


def test_rates_of_another_device_and_broken_records_do_not_count(toy: Workspace) -> None:
    folder = toy.path / "cache" / ".runs"
    folder.mkdir(parents=True)
    measured(folder, 1, "r", 1000, 1.0, device="cuda", hardware=["H100"])
    measured(folder, 2, "r", 1000, 100.0, device="cpu", hardware=["EPYC"])
    (folder / "3.json").write_text('{"stage": "cap')
    (folder / "4.json").write_text('{"steps": [{"kind": "captions", "recipe": "r", "computed": "many"}]}')
    assert rate_of("captions", "r", 500) == pytest.approx(10.0)


GIT = "git repository"


@pytest.mark.parametrize(
    ("config", "git", "missing"),
    [
        ("[core]\n    analytics = false\n", False, GIT),
        ("[core]\n    analytics = false\n", True, ""),
        ("[core]\n    no_scm = true\n['remote \"x\"']\n    url = /x\n", False, ""),
        ("[core]\n    no_scm = false\n", False, GIT),
        ("broken [", False, GIT),
        (None, True, "DVC's folder .dvc"),
    ],
)
def test_a_project_without_git_is_told_what_to_do(toy: Workspace, config: str | None, git: bool, missing: str) -> None:
    (toy.path / "dvc.yaml").write_text("stages: {}\n")
    if config is not None:
        (toy.path / ".dvc").mkdir()
        (toy.path / ".dvc" / "config").write_text(config)
    if git:
        (toy.path / ".git").mkdir()
    text = check(bool(missing))
    if missing == GIT:
        row = line_of(text, GIT)
        assert "git init" in row and "dvc config core.no_scm true" in row
    assert (missing in text) if missing else "Nothing is missing" in text


@pytest.mark.parametrize(
    ("advice", "code"), [("git init --quiet", 0), ("dvc config core.no_scm true", 0), ("true", 255)]
)
def test_what_it_tells_makes_dvc_work(toy: Workspace, advice: str, code: int) -> None:
    (toy.path / "dvc.yaml").write_text("stages:\n  a: {cmd: 'true'}\n")
    (toy.path / ".dvc").mkdir()
    (toy.path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    for command, expected in ((advice, 0), ("dvc repro --quiet", code)):
        done = subprocess.run(command.split(), cwd=toy.path, env=environment(toy.path), capture_output=True)
        assert done.returncode == expected, done.stderr


NARROW = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "cp1252", "COLUMNS": "30"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "LANG": "C"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


def outside(folder: Path, encoding: dict[str, str], *command: str) -> tuple[int, str]:
    """Run a command with a narrow encoding; its code and what it printed, whatever bytes."""
    drop = ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LANG")
    env = {name: value for name, value in environment(folder).items() if name not in drop} | encoding
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True)
    text = (done.stdout + done.stderr).decode("latin-1")
    assert "Traceback" not in text, text
    return done.returncode, text


@pytest.mark.parametrize("encoding", NARROW, ids=lambda encoding: " ".join(f"{k}={v}" for k, v in encoding.items()))
def test_a_narrow_encoding_stops_no_command(toy: Workspace, encoding: dict[str, str]) -> None:
    name = "r\u00f6d \u201cx\u201d \u65e5.png"
    (toy.path / "photos").rename(toy.path / "ph\u00f6t\u014ds")
    (toy.path / "ph\u00f6t\u014ds" / "red.png").rename(toy.path / "ph\u00f6t\u014ds" / name)
    write_queries(toy.path / "ph\u00f6t\u014ds", {"reference": name, "instruction": "is gr\u00fcn"})
    toy.params(datasets__toy__root="ph\u00f6t\u014ds")
    main = ("-c", "from cvsi.commands.main import main; main()")
    code, text = outside(toy.path, encoding, *main, "check")
    assert code == 0 and "Nothing is missing" in text
    (toy.path / "ph\u00f6t\u014ds" / name).write_bytes(b"no image")
    code, text = outside(toy.path, encoding, str(ROOT / "stages" / "index.py"), "toy")
    assert code == 1 and "1 unreadable image: r" in text and len(text.splitlines()) == 3, text
    shutil.rmtree(toy.path / "ph\u00f6t\u014ds")
    code, text = outside(toy.path, encoding, *main, "check")
    assert code == 1 and "missing: 1 thing" in text and re.search(r"folder\W.*ph", text, re.DOTALL)
    code, text = outside(toy.path, encoding, *main, "show", "r\u00f6d\u65e5")
    assert code == 1 and len(text.splitlines()) == 1
    assert outside(toy.path, encoding, *main, "sh\u00f6w\u65e5")[0] == 2


def test_tables_fall_back_to_ascii(toy: Workspace) -> None:
    text = outside(
        toy.path, {"PYTHONIOENCODING": "ascii"}, "-c", "from cvsi.commands.main import main; main()", "check"
    )
    assert text[1].isascii() and "\n-----" in text[1]


def own_photos(folder: Path, **changes: Any) -> None:
    """A params.yaml with one dataset, a folder of two pictures, and published models."""
    draw_pictures(folder / "photos")
    content = project_params()
    dataset = {
        "format": "folder",
        "root": "photos",
        "captioner": {"model": "Salesforce/blip2-opt-2.7b-coco", "n": 2},
        "editor": {"model": "Qwen/Qwen2.5-1.5B-Instruct", "style": "chat"},
        "fusion": {"query": {"edited": 1.0}, "gallery": {"image": 1.0}},
    }
    backbone = {"model": "ViT-B-32-quickgelu", "pretrained": "openai", "precision": "fp32"}
    datasets = content["datasets"] | {"mine": dataset | changes}
    backbones = content["backbones"] | {"plain": backbone}
    runs = {"mine-plain": {"dataset": "mine", "backbone": "plain"}}
    write(folder, active=["mine"], runs=runs, datasets=datasets, backbones=backbones)


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and a hub's cache without models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_what_is_downloaded_is_summed_with_a_time_and_a_source(empty_hub: Path) -> None:
    own_photos(empty_hub)
    text = check(1)
    sizes = section(text, "to download")
    assert "Salesforce/blip2-opt-2.7b-coco" in sizes and "tree b73fb74" in sizes
    assert "in all 16 GB; 1 h 47 min at 20 Mbit/s, 21 min at 100 Mbit/s, 2 min at 1 Gbit/s" in " ".join(sizes.split())
    assert max(map(len, text.splitlines())) <= 80
    line = " ".join(text.split())
    assert "mine: without queries, the editor Qwen/Qwen2.5-1.5B-Instruct is needed only to search with an image" in line
    assert "(3.1 GB)" in line


def test_a_model_that_the_catalogue_does_not_know_is_of_unknown_size(empty_hub: Path) -> None:
    own_photos(empty_hub, captioner={"model": "someone/blip2", "n": 2})
    sizes = " ".join(section(check(1), "to download").split())
    assert "someone/blip2 unknown unknown" in sizes
    assert "in all 0.6 GB, and 1 model of unknown size; at least 4 min at 20 Mbit/s, 48.4 s at 100" in sizes


def test_nothing_but_unknown_sizes(empty_hub: Path) -> None:
    own_photos(empty_hub, captioner={"model": "someone/blip2", "n": 2})
    content = yaml.safe_load((empty_hub / "params.yaml").read_text())
    write(empty_hub, active=["mine"], runs={}, datasets=content["datasets"])
    assert "in all 1 model of unknown size" in check(1)


def test_times_come_from_the_catalogue_where_nothing_was_measured_here(empty_hub: Path) -> None:
    own_photos(empty_hub)
    text = check(1)
    (captions_line,) = [line for line in text.splitlines() if "images to 2 captions" in line]
    assert "not measured yet" in captions_line  # no rate of this model is known
    assert text.count("about ") >= 2 and "time of image vectors, caption vectors: measured with" in " ".join(
        text.split()
    )


def blip_folder(folder: Path, **config: Any) -> str:
    """A folder that looks like a captioner's: a configuration and a file of weights, which no check opens."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"not opened")
    (folder / "config.json").write_text(json.dumps({"model_type": "blip"} | config), encoding="utf-8")
    return str(folder)


def test_a_blip_is_known_with_its_counts_terms_and_size(
    toy: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    toy.params(datasets__toy__captioner={"engine": "blip", "model": "Salesforce/blip-image-captioning-base", "n": 7})
    text = check(1)
    assert "images to 7 captions" in text and "at most 8 of 8" in text
    missing = " ".join(section(text, "missing: 1 thing").split())
    assert "captioner Salesforce/blip-image-captioning-base" in missing
    assert "cvsi check --download, or set the captioner's model" in missing
    assert "BSD 3-Clause" in section(text, "terms of use")
    monkeypatch.setattr(forecast, "device_kind", lambda compute: "cuda")
    monkeypatch.setattr(forecast, "gpu_bytes", lambda: 1 << 28)
    assert re.search("Salesforce/blip-image-captioning-base takes .* in bf16, more than there is", check(1))


@pytest.mark.parametrize("size", ["xl", "xxl"])
def test_a_blip2_with_t5_of_the_hub_is_listed_as_any_other(
    size: str, toy: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    toy.params(datasets__toy__captioner={"model": f"Salesforce/blip2-flan-t5-{size}", "n": 7})
    monkeypatch.setattr(forecast, "device_kind", lambda compute: "cuda")
    monkeypatch.setattr(forecast, "gpu_bytes", lambda: 1 << 28)
    text = check(1)
    assert "images to 7 captions" in text
    missing = " ".join(section(text, "missing: 1 thing").split())
    assert f"captioner Salesforce/blip2-flan-t5-{size}" in missing and "cvsi check --download" in missing
    assert "MIT on its card" in section(text, "terms of use")


@pytest.mark.parametrize(
    ("engine", "config", "what"),
    [
        ("blip", {}, ""),
        (
            "blip",
            {"model_type": "blip-2"},
            "BLIP in M it is a BLIP-2, not a BLIP; set engine: transformers or vllm, or",
        ),
        ("blip", {"model_type": "llava"}, "BLIP in M it is a llava, not a BLIP; name another model"),
        (
            "blip",
            {"architectures": ["BlipForQuestionAnswering"]},
            "BLIP in M it is a BlipForQuestionAnswering, which writes no captions; name one whose architecture is "
            "BlipForConditionalGeneration",
        ),
        ("blip", {"model_type": None}, "BLIP in M it names no model_type in its config.json; download it again"),
        ("transformers", {"model_type": "blip-2"}, ""),
        ("transformers", {}, "BLIP-2 in M it is a BLIP, not a BLIP-2; set engine: blip, or name another model"),
        (
            "transformers",
            {"model_type": "blip-2", "text_config": {"model_type": "t5"}, "use_decoder_only_language_model": False},
            "",
        ),
        (
            "vllm",
            {"model_type": "blip-2", "text_config": {"model_type": "t5"}, "use_decoder_only_language_model": False},
            "BLIP-2 in M it is a BLIP-2 with t5, an encoder-decoder, which vLLM does not have; set engine: "
            "transformers, or use one with OPT",
        ),
        (
            "transformers",
            {"model_type": "blip-2", "text_config": {"model_type": "bart", "is_encoder_decoder": True}},
            "BLIP-2 in M it is a BLIP-2 with bart, an encoder-decoder, which no engine here supports; use one with OPT",
        ),
        ("vllm", {"model_type": "blip-2", "text_config": {"model_type": "opt"}}, ""),
        ("vllm", {}, "BLIP-2 in M it is a BLIP, not a BLIP-2; set engine: blip, or name another model"),
        ("vllm", {"model_type": "qwen2_vl"}, "BLIP-2 in M it is a qwen2_vl, not a BLIP-2; name another model"),
    ],
)
def test_a_captioner_of_another_architecture_is_one_line(
    engine: str, config: dict[str, Any], what: str, toy: Workspace
) -> None:
    toy.params(datasets__toy__captioner={"engine": engine, "model": blip_folder(toy.path / "M", **config)})
    toy.params(datasets__toy__captioner__model="M")
    text = check(1 if what else 0)
    assert what in " ".join(text.split())
    assert ("missing: 1 thing" in text) == bool(what)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}, ""),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, ""),
        ({"model_type": "blip-2"}, "in M it is a BLIP-2, which takes no prompt; leave prompt out"),
        ({}, "in M it is a BLIP, which takes no prompt; leave prompt out and set engine: blip"),
        ({"model_type": None}, "in M it names no model_type in its config.json; download it again"),
    ],
)
def test_a_captioner_with_a_prompt_is_any_vision_language_model_but_blip(
    config: dict[str, Any], what: str, toy: Workspace
) -> None:
    block = {"engine": "vllm", "model": blip_folder(toy.path / "M", **config), "prompt": "Describe it.", "n": 7}
    toy.params(datasets__toy__captioner=block)
    toy.params(datasets__toy__captioner__model="M")
    text = " ".join(check(1 if what else 0).split())
    assert what in text and "images to 7 captions" in text
    assert ("missing: 1 thing" in text) == bool(what)


@pytest.mark.parametrize("engine", ["blip", "transformers", "vllm"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "it has no config.json; put the model's whole folder there"),
        ("{", "it has no readable config.json (Expecting property name"),
        ("[1]", "it has no readable config.json (it holds no mapping); download it again"),
        ("\udcff", "it has no readable config.json ("),
        ("[" * 100_000, "it has no readable config.json ("),
    ],
)
def test_a_captioner_without_a_readable_configuration_is_one_line(
    engine: str, content: str | None, what: str, toy: Workspace
) -> None:
    model = Path(blip_folder(toy.path / "M"))
    (model / "config.json").unlink()
    if content is not None:
        (model / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    toy.params(datasets__toy__captioner={"engine": engine, "model": "M"})
    text = check(1)
    assert what in " ".join(section(text, "missing: 1 thing").split())


def test_a_captioner_of_the_hubs_cache_is_looked_at_too(
    toy: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub/models--people--captioner"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("a" * 40)
    (cached / "snapshots").mkdir()
    blip_folder(cached / "snapshots" / ("a" * 40), model_type="blip-2")
    toy.params(datasets__toy__captioner={"engine": "blip", "model": "people/captioner"})
    assert "BLIP in people/captioner it is a BLIP-2, not a BLIP" in " ".join(section(check(1), "missing: 1").split())
    toy.params(datasets__toy__captioner={"engine": "transformers", "model": "people/captioner"})
    assert "Nothing is missing" in check(0)
