"""A tiny Qwen2.5-VL as reader: in vLLM's offline engine, and behind vLLM's own server, with the same answers."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random

import polars as pl
import pytest
from PIL import Image

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models.editor import TOO_LONG, Answer
from cvsi.models.engines import reader_settings
from cvsi.models.reader import Reading, image_url
from cvsi.models.reader_vllm import VllmReader, VllmReaderSettings
from cvsi.models.vllm_chat import COMPACT
from cvsi.pipeline.answers import Query
from cvsi.pipeline.prompting import few_shot
from cvsi.pipeline.reading_prompts import reading_of
from cvsi.pipeline.role_answers import parse
from demo import blip2
from demo import reader as demo_reader
from demo.texts import compose
from demo.world.drawing import picture
from tests.conftest import Workspace, project_params
from tests.imports import ROOT
from tests.models import tiny_qwen
from tests.stage_inputs import write_captions, write_index

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm")]
ROLES = {"target": 1, "forbidden": 2}
READER = {"precision": "fp32", "context": 4096, "max_tokens": 300, "roles": ROLES}
START_SECONDS = 400.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # With this seed, two of the stage's three readings are usable; with others none, which ends the stage.
    return tiny_qwen.save(tmp_path_factory.mktemp("model") / "tiny-qwen", seed=1)


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    """The address of vLLM's server with the model, while a test runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--served-model-name", "tiny",
        "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-model-len", "4096",
        "--structured-outputs-config", json.dumps(COMPACT), "--limit-mm-per-prompt", '{"image": 1, "video": 0}',
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", folder / "server.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    pytest.fail(log.read_text()[-2000:])


def test_the_answers_follow_the_schema_the_image_and_the_text_and_a_long_prompt_is_not_sent(folder: Path) -> None:
    settings = VllmReaderSettings(model=str(folder), **READER)  # type: ignore[arg-type]
    reader = VllmReader(settings, Compute(device="cpu"))

    def reading(colour: str, instruction: str) -> Reading:
        url = image_url(Image.new("RGB", (64, 48), colour), settings)
        return reading_of(settings, few_shot("roles"), instruction, url)

    pairs = [("red", "is green"), ("blue", "is green"), ("red", "has a hat"), ("red", "is green")]
    readings = [reading(*pair) for pair in pairs]
    answers = reader.answers(readings)
    assert reader.system and answers[0] == answers[3]
    assert len({answer.text for answer in answers}) == 3, answers
    for answer in answers:
        assert answer.text.startswith('{"target":[') and answer.finish in ("stop", "length")
        if answer.finish == "stop":
            texts = json.loads(answer.text, strict=False)
            assert list(texts) == list(ROLES) and all(len(texts[role]) <= most for role, most in ROLES.items())
    second = image_url(Image.new("RGB", (64, 48), "blue"), settings)
    two = reading_of(settings, few_shot("roles"), "is green", readings[0].image, second=second)
    both = reader.answers([readings[0], two, two._replace(image=second, second=readings[0].image)])
    assert both[0] == answers[0] and len({answer.text for answer in both}) == 3, both
    mixed = reader.answers([readings[0], reading("red", "word " * 9000)])
    assert mixed[0] == answers[0] and (mixed[1].text, mixed[1].finish) == ("", TOO_LONG)


def test_a_text_model_reads_captions_and_one_without_a_chat_template_is_one_line(tmp_path: Path) -> None:
    def answers(name: str) -> list[Answer]:
        """Of the demo's language model in this folder; vLLM keeps the tokenizer of each folder."""
        model = str(tmp_path / name)
        settings = VllmReaderSettings(
            model=model, precision="fp32", max_tokens=40, sees="captions", roles={"target": 1}
        )
        reading = Reading("Describe it.", [], "Image Content: a red circle\nInstruction: is green")
        return VllmReader(settings, Compute(device="cpu")).answers([reading])

    for name in ("base", "chat"):
        shutil.copytree(ROOT / "demo" / "weights" / "llama", tmp_path / name)
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (tmp_path / "chat" / "chat_template.jinja").write_text(template)
    assert answers("chat")[0].text.startswith('{"target":[')
    with pytest.raises(CvsiError, match="no chat template") as raised:
        answers("base")
    assert "\n" not in str(raised.value)


def test_the_demos_reader_sees_pictures_and_writes_the_lines_that_transformers_writes() -> None:
    block = project_params()["readers"]["tiny"]
    settings, random = reader_settings(block, "readers.tiny"), Random(5)
    assert isinstance(settings, VllmReaderSettings)
    examples = [compose(random) for _ in range(12)]
    conversations = [
        reading_of(settings, few_shot("demo_roles"), one.clause, image_url(picture(one.source), settings))
        for one in examples
    ]
    answers = VllmReader(settings, Compute(device="cpu")).answers(conversations)
    model, tokenizer = blip2.load(Path(block["model"]))
    hidden = demo_reader.hidden_states(model, [one.source for one in examples])
    expected = demo_reader.generate(model, tokenizer, hidden, [one.clause for one in examples])
    same = [answer.text.strip() == text for answer, text in zip(answers, expected, strict=True)]
    assert sum(same) >= 11, list(zip(answers, expected, strict=True))  # rounding may decide between two near words
    assert {answer.finish for answer in answers} == {"stop"}
    for one, text in zip(examples, expected, strict=True):
        parsed = parse(Answer(text, "stop"), settings.roles, Query([], one.clause, []), lines=True)
        assert parsed.status == "ok" or parsed.status.startswith("repaired: preserve: duplicates"), parsed
        assert parsed.texts == {role: list(dict.fromkeys(texts)) for role, texts in demo_reader.lines(text).items()}


def test_the_stage_gives_the_same_roles_through_vllm_after_an_editor_in_vllm_and_through_vllms_server(
    toy: Workspace, folder: Path, server: str
) -> None:
    write_index()
    write_captions()
    toy.params(datasets__toy__reader={"engine": "vllm", "model": str(folder), **READER}, compute={"device": "cpu"})
    toy.run("edits", "toy")  # the editor's engine and the reader's, one after the other in one process
    here = pl.read_parquet("cache/toy/edits/*.parquet")
    assert any(here["reader_answer"]) and here["reader_answer"].n_unique() == here.height
    toy.params(
        datasets__toy__reader={"engine": "server", "address": server, "model": "tiny", **READER},
        compute={"device": "cpu", "requests": 1},
    )
    toy.run("edits", "toy")
    there = pl.read_parquet("cache/toy/edits/*.parquet")
    assert there.equals(here)
