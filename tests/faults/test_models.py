"""A model that goes away between runs, in the middle of one, or stops answering: one line, and back it is right."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.faults import killing
from tests.faults.answers import EDITOR, serving
from tests.faults.stage_harness import Stand, right_or_a_line

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
MODELS = [
    ("captions", "demo/weights/blip2"),
    ("gallery_vectors", "demo/weights/clip"),
    ("query_vectors", "demo/weights/clip"),
    ("query_vectors", "demo/weights/phi.safetensors"),
]
INSTANTS = 6


def away(model: Path) -> Path:
    return model.rename(model.with_name(f"{model.name}.away"))


@pytest.mark.parametrize(("stage", "name"), MODELS)
def test_a_model_that_is_gone_between_runs(stand: Callable[[str], Stand], stage: str, name: str) -> None:
    put = stand(stage)
    model = put.workspace.path / name
    put.clear()
    gone = away(model)
    line = put.workspace.error(stage, *put.case.arguments)
    assert name in line and "a bug" not in line, line
    gone.rename(model)
    put.again()
    assert put.differences() == []


def test_an_editor_that_is_gone_between_runs(stand: Callable[[str], Stand]) -> None:
    put = stand("edits")
    put.workspace.params(datasets__demo__editor={"engine": "vllm", "model": "demo/weights/gone", "precision": "fp32"})
    line = put.workspace.error("edits", "demo")
    assert "demo/weights/gone: no such model folder; check the model in params.yaml" in line, line
    put.workspace.params(datasets__demo__editor=EDITOR | {"address": "http://127.0.0.1:9/v1"})
    put.again()  # every answer is in the store, so nobody asks
    assert put.differences() == []


@pytest.mark.parametrize(("stage", "name"), MODELS)
def test_a_model_that_goes_away_in_mid_run(stand: Callable[[str], Stand], stage: str, name: str) -> None:
    put, seed = stand(stage), killing.seed()
    model, random = put.workspace.path / name, Random(seed)
    put.clear()
    began = time.monotonic()
    put.again()
    took = time.monotonic() - began
    for _ in range(INSTANTS):
        put.clear()
        instant = random.random() * took
        said = f"seed {seed}: {name} away after {instant:.2f} s"
        right_or_a_line(put, said, meanwhile=partial(leave, instant, model))
        Path(f"{model}.away").rename(model)
        put.again()
        assert put.differences() == []


def leave(instant: float, model: Path) -> None:
    time.sleep(instant)
    away(model)


def test_a_server_that_stops_answering_in_mid_run(stand: Callable[[str], Stand]) -> None:
    put = stand("edits")
    put.clear()
    with serving() as address:
        put.workspace.params(datasets__demo__editor__address=address)
        process = put.start()
        while process.poll() is None and not put.begun("store"):
            time.sleep(killing.POLL)
    _, err = process.communicate()
    assert process.returncode == 1 and len(err.splitlines()) == 1, err
    assert f"{address}: no answer after 6 retries; is the server up? Then run the stage again" in err
    kept = put.kept()["edits"]
    with serving() as address:
        put.workspace.params(datasets__demo__editor__address=address)
        put.again()
    assert put.differences() == [] and put.steps()["edits"][0] == kept > 0
