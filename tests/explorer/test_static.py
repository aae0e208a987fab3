"""The page without a server at sizes of benchmarks: what is left out of its data, and how it scrolls and sorts."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cvsi.core import params
from cvsi.evaluation.report.build import build
from cvsi.evaluation.report.explore import static
from tests.conftest import Workspace
from tests.explorer.conftest import CHROMIUM, Watched

PAGE = Path("cache/toy/tiny/report/explore.html")
DATA = PAGE.parent / "explore" / "data" / "toy-tiny"
ROWS = 4_000
SCROLL = "share => { const box = document.querySelector('.rows'); box.scrollTop = share * box.scrollHeight }"
HAS = "text => [...document.querySelectorAll('.row .chips')].some(one => one.textContent.includes(text))"
SORT = """
async (name) => {
  const before = document.querySelectorAll(".row a")[0].textContent;
  const began = performance.now();
  document.querySelector(`.row.head .${name} button`).click();
  while (document.querySelectorAll(".row a")[0].textContent === before && performance.now() - began < 3000)
    await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}
"""


def content(file: Path) -> Any:
    """The JSON in a script of data."""
    return json.loads(file.read_text().split(",", 1)[1].rstrip().removesuffix(");"))


def details() -> dict[str, Any]:
    """The details of the first query."""
    first: dict[str, Any] = content(DATA / "details-000.js")[0]
    return first


def test_many_results_leave_fewer_to_other_methods(run: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    build("toy", "tiny", params.load())
    whole = details()["strips"]
    assert {len(strip) for strip in whole.values()} == {8}  # nine images without the reference
    monkeypatch.setattr(static, "MOST_RESULTS", 3 * len(whole) * 5)
    build("toy", "tiny", params.load())
    shorter = details()["strips"]
    assert shorter == {method: strip if method == "cvsi" else strip[:5] for method, strip in whole.items()}
    monkeypatch.setattr(static, "MOST_RESULTS", 1)
    build("toy", "tiny", params.load())
    assert {len(strip) for strip in details()["strips"].values()} == {8, static.FEWEST}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_raw_answers_that_take_too_much_are_left_to_the_server(
    run: Workspace, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "MOST_RAW", 1)
    build("toy", "tiny", params.load())
    assert details()["raw"] is None
    page = watched.open(f"{PAGE.resolve().as_uri()}#/query/val/0", ".strip ol li")
    expect(page.locator("main")).to_contain_text("The models' answers are in the page of cvsi explore")
    assert page.locator("details.raw").count() == 0


def many(seed: int = 1) -> None:
    """The page's table with thousands of queries."""
    drawn, queries = random.Random(seed), content(DATA / "queries.js")
    rows = range(ROWS)
    words = ("has", "a", "red", "dog", "blue", "and", "sky", "two", "more", "people")
    queries |= {
        "split": ["val"] * ROWS, "id": [str(row) for row in rows], "reference": [row % 9 for row in rows],
        "instruction": [" ".join(drawn.choices(words, k=9)) for _ in rows], "aspects": [[] for _ in rows],
        "status": [drawn.choice(("ok", "fallback: empty", "repaired: quotes")) for _ in rows],
    }  # fmt: skip
    for method in queries["methods"].values():
        method |= {
            "rank": [drawn.choice((None, *range(1, 1001))) for _ in rows],
            "value": [round(100 * drawn.random(), 2) for _ in rows],
        }
    (DATA / "queries.js").write_text(static.script("toy-tiny/queries", queries))


def rows_in(page: Page) -> int:
    """How many rows the page has."""
    return page.locator(".row:not(.head)").count()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_thousands_of_rows_scroll_and_sort_smoothly(run: Workspace, watched: Watched) -> None:
    build("toy", "tiny", params.load())
    many()
    page = watched.open(PAGE.resolve().as_uri())
    expect(page.locator(".count")).to_contain_text("4,000 of 4,000 queries")
    assert 5 < rows_in(page) < 60
    for share in (0.3, 0.71, 1.0):
        page.evaluate(
            "share => { const box = document.querySelector('.rows'); box.scrollTop = share * box.scrollHeight }", share
        )
        place = str(min(int(share * ROWS), ROWS - 1))
        page.wait_for_function(HAS, arg=f"val {place}")
        assert 5 < rows_in(page) < 60
    for name in ("instruction", "valueA", "rankB", "difference", "status"):
        took = [page.evaluate(SORT, name) for _ in range(3)]
        assert min(took) < 300, (name, took)
        assert page.evaluate("document.querySelector('.rows').scrollTop") == 0
    values = [float(text) for text in page.locator(".row:not(.head) .valueA").all_inner_texts()]
    page.evaluate(SORT, "valueA")
    values = [float(text) for text in page.locator(".row:not(.head) .valueA").all_inner_texts()]
    assert values == sorted(values, reverse=True) and values[0] > 99
