"""The two engines give the same edits: vLLM in the stage's process, and vLLM's own server asked over HTTP."""

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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cvsi.core.errors import CvsiError
from cvsi.core.model_settings import Editor
from cvsi.core.params import Compute
from cvsi.models import llm
from tests.conftest import COLOURS, Workspace, write_queries
from tests.imports import ROOT

SECRET = "sk-test-8d2f41"
LOAD_SECONDS = 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's editor with a chat template that adds nothing, so that both styles must give the same answers."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    shutil.copytree(ROOT / "demo/weights/llama", folder)
    file = folder / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's server with that editor, behind a key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1",
        "--port", str(port), "--api-key", SECRET,
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("server") / "log.txt"
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
def asked(toy: Workspace) -> Workspace:
    """The toy dataset with three questions a picture and one that no model has room for, captioned."""
    wishes = ("is {} instead", "has two {} circles", "is joined by a dotted {} square")
    queries: list[dict[str, Any]] = [
        {"reference": f"{colour}.png", "instruction": wish.format(COLOURS[place - 1])}
        for place, colour in enumerate(COLOURS)
        for wish in wishes
    ]
    write_queries(toy.path / "photos", *queries, {"reference": "red.png", "instruction": "is red " * 3000})
    toy.run("index", "toy")
    toy.run("captions", "toy")
    return toy


def rows(workspace: Workspace, stage: str = "edits") -> list[dict[str, Any]]:
    files = sorted((workspace.path / "cache/toy" / stage).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def ask_server(workspace: Workspace, address: str, **changes: Any) -> None:
    tiny = workspace.params()["datasets"]["toy"]["editor"]
    workspace.params(datasets__toy__editor=tiny | {"engine": "server", "address": address, "model": "tiny"} | changes)


def test_edits_through_a_server_equal_those_of_the_engine(
    asked: Workspace, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked.run("edits", "toy")
    ours = rows(asked)
    assert [row["status"] for row in ours[-1:]] == ["prompt too long: edited and added"]
    assert sum(row["status"] == "ok" for row in ours) >= 20
    ask_server(asked, address)
    monkeypatch.setenv(llm.KEY, SECRET)
    said = asked.run("edits", "toy")
    assert "25 to edit" in said
    assert rows(asked) == ours
    assert "25 in the store" in asked.run("edits", "toy")
    ask_server(asked, address, exact=True)
    asked.run("edits", "toy")
    assert rows(asked) == ours
    for file, content in asked.bytes_below(".runs", "store", "toy").items():
        assert SECRET.encode() not in content, file


def test_a_chat_gets_its_template_here_and_there(
    asked: Workspace, model: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = asked.params()["datasets"]["toy"]["editor"]
    asked.params(datasets__toy__editor=tiny | {"model": str(model), "style": "chat"})
    asked.run("edits", "toy")
    ours = rows(asked)
    assert sum(row["status"] == "ok" for row in ours) >= 20
    monkeypatch.setenv(llm.KEY, SECRET)
    for style in ("chat", "completion"):
        ask_server(asked, address, style=style)
        asked.run("edits", "toy")
        assert rows(asked) == ours


def test_each_caption_is_edited_by_itself(asked: Workspace, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(llm.KEY, SECRET)
    ask_server(asked, address, mode="each")
    asked.run("edits", "toy")
    found = rows(asked)
    assert [len(row["edited"]) for row in found] == [5] * 25
    assert found[-1]["status"] == "prompt too long: edited (5 of 5) and added"
    captions = {row["image_id"]: row["captions"] for row in rows(asked, "captions")}
    assert found[-1]["edited"] == captions["red.png"]


def test_a_wrong_key_and_an_unknown_model_are_one_line_without_the_key(
    asked: Workspace, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_server(asked, address)
    monkeypatch.setenv(llm.KEY, "sk-wrong-one")
    line = asked.error("edits", "toy")
    assert line == f"edits toy: {address}: the key was refused; set the environment variable {llm.KEY}"
    ask_server(asked, address, model="absent")
    monkeypatch.setenv(llm.KEY, SECRET)
    assert "no model 'absent' there" in asked.error("edits", "toy")


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
        """Say nothing."""


def server_of(port: int, **changes: Any) -> llm.Server:
    editor = Editor(engine="server", address=f"http://127.0.0.1:{port}/v1", model="m", max_tokens=8)
    return llm.Server(editor.model_copy(update=changes), Compute(requests=4))


def test_a_busy_server_is_asked_again_and_answers_keep_their_order() -> None:
    Flaky.busy = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        prompts = [f"say w{number}" for number in range(9)]
        assert server_of(server.server_port).answers(prompts) == [f"w{number}" for number in range(9)]
        server.shutdown()
    assert set(Flaky.busy.values()) == {3}


def test_a_server_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "RETRIES", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(CvsiError, match=rf"127\.0\.0\.1:{port}/v1: no answer after 1 retries; is the server up"):
        server_of(port).answers(["a"])
