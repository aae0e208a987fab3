"""`cvsi check` and `cvsi summary` on reranks: their blocks, what their judges lack, pairs to judge, and metrics."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cvsi.commands import check, forecast, requirements, summary
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.evaluation import rerank
from cvsi.pipeline import verdicts
from tests.conftest import Workspace
from tests.rerank_world import judging, make_world, with_rerank
from tests.vision_server import serving


def task(settings: params.Params) -> forecast.Task:
    return forecast.tasks(settings, requirements.Inventory())[-1]


def test_pairs_are_counted_before_and_after_they_are_judged(toy: Workspace) -> None:
    make_world(toy)
    with serving(judging(lambda *pair: [("yes", 1.0)])) as server:
        settings = with_rerank(toy, server.address, top=6)
        first = task(settings)
        assert (first.name, first.kind, first.total, first.todo, first.exact) == (
            "second",
            "pairs to judge",
            204,
            204,
            True,
        )
        verdicts.write("second", settings)
        assert (task(settings).todo, task(settings).total) == (0, 204)
        more = task(with_rerank(toy, server.address, top=8))
    assert (more.total, more.todo) == (272, 68)


def test_without_rankings_the_number_is_the_most_there_can_be(toy: Workspace) -> None:
    make_world(toy, groups=True, queries=10, hidden=0)
    settings = with_rerank(toy, "http://localhost:1/v1", top=50)
    for file in Path("cache/toy/tiny/scores").glob("*"):
        file.unlink() if file.is_file() else None
    Path("cache/toy/tiny/scores").rename("cache/toy/tiny/gone")
    assert (task(settings).todo, task(settings).exact) == (10 * 50 + 10 * 6, False)


def test_what_a_judge_lacks_is_named(toy: Workspace) -> None:
    make_world(toy, queries=1, hidden=0)
    with serving() as server:
        settings = with_rerank(toy, server.address)
        assert f"server {server.address}" not in requirements.collect(settings).missing
    inventory = requirements.collect(settings)
    assert "start it, or change the judge's address" in inventory.missing[f"server {server.address}"]
    block = {"engine": "vllm", "model": "nobody/not-in-the-cache"}
    entry = {"run": {"dataset": "toy", "backbone": "tiny"}, "judge": block, "top": 5, "mix": 1}
    toy.params(reranks={"second": entry})
    assert "judge nobody/not-in-the-cache" in requirements.collect(params.load()).missing
    lines = Console(width=80, record=True, file=(toy.path / "out.txt").open("w"))
    check.report(params.load(), lines)
    text = lines.export_text()
    assert "pairs to judge" in text and max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("judge", "line"),
    [
        ({"engine": "magic"}, "judges.j.engine: unknown judge engine 'magic'"),
        ({"engine": "vllm"}, "judges.j.model: key is missing"),
        ({"engine": "vllm", "model": "m", "address": "http://a/v1"}, "judges.j.address: unknown key"),
        ({"engine": "vllm", "model": "m", "prompt": "general"}, "prompt 'general' is none for a judge"),
        ({"engine": "vllm", "model": "m", "prompt": "none"}, "no prompt 'none'"),
    ],
)
def test_a_judge_that_no_rerank_uses_is_checked(toy: Workspace, judge: dict[str, Any], line: str) -> None:
    toy.params(judges={"j": judge})
    with pytest.raises(CvsiError) as raised:
        check.check_blocks(params.load())
    assert line in str(raised.value) and "\n" not in str(raised.value)


RERANK = {"run": {"dataset": "toy", "backbone": "tiny"}, "judge": {"model": "m"}, "top": 50, "mix": 1}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"top": 0}, "reranks.second.top"),
        ({"top": 101}, "reranks.second.top"),
        ({"top": 2.5}, "reranks.second.top"),
        ({"mix": 1.1}, "reranks.second.mix"),
        ({"mix": -0.1}, "reranks.second.mix"),
        ({"mix": float("nan")}, "reranks.second.mix"),
        ({"mix": None}, "reranks.second.mix"),
        ({"run": "toy-tiny"}, "reranks.second.run"),
        ({"run": {"dataset": "other", "backbone": "tiny"}}, "reranks.second.run names dataset 'other'"),
        ({"run": {"dataset": "toy", "backbone": "other"}}, "reranks.second.run names backbone 'other'"),
        ({"judge": "qwen"}, "reranks.second.judge"),
        ({"tops": 5}, "reranks.second.tops: unknown key"),
    ],
)
def test_a_wrong_rerank_is_one_line(toy: Workspace, change: dict[str, Any], line: str) -> None:
    toy.params(reranks={"second": RERANK | change})
    with pytest.raises(CvsiError) as raised:
        params.load()
    assert line in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("key", RERANK)
def test_a_missing_key_of_a_rerank_is_one_line(toy: Workspace, key: str) -> None:
    toy.params(reranks={"second": {name: value for name, value in RERANK.items() if name != key}})
    with pytest.raises(CvsiError, match=f"reranks.second.{key}: key is missing"):
        params.load()


@pytest.mark.parametrize("other", ["SECOND", "second.", "Second"])
def test_reranks_that_would_share_a_folder_are_refused(toy: Workspace, other: str) -> None:
    toy.params(reranks={"second": RERANK, other: RERANK})
    with pytest.raises(CvsiError, match="would share a folder"):
        params.load()


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 101])
def test_a_name_that_is_no_folder_is_refused(toy: Workspace, name: str) -> None:
    toy.params(reranks={name: RERANK})
    with pytest.raises(CvsiError, match="reranks"):
        params.load()


def test_the_summary_has_a_row_per_rerank_below_the_runs(toy: Workspace) -> None:
    make_world(toy)
    with serving(judging(lambda *pair: [("yes", 0.5), ("no", 0.5)])) as server:
        settings = with_rerank(toy, server.address, top=3)
        assert not summary.collect(settings).reranks
        verdicts.write("second", settings)
        rerank.build("second", settings)
    made = summary.collect(settings)
    (run,), (line,) = made.runs, made.reranks
    assert (run.run, line.run) == ("toy-tiny", "rerank second")
    assert line.metrics == run.metrics | {"judged": 90, "failed": 0}
    shown = Console(width=80, record=True, file=(toy.path / "out.txt").open("w"))
    for table in summary.tables(made):
        shown.print(table)
    rows = [text.split("  ")[0] for text in shown.export_text().splitlines()]
    assert rows.index("toy-tiny") < rows.index("rerank second")
    Path("cache/toy/tiny/rerank/second/metrics.json").write_text("[]")
    with pytest.raises(CvsiError, match="run the stage rerank again"):
        summary.collect(settings)
