"""The two editor engines give the same edits: vLLM in this process, and a server with the same model over HTTP."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.models import server_client
from cvsi.models.editor import Answer, Turn
from cvsi.models.engines import EDITORS
from cvsi.models.llm_server import KEY, ServerEditor, ServerEditorSettings
from cvsi.models.llm_vllm import ENGINE, VllmEditor, VllmEditorSettings
from cvsi.pipeline import edits
from tests.conftest import COLOURS, Workspace, write_queries
from tests.imports import ROOT
from tests.stage_inputs import DISC_CAPTIONS, write_captions, write_index

pytestmark = pytest.mark.xdist_group("vllm")  # loading takes most of the time, so one process loads
SECRET = "sk-test-8d2f41"
LOAD_SECONDS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's editor with a chat template in the demo's own form, so that both styles give the same answers."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    shutil.copytree(ROOT / "demo/weights/llama", folder)
    file = folder / "tokenizer_config.json"
    template = (
        "{% for message in messages %}{{ message['content'] }}{{ '\\n\\n' if message['role'] == 'system' else '\\n' }}"
        "{% endfor %}"
        "{{ 'Edited Description:' if 'Describe' in messages[0]['content'] else 'Objects most likely added:' }}"
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def loaded(model: Path) -> VllmEditor:
    settings = VllmEditorSettings(model=str(model), precision="fp32", max_tokens=64)
    return VllmEditor(settings, Compute(device="cpu"))


class OpenAiServer(BaseHTTPRequestHandler):
    """OpenAI's interface to the loaded engine, as vLLM's own server has it: a key, a context, both styles."""

    editor: ClassVar[VllmEditor]
    one_at_a_time: ClassVar[threading.Lock] = threading.Lock()  # the engine is not made for threads

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {SECRET}":
            self.reply(401, {"error": "Unauthorized"})
        elif body["model"] != "tiny":
            self.reply(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        else:
            self.complete(body, chat=self.path.endswith("/chat/completions"))

    def complete(self, body: dict[str, Any], chat: bool) -> None:
        from vllm import SamplingParams  # seconds of imports, which no other test file needs

        tokenizer, engine = self.editor.tokenizer, self.editor.engine
        if chat:
            tokens = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        else:
            tokens = tokenizer(body["prompt"])["input_ids"]
        longest = engine.model_config.max_model_len
        if len(tokens) + body["max_tokens"] > longest:
            self.reply(400, {"error": {"message": f"This model's maximum context length is {longest} tokens."}})
            return
        stop = [body["stop"]] if "stop" in body else None
        sampling = SamplingParams(temperature=body["temperature"], max_tokens=body["max_tokens"], stop=stop)
        with self.one_at_a_time:
            (output,) = engine.generate([{"prompt_token_ids": tokens}], sampling, use_tqdm=False)
        text, finish = output.outputs[0].text, output.outputs[0].finish_reason
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice["finish_reason"] = finish
        self.reply(200, {"id": "1", "object": "x", "created": 0, "model": "tiny", "choices": [choice | {"index": 0}]})

    def reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module", params=["in this process", pytest.param("vLLM's own", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the editor, behind a key: one that shares this process's engine, and vLLM's own."""
    if request.param == "vLLM's own":
        with vllm_server(model, tmp_path_factory.mktemp("server") / "log.txt") as url:
            yield url
        return
    OpenAiServer.editor = request.getfixturevalue("loaded")
    with ThreadingHTTPServer(("127.0.0.1", 0), OpenAiServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """Run vLLM's server with the editor; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1",
        "--port", str(port), "--api-key", SECRET,
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(LOAD_SECONDS):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(f"the server did not come up: {log.read_text()[-3000:]}")


@pytest.fixture
def captioned(toy: Workspace, model: Path) -> Workspace:
    """The toy dataset with three queries per picture and one that is too long for any model, captioned.

    Its editor is the module's model in vLLM.
    """
    instructions = ("is {} instead", "has two {} circles", "is joined by a dotted {} square")
    queries: list[dict[str, Any]] = [
        {"reference": f"{colour}.png", "instruction": instruction.format(COLOURS[number - 1])}
        for number, colour in enumerate(COLOURS)
        for instruction in instructions
    ]
    write_queries(toy.path / "photos", *queries, {"reference": "red.png", "instruction": "is red " * 3000})
    write_index()
    write_captions()
    toy.params(datasets__toy__editor__model=str(model))
    return toy


@pytest.fixture
def vllm(captioned: Workspace, loaded: VllmEditor) -> Iterator[None]:
    """Let the engine `vllm` return the loaded one, with the style that its settings name."""

    def load(settings: VllmEditorSettings, compute: Compute, worker: int) -> VllmEditor:
        assert settings.max_tokens == 64 and not settings.exact
        loaded.chat = settings.style == "chat"
        loaded.settings, loaded.system = settings, None
        return loaded

    with EDITORS.using("vllm", replace(ENGINE, load=load)):
        yield


def write_edits() -> list[dict[str, Any]]:
    """Run the stage's function in this process; the rows that it wrote."""
    edits.write("toy", params.load())
    return pl.read_parquet("cache/toy/edits/*.parquet").to_dicts()


def use_server(workspace: Workspace, address: str, **changes: Any) -> None:
    tiny = project_editor(workspace)
    workspace.params(datasets__toy__editor=tiny | {"engine": "server", "address": address, "model": "tiny"} | changes)


def project_editor(workspace: Workspace) -> dict[str, Any]:
    editor: dict[str, Any] = workspace.params()["editors"]["tiny"]
    return editor


def test_edits_through_a_server_equal_those_of_the_engine(
    captioned: Workspace, vllm: None, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = write_edits()
    assert [row["status"] for row in ours[-1:]] == ["too long"]
    assert sum(row["status"] == "ok" for row in ours) >= 20
    use_server(captioned, address)
    monkeypatch.setenv(KEY, SECRET)
    printed = captioned.run("edits", "toy")
    assert "25 to edit" in printed
    assert pl.read_parquet("cache/toy/edits/*.parquet").to_dicts() == ours
    capsys.readouterr()
    assert write_edits() == ours
    assert "25 in the store" in capsys.readouterr().out
    use_server(captioned, address, exact=True)
    assert write_edits() == ours
    assert "25 to edit" in capsys.readouterr().out
    for file, content in captioned.bytes_below(".runs", "store", "toy").items():
        assert SECRET.encode() not in content, file


def test_a_chat_gets_its_template_in_both_engines(
    captioned: Workspace, vllm: None, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    completed = write_edits()
    captioned.params(datasets__toy__editor__style="chat", datasets__toy__editor__captions="all")
    ours = write_edits()
    assert sum(row["status"] == "ok" for row in ours) >= 20
    assert [row["edited"] for row in ours] == [row["edited"] for row in completed]
    monkeypatch.setenv(KEY, SECRET)
    use_server(captioned, address, style="chat", captions="all")
    assert write_edits() == ours
    assert capsys.readouterr().out.count("25 to edit") == 3


CONVERSATION: list[Turn] = [
    {"role": "system", "content": "The task."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
    {"role": "user", "content": "last"},
]  # fmt: skip
BODY = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + BODY
DROPS = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture
def chat(loaded: VllmEditor, monkeypatch: pytest.MonkeyPatch) -> VllmEditor:
    from transformers import AutoTokenizer  # seconds of imports

    monkeypatch.setattr(loaded, "chat", True)
    monkeypatch.setattr(loaded, "system", None)
    monkeypatch.setattr(loaded, "tokenizer", AutoTokenizer.from_pretrained(loaded.settings.model))
    return loaded


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (BODY, "[system]The task.[user]q[assistant]a[user]last"),
        (REFUSES, "[user]The task.\n\nq[assistant]a[user]last"),
        (DROPS, "[user]The task.\n\nq[assistant]a[user]last"),
    ],
)
def test_a_template_without_a_system_role_gets_the_task_in_the_first_turn(
    chat: VllmEditor, template: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.tokenizer, "chat_template", template)
    assert chat.texts([CONVERSATION, CONVERSATION]) == [text, text]


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (None, "has no chat template, it is no instruct model; set style: completion"),
        ("{{ raise_exception('only one message, please') }}", "its chat template refuses the conversation (only one"),
        (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ raise_exception('no assistant') }}{% endif %}"
            "{{ m['content'] }}{% endfor %}",
            "its chat template refuses the conversation (no assistant); set style: completion",
        ),
        ("{% for", "its chat template refuses the conversation"),
    ],
)
def test_a_model_without_a_fitting_template_is_one_line(
    chat: VllmEditor, template: str | None, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.tokenizer, "chat_template", template)
    with pytest.raises(CvsiError) as error:
        chat.texts([CONVERSATION])
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_template_gets_the_option_without_reasoning_and_the_settings(
    chat: VllmEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.tokenizer, "chat_template", "{{ enable_thinking }} {{ more }}{{ messages[0]['content'] }}")
    assert chat.texts([CONVERSATION]) == ["False The task."]
    options = {"enable_thinking": True, "more": "high"}
    monkeypatch.setattr(chat, "settings", chat.settings.model_copy(update={"chat_template_kwargs": options}))
    assert chat.texts([CONVERSATION]) == ["True highThe task."]


