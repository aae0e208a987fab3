"""Readings for a teammate without the vision-language model: by `dvc pull`, and by a pack.

The reader's engine is vLLM's with a model folder that only the first member has, and the model is replaced by a rule.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cvsi.commands import pack, unpack
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.schema import QUERY_PARTS
from cvsi.datasets import index
from cvsi.evaluation import scores
from cvsi.evaluation.report import build as report
from cvsi.models.editor import Answer
from cvsi.models.engines import EDITORS, READERS, Engine
from cvsi.models.model_id import require
from cvsi.models.reader import ReaderSettings, Reading
from cvsi.models.reader_vllm import ENGINE
from cvsi.pipeline import edits
from tests import toy_engines
from tests.conftest import Workspace, repro
from tests.project.collaboration import call, commit
from tests.project.tracked import changed_stages, track
from tests.stage_inputs import write_captions, write_vectors

ROLES = {"target": 1, "desired": 3, "preserve": 3, "forbidden": 3}
MODEL = "models/vlm/reader"  # three parts, so no name of the hub
BLOCK = {"engine": "vllm", "model": MODEL, "roles": ROLES}


class Rule:
    """Answers each role with a text that names it."""

    loaded = 0

    def __init__(self, settings: ReaderSettings, *others: object) -> None:
        require(settings.model)  # as every engine with a model on this machine
        Rule.loaded += 1

    def answers(self, readings: Sequence[Reading]) -> list[Answer]:
        assert all(reading.image.startswith("data:image/jpeg") for reading in readings)
        return [Answer(json.dumps({role: [f"a {role} circle"] for role in ROLES}), "stop") for _ in readings]


@pytest.fixture
def read(toy: Workspace) -> Iterator[Workspace]:
    """The toy dataset with captions, edits and readings of a model in a folder."""
    folder = toy.path / MODEL
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    toy.params(
        compute={"device": "cpu"},
        datasets__toy__reader=BLOCK,
        datasets__toy__editor={"engine": "rule", "ending": "now"},
    )
    engine: Engine[Any, Any] = ENGINE
    with EDITORS.using("rule", toy_engines.EDITOR), READERS.using("vllm", replace(engine, load=Rule)):
        index.build("toy", params.load())
        write_captions()
        edits.write("toy", params.load())
        Rule.loaded = 0
        yield toy


def table(workspace: Workspace) -> pl.DataFrame:
    return pl.read_parquet(workspace.path / "cache/toy/edits/*.parquet")


def test_a_teammate_without_the_model_gets_the_readings_by_dvc_pull(
    read: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = params.load()
    write_vectors([*QUERY_PARTS, *ROLES])
    scores.build("toy", "tiny", settings)
    report.build("toy", "tiny", settings)
    track(read)
    team = tmp_path_factory.mktemp("team")
    call(read, "dvc", "remote", "add", "-q", "--default", "team", str(team / "remote"))
    commit(read, "readings")
    call(read, "dvc", "push", "-q", "--run-cache")
    mate = Workspace(team / "mate")
    call(read, "git", "clone", "-q", str(read.path), str(mate.path))
    assert not (mate.path / MODEL).exists() and not (mate.path / "cache").exists()
    call(mate, "dvc", "pull", "-q", "--run-cache")
    assert set(table(mate)["reader_status"]) == {"ok"} and table(mate).equals(table(read))
    assert changed_stages(mate) == []
    mate.params(datasets__toy__fusion="roles")  # another method over the same readings
    ran, printed = repro(mate)
    assert ran == ["scores", "report"], printed
    shown = json.loads((mate.path / "cache/toy/tiny/report/weightings.json").read_text())
    assert shown["own"] == "roles" and {"soft", "sdr", "osrcir"} <= set(shown["splits"]["val"])
    assert not list((mate.path / "cache").rglob("store/readings")) and not (mate.path / MODEL).exists()


def test_a_teammate_without_the_model_gets_the_readings_by_a_pack(
    read: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, out = table(read), tmp_path / "pack"
    pack.write("toy", out, params.load(), ["edits", "readings"])
    for folder in ("cache/store", "cache/toy/edits", MODEL):
        shutil.rmtree(read.path / folder)
    with pytest.raises(CvsiError, match=MODEL):  # without the pack, the model is needed
        edits.write("toy", params.load())
    unpack.unpack(out, params.load())
    assert "readings complete: 3 distinct queries" in capsys.readouterr().out
    edits.write("toy", params.load())
    assert table(read).equals(expected) and Rule.loaded == 0


@pytest.mark.parametrize("roles", [{"target": 1}, {**ROLES, "forbidden": 4}, {"mood": 2}])
def test_readings_of_a_pack_are_not_used_for_other_roles(
    read: Workspace, tmp_path: Path, roles: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pack"
    pack.write("toy", out, params.load(), ["readings"])
    shutil.rmtree(read.path / "cache/store")
    read.params(datasets__toy__reader=BLOCK | {"roles": roles})
    unpack.unpack(out, params.load())
    assert "roles is " in capsys.readouterr().out
