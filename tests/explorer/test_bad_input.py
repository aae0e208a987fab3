"""What cannot be shown is one clear line, before the server starts or in the page, and nothing is changed."""

import base64
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from cvsi.commands.explore import run_explorer
from cvsi.commands.main import app
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.parquet import VERSION_KEY
from cvsi.evaluation.report.build import build
from cvsi.explorer.joined import views
from cvsi.explorer.page_server import application
from cvsi.explorer.run_view import RunView
from tests.conftest import Workspace
from tests.explorer.conftest import without_queries

TOKEN = "t" * 22
CACHE = Path("cache/toy")
RUN = CACHE / "tiny"
Change = Callable[[], object]


def http_of(view: RunView) -> TestClient:
    return TestClient(application({view.name: view}, TOKEN), base_url=f"http://127.0.0.1:80/{TOKEN}/")


def later(file: Path) -> Change:
    """A change that gives a file a later schema version."""

    def change() -> None:
        table = pq.read_table(file, partitioning=None)
        pq.write_table(table.replace_schema_metadata({VERSION_KEY: "99"}), file)

    return change


def rewritten(file: Path, work: Callable[[pl.DataFrame], pl.DataFrame]) -> Change:
    """A change of a table's columns."""
    return lambda: work(pl.read_parquet(file)).write_parquet(file)


def without(*places: Path) -> Change:
    """A change that removes folders or files."""

    def change() -> None:
        for place in places:
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink()

    return change


def text(file: Path, content: str) -> Change:
    """A change of a file's text."""
    return lambda: file.write_text(content)


MISSING_OR_LATER = {
    "no cache": (without(CACHE), "cache/toy/index/queries.parquet: no such file; run the stage index first"),
    "no index": (without(CACHE / "index"), "cache/toy/index/queries.parquet: no such file"),
    "no captions": (without(CACHE / "captions"), "cache/toy/captions: no Parquet files; run the stage captions first"),
    "no edits": (without(CACHE / "edits"), "cache/toy/edits: no Parquet files"),
    "no query vectors": (without(RUN / "query_vectors"), "cache/toy/tiny/query_vectors: no Parquet files"),
    "no gallery vectors": (without(RUN / "gallery_vectors"), "cache/toy/tiny/gallery_vectors: no Parquet files"),
    "no scores": (without(RUN / "scores"), "cache/toy/tiny/scores/per_query.parquet: no such file"),
    "no metrics": (without(RUN / "scores/metrics.json"), "cache/toy/tiny/scores/metrics.json: No such file"),
    "later index": (later(CACHE / "index/images.parquet"), "cache/toy/index/images.parquet: schema version 99"),
    "later queries": (later(CACHE / "index/queries.parquet"), "cache/toy/index/queries.parquet: schema version 99"),
    "later captions": (later(CACHE / "captions/part-00000.parquet"), "captions/part-00000.parquet: schema version 99"),
    "later edits": (later(CACHE / "edits/part-00000.parquet"), "edits/part-00000.parquet: schema version 99"),
    "later gallery": (
        later(RUN / "gallery_vectors/part-00000.parquet"), "gallery_vectors/part-00000.parquet: schema version 99",
    ),
    "later vectors": (
        later(RUN / "query_vectors/part-00000.parquet"), "query_vectors/part-00000.parquet: schema version 99",
    ),
    "later scores": (later(RUN / "scores/per_query.parquet"), "scores/per_query.parquet: schema version 99"),
    "later report": (later(RUN / "report/methods.parquet"), "report/methods.parquet: schema version 99"),
    "older report": (
        rewritten(RUN / "report/methods.parquet", lambda frame: frame.drop("mAP@10")),
        "report/methods.parquet: no column 'mAP@10'; run the stage report again (dvc repro)",
    ),
    "report without ranks": (
        rewritten(RUN / "report/methods.parquet", lambda frame: frame.drop("target_ranks")), "no column 'target_ranks'",
    ),
    "report without methods": (
        rewritten(RUN / "report/methods.parquet", lambda frame: frame.rename({"method": "weighting"})),
        "no column 'method'",
    ),
    "report of other types": (
        rewritten(RUN / "report/methods.parquet", lambda frame: frame.with_columns(target_ranks=pl.lit("first"))),
        "report/methods.parquet: columns of other types",
    ),
    "scores of other types": (
        rewritten(RUN / "scores/per_query.parquet", lambda frame: frame.with_columns(pl.lit("all").alias("mAP@10"))),
        "scores/per_query.parquet: columns of other types",
    ),
    "damaged report": (text(RUN / "report/methods.parquet", "PAR1"), "methods.parquet: not a readable Parquet file"),
    "damaged metrics": (text(RUN / "scores/metrics.json", "{"), "scores/metrics.json: Expecting property name"),
    "metrics that are a list": (text(RUN / "scores/metrics.json", "[]"), "metrics.json: not a JSON object"),
    "metrics without intervals": (
        text(RUN / "scores/metrics.json", '{"val": {"mAP@10": 1.0}}'),
        "metrics.json: no number 'mAP@10 low' of cvsi in split val",
    ),
    "report's table without intervals": (
        text(RUN / "report/weightings.json", '{"splits": {"val": {"text": {"mAP@10": 1.0}}}}'),
        "weightings.json: no number 'mAP@10 low' of text in split val",
    ),
    "report's table is no table": (
        text(RUN / "report/weightings.json", '{"splits": {"val": [1]}}'), "weightings.json: no methods of split val",
    ),
}  # fmt: skip


