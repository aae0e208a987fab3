"""A model removed before or during a run, a server that stops: one line, and a rerun with the model is correct."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.faults import killing
from tests.faults.answers import EDITOR, serve
from tests.faults.stage_harness import StageHarness, correct_or_one_line

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
MODELS = [
    ("captions", "demo/weights/blip2"),
    ("gallery_vectors", "demo/weights/clip"),
    ("query_vectors", "demo/weights/clip"),
    ("query_vectors", "demo/weights/phi.safetensors"),
]
INSTANTS = 6


def remove(model: Path) -> Path:
    return model.rename(model.with_name(f"{model.name}.removed"))


def remove_after(seconds: float, model: Path) -> None:
    time.sleep(seconds)
    remove(model)


@pytest.mark.parametrize(("stage", "name"), MODELS)
def test_a_model_removed_between_runs(harness_of: Callable[[str], StageHarness], stage: str, name: str) -> None:
    harness = harness_of(stage)
    model = harness.workspace.path / name
    harness.clear()
    removed = remove(model)
    line = harness.error()
    assert name in line and "a bug" not in line, line
    removed.rename(model)
    harness.rerun()
    assert harness.differences() == []


def test_an_editor_removed_between_runs(harness_of: Callable[[str], StageHarness]) -> None:
    harness = harness_of("edits")
    vllm = {"engine": "vllm", "model": "demo/weights/removed", "precision": "fp32"}
    harness.workspace.params(datasets__demo__editor=vllm)
    line = harness.error()
    assert "demo/weights/removed: no such model folder; check the model in params.yaml" in line, line
    harness.workspace.params(datasets__demo__editor=EDITOR | {"address": "http://127.0.0.1:9/v1"})
    harness.rerun()  # every answer is in the store, so no request is sent
    assert harness.differences() == []


@pytest.mark.parametrize(("stage", "name"), MODELS)
def test_a_model_removed_during_a_run(harness_of: Callable[[str], StageHarness], stage: str, name: str) -> None:
    harness, seed = harness_of(stage), killing.seed()
    model, random = harness.workspace.path / name, Random(seed)
    harness.clear()
    began = time.monotonic()
    harness.rerun()
    took = time.monotonic() - began
    for _ in range(INSTANTS):
        harness.clear()
        instant = random.random() * took
        fault = f"seed {seed}: {name} removed after {instant:.2f} s"
        correct_or_one_line(harness, fault, meanwhile=partial(remove_after, instant, model))
        Path(f"{model}.removed").rename(model)
        harness.rerun()
        assert harness.differences() == []


def test_a_server_that_stops_during_a_run(harness_of: Callable[[str], StageHarness]) -> None:
    harness = harness_of("edits")
    harness.clear()
    with serve() as address:
        harness.workspace.params(datasets__demo__editor__address=address)
        process = harness.start()
        while process.poll() is None and not harness.has_begun("store"):
            time.sleep(killing.POLL_SECONDS)
    _, err = process.communicate()
    assert process.returncode == 1 and len(err.splitlines()) == 1, err
    assert f"{address}: no answer after 6 retries; is the server up? Then run the stage again" in err
    kept = harness.stored_counts()["edits"]
    with serve() as address:
        harness.workspace.params(datasets__demo__editor__address=address)
        harness.rerun()
    assert harness.differences() == [] and harness.last_steps()["edits"][0] == kept > 0
