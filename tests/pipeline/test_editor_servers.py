"""Servers that refuse, cut, filter, hang, break off or differ from each other, through the stage `edits`."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import polars as pl
import pytest

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.models import llm_server, server_client
from cvsi.models.server_errors import is_local, retry_after
from cvsi.pipeline import edits
from tests.conftest import Workspace
from tests.stage_inputs import write_captions, write_index

Reply = tuple[int, Any, dict[str, str]]
QUERIES = 12


class Scripted(BaseHTTPRequestHandler):
    """Answers each request by a function of the test; requests are counted by their last instruction."""

    script: ClassVar[Callable[[dict[str, Any], str, int], Reply]]
    seen: ClassVar[Counter[str]] = Counter()
    bodies: ClassVar[list[dict[str, Any]]] = []
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        line = [line for line in text.splitlines() if line.startswith("Instruction: ")][-1]
        task = "added" if text.endswith("added:") else "edited"
        name = f"{line.removeprefix('Instruction: ')}|{task}"
        with self.lock:
            self.seen[name] += 1
            self.bodies.append(body)
            total = self.seen.total()
        status, content, headers = type(self).script(body, name, total)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for header, value in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | headers).items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


def choice(text: Any, chat: bool, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    content = {"message": {"role": "assistant", "content": text} | message} if chat else {"text": text}
    answer = {"id": "1", "object": "x", "created": 0, "model": "m"}
    return answer | {"choices": [content | {"index": 0, "finish_reason": finish, "logprobs": None}]}


def good(body: dict[str, Any], name: str, finish: str = "stop") -> Reply:
    instruction, _, task = name.partition("|")
    text = f"a picture that {instruction}" if task == "edited" else f"things {instruction.split()[-1]}"
    return 200, choice(text, "messages" in body, finish), {}


def error(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    return status, {"error": {"message": message} | more}, headers or {}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


class Case:
    """The toy dataset with twelve queries, whose editor is the server."""

    def __init__(self, toy: Workspace, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.toy, self.address, self.monkeypatch = toy, address, monkeypatch
        lines = [{"reference": "red.png", "instruction": f"is number {number}"} for number in range(QUERIES)]
        (toy.path / "photos" / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)))
        write_index()
        write_captions()
        self.editor()

    def editor(self, requests: int = 1, **changes: Any) -> None:
        block = {"engine": "server", "address": self.address, "model": "m", "max_tokens": 64} | changes
        self.toy.params(datasets__toy__editor=block, compute={"device": "cpu", "requests": requests})

    def run(self, script: Callable[[dict[str, Any], str, int], Reply]) -> pl.DataFrame:
        """Run the stage's function against the script; the table that it wrote."""
        self.monkeypatch.setattr(Scripted, "script", staticmethod(script), raising=False)
        self.monkeypatch.setattr(Scripted, "seen", Counter())
        self.monkeypatch.setattr(Scripted, "bodies", [])
        edits.write("toy", params.load())
        return pl.read_parquet("cache/toy/edits/*.parquet")

    def stored(self) -> int:
        """How many rows the store has."""
        files = list((self.toy.path / "cache/store/edits").rglob("*.parquet"))
        return sum(pl.read_parquet(file).height for file in files)


@pytest.fixture
def case(toy: Workspace, address: str, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.0)
    return Case(toy, address, monkeypatch)


def statuses(table: pl.DataFrame) -> list[str]:
    return table["status"].to_list()


def only(number: int, reply: Reply, task: str = "") -> Callable[[dict[str, Any], str, int], Reply]:
    """A good server but for one query (and task), which always gets the reply."""
    return lambda body, name, total: reply if name.startswith(f"is number {number}|{task}") else good(body, name)


