"""The blocks `captioner` and `editor` of params.yaml: settings by engine, and one line for each wrong key or value."""

from typing import Any

import pytest

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.models.blip2 import Blip2Settings
from cvsi.models.blip2_vllm import VllmBlip2Settings
from cvsi.models.engines import (
    CAPTIONERS,
    EDITORS,
    captioner_of,
    captioner_settings,
    editor_engine,
    editor_of,
    editor_settings,
)
from cvsi.models.llm_server import ServerEditorSettings
from cvsi.models.llm_vllm import VllmEditorSettings
from tests.imports import ROOT

SERVER = {"engine": "server", "address": "http://localhost:8000/v1"}


def with_blocks(captioner: dict[str, Any], editor: dict[str, Any]) -> Params:
    """The project's parameters with changed blocks of the dataset `demo`."""
    settings = params.load(ROOT / "params.yaml")
    demo = settings.datasets["demo"]
    changed = demo.model_copy(update={"captioner": demo.captioner | captioner, "editor": demo.editor | editor})
    return settings.model_copy(update={"datasets": settings.datasets | {"demo": changed}})


def test_each_engine_has_its_own_settings_and_one_is_the_default() -> None:
    settings = params.load(ROOT / "params.yaml")
    for name, dataset in settings.datasets.items():
        assert isinstance(captioner_of(dataset, name), Blip2Settings)
        assert isinstance(editor_of(dataset, name), VllmEditorSettings)
    demo = settings.dataset("demo")
    assert "engine" not in demo.captioner and captioner_of(demo, "demo").engine == "transformers"
    assert isinstance(captioner_settings({"engine": "vllm", "model": "a/b"}, "captioner"), VllmBlip2Settings)
    assert isinstance(editor_settings({"model": "a/b"}, "editor"), VllmEditorSettings)
    server = editor_settings(SERVER | {"model": "a/b"}, "editor")
    assert isinstance(server, ServerEditorSettings) and editor_engine(server).requirements(server).servers
    assert CAPTIONERS.names()[:2] == ["transformers", "vllm"] and EDITORS.names()[:2] == ["vllm", "server"]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"n": 0}, ".n: Input should be greater than 0 (got 0)"),
        ({"top_p": 1.5}, ".top_p: Input should be less than or equal to 1 (got 1.5)"),
        ({"top_p": 0}, ".top_p: Input should be greater than 0 (got 0)"),
        ({"temperature": float("inf")}, ".temperature: Input should be a finite number (got inf)"),
        ({"seed": -1}, ".seed: Input should be greater than or equal to 0 (got -1)"),
        ({"max_tokens": 4, "min_tokens": 5}, ": min_tokens is 5, above max_tokens 4"),
        ({"tempreature": 1}, ".tempreature: unknown key"),
        ({"trust_remote_code": True}, ".trust_remote_code: unknown key"),
        ({"address": "http://localhost/v1"}, ".address: unknown key"),
        ({"beams": 5}, ": beams is set, but decoding is nucleus; set decoding: beam-sample or leave beams out"),
        ({"decoding": "beam-sample", "beams": 4}, ": beams is 4, but n captions are 5; beams must be at least n"),
        ({"decoding": "greedy"}, ".decoding: Input should be 'nucleus' or 'beam-sample' (got 'greedy')"),
        ({"engine": "tensorrt"}, ".engine: unknown captioner engine 'tensorrt'; there are: transformers, vllm"),
        (
            {"engine": "servers"},
            ".engine: unknown captioner engine 'servers'; there are: transformers, vllm, blip, server",
        ),
        ({"engine": "server"}, ".address: key is missing"),
        ({"engine": ["vllm"]}, ".engine: unknown captioner engine '['vllm']'; there are: transformers, vllm"),
        ({"engine": None}, ".engine: unknown captioner engine 'None'; there are: transformers, vllm"),
        (
            {"engine": "vllm", "decoding": "beam-sample"},
            ".decoding: beam-sample is not available in engine: vllm; set engine: transformers or nucleus",
        ),
        ({"engine": "vllm", "beams": 20}, ".beams: Input should be None (got 20)"),
        (
            {"engine": "vllm", "temperature": 0.001},
            ".temperature: Input should be greater than or equal to 0.01 (got 0.001)",
        ),
        ({"engine": "vllm", "max_tokens": 4, "min_tokens": 5}, ": min_tokens is 5, above max_tokens 4"),
    ],
    ids=str,
)
def test_a_wrong_captioner_is_one_line(block: dict[str, Any], expected: str) -> None:
    with pytest.raises(CvsiError) as error:
        captioner_of(with_blocks(block, {}).dataset("demo"), "demo")
    assert str(error.value).startswith(f"params.yaml: datasets.demo.captioner{expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"max_tokens": 0}, ".max_tokens: Input should be greater than or equal to 1 (got 0)"),
        ({"style": "poem"}, ".style: Input should be 'completion' or 'chat' (got 'poem')"),
        ({"mode": "some"}, ".mode: Input should be 'joint' or 'each' (got 'some')"),
        ({"context": 0}, ".context: Input should be greater than 0 (got 0)"),
        ({"temperature": 1}, ".temperature: unknown key"),
        ({"trust_remote_code": True}, ".trust_remote_code: unknown key"),
        ({"address": "http://localhost:8000/v1"}, ".address: unknown key"),
        ({"engine": "server"}, ".address: key is missing"),
        (SERVER | {"address": "localhost:8000"}, ".address: String should match pattern"),
        (SERVER | {"address": "http://key@localhost/v1"}, ".address: String should match pattern"),
        ({"engine": "transformers"}, ".engine: unknown editor engine 'transformers'; there are: vllm, server"),
        ({"engine": {}}, ".engine: unknown editor engine '{}'; there are: vllm, server"),
    ],
    ids=str,
)
def test_a_wrong_editor_is_one_line(block: dict[str, Any], expected: str) -> None:
    with pytest.raises(CvsiError) as error:
        editor_of(with_blocks({}, block).dataset("demo"), "demo")
    assert str(error.value).startswith(f"params.yaml: datasets.demo.editor{expected}")
    assert "\n" not in str(error.value)


def test_a_block_without_a_model_names_the_key() -> None:
    for settings, noun in ((captioner_settings, "captioner"), (editor_settings, "editor")):
        with pytest.raises(CvsiError, match=rf"^params\.yaml: datasets\.demo\.{noun}\.model: key is missing$"):
            settings({}, f"datasets.demo.{noun}")