@pytest.fixture
def reported(run: Workspace) -> Workspace:
    """The run with its report."""
    build("toy", "tiny", params.load())
    return run


@pytest.mark.parametrize("kind", MISSING_OR_LATER)
def test_artifacts_that_cannot_be_read_are_one_line_before_the_server_starts(reported: Workspace, kind: str) -> None:
    change, line = MISSING_OR_LATER[kind]
    change()
    ended = CliRunner().invoke(app, ["explore", "toy-tiny"])
    assert isinstance(ended.exception, CvsiError)
    assert line in str(ended.exception) and "\n" not in str(ended.exception)


@pytest.mark.parametrize("kind", ["no report", "report of other methods", "its table alone", "its values alone"])
def test_an_incomplete_report_shows_the_runs_own_method(reported: Workspace, kind: str) -> None:
    report = RUN / "report"
    if kind == "report of other methods":
        renamed = pl.col("method").replace({"cvsi": "earlier"})
        rewritten(report / "methods.parquet", lambda frame: frame.with_columns(renamed))()
        text(report / "weightings.json", (report / "weightings.json").read_text().replace('"cvsi"', '"earlier"'))()
    without(*{"no report": [report], "its table alone": [report / "methods.parquet"],
              "its values alone": [report / "weightings.json"]}.get(kind, []))()  # fmt: skip
    view = RunView("toy-tiny", params.load())
    metrics = json.loads((RUN / "scores/metrics.json").read_text())
    assert view.facts()["splits"]["val"]["cvsi"][0] == metrics["val"]["mAP@10"]
    assert view.queries()["methods"]["cvsi"]["value"][0] is not None


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["nope"], "params.yaml: no run 'nope'; there are: toy-tiny"),
        (["toy-tiny", "toy"], "params.yaml: no run 'toy'"),
        (["toy-tiny", ""], "params.yaml: no run '"),
        (["toy-tiny/../x"], "params.yaml: no run '"),
    ],
)
def test_an_unknown_run_is_one_line(run: Workspace, names: list[str], line: str) -> None:
    with pytest.raises(CvsiError, match=line):
        run_explorer(names, 0)


@pytest.mark.parametrize("port", [-1, 65536, 10**12])
def test_a_port_that_is_none_is_one_line(run: Workspace, port: int) -> None:
    with pytest.raises(CvsiError, match=f"^port {port}: not a port; give another --port"):
        run_explorer(["toy-tiny"], port)


def test_two_explorers_on_one_port_are_one_line(run: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CvsiError, match=f"^port {port}: Address already in use; give another --port"):
            run_explorer(["toy-tiny"], port)