def test_reasoning_that_the_template_opens_is_part_of_the_answer(
    chat: VllmEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.tokenizer, "chat_template", "{{ messages[0]['content'] }}<think>\n")
    (answer,) = chat.answers([CONVERSATION])
    assert answer.text.startswith("<think>")


@pytest.mark.slow  # the stage's process loads vLLM itself; tests/project/test_pipeline.py does so too
def test_the_stages_process_edits_with_vllm(captioned: Workspace, vllm: None) -> None:
    ours = write_edits()
    captioned.params(datasets__toy__editor=project_editor(captioned), store="another")
    assert "25 to edit" in captioned.run("edits", "toy")
    assert pl.read_parquet("cache/toy/edits/*.parquet").to_dicts() == ours


def test_each_caption_is_edited_by_itself(captioned: Workspace, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    use_server(captioned, address, mode="each")
    rows = write_edits()
    assert [len(row["edited"]) for row in rows] == [5] * 25
    assert rows[-1]["status"] == "too long"
    assert rows[-1]["edited"] == DISC_CAPTIONS["red.png"]


def test_a_wrong_key_and_an_unknown_model_are_one_line_without_the_key(
    captioned: Workspace, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_server(captioned, address)
    monkeypatch.setenv(KEY, "sk-wrong-one")
    line = captioned.error("edits", "toy")
    assert line == f"edits toy: {address}: the key was refused; set the environment variable {KEY}"
    use_server(captioned, address, model="absent")
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(CvsiError, match="no model 'absent' there") as error:
        write_edits()
    assert SECRET not in str(error.value)


class Flaky(BaseHTTPRequestHandler):
    """A server that is busy twice before each answer, and echoes the prompt's last word."""

    busy: dict[str, int]

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        seen = Flaky.busy[prompt] = Flaky.busy.get(prompt, 0) + 1
        answer = {"id": "1", "object": "text_completion", "created": 0, "model": "m"}
        answer["choices"] = [{"index": 0, "text": prompt.split()[-1], "logprobs": None, "finish_reason": "stop"}]
        body = json.dumps(answer).encode() if seen > 2 else b'{"error": "busy"}'
        self.send_response(200 if seen > 2 else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


def editor_at(port: int) -> ServerEditor:
    settings = ServerEditorSettings(engine="server", address=f"http://127.0.0.1:{port}/v1", model="m", max_tokens=8)
    return ServerEditor(settings, Compute(requests=4))


def test_a_busy_server_gets_the_request_again_and_answers_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.0)
    Flaky.busy = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        prompts = [f"word w{number}" for number in range(9)]
        assert editor_at(server.server_port).answers(prompts) == [Answer(f"w{number}", "stop") for number in range(9)]
        server.shutdown()
    assert set(Flaky.busy.values()) == {3}


def test_a_server_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "RETRIES", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(CvsiError, match=rf"127\.0\.0\.1:{port}/v1: no answer after 1 retries; is the server up"):
        editor_at(port).answers(["a"])
