"""The server answers its own user alone, on this machine's names, JSON only; a client believes none but it."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from cvsi.core import params, paths
from cvsi.core.errors import CvsiError
from cvsi.explorer import client, state
from cvsi.explorer.engine import Engine
from cvsi.explorer.requests import MAX_SENT, Answer, Request, Result, request
from cvsi.explorer.server import MAX_BODY, application, listen, serve
from tests.conftest import Workspace

TOKEN = "t" * 43
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
QUERY = {"kind": "text", "text": "a disc"}
NONCE = "n" * 32


class Echo:
    """Answers with the text as the only image; a text `bad` is an error."""

    def answer(self, wanted: Request) -> Answer:
        if wanted.text == "bad":
            raise CvsiError("no such\nthing")
        return Answer(results=(Result(rank=1, image_id=wanted.text, path=str(len(wanted.image)), score=0.5),))


@pytest.fixture
def http() -> TestClient:
    return TestClient(application(Echo(), TOKEN), base_url="http://127.0.0.1:80")


def test_an_answer_is_that_of_the_engine(run: Workspace) -> None:
    engine = Engine("toy-tiny", params.load())
    wanted = request(kind="composed", image=Path("photos/red.png").read_bytes(), text="is green", k=3)
    http = TestClient(application(engine, TOKEN), base_url="http://localhost")
    body = wanted.model_dump_json(exclude_defaults=True)
    given = http.post("/search", content=body, headers=AUTHORISED | {"Content-Type": "application/json"})
    assert given.status_code == 200 and Answer.model_validate(given.json()) == engine.answer(wanted)
    assert len(given.json()["results"]) == 3


def test_a_proof_shows_the_token_without_sending_it(http: TestClient) -> None:
    given = http.post("/hello", json={"nonce": NONCE})
    assert given.json() == {"proof": state.proof(TOKEN, NONCE)} and TOKEN not in given.text
    assert state.proof(TOKEN, NONCE) != state.proof(TOKEN, "m" * 32) != state.proof("u" * 43, "m" * 32)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}x"},
     {"Authorization": f"Basic {TOKEN}"}, {"Cookie": f"token={TOKEN}"}],
    ids=["none", "no scheme", "empty", "longer", "other scheme", "cookie"],
)  # fmt: skip
def test_without_the_token_nothing_is_searched(http: TestClient, headers: dict[str, str]) -> None:
    given = http.post("/search", json=QUERY, headers=headers)
    assert given.status_code == 401 and "token" in given.json()["error"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.7", "localhost.", "[::1]", ""])
@pytest.mark.parametrize("path", ["/search", "/hello"])
def test_other_hosts_are_refused(http: TestClient, path: str, host: str) -> None:
    assert http.post(path, json=QUERY, headers=AUTHORISED | {"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8123", "localhost", "localhost:1"])
def test_this_machine_is_answered(http: TestClient, host: str) -> None:
    assert http.post("/search", json=QUERY, headers=AUTHORISED | {"Host": host}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_type_than_json_is_refused(http: TestClient, kind: str) -> None:
    """A page of the web can send these to this machine, and not JSON."""
    given = http.post("/search", content=json.dumps(QUERY), headers=AUTHORISED | {"Content-Type": kind})
    assert given.status_code == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/search", "/hello"])
def test_other_methods_are_refused(http: TestClient, path: str, method: str) -> None:
    assert http.request(method, path, headers=AUTHORISED).status_code == 405


@pytest.mark.parametrize("path", ["/", "/search/x", "/../etc/passwd", "/openapi.json"])
def test_there_are_no_other_paths(http: TestClient, path: str) -> None:
    assert http.post(path, json=QUERY, headers=AUTHORISED).status_code == 404


def post(http: TestClient, body: bytes, path: str = "/search") -> tuple[int, str]:
    given = http.post(path, content=body, headers=AUTHORISED | {"Content-Type": "application/json"})
    line = given.json()["error"]
    assert line and "\n" not in line
    return given.status_code, line


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5_000, b'{"a":' * 5_000, b'{"kind": "text"}',
     b'{"kind": "text", "text": "a", "k": 0}', b'{"kind": "text", "text": "a", "k": 1e99}',
     b'{"kind": "text", "text": "a", "path": "/etc/passwd"}', b'{"kind": "like", "image": "not base64!"}',
     b'{"kind": "text", "text": ["a"]}', b'{"kind": "text", "text": "\\ud800"}'],
    ids=range(14),
)  # fmt: skip
def test_a_bad_request_is_one_line(http: TestClient, body: bytes) -> None:
    assert post(http, body)[0] == 422


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"nonce": 5}', b'{"nonce": "short"}', b"{" * 900])
def test_a_bad_hello_is_one_line(http: TestClient, body: bytes) -> None:
    assert post(http, body, "/hello")[0] == 422


def test_sizes_are_bounded(http: TestClient) -> None:
    assert post(http, b" " * (MAX_BODY + 1))[0] == 413
    assert post(http, b" " * 1_001, "/hello")[0] == 413
    largest = request(kind="like", image=b"x" * MAX_SENT).model_dump_json(exclude_defaults=True)
    given = http.post("/search", content=largest, headers=AUTHORISED | {"Content-Type": "application/json"})
    assert given.json()["results"][0]["path"] == str(MAX_SENT)


def test_sizes_are_bounded_without_a_length(http: TestClient) -> None:
    parts = (b" " * (1 << 20) for _ in range(MAX_BODY // (1 << 20) + 2))
    given = http.post("/search", content=parts, headers=AUTHORISED | {"Content-Type": "application/json"})
    assert given.status_code == 413


def test_an_error_of_the_search_is_one_line(http: TestClient) -> None:
    assert post(http, b'{"kind": "text", "text": "bad"}') == (422, "no such thing")


def test_a_port_in_use_is_one_line() -> None:
    with listen(0) as first:
        port = first.getsockname()[1]
        assert first.getsockname()[0] == "127.0.0.1"
        with pytest.raises(CvsiError, match=f"port {port}: .*in use; give another --port"):
            listen(port)


@pytest.mark.parametrize("port", [-1, 65536, 1 << 40])
def test_a_number_that_is_no_port_is_one_line(port: int) -> None:
    with pytest.raises(CvsiError, match=f"port {port}: not a port"):
        listen(port)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[state.ServerState]:
    """A server of a run `r` in a thread."""
    monkeypatch.chdir(tmp_path)
    listener = listen(0)
    own = state.ServerState.of("r", listener.getsockname()[1], TOKEN, "as now")
    servers: list[uvicorn.Server] = []
    run = uvicorn.Server.run

    def started(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        servers.append(server)
        run(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", started)
    thread = threading.Thread(target=serve, args=(Echo(), own, listener))
    thread.start()
    while not (servers and servers[0].started):
        thread.join(0.01)
        assert thread.is_alive()
    yield own
    servers[0].should_exit = True
    thread.join(20)
    assert not thread.is_alive() and not paths.server_file("r").exists()


def test_a_client_finds_the_server_and_gets_its_answers(running: state.ServerState) -> None:
    server = client.find("r", "as now")
    assert server is not None and client.running("r") == running
    assert server.answer(request(**QUERY)).results[0].image_id == "a disc"
    assert server.answer(request(kind="like", image=b"\x00\xff" * 500)).results[0].path == "1000"
    with pytest.raises(CvsiError, match=r"^no such thing$"):
        server.answer(request(kind="text", text="bad"))
    assert paths.server_file("r").stat().st_mode & 0o777 == 0o600


def test_a_server_that_read_other_artifacts_is_not_used(
    running: state.ServerState, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client.find("r", "changed since") is None
    line = capsys.readouterr().err
    assert "older artifacts" in line and str(running.pid) in line and line.count("\n") == 1
    assert paths.server_file("r").exists() and client.find("other", "as now") is None


def leave(**changes: Any) -> Path:
    """Write a server's file with changes."""
    own = state.ServerState.of("r", 9, TOKEN, "as now").model_copy(update=changes)
    own.write()
    return paths.server_file("r")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def free_port() -> int:
    with listen(0) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("gone", ["process", "port"])
