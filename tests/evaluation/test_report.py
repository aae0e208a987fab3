"""The report page: everything escaped, nothing fetched, pictures that show in a real browser."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.core import params
from cvsi.evaluation.report import build, method_table
from tests.conftest import Workspace

# One worker runs all tests on the shared project, which takes a minute to make.
pytestmark = pytest.mark.xdist_group("project")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture
def browser() -> str:
    """A Chromium, or a skip that says so; in CI its absence is a failure."""
    path_of_browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if path_of_browser is None:
        assert not os.environ.get("CI"), "CI has no Chromium"
        pytest.skip("no Chromium on this machine")
    return path_of_browser


def page_of(project: Workspace) -> Path:
    return project.path / "cache/demo/tiny/report/index.html"


def test_the_page_carries_everything_in_itself(project: Workspace) -> None:
    page = page_of(project).read_text(encoding="utf-8")
    assert not re.findall(r'src="(?!data:)', page) and not re.findall(r'href="(?!explore\.html["#])', page)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert page.count("data:image/png;base64,") > 300
    for name in ("cvsi", "edited", "pseudo", "image", "text", "image+text", "pdv"):
        assert f"<td>{name}</td>" in page


def test_every_method_of_the_table_has_values_per_query(project: Workspace) -> None:
    report, scores = (project.path / "cache/demo/tiny" / name for name in ("report", "scores"))
    rows, own = pl.read_parquet(report / "methods.parquet"), pl.read_parquet(scores / "per_query.parquet")
    table = json.loads((report / "weightings.json").read_text(encoding="utf-8"))["splits"]["val"]
    assert rows["method"].unique(maintain_order=True).to_list() == list(table)
    assert rows.filter(pl.col("method") == "cvsi").drop("method").equals(own)
    for name, metrics in table.items():
        mine = rows.filter(pl.col("method") == name)
        assert mine["mAP@10"].mean() == pytest.approx(metrics["mAP@10"], abs=1e-9) and mine.height == own.height


def test_hits_are_the_right_answers(project: Workspace) -> None:
    page = page_of(project).read_text(encoding="utf-8")
    cards = page.split('<article class="card">')[1:]
    queries = pl.read_parquet(project.path / "cache/demo/index/queries.parquet")
    rankings = pl.read_parquet(project.path / "cache/demo/tiny/scores/rankings.parquet")
    assert len(cards) == queries.height
    by_key = {re.search(r'href="explore.html#/query/(\w+/\w+)"', card)[1]: card for card in cards}  # type: ignore[index]
    for query in queries.to_dicts():
        card = by_key[f"{query['split']}/{query['query_id']}"]
        mine = rankings.filter(
            pl.col("split") == query["split"], pl.col("query_id") == query["query_id"], pl.col("rank") <= 10
        )
        hits = [rank for rank, image in mine.select("rank", "image_id").iter_rows() if image in query["target_ids"]]
        assert [int(number) for number in re.findall(r"<figcaption>(\d+) hit", card)] == hits


def test_a_browser_shows_it(project: Workspace, browser: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    bare.write_text(
        re.sub(r'src="data:[^"]*"', 'src=""', page_of(project).read_text(encoding="utf-8")), encoding="utf-8"
    )
    shown, without = (screenshot(browser, page, tmp_path) for page in (page_of(project), bare))
    assert shown.shape == (6000, 1200, 3)
    # The world's pictures are saturated colours; the page itself has few.
    assert saturated(shown) > saturated(without) + 20_000


def screenshot(browser: str, page: Path, folder: Path) -> np.ndarray:
    """What a browser shows of a page, [6000, 1200, 3]."""
    picture = folder / f"{page.stem}.png"
    command = [
        browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1200,6000",
        f"--screenshot={picture}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(picture).convert("RGB")).astype(int)


def saturated(pixels: np.ndarray) -> int:
    """How many pixels are of a strong colour."""
    return int((pixels.max(axis=2) - pixels.min(axis=2) > 120).sum())


def test_what_people_and_models_wrote_is_escaped_and_too_many_fallbacks_are_stated(toy: Workspace) -> None:
    instruction = "<script>alert(1)</script> & \"quotes\" 'too'"
    (toy.path / "photos" / "queries.jsonl").write_text(
        '{"reference": "red.png", "instruction": ' + json.dumps(instruction) + ', "targets": ["green.png"]}\n',
        encoding="utf-8",
    )
    for stage in ("index", "captions"):
        toy.run(stage, "toy")
    edits = {
        "query_id": ["0"],
        "split": ["val"],
        "edited": [["<img src=x onerror=alert(2)>"]],
        "added": ["<b>x</b>"],
        "status": ["refused: <s>x</s>"],
    }
    folder = toy.path / "cache/toy/edits"
    folder.mkdir()
    pl.DataFrame(edits).write_parquet(folder / "part-00000.parquet")
    for stage in ("gallery_vectors", "query_vectors", "scores", "report"):
        toy.run(stage, "toy", "tiny")
    scores = toy.path / "cache/toy/tiny/scores/provenance.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"<i>note": "<u>x</u>"}), encoding="utf-8")
    toy.run("report", "toy", "tiny")
    page = (toy.path / "cache/toy/tiny/report/index.html").read_text(encoding="utf-8")
    assert "<u>x" not in page and "<i>note" not in page and "&lt;u&gt;x" in page
    assert "<script" not in page and "<img src=x" not in page and "<b>x" not in page
    assert "<dt>precision</dt><dd>fp32</dd>" in page and "No provenance.json: the recipe is unknown." in page
    assert "&lt;script&gt;" in page and "&lt;img src=x" in page and "&lt;b&gt;x" in page
    line = "1 of 1 edits (100%) fell back to the captions, above 20%; most frequent: refused: "
    assert f'<p class="box warning">{line}&lt;s&gt;x&lt;/s&gt; (1)</p>' in page
    toy.params(runs={"toy-tiny": {"dataset": "toy", "backbone": "tiny"}})
    for command in (["show", "toy-tiny"], ["summary"]):
        assert f"toy: {line}<s>x</s> (1)" in CliRunner().invoke(app, command).output
    toy.params(datasets__toy__fallback_limit=1.0)
    toy.run("report", "toy", "tiny")
    assert 'class="box warning"' not in (toy.path / "cache/toy/tiny/report/index.html").read_text(encoding="utf-8")


def test_failures_come_first_with_the_ranks_of_their_answers(project: Workspace) -> None:
    page = page_of(project).read_text(encoding="utf-8")
    values = pl.read_parquet(project.path / "cache/demo/tiny/scores/per_query.parquet")
    best = values.select("split", "query_id", best=pl.col("target_ranks").list.min().fill_null(1 << 30))
    failed = best.filter(pl.col("best") > 10).sort("best", descending=True, maintain_order=True)
    assert failed.height
    cards = page.split('<article class="card">')[1:]
    shown = [int(rank) for rank in re.findall(r"best right answer: rank (\d+)", "".join(cards[: failed.height]))]
    assert shown == failed["best"].head(len(shown)).to_list()
    (ranks,) = values.join(failed.head(1), on=["split", "query_id"], how="semi")["target_ranks"].to_list()
    assert re.findall(r"<figcaption>rank (\d+)", cards[0]) == [str(rank) for rank in ranks[:5]]


def test_the_drawn_world_is_no_zero_shot_result_and_places_are_left_out(project: Workspace, toy: Workspace) -> None:
    page = page_of(project).read_text(encoding="utf-8")
    assert "<b>no zero-shot result</b>" in page and "root:" not in page
    assert "the edited description alone" in page
    editor = {"engine": "server", "model": "m", "address": "http://10.0.0.1", "max_tokens": 9}
    toy.params(datasets__toy__editor=editor)
    recipes: dict[str, Any] = {"edits": {"editor": {"engine": "server", "model": "m"}, "parts": [{"max_tokens": 9}]}}
    settings = build._settings(params.load().dataset("toy"), params.load().backbone("tiny"), recipes)
    assert "format: folder" in settings and "photos" not in settings and "max_tokens: 9" in settings
    assert "10.0.0.1" not in settings  # another server does not change the page


@pytest.mark.parametrize(
    ("high", "marks"),
    [
        (66.2, [0, 20, 40, 60, 80]), (50.0, [0, 10, 20, 30, 40, 50]), (100.0, [0, 20, 40, 60, 80, 100]),
        (0.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3.1, [0, 1, 2, 3, 4]), (10.2, [0, 5, 10, 15]),
    ],
)  # fmt: skip
def test_the_axis_ends_above_the_widest_interval(high: float, marks: list[float]) -> None:
    rows = {"a": {"m": high / 2, "m low": 0.0, "m high": high}, "b": {"m": 0.0, "m low": 0.0, "m high": high / 3}}
    assert method_table.axis(rows, "m") == pytest.approx(marks)


def test_bars_and_aspects() -> None:
    rows = {
        "cvsi": {"mAP@10": 40.0, "mAP@10 low": 30.0, "mAP@10 high": 50.0, "mAP@10/odd": 1.0},
        "image": {"mAP@10": 10.0, "mAP@10 low": 5.0, "mAP@10 high": 15.0, "mAP@10/odd": 2.0},
    }
    own, image = method_table.bars(rows, "mAP@10")
    assert (own["width"], own["low"], own["high"]) == (80, 60, 100)
    assert image["width"] == 20
    assert method_table.by_aspect(rows, "mAP@10") == {"odd": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("lists", "statuses", "text"),
    [
        ([["a"], ["b"]], None, "2"),
        ([["a"], []], None, "1, and 1 empty ones left out; 1 image without a caption"),
        ([["a"], ["b"]], ["ok", "repaired: label"], "2; images: 1 ok, 1 repaired"),
        ([["a"], []], ["ok", "refused: x"], "1; images: 1 ok, 1 refused; 1 image without a caption"),
    ],
)
def test_the_page_counts_captions_by_status(lists: list[list[str]], statuses: list[str] | None, text: str) -> None:
    table = pl.DataFrame({"captions": lists}, schema={"captions": pl.List(pl.String)})
    table = table if statuses is None else table.with_columns(status=pl.Series(statuses))
    assert build._captions_fact(table, 1) == text
