"""The page's server answers its own page alone: token, names, origins, sizes; data, marks and errors of one line."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl
import pytest
from starlette.testclient import TestClient

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.evaluation.fusion import read_fusion
from cvsi.evaluation.report.build import build
from cvsi.explorer.page_server import POLICY, application
from cvsi.explorer.run_view import RunView
from cvsi.explorer.split_metric import Cancelled
from tests.conftest import Workspace

TOKEN = "t" * 22
RUN = Path("cache/toy/tiny")
OWN = {"query": {"edited": 0.6, "pseudo": 0.4}, "gallery": {"image": 0.8, "caption": 0.2}}


@pytest.fixture
def view(run: Workspace) -> RunView:
    settings = params.load()
    build("toy", "tiny", settings)
    return RunView("toy-tiny", settings)


@pytest.fixture
def http(view: RunView) -> TestClient:
    return TestClient(application({"toy-tiny": view}, TOKEN), base_url=f"http://127.0.0.1:80/{TOKEN}/")


def data(http: TestClient, name: str) -> Any:
    given = http.get(f"explore/data/{name}.js")
    assert given.status_code == 200, given.text
    head = f"explorerData({json.dumps(name)},"
    assert given.text.startswith(head)
    return json.loads(given.text[len(head) :].rstrip().removesuffix(");"))


def last_line(given: Any) -> Any:
    assert given.status_code == 200, given.text
    return json.loads(given.text.strip().split("\n")[-1])


def test_the_page_its_parts_and_its_policy(http: TestClient) -> None:
    page = http.get("")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"] == POLICY and page.headers["x-content-type-options"] == "nosniff"
    for name in ("app.js", "htm-preact.js", "style.css", "icon.svg"):
        assert http.get(f"explore/{name}").status_code == 200
    assert data(http, "runs") == {"runs": ["toy-tiny"], "served": True, "differences": {}}
    facts, queries = data(http, "toy-tiny/run"), data(http, "toy-tiny/queries")
    assert facts["own"] == "cvsi" and queries["instruction"][2] == "costs $5 & is <b>white</b>"
    assert {name for name in queries["methods"]} == {method["name"] for method in facts["methods"]}


@pytest.mark.parametrize("address", [f"/{'u' * 22}/", "/", f"/{TOKEN[:-1]}/explore/data/runs.js", "/explore/app.js"])
def test_no_answer_without_the_token(http: TestClient, address: str) -> None:
    assert http.get(f"http://127.0.0.1:80{address}").status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:81", "Host": "127.0.0.1:80"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://127.0.0.1:80", "Host": "127.0.0.1:80"}, 200),
    ],
)
def test_requests_of_other_pages_and_names_are_refused(http: TestClient, headers: dict[str, str], status: int) -> None:
    assert http.get("explore/data/runs.js", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("explore/data/other/run.js", "no run other here"),
        ("explore/data/toy-tiny/passwords.js", "no such data"),
        ("explore/..%2f..%2fparams.yaml", "Not Found"),
        ("explore/page.html", "no such file"),
        ("explore/api/toy-tiny/query/99", "toy-tiny has 3 queries, no number 99"),
        ("explore/api/toy-tiny/strip/0?method=nope", "toy-tiny has no method nope"),
        ("explore/picture/toy-tiny/99", "toy-tiny has 9 images, no number 99"),
    ],
)
def test_what_is_not_there_is_one_line(http: TestClient, path: str, line: str) -> None:
    given = http.get(path)
    assert given.status_code in (404, 422) and given.json()["error"].startswith(line)


def test_strips_are_the_rankings_of_scores(http: TestClient, view: RunView) -> None:
    rankings = pl.read_parquet(RUN / "scores" / "rankings.parquet")
    for row, (split, query) in enumerate(view.frame.select("split", "query_id").iter_rows()):
        expected = rankings.filter((pl.col("split") == split) & (pl.col("query_id") == query))
        strip = http.get(f"explore/api/toy-tiny/strip/{row}?method=cvsi").json()
        names = dict((number, name) for number, name, *_ in strip["images"])
        assert [names[number] for number, *_ in strip["results"]] == expected["image_id"].to_list()
        assert [score for _, score, *_ in strip["results"]] == pytest.approx(expected["score"].to_list(), abs=1e-4)
        for _, score, *terms in strip["results"]:
            assert sum(terms) == pytest.approx(score, abs=3e-4)


@pytest.mark.parametrize("changed", [OWN, {**OWN, "query": {"edited": 0.1, "reference": 0.9}}])
def test_the_metric_is_that_of_scores_with_the_same_weights(
    http: TestClient, run: Workspace, changed: dict[str, Any]
) -> None:
    before = json.loads((RUN / "scores" / "metrics.json").read_text())["val"]
    found = last_line(http.post("explore/api/toy-tiny/metric", json={"split": "val", "fusion": changed}))
    run.params(datasets__toy__fusion=changed)
    run.run("scores", "toy", "tiny")
    after = json.loads((RUN / "scores" / "metrics.json").read_text())["val"]
    assert found["value"] == pytest.approx(after["mAP@10"]) and found["own"] == pytest.approx(before["mAP@10"])
    assert found["interval"] == pytest.approx([after["mAP@10 low"], after["mAP@10 high"]])
    assert sum(found[kind] for kind in ("better", "worse", "same")) == after["queries"]
    values = pl.read_parquet(RUN / "scores" / "per_query.parquet")["mAP@10"]
    moved = [row for kind in ("better", "worse", "same") for row in found["rows"][kind]]
    assert sorted(moved) == list(range(len(values)))  # the labelled queries are the first ones


def test_a_metric_that_is_not_wanted_any_more_ends(view: RunView) -> None:
    cancelled = Event()
    cancelled.set()
    with pytest.raises(Cancelled):
        view.metric("val", read_fusion(OWN, "here"), cancelled, lambda share: None)


@pytest.mark.parametrize(
    ("fusion", "line"),
    [
        ({}, "params.yaml: weights"),
        ({"query": {"edited": "much"}, "gallery": {"image": 1}}, "params.yaml: weights.query.edited"),
        ({"query": {"edited": 1}, "gallery": {"image": 1}, "score": {"kind": "os"}}, "params.yaml: weights.score"),
        ({"query": {"nose": 1}, "gallery": {"image": 1}}, "cache/toy/tiny/query_vectors: no column 'nose'"),
        ({"query": {"edited": 0}, "gallery": {"image": 1}}, "cache/toy/tiny/query_vectors: all weights are zero"),
    ],
)
@pytest.mark.parametrize("kind", ["rank", "metric"])
def test_bad_numbers_are_one_line(http: TestClient, fusion: dict[str, Any], line: str, kind: str) -> None:
    question: dict[str, Any] = {"row": 0} if kind == "rank" else {"split": "val"}
    given = http.post(f"explore/api/toy-tiny/{kind}", json={**question, "fusion": fusion})
    content = given.json() if given.status_code == 422 else last_line(given)
    assert content["error"].startswith(line), content


def test_the_page_goes_on_while_a_question_is_answered(view: RunView, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done = Event(), Event()

    def slow(request: Any, told: Any) -> dict[str, Any]:
        begun.set()
        assert done.wait(20)
        return {"results": []}

    monkeypatch.setattr(view, "ask", slow)
    http = TestClient(application({"toy-tiny": view}, TOKEN), base_url=f"http://127.0.0.1:80/{TOKEN}/")
    with http, ThreadPoolExecutor(1) as other:
        asked = other.submit(http.post, "explore/api/toy-tiny/ask", json={"kind": "text", "text": "red"})
        assert begun.wait(20)
        assert len(http.get("explore/api/toy-tiny/strip/0?method=cvsi").json()["results"]) >= 8
        assert last_line(http.post("explore/api/toy-tiny/metric", json={"split": "val", "fusion": OWN}))["value"] > 0
        done.set()
        assert last_line(asked.result(20)) == {"results": []}


def test_a_split_without_labels_has_no_metric(http: TestClient) -> None:
    given = last_line(http.post("explore/api/toy-tiny/metric", json={"split": "test", "fusion": OWN}))
    assert given["error"] == "split 'test' has no labels; there are: val"


def test_pictures_are_made_and_never_pages(http: TestClient, run: Workspace) -> None:
    given = http.get("explore/picture/toy-tiny/0?side=512")
    assert given.headers["content-type"] in ("image/png", "image/jpeg")
    page = Path("photos") / "black.png"
    page.write_bytes(b"<script>alert(1)</script>")
    given = http.get("explore/original/toy-tiny/1")
    assert given.status_code == 422 and "script" not in given.text


def test_labels_are_written_and_the_next_one_knows(http: TestClient, run: Workspace) -> None:
    file = Path("photos/queries.jsonl")
    seen = data(http, "toy-tiny/run")["queryFile"]
    kept = http.post("explore/api/toy-tiny/label", json={"reference": 1, "instruction": "is <i>big</i>", "seen": seen})
    assert kept.status_code == 200, kept.text
    seen = kept.json()["queryFile"]
    marked = http.post("explore/api/toy-tiny/label", json={"row": 1, "image": 2, "mark": "wrong", "seen": seen})
    assert marked.status_code == 200, marked.text
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[3]["instruction"] == "is <i>big</i>" and len(lines) == 4
    assert lines[1]["negatives"] == [data(http, "toy-tiny/images")[0][1] or ""] or lines[1]["negatives"]
    late = http.post("explore/api/toy-tiny/label", json={"row": 1, "image": 2, "mark": "right", "seen": seen})
    assert late.status_code == 422 and "changed meanwhile" in late.json()["error"]


def test_negatives_reach_the_index(http: TestClient, run: Workspace) -> None:
    before = pl.read_parquet("cache/toy/index/queries.parquet")
    assert "negative_ids" not in before.columns
    seen = data(http, "toy-tiny/run")["queryFile"]
    http.post("explore/api/toy-tiny/label", json={"row": 0, "image": 2, "mark": "wrong", "seen": seen})
    run.run("index", "toy")
    after = pl.read_parquet("cache/toy/index/queries.parquet")
    assert after["negative_ids"].list.len().to_list() == [1, 0, 0]


def test_a_benchmark_takes_no_labels(view: RunView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunView, "no_labels", "the queries of a benchmark (circo) are not changed")
    http = TestClient(application({"toy-tiny": view}, TOKEN), base_url=f"http://127.0.0.1:80/{TOKEN}/")
    before = Path("photos/queries.jsonl").read_bytes()
    given = http.post("explore/api/toy-tiny/label", json={"reference": 1, "instruction": "x", "seen": ""})
    assert given.status_code == 422 and Path("photos/queries.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("question", "line"),
    [
        ({"kind": "composed", "text": "is red", "image": "bm8gaW1hZ2U="}, "the image cannot be read: not an image"),
        ({"kind": "like"}, "the image is missing"),
        ({"kind": "text", "text": " "}, "the text is empty"),
        ({"kind": "composed", "text": "is red", "image_id": "../../etc/passwd"}, "../../etc/passwd: no such file, and"),
    ],
)
def test_bad_questions_are_one_line(http: TestClient, question: dict[str, Any], line: str) -> None:
    given = http.post("explore/api/toy-tiny/ask", json=question)
    content = given.json() if given.status_code == 422 else last_line(given)
    assert line in content["error"] and "\n" not in content["error"]


def test_a_file_that_is_too_large_is_refused(http: TestClient) -> None:
    given = http.post(
        "explore/api/toy-tiny/ask",
        content=b"{}",
        headers={"content-type": "application/json", "content-length": "9" * 12},
    )
    assert given.status_code == 413
    given = http.post("explore/api/toy-tiny/rank", content=b"{}", headers={"content-type": "text/plain"})
    assert given.status_code == 415


def test_a_run_without_scores_is_one_line(run: Workspace) -> None:
    import shutil

    shutil.rmtree(RUN / "scores")
    with pytest.raises(CvsiError, match="scores"):
        RunView("toy-tiny", params.load()).queries()