def test_a_good_server_gives_good_rows(case: Case) -> None:
    table = case.run(lambda body, name, total: good(body, name))
    assert statuses(table) == ["ok"] * QUERIES
    assert table["edited"][3].to_list() == ["a picture that is number 3"] and table["added"][3] == "things 3"
    assert table["answer_status"].to_list() == [["ok", "ok"]] * QUERIES
    assert table["finish"].to_list() == [["stop", "stop"]] * QUERIES


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (error(400, "The response was filtered", code="content_filter"), "refused: content filter"),
        (error(400, "triggering Azure OpenAI's content management policy"), "refused: content filter"),
        ((200, choice("", False, "content_filter"), {}), "refused: content filter"),
        (error(400, "This model's maximum context length is 4096 tokens. However, you requested 5000"), "too long"),
        (error(400, "the request exceeds the available context size"), "too long"),
        (error(422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"), "too long"),
        (error(413, "prompt is too long: 9000 tokens > 8192 maximum"), "too long"),
        ((200, choice("a picture that is num", False, "length"), {}), "cut: max_tokens reached"),
    ],
)
def test_one_query_that_the_model_refuses_gets_a_status_that_is_stored(case: Case, reply: Reply, status: str) -> None:
    table = case.run(only(5, reply))
    assert statuses(table) == ["ok"] * 5 + [status] + ["ok"] * 6
    assert table["edited"][5].to_list() == edits.queries_with_captions("toy")["captions"][5].to_list()
    assert case.stored() == QUERIES
    assert case.run(only(5, good({}, "is|edited")))["status"].to_list() == statuses(table)
    assert not Scripted.seen


@pytest.mark.parametrize(
    ("reply", "words", "requests"),
    [
        (error(500, "boom"), "no answer: HTTP 500", 7),
        (error(503, "busy"), "no answer: HTTP 503", 7),
        (error(429, "slow down"), "no answer: HTTP 429", 7),
        (error(400, "bad luck"), "no answer: HTTP 400, ", 1),
        (error(422, "bad luck"), "no answer: HTTP 422, ", 1),
        ((200, {"choices": []}, {}), "no answer: an answer that is not in OpenAI's format", 7),
        ((200, {"choices": None}, {}), "no answer: an answer that is not in OpenAI's format", 7),
        ((200, b'{"choices": [{"te', {}), "no answer: an answer that is not in OpenAI's format", 7),
        ((200, b"<html>log in</html>", {"Content-Type": "text/html"}), "no answer: an answer that is not", 7),
        ((200, {"choices": [{"text": 7}]}, {}), "no answer: an answer that is not in OpenAI's format", 7),
    ],
)
def test_one_query_without_an_answer_does_not_stop_the_run_and_is_not_stored(
    case: Case, reply: Reply, words: str, requests: int, capsys: pytest.CaptureFixture[str]
) -> None:
    table = case.run(only(5, reply, "edited"))
    assert statuses(table)[5].startswith(words)
    assert Counter(statuses(table))["ok"] == QUERIES - 1
    assert Scripted.seen["is number 5|edited"] == requests
    assert case.stored() == QUERIES - 1
    assert "1 query got no answer because of failures that may pass" in capsys.readouterr().err
    assert statuses(case.run(lambda body, name, total: good(body, name))) == ["ok"] * QUERIES
    assert Scripted.seen.keys() == {"is number 5|edited", "is number 5|added"}


@pytest.mark.parametrize("reply", [error(503, "busy"), (200, {"choices": []}, {}), (200, b"{", {}), error(429, "slow")])
def test_a_failure_that_passes_leaves_no_trace(case: Case, reply: Reply) -> None:
    table = case.run(lambda body, name, total: good(body, name) if Scripted.seen[name] > 2 else reply)
    assert statuses(table) == ["ok"] * QUERIES


@pytest.mark.parametrize("requests", [1, 4])
@pytest.mark.parametrize("reply", [error(429, "quota"), error(500, "down"), (200, b"<html>", {})])
def test_answers_before_a_permanent_failure_are_kept(case: Case, reply: Reply, requests: int) -> None:
    case.editor(requests=requests)
    case.monkeypatch.setattr(server_client, "IN_A_ROW", 5)
    with pytest.raises(CvsiError, match="5 requests in a row got no answer, the last: failed: "):
        case.run(lambda body, name, total: good(body, name) if total <= 11 else reply)
    kept = case.stored()
    assert 5 - requests <= kept <= 5 and kept > 0
    table = case.run(lambda body, name, total: good(body, name))
    assert statuses(table) == ["ok"] * QUERIES and Scripted.seen.total() == 2 * (QUERIES - kept)


def test_answers_before_the_user_stops_the_run_are_kept(case: Case) -> None:
    def script(body: dict[str, Any], name: str, total: int) -> Reply:
        if total == 12:
            case.monkeypatch.setattr(llm_server.ServerEditor, "_read", stop)
        return good(body, name)

    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.run(script)
    assert case.stored() == 5