def test_a_stale_file_is_removed(gone: str) -> None:
    file = leave(port=free_port(), **({"pid": 4_194_304} if gone == "process" else {}))
    assert client.find("r", "as now") is None and not file.exists()


@pytest.mark.usefixtures("here")
def test_a_server_that_does_not_answer_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "HELLO_SECONDS", 0.05)
    with listen(0) as silent:
        file = leave(port=silent.getsockname()[1])
        assert client.find("r", "as now") is None and file.exists()
        assert "does not answer and is not used" in capsys.readouterr().err
        assert client.running("r") is not None


class Impostor(BaseHTTPRequestHandler):
    """Another program on the port: it does not know the token, and notes what it was sent."""

    heard: list[str] = []  # noqa: RUF012
    reply = b'{"proof": "wrong", "results": []}'

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.heard.append(f"{self.path} {self.headers} {body}")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.reply)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "reply",
    [b'{"proof": "wrong"}', b'{"results": []}', b"[]", b"no JSON", b"", b'{"proof": "' + TOKEN.encode() + b'"}'],
)
def test_another_program_on_the_port_is_not_believed(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Impostor, "heard", [])
    monkeypatch.setattr(Impostor, "reply", reply)
    server = HTTPServer(("127.0.0.1", 0), Impostor)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        file = leave(port=server.server_port)
        assert client.find("r", "as now") is None and not file.exists()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(Impostor.heard) == 1 and TOKEN not in Impostor.heard[0]