def add_run(run: Workspace, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """A second run over another dataset, whose index is the first one's with other queries."""
    content = run.params()
    run.params(
        datasets=content["datasets"] | {"other": content["datasets"]["toy"]},
        runs=content["runs"] | {"other-tiny": {"dataset": "other", "backbone": "tiny"}},
    )
    shutil.copytree(CACHE, "cache/other")
    for file in Path("cache/other").rglob("*.parquet"):
        if {"query_id", "split"} <= set(pq.read_schema(file).names):
            rewritten(file, change)()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda frame: frame.with_columns(query_id="x" + pl.col("query_id")), "they have no query in common"),
        (lambda frame: frame.with_columns(split=pl.lit("all")), "they have no query in common"),
        (
            lambda frame: frame.with_columns(instruction=pl.lit("is big")) if "instruction" in frame.columns else frame,
            "query 0 of split val has another instruction",
        ),
        (
            lambda frame: (
                frame.with_columns(reference_id=pl.lit("black.png")) if "reference_id" in frame.columns else frame
            ),
            "query 0 of split val has another reference",
        ),
        (
            lambda frame: (
                frame.with_columns(target_ids=pl.col("target_ids").list.head(1))
                if "target_ids" in frame.columns
                else frame
            ),
            "query 0 of split val has other targets",
        ),
    ],
)
def test_runs_over_different_queries_are_not_joined(
    run: Workspace, change: Callable[[pl.DataFrame], pl.DataFrame], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(run, change)
    with pytest.raises(CvsiError, match=f"^toy-tiny and other-tiny are not joined: {line}; start cvsi explore once"):
        views(["toy-tiny", "other-tiny"], params.load())
    assert list(views([], params.load())) == ["toy-tiny"]
    assert f"other-tiny is not shown beside toy-tiny: {line}" in " ".join(capsys.readouterr().out.split())


def test_datasets_with_the_same_queries_are_joined(run: Workspace) -> None:
    add_run(run, lambda frame: frame)
    assert list(views(["toy-tiny", "other-tiny"], params.load())) == ["toy-tiny", "other-tiny"]


def test_without_names_runs_that_cannot_be_read_are_told_of(run: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    runs = run.params()["runs"]
    run.params(runs=runs | {"toy-other": {"dataset": "toy", "backbone": "vit-b-32"}})
    assert list(views([], params.load())) == ["toy-tiny"]  # the other one was never scored
    shutil.copytree(RUN / "scores", CACHE / "vit-b-32" / "scores")
    assert list(views([], params.load())) == ["toy-tiny"]
    assert "left out: cache/toy/vit-b-32/query_vectors" in " ".join(capsys.readouterr().err.split())
    shutil.rmtree(CACHE / "tiny")
    with pytest.raises(CvsiError, match="vit-b-32/query_vectors"):
        views([], params.load())
    shutil.rmtree("cache/toy")
    with pytest.raises(CvsiError, match=r"no run of params.yaml has scores \(toy-tiny, toy-other\)"):
        views([], params.load())


def test_a_dataset_without_queries_can_be_asked(run: Workspace) -> None:
    http = http_of(without_queries())
    assert not (RUN / "report/explore.html").exists()
    for part in ("run", "queries", "images"):
        assert http.get(f"explore/data/toy-tiny/{part}.js").status_code == 200
    given = http.post("explore/api/toy-tiny/ask", json={"kind": "like", "image_id": "red.png", "k": 3})
    assert len(json.loads(given.text.strip().split("\n")[-1])["results"]) == 3
    metric = {"split": "val", "fusion": {"query": {"edited": 1}, "gallery": {"image": 1}}}
    assert "no labels" in http.post("explore/api/toy-tiny/metric", json=metric).text
    assert "toy-tiny has 0 queries" in http.get("explore/api/toy-tiny/query/0").json()["error"]


@pytest.mark.parametrize("how", ["gone", "another picture", "no picture", "empty", "a folder"])
def test_images_that_are_gone_or_changed(run: Workspace, how: str) -> None:
    file = Path("photos/red.png")
    http = http_of(RunView("toy-tiny", params.load()))
    facts = json.loads(http.get("explore/data/toy-tiny/images.js").text.split(",", 1)[1].rstrip().removesuffix(");"))
    number = next(number for number, name, *_ in facts if name == "red.png")
    content = {"another picture": Path("photos/blue.png").read_bytes(), "no picture": b"text", "empty": b""}.get(how)
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content)
    for address in (f"explore/picture/toy-tiny/{number}", f"explore/original/toy-tiny/{number}"):
        given = http.get(address)
        assert given.status_code == 422 and "photos/red.png" in given.json()["error"]
    assert len(http.get("explore/api/toy-tiny/strip/0?method=cvsi").json()["results"]) >= 8
    given = http.post("explore/api/toy-tiny/ask", json={"kind": "composed", "image_id": "red.png", "text": "is so"})
    last = json.loads(given.text.strip().split("\n")[-1])  # the store may have all that is needed of the image
    assert last.get("results") or "photos/red.png" in last["error"]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"no image", "the image cannot be read: not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the image cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "the image cannot be read"),
        (b"", "the image is missing"),
    ],
)
def test_an_upload_that_is_no_image_is_one_line(run: Workspace, data: bytes, line: str) -> None:
    http = http_of(RunView("toy-tiny", params.load()))
    question = {"kind": "like", "image": base64.b64encode(data).decode()}
    given = http.post("explore/api/toy-tiny/ask", json=question)
    content = given.json() if given.status_code == 422 else json.loads(given.text.strip().split("\n")[-1])
    assert line in content["error"] and "\n" not in content["error"]


@pytest.mark.parametrize("said", [True, False])
def test_an_upload_that_is_too_large_is_one_line(run: Workspace, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvsi.explorer.page_server.MAX_BODY", 1000)
    http = http_of(RunView("toy-tiny", params.load()))
    body = json.dumps({"kind": "like", "image": "A" * 2000}).encode()
    parts = body if said else iter([body[:900], body[900:]])
    given = http.post("explore/api/toy-tiny/ask", content=parts, headers={"content-type": "application/json"})
    assert given.status_code == 413 and given.json()["error"] == "more than 1,000 bytes"