def test_retry_after_is_honoured(case: Case) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], name: str, total: int) -> Reply:
        times.append(time.monotonic())
        return error(429, "slow", {"Retry-After": "1"}) if total == 1 else good(body, name)

    assert statuses(case.run(script)) == ["ok"] * QUERIES
    assert 0.9 < times[1] - times[0] < 3


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (error(401, "no"), "the key was refused; set the environment variable CVSI_EDITOR_KEY"),
        (error(403, "no"), "the key was refused"),
        (error(404, "no"), "no model 'm' there"),
        (error(429, "You exceeded your quota", code="insufficient_quota"), "the account's quota is used up"),
        (
            error(400, "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
            "set max_tokens_as: max_completion_tokens",
        ),
        (error(400, "Unsupported value: 'temperature' does not support 0.0"), "set send_temperature: false"),
        (error(400, "Unknown parameter: 'stop' is not supported"), "set send_stop: false"),
        (error(422, "stop: extra fields not permitted"), "set send_stop: false"),
        (error(400, "default chat template is no longer allowed"), "set style: completion"),
    ],
)
def test_what_concerns_every_query_ends_the_run_with_one_line(case: Case, reply: Reply, line: str) -> None:
    with pytest.raises(CvsiError) as raised:
        case.run(lambda body, name, total: reply)
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert Scripted.seen.total() == 1 and case.stored() == 0


def test_what_servers_differ_in_is_sent_as_set(case: Case) -> None:
    case.run(lambda body, name, total: good(body, name))
    plain = Scripted.bodies[0]
    assert (plain["max_tokens"], plain["temperature"], plain["stop"]) == (64, 0.0, "\n\n")
    case.editor(max_tokens_as="max_completion_tokens", send_stop=False, send_temperature=False)
    table = case.run(lambda body, name, total: (200, choice("\n\na cat\n\nImage Content: x", False, "length"), {}))
    sent = Scripted.bodies[0]
    assert sent["max_completion_tokens"] == 64 and not {"max_tokens", "temperature", "stop"} & sent.keys()
    assert statuses(table) == ["ok"] * QUERIES and table["finish"][0].to_list() == ["stop", "stop"]


def test_chat_sends_turns_without_a_stop_string_and_a_template_s_options(case: Case) -> None:
    case.editor(style="chat", chat_template_kwargs={"enable_thinking": False})
    case.toy.params(datasets__toy__prompts={"edited": "chat_general", "added": "chat_added"})
    case.run(lambda body, name, total: good(body, name))
    body = Scripted.bodies[0]
    roles = [turn["role"] for turn in body["messages"]]
    assert roles == ["system", *["user", "assistant"] * 4, "user"] and "stop" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported", "Conversation roles must alternate user/assistant/user/assistant/...",
        "messages[0]: 'system' is not a valid role", "Developer instruction is not enabled",
    ],
)  # fmt: skip
@pytest.mark.parametrize("requests", [1, 8])
def test_a_template_without_a_system_role_gets_the_task_in_the_first_turn(
    case: Case, message: str, requests: int
) -> None:
    case.editor(style="chat", requests=requests)

    def script(body: dict[str, Any], name: str, total: int) -> Reply:
        return error(400, message) if body["messages"][0]["role"] == "system" else good(body, name)

    assert statuses(case.run(script)) == ["ok"] * QUERIES
    assert Scripted.seen.total() <= 2 * QUERIES + requests


@pytest.mark.parametrize(
    "reply",
    [
        {"reasoning_content": "the dog\n\nbecomes a cat"}, {"reasoning": "hm"}, {"refusal": None}, {"tool_calls": None},
    ],
)  # fmt: skip
def test_reasoning_in_a_field_of_its_own_is_left_out(case: Case, reply: dict[str, Any]) -> None:
    case.editor(style="chat")
    table = case.run(lambda body, name, total: (200, choice("a cat", True, **reply), {}))
    assert statuses(table) == ["ok"] * QUERIES and table["edited"][0].to_list() == ["a cat"]


@pytest.mark.parametrize(
    ("text", "finish", "more", "status"),
    [
        (None, "stop", {"refusal": "I can't help with that."}, "refused: I can't help with that."),
        (None, "stop", {"reasoning_content": "hm"}, "no answer: empty"),
        ("", "length", {"reasoning_content": "hm"}, "cut: max_tokens reached"),
        ("<think>\n\nhm", "length", {}, "cut: max_tokens reached while reasoning"),
        ("<think>hm", "stop", {}, "no answer: reasoning alone"),
        ([{"type": "text", "text": "a cat"}], "stop", {}, "ok"),
    ],
)
def test_the_parts_of_a_chat_answer(case: Case, text: Any, finish: str, more: dict[str, Any], status: str) -> None:
    case.editor(style="chat")
    reply: Reply = (200, choice(text, True, finish, **more), {})
    chat = lambda body, name, total: reply if name.startswith("is number 5|") else good(body, name)  # noqa: E731
    table = case.run(chat)
    assert statuses(table)[5] == status and Counter(statuses(table))["ok"] >= QUERIES - 1


