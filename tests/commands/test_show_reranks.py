"""Reranks in `cvsi show` and `cvsi compare`: figures as of a plain computation, what is missing as one line."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from cvsi.commands import show_reranks
from cvsi.commands.compare import compare
from cvsi.commands.main import app
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.evaluation import rerank, scores
from cvsi.evaluation.metrics import interval
from tests.conftest import Workspace, environment
from tests.rerank_world import make_report, make_world, with_rerank, write_verdicts

SCORES, SECOND = Path("cache/toy/tiny/scores"), Path("cache/toy/tiny/rerank/second")
SETTINGS = {"run": {"dataset": "toy", "backbone": "tiny"}, "top": 20, "mix": 1.0}


@pytest.fixture
def reranked(toy: Workspace) -> Workspace:
    """A run `toy` with its report and a rerank `second` by random verdicts, some of which failed."""
    make_world(toy)
    with_rerank(toy, "http://localhost:1/v1", top=20)
    toy.params(runs={"toy": SETTINGS["run"]})
    chance = random.Random(1)
    write_verdicts(toy, 20, lambda row: None if row % 9 == 0 else chance.random())
    rerank.build("second", params.load())
    make_report(params.load())
    return toy


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})


def values(folder: Path, metric: str = "mAP@10") -> np.ndarray:
    return pl.read_parquet(folder / "per_query.parquet")[metric].to_numpy()


def test_a_rerank_is_beside_the_first_stage(reranked: Workspace) -> None:
    shown = show_reranks.collect("toy", params.load())
    (one,) = shown.reranks
    assert (one.name, one.judge, one.prompt, one.top, one.mix) == ("second", "m", "match", 20, 1.0)
    pairs = 34 * 20
    assert one.statuses == {"ok": pairs - pairs // 9 - 1, "no answer": pairs // 9 + 1}
    assert one.splits == json.loads((SECOND / "metrics.json").read_text())
    difference = values(SECOND) - values(SCORES)
    row = one.differences["val"]
    assert row.difference == pytest.approx(difference.mean()) and (row.low, row.high) == interval(difference)
    assert (row.better, row.worse) == ((difference > 0).sum(), (difference < 0).sum())
    assert row.better and row.worse and row.better + row.worse + row.same == 30
    assert not shown.notes


def test_it_is_printed_at_80_columns(reranked: Workspace) -> None:
    done = invoke("show", "toy")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "toy, val, percent: reranks beside the first stage" in lines
    metrics = json.loads((SECOND / "metrics.json").read_text())["val"]
    (row,) = [line for line in lines if line.startswith("rerank second") and " to " in line and "+" not in line][:1]
    assert f"{metrics['mAP@10']:.1f}" in row.split()
    text = " ".join(done.stdout.split())
    assert "Rerank second: judge m, prompt match, top 20, mix 1. Verdicts on 680 pairs: 604 ok, 76 no answer" in text
    assert json.loads(invoke("show", "toy", "--json").stdout)["reranks"][0]["name"] == "second"


def test_a_run_without_reranks_is_shown_as_before(reranked: Workspace) -> None:
    reranked.params(reranks={})
    done = invoke("show", "toy")
    assert done.exit_code == 0 and "erank" not in done.output
    assert json.loads(invoke("show", "toy", "--json").stdout)["reranks"] == []


def test_a_rerank_of_another_run_is_not_shown(reranked: Workspace) -> None:
    other = {"dataset": "toy", "backbone": "vit-b-32"}
    reranked.params(reranks__second__run=other)
    assert show_reranks.collect("toy", params.load()).reranks == []


def remove(name: str) -> Callable[[], None]:
    return lambda: (SECOND / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda: shutil.rmtree(SECOND), "rerank second: no metrics yet; dvc repro makes cache/toy/tiny/rerank/second"),
        (remove("per_query.parquet"), "per_query.parquet"),
        (lambda: (SECOND / "metrics.json").write_text("{"), "run the stage rerank again"),
        (lambda: (SECOND / "metrics.json").write_text('{"val": {"mAP@10": NaN}}'), "run the stage rerank again"),
        (lambda: (SECOND / "provenance.json").write_text("[]"), "not a JSON object"),
        (lambda: shutil.rmtree("cache/toy/tiny/verdicts"), "no Parquet files; run the stage verdicts first"),
        (lambda: scores_again(), "rerank second: its verdicts were made from other scores than the present ones"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_and_the_rest_is_shown(
    reranked: Workspace, spoil: Callable[[], Any], line: str
) -> None:
    spoil()
    done = invoke("show", "toy")
    assert done.exit_code == 0 and "mAP@10" in done.stdout
    notes = [text for text in show_reranks.collect("toy", params.load()).notes if line in text]
    assert notes and "\n" not in notes[0]


def scores_again() -> None:
    """The run with other weights, after which the rerank is older than its scores."""
    Workspace(Path()).params(datasets__toy__fusion={"query": {"edited": 1}, "gallery": {"image": 1}})
    scores.build("toy", "tiny", params.load())


def test_a_ranking_is_compared_with_its_rerank(reranked: Workspace) -> None:
    made = compare(params.load(), "toy", "toy:second")
    difference = values(SECOND) - values(SCORES)
    (row,) = [row for row in made.splits["val"] if row.name == "mAP@10"]
    assert row.difference == pytest.approx(difference.mean()) and (row.low, row.high) == interval(difference)
    assert (made.changes["val"].better, made.changes["val"].worse) == ((difference > 0).sum(), (difference < 0).sum())
    assert made.changes["val"].moved and made.first == "toy" and made.second == "toy:second"
    assert set(made.differences) == {"judge", "rerank"} and made.differences["rerank"]["mix"] == ("", "1.0")
    assert not [line for line in made.doubts if "differ" in line or "older" in line]
    back = compare(params.load(), "toy:second", "toy")
    (other,) = [row for row in back.splits["val"] if row.name == "mAP@10"]
    assert other.difference == pytest.approx(-row.difference)


def test_a_rerank_is_compared_with_that_of_another_workspace(reranked: Workspace) -> None:
    shutil.copytree("cache", "other")
    reranked.params(reranks__second__mix=0.5)
    rerank.build("second", params.load())
    made = compare(params.load(), "toy:second", "toy:second", Path("other"))
    (row,) = [row for row in made.splits["val"] if row.name == "mAP@10"]
    difference = values(Path("other/toy/tiny/rerank/second")) - values(SECOND)
    assert row.difference == pytest.approx(difference.mean()) and row.difference
    assert made.second == "toy:second in other" and made.differences == {"rerank": {"mix": ("0.5", "1.0")}}


def test_two_reranks_are_compared(reranked: Workspace) -> None:
    entry = reranked.params()["reranks"]["second"]
    reranked.params(reranks={"second": entry, "third": entry | {"top": 10, "mix": 0.5}})
    chance = random.Random(3)
    write_verdicts(reranked, 10, lambda row: chance.random(), "third")
    rerank.build("third", params.load())
    made = compare(params.load(), "toy:second", "toy:third")
    rows = {row.name: row for row in made.splits["val"]}
    assert rows["judged"].second == 300 and rows["judged"].low is None
    assert set(made.differences) == {"rerank"} and set(made.differences["rerank"]) == {"top", "mix"}
    done = invoke("compare", "toy:second", "toy:third")
    assert done.exit_code == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert [line for line in done.stdout.splitlines() if line.split()[:1] == ["judged"]]


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        ("toy", "toy:third", "no rerank 'third'; there are: second"),
        ("toy:", "toy", "no rerank ''"),
        ("other:second", "toy", "no run 'other'"),
        ("again:second", "toy", "again:second: rerank 'second' is of another run than again"),
        ("toy", "toy:second:more", "no rerank 'second:more'"),
    ],
)
def test_a_name_that_is_none_is_one_line(reranked: Workspace, first: str, second: str, line: str) -> None:
    reranked.params(runs={"toy": SETTINGS["run"], "again": {"dataset": "demo", "backbone": "tiny"}})
    with pytest.raises(CvsiError) as raised:
        compare(params.load(), first, second)
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_a_rerank_that_was_not_run_or_is_older_than_its_scores_is_one_line(reranked: Workspace) -> None:
    scores_again()
    doubts = compare(params.load(), "toy", "toy:second").doubts
    assert any("its verdicts were made by another recipe of scores" in line for line in doubts)
    shutil.rmtree(SECOND)
    with pytest.raises(CvsiError, match="rerank/second: no metrics of toy:second; run dvc repro"):
        compare(params.load(), "toy", "toy:second")


def test_a_rerank_is_compared_with_its_earlier_state(reranked: Workspace) -> None:
    def run(*words: str) -> None:
        subprocess.run(words, check=True, env=environment(reranked.path), cwd=reranked.path, capture_output=True)

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    for name in ("index", "tiny/scores", "tiny/verdicts/second", "tiny/rerank/second"):
        run("dvc", "add", "-q", f"cache/toy/{name}")
    lock: dict[str, Any] = {"stages": {}}
    for file in reranked.path.glob("cache/toy/**/*.dvc"):
        lines = dict(line.strip("- ").split(": ") for line in file.read_text().splitlines()[1:])
        path = file.with_suffix("").relative_to(reranked.path).as_posix()
        lock["stages"][path] = {"outs": [{"path": path, "md5": lines["md5"]}]}
    Path("dvc.lock").write_text(json.dumps(lock))
    run("git", "add", "-f", "params.yaml", "dvc.lock")
    run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
    before = values(SECOND)
    reranked.params(reranks__second__mix=0.5)
    rerank.build("second", params.load())
    made = compare(params.load(), "toy:second", "toy:second", rev="HEAD")
    (row,) = [row for row in made.splits["val"] if row.name == "mAP@10"]
    assert row.difference == pytest.approx((values(SECOND) - before).mean()) and row.difference
    assert made.first.startswith("toy:second at HEAD") and made.differences == {"rerank": {"mix": ("1.0", "0.5")}}
    with pytest.raises(CvsiError, match="no rerank 'third' of toy in its params"):
        compare(params.load(), "toy:third", "toy:second", rev="HEAD")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("toy:second", "cache/toy/tiny/rerank/second/index.html: no browser"),
        ("toy", "cache/toy/tiny/report/index.html: no browser"),
    ],
)
def test_the_page_of_a_rerank_is_opened(
    reranked: Workspace, name: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(variable, raising=False)
    done = invoke("open", name)
    assert done.exit_code == 0 and line in done.output


@pytest.mark.parametrize(
    ("name", "line"),
    [("toy:third", "no rerank 'third'"), ("toy:", "no rerank ''"), ("none:second", "no run 'none'")],
)
def test_a_page_that_is_none_is_one_line(reranked: Workspace, name: str, line: str) -> None:
    assert line in str(invoke("open", name).exception)
    shutil.rmtree(SECOND)
    assert "no page yet; dvc repro makes it" in str(invoke("open", "toy:second").exception)