@pytest.mark.usefixtures("here")
def test_a_server_on_another_machine_is_left_alone() -> None:
    file = leave(machine="elsewhere")
    assert client.find("r", "as now") is None and file.exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "content", ["", "no JSON", "[]", "{}", '{"run": "r", "pid": -1}', "\x00" * 20_000], ids=range(6)
)
def test_a_file_that_no_server_wrote_is_ignored(content: str) -> None:
    file = leave()
    file.write_text(content, encoding="utf-8")
    assert state.read("r") is None and client.find("r", "as now") is None


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("fault", ["readable by others", "a link", "of another run", "a folder", "a pipe"])
def test_a_file_that_others_may_have_written_is_ignored(fault: str, tmp_path: Path) -> None:
    file = leave()
    assert state.read("r") is not None
    if fault == "readable by others":
        file.chmod(0o640)
    elif fault == "of another run":
        file.rename(file.with_name("s.json"))
    else:
        file.rename(tmp_path / "own.json")
        if fault == "a link":
            file.symlink_to(tmp_path / "own.json")
        elif fault == "a folder":
            file.mkdir()
        else:
            os.mkfifo(file, 0o600)
    assert state.read("s" if fault == "of another run" else "r") is None


@pytest.mark.parametrize(
    "change", ["captions", "gallery_vectors", "query_vectors", "images", "fusion", "editor", "new shard", "nothing"]
)
def test_a_change_of_the_artifacts_is_seen(run: Workspace, change: str) -> None:
    before = state.artifacts("toy-tiny", params.load())
    folders = {"captions": "toy/captions", "images": "toy/index"}
    if change == "fusion":
        run.params(datasets__toy__fusion="image")
    elif change == "editor":
        run.params(datasets__toy__editor={"engine": "rule", "ending": "later"})
    elif change == "new shard":
        (run.path / "cache/toy/captions/part-00009.parquet").write_bytes(b"x")
    elif change != "nothing":
        for file in (run.path / "cache" / folders.get(change, f"toy/tiny/{change}")).glob("*.parquet"):
            os.utime(file, ns=(1, 1))
    assert (state.artifacts("toy-tiny", params.load()) == before) is (change == "nothing")