def test_json_halves_the_calls(case: Case) -> None:
    case.editor(style="chat", output="json")
    case.toy.params(datasets__toy__prompts={"edited": "chat_general", "added": "chat_added"})
    answer = json.dumps({"edited": "a cat on a sofa", "added": ""})
    table = case.run(lambda body, name, total: (200, choice(answer, True), {}))
    assert statuses(table) == ["ok"] * QUERIES and Scripted.seen.total() == QUERIES
    assert table["edited"][0].to_list() == ["a cat on a sofa"] and set(table["added"]) == {""}
    schema = Scripted.bodies[0]["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["properties"]["edited"]["maxLength"] == 400
    assert "stop" not in Scripted.bodies[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The instructions are:", "refused: repeats the prompt"),
        ("", "no answer: empty"),
        ("I'm sorry", "refused: the model"),
    ],
)
def test_a_dataset_of_which_every_edit_fell_back_ends_with_an_error(case: Case, text: str, reason: str) -> None:
    with pytest.raises(CvsiError, match=f"all 12 edits fell back to the captions; most frequent: {reason}"):
        case.run(lambda body, name, total: (200, choice(text, False), {}))
    assert not (case.toy.path / "cache/toy/edits").exists()


@pytest.mark.parametrize(("limit", "warned"), [(None, True), (0.5, False), (0.24, True), (0.0, True), (1.0, False)])
def test_a_share_of_fallbacks_above_the_limit_is_stated_with_the_reason(
    case: Case, limit: float | None, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if limit is not None:
        case.toy.params(datasets__toy__fallback_limit=limit)
    bad = ("is number 1|", "is number 2|", "is number 3|")

    def script(body: dict[str, Any], name: str, total: int) -> Reply:
        return (200, choice("The rules are:", False), {}) if name.startswith(bad) else good(body, name)

    table = case.run(script)
    fell_back = sum(not status.startswith(("ok", "repaired")) for status in statuses(table))
    assert fell_back == 3
    line = "3 of 12 edits (25%) fell back to the captions, above"
    out = capsys.readouterr()
    assert (line in out.err) == warned and "edits: 9 ok, 3 refused" in out.out
    assert not warned or "most frequent: refused: ends in a colon (3)" in out.err


@pytest.mark.parametrize("proxy", ["ALL_PROXY", "HTTP_PROXY", "all_proxy", "http_proxy"])
@pytest.mark.parametrize("scheme", ["socks5://127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_server_on_this_machine_is_not_reached_through_a_proxy(case: Case, proxy: str, scheme: str) -> None:
    case.monkeypatch.setenv(proxy, scheme)
    assert statuses(case.run(lambda body, name, total: good(body, name))) == ["ok"] * QUERIES


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks5h://127.0.0.1:9", "ftp://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_one_line(case: Case, proxy: str) -> None:
    case.monkeypatch.setenv("ALL_PROXY", proxy)
    case.editor(address="http://cvsi.invalid/v1")
    with pytest.raises(
        CvsiError, match=r"http://cvsi\.invalid/v1: the proxy of the environment cannot be used .*NO_PROXY"
    ):
        case.run(lambda body, name, total: good(body, name))


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("http://localhost:8000/v1", True), ("http://127.0.0.2/v1", True), ("http://[::1]:1/v1", True),
        ("http://0.0.0.0/v1", True),
        ("http://a.localhost/v1", True), ("http://localhost.example.com/v1", False), ("http://10.0.0.1/v1", False),
        ("https://api.example.com/v1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_this_machine_s(address: str, local: bool) -> None:
    assert is_local(address) is local


def test_the_seconds_of_retry_after() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    for headers, seconds in (
        ({}, 0), ({"retry-after": "3"}, 3), ({"retry-after": "1.5"}, 1.5), ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, 0), ({"retry-after": "-5"}, 0), ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ):  # fmt: skip
        assert retry_after(headers) == seconds
    assert 80 < retry_after({"retry-after": later}) <= 90
