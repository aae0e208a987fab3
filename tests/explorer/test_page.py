"""The explorer's page, clicked through in a real browser: served, and from a file."""

import csv
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import polars as pl
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from cvsi.commands.explore import differences
from cvsi.core import params
from cvsi.evaluation.report.build import build
from cvsi.explorer.page_server import Differences, application
from cvsi.explorer.run_view import RunView
from cvsi.explorer.server import listen
from tests.conftest import Workspace
from tests.explorer.conftest import CHROMIUM, Watched, without_queries

TOKEN = "t" * 22
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
HOSTILE = "costs $5 & is <b>white</b>"
EQUAL: Differences = MappingProxyType({})
TEXT_ALONE = {"query": {"edited": -1}, "gallery": {"image": 1}}
SERIOUS = ("serious", "critical")


@pytest.fixture
def toy_run(run: Workspace) -> Workspace:
    """The run with its report, and a second run over the same queries with other weights."""
    settings = run.params()
    backbones = settings["backbones"] | {"other": settings["backbones"]["tiny"]}
    runs = settings["runs"] | {"toy-other": {"dataset": "toy", "backbone": "other"}}
    run.params(backbones=backbones, runs=runs)
    shutil.copytree("cache/toy/tiny", "cache/toy/other")
    weaker = pl.read_parquet("cache/toy/other/scores/per_query.parquet").with_columns(pl.col("mAP@10") / 2)
    weaker.write_parquet("cache/toy/other/scores/per_query.parquet")
    build("toy", "tiny", params.load())
    return run


@contextmanager
def serving(runs: Mapping[str, RunView], watched: Watched, recipes: Differences = EQUAL) -> Iterator[str]:
    """The address of the page for some runs."""
    listener = listen(0)
    server = uvicorn.Server(uvicorn.Config(application(runs, TOKEN, recipes), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/{TOKEN}/"
    watched.page.close()  # before its server ends
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture
def served(toy_run: Workspace, watched: Watched) -> Iterator[str]:
    """The address of the page for both runs."""
    settings = params.load()
    with serving({name: RunView(name, settings) for name in ("toy-tiny", "toy-other")}, watched) as address:
        yield address


@pytest.fixture
def static(toy_run: Workspace) -> str:
    """The address of the report's page."""
    return (toy_run.path / "cache/toy/tiny/report/explore.html").as_uri()


@pytest.fixture(params=["served", "static"])
def address(request: pytest.FixtureRequest) -> str:
    """Both pages, one after the other."""
    return str(request.getfixturevalue(request.param))


def instructions(page: Page) -> list[str]:
    return page.locator(".row .instruction a").all_inner_texts()


def accessible(page: Page) -> None:
    violations = Axe().run(page, options={"preload": False}).response["violations"]
    found = [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in violations if one["impact"] in SERIOUS]
    assert not found


def test_the_table_is_sorted_filtered_and_saved(watched: Watched, address: str, tmp_path: Path) -> None:
    page = watched.open(address)
    assert instructions(page) == ["is green", "is yellow", HOSTILE]
    page.click(".row.head .instruction button")
    assert instructions(page) == [HOSTILE, "is green", "is yellow"]
    page.fill("#filter", "is YELLOW")
    expect(page.locator(".count")).to_contain_text("1 of 3 queries")
    assert instructions(page) == ["is yellow"] and "text=is+YELLOW" in page.url
    page.fill("#filter", "")
    expect(page.locator(".count")).to_contain_text("3 of 3 queries")
    page.locator("fieldset label", has_text="test").locator("input").check()
    expect(page.locator(".count")).to_contain_text("1 of 3 queries")
    page.reload()
    page.wait_for_selector(".row a")
    assert instructions(page) == [HOSTILE]
    with page.expect_download() as download:
        page.click("text=Save as CSV")
    download.value.save_as(tmp_path / "saved.csv")
    (row,) = csv.DictReader((tmp_path / "saved.csv").open(encoding="utf-8", newline=""))
    assert (row["split"], row["instruction"], row["reference"]) == ("test", HOSTILE, "black.png")
    accessible(page)


def test_a_query_shows_its_texts_ranks_and_strips(watched: Watched, address: str) -> None:
    page = watched.open(address)
    page.click("text=is green")
    page.wait_for_selector(".strip ol li")
    assert page.locator("h1").inner_text() == "is green"
    ranks = pl.read_parquet("cache/toy/tiny/scores/per_query.parquet")["target_ranks"][0].to_list()
    own = page.locator("tr.own td").all_inner_texts()
    assert own[1:] == [str(rank) for rank in ranks]
    rankings = pl.read_parquet("cache/toy/tiny/scores/rankings.parquet").filter(query_id="0", split="val")
    strip = page.locator(".strip").nth(0)
    titles = [button.get_attribute("title") for button in strip.locator("li button").all()]
    assert titles == rankings["image_id"].head(len(titles)).to_list() and len(titles) >= 8
    assert page.locator(".strip").count() == 2 and strip.locator("li.target").count() == 2
    page.locator(".toggles button", has_text="text").first.click()
    expect(page.locator(".strip")).to_have_count(3)
    strip.locator("li button").nth(0).click()
    dialog = page.locator("dialog")
    expect(dialog).to_contain_text("Products that add up to the score")
    accessible(page)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_the_keyboard_leads_through_the_queries(watched: Watched, address: str) -> None:
    page = watched.open(address)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter"
    page.locator(".row a").nth(0).focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("is green")
    page.keyboard.press("ArrowRight")
    expect(page.locator("h1")).to_have_text("is yellow")
    page.keyboard.press("j")
    expect(page.locator("h1")).to_have_text(HOSTILE)
    page.keyboard.press("k")
    expect(page.locator("h1")).to_have_text("is yellow")
    page.keyboard.press("Escape")
    page.wait_for_selector(".row a")


def test_a_phone_shows_everything(watched: Watched, address: str) -> None:
    watched.page.set_viewport_size({"width": 390, "height": 844})
    page = watched.open(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("text=is green")
    page.wait_for_selector(".strip ol li")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    accessible(page)


def test_names_and_texts_are_shown_and_not_run(watched: Watched, address: str) -> None:
    page = watched.open(address)
    page.evaluate("location.hash = '#/query/test/2'")
    page.wait_for_selector(".strip ol li")
    assert page.locator("h1").inner_text() == HOSTILE and page.locator("h1 b").count() == 0
    page.evaluate("location.hash = '#/query/test/<img src=x onerror=alert(1)>'")
    expect(page.locator("main")).to_contain_text("There is no query <img src=x onerror=alert(1)>")
    page.evaluate("location.hash = '#/queries?sort=%22><script>&view=toString&a=__proto__&split=nope'")
    expect(page.locator(".count")).to_contain_text("0 of 3 queries")


def test_two_runs_are_joined(watched: Watched, served: str) -> None:
    page = watched.open(served)
    heads = page.locator(".row.head .valueA, .row.head .valueB").all_inner_texts()
    assert heads == ["toy-tiny: cvsi", "toy-other: cvsi"]
    values = pl.read_parquet("cache/toy/tiny/scores/per_query.parquet")["mAP@10"].to_list()
    shown = page.locator(".row:not(.head) .difference").all_inner_texts()
    assert [float(text) for text in shown[:2]] == pytest.approx([value / 2 for value in values], abs=0.06)
    assert shown[2] == "\N{EN DASH}"
    page.select_option("select >> nth=0", "changed")
    expect(page.locator(".count")).to_contain_text("2 of 3 queries")


def test_sliders_give_the_ranking_and_metric_of_scores(watched: Watched, served: str, toy_run: Workspace) -> None:
    page = watched.open(f"{served}#/weights", ".metric .value")
    page.locator("input[type=number]").nth(0).fill("0.1")
    page.locator("input[type=number]").nth(2).fill("0.9")
    page.keyboard.press("Tab")
    expect(page.locator("pre")).to_contain_text("query: {edited: 0.1, pseudo: 0.4, reference: 0.9}")
    page.wait_for_timeout(1500)
    shown = page.locator(".metric .value").inner_text()
    titles = [button.get_attribute("title") for button in page.locator(".strip.live li button").all()]
    weights = {"query": {"edited": 0.1, "pseudo": 0.4, "reference": 0.9}, "gallery": {"image": 0.8, "caption": 0.2}}
    toy_run.params(datasets__toy__fusion=weights)
    toy_run.run("scores", "toy", "tiny")
    metrics = json.loads(Path("cache/toy/tiny/scores/metrics.json").read_text())["val"]
    assert shown == f"{metrics['mAP@10']:.2f}"
    rankings = pl.read_parquet("cache/toy/tiny/scores/rankings.parquet").filter(query_id="0", split="val")
    assert titles == rankings["image_id"].to_list()
    accessible(page)
    page.reload()
    page.wait_for_selector(".metric .value")
    assert page.locator("input[type=number]").nth(0).input_value() == "0.1"


def test_a_dropped_file_is_asked_and_kept(watched: Watched, served: str) -> None:
    page = watched.open(f"{served}#/ask", "form.ask")
    page.set_input_files("input[type=file]", "photos/red.png")
    page.fill("input[name=text]", "is green")
    page.click("button[type=submit]")
    expect(page.locator("main")).to_contain_text("The same as the dataset's query val/0", timeout=60_000)
    page.fill("input[name=text]", "is green today")
    page.click("button[type=submit]")
    page.wait_for_selector("dl.texts", timeout=60_000)
    page.wait_for_selector(".strip li", timeout=60_000)
    assert "now" in page.locator("dl.texts dd").nth(0).inner_text()
    assert page.locator("button", has_text="Keep as a query").is_disabled()
    accessible(page)
    page.locator(".strip li button").nth(0).click()
    page.click("text=use as reference")
    expect(page.locator("dialog")).to_have_count(0)
    page.fill("input[name=text]", "")
    page.click("text=More like this")
    page.wait_for_selector(".strip li", timeout=60_000)
    page.fill("input[name=text]", "is kept")
    page.click("text=Search")
    expect(page.locator("button", has_text="Keep as a query")).to_be_enabled(timeout=60_000)
    page.click("text=Keep as a query")
    expect(page.locator("main")).to_contain_text("written; dvc repro computes with it")
    assert json.loads(Path("photos/queries.jsonl").read_text().splitlines()[-1])["instruction"] == "is kept"


def test_results_are_marked(watched: Watched, served: str) -> None:
    page = watched.open(f"{served}#/query/val/1", ".strip ol li")
    page.locator(".strip").nth(0).locator("li:not(.target) button").nth(0).click()
    name = page.locator("dialog h2").inner_text().split(". ", 1)[1]
    page.locator("dialog button", has_text="wrong").click()
    expect(page.locator("dialog")).to_contain_text("written")
    assert json.loads(Path("photos/queries.jsonl").read_text().splitlines()[1])["negatives"] == [name]


def test_a_picture_that_is_gone_and_a_server_that_is_gone_are_said(watched: Watched, served: str) -> None:
    Path("photos/red.png").unlink()
    page = watched.open(served)
    expect(page.locator(".picture.none")).to_have_count(1)
    watched.wrong.clear()  # the browser's own line on the picture


def test_a_dataset_without_queries_has_ask(run: Workspace, watched: Watched) -> None:
    view = without_queries()
    with serving({view.name: view}, watched) as address:
        page = watched.open(address, "main p")
        expect(page.locator("main")).to_contain_text("toy has 9 images and no queries")
        assert page.locator("nav a").all_inner_texts() == ["Queries", "Ask"]
        for path in ("weights", "query/val/0"):
            page.evaluate("path => (location.hash = `#/${path}`)", path)
            expect(page.locator("main")).to_contain_text("no queries")
        page.click("nav >> text=Ask")
        page.fill("input[name=text]", "a red picture")
        page.click("text=Search")
        page.wait_for_selector(".strip li", timeout=60_000)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"no image", "the image cannot be read: not an image"),
        (b"", "upload.png: an empty file"),
        (b"\0" * ((32 << 20) + 1), "upload.png: more than 32 MiB; choose a smaller file"),
    ],
)
def test_an_upload_that_is_no_image_is_said(watched: Watched, served: str, content: bytes, line: str) -> None:
    page = watched.open(f"{served}#/ask", "form.ask")
    Path("upload.png").write_bytes(content)
    page.set_input_files("input[type=file]", "upload.png")
    if page.locator("[role=alert]").count() == 0:
        page.click("text=More like this")
    expect(page.locator("[role=alert]")).to_have_text(line, timeout=60_000)
    watched.wrong.clear()  # the browser's own line on the refused request


def test_facets_narrow_by_outcome_and_reading(watched: Watched, address: str) -> None:
    page = watched.open(address)
    ranks = pl.read_parquet("cache/toy/tiny/scores/per_query.parquet")["target_ranks"].list.min().to_list()
    first = sum(rank == 1 for rank in ranks)
    kind = "hit at 1" if first else "within 10"
    page.locator("fieldset label", has_text=kind).locator("input").check()
    expect(page.locator(".count")).to_contain_text(f"{first or len(ranks)} of 3 queries")
    assert f"hit={kind.replace(' ', '+')}" in page.url
    assert page.locator("legend").all_inner_texts() == [
        "Split", "Status of the edit", f"Best target by {'toy-tiny: ' if 'http' in page.url else ''}cvsi",
    ]  # fmt: skip


def test_readings_are_shown_and_narrowed_by(watched: Watched, toy_run: Workspace) -> None:
    edits = Path("cache/toy/edits/part-00000.parquet")
    frame = pl.read_parquet(edits).with_columns(
        desired=pl.lit(["<i>a green picture</i>"]), reader_status=pl.Series(["ok", "fallback: empty", "ok"]),
        reader_answer=pl.lit("desired: <i>a green picture</i>"), reader_finish=pl.lit("stop"),
        answers=pl.lit(["<script>alert(1)</script>", "two"]), finish=pl.lit(["stop", "length"]),
    )  # fmt: skip
    frame.write_parquet(edits)
    build("toy", "tiny", params.load())
    page = watched.open((toy_run.path / "cache/toy/tiny/report/explore.html").as_uri())
    facet = page.locator("fieldset", has_text="Status of the reading")
    facet.locator("label", has_text="fallback").locator("input").check()
    expect(page.locator(".count")).to_contain_text("1 of 3 queries")
    page.click(".row .instruction a")
    raw = page.locator("details.raw")
    expect(raw).to_have_count(2)
    assert not raw.nth(0).locator("pre").first.is_visible()
    raw.nth(0).locator("summary").click()
    assert raw.nth(0).locator("pre").all_inner_texts() == ["<script>alert(1)</script>", "two"]
    expect(raw.nth(0)).to_contain_text("ended: length")
    raw.nth(1).locator("summary").click()
    expect(raw.nth(1)).to_contain_text("desired: <i>a green picture</i>")
    expect(raw.nth(1)).to_contain_text("fallback: empty; ended: stop")
    accessible(page)


def test_raw_answers_of_a_served_query(watched: Watched, served: str) -> None:
    page = watched.open(f"{served}#/query/val/0", ".strip ol li")
    answers = pl.read_parquet("cache/toy/edits/part-00000.parquet")["answers"][0].to_list()
    page.locator("details.raw summary").click()
    assert page.locator("details.raw pre").all_inner_texts() == answers


def test_counts_and_aspects_lead_to_their_queries(watched: Watched, served: str) -> None:
    page = watched.open(f"{served}#/weights", ".metric .value")
    for number, value in enumerate(["-1", "0", "0"]):
        page.locator("input[type=number]").nth(number).fill(value)
    page.keyboard.press("Tab")
    page.wait_for_timeout(1500)
    links = page.locator(".metric p >> nth=0 >> a")
    counted = {text.split(" ", 1)[1]: int(text.split(" ")[0]) for text in links.all_inner_texts()}
    assert sum(counted.values()) == 2 and 0 not in counted.values()
    kind = max(counted, key=lambda name: counted[name])
    links.filter(has_text=kind).click()
    expect(page.locator(".count")).to_contain_text(f"{counted[kind]} of 3 queries")
    shown = instructions(page)
    assert "moved=" in page.url and len(shown) == counted[kind]
    page.reload()
    page.wait_for_selector(".row a")
    expect(page.locator(".moved")).to_contain_text(f"Queries of val for which the changed numbers are {kind}")
    expect(page.locator(".count")).to_contain_text(f"{counted[kind]} of 3 queries")
    assert instructions(page) == shown
    accessible(page)
    page.click("text=show all")
    expect(page.locator(".count")).to_contain_text("2 of 3 queries")  # of the split


@pytest.mark.parametrize("moved", ["better", "nonsense", "__proto__"])
def test_moved_queries_of_bad_numbers_are_a_line(watched: Watched, served: str, moved: str) -> None:
    page = watched.open(f"{served}#/queries?moved={moved}&w=%7B%22query%22%3A1%7D&on=val", ".count")
    if moved == "better":
        expect(page.locator("[role=alert]")).to_contain_text("params.yaml: weights")
    expect(page.locator(".count")).to_contain_text("3 of 3 queries")
    watched.wrong.clear()  # the browser's own line on the refused request


def test_what_differs_in_recipes_unfolds(watched: Watched, toy_run: Workspace) -> None:
    text = json.loads(Path("cache/toy/other/scores/provenance.json").read_text())
    text["fusion"]["query"]["edited"] = "<b>0.9</b>"
    Path("cache/toy/other/scores/provenance.json").write_text(json.dumps(text))
    settings = params.load()
    runs = {name: RunView(name, settings) for name in ("toy-tiny", "toy-other")}
    with serving(runs, watched, differences(list(runs.values()))) as address:
        page = watched.open(address)
        page.locator(".recipes summary").click()
        assert page.locator(".recipes summary").inner_text() == "Recipes: what differs (1)"
        cells = page.locator(".recipes tbody tr").nth(0).locator("th, td").all_inner_texts()
        assert cells == ["fusion", "query.edited", "0.6", "<b>0.9</b>"]
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        accessible(page)


def test_an_aspects_dot_leads_to_its_queries(watched: Watched, toy_run: Workspace) -> None:
    index = Path("cache/toy/index/queries.parquet")
    aspects = pl.Series([["colour"], ["colour", "only_one"], ["colour"]])
    pl.read_parquet(index).with_columns(aspects=aspects).write_parquet(index)
    with serving({"toy-tiny": RunView("toy-tiny", params.load())}, watched) as address:
        for how in ("list", "dot"):
            page = watched.open(f"{address}#/weights?w={quote(json.dumps(TEXT_ALONE))}", ".dots .u-over")
            values = dict(
                (item.locator("a").text_content(), item.locator("span").last.text_content())
                for item in page.locator(".metric ul li").all()
            )
            assert set(values) == {"colour", "only one"} and len(set(values.values())) == 2, values
            if how == "list":
                page.click(".metric details summary")
                page.click("text=only one")
                expect(page.locator(".count")).to_contain_text("1 of 3 queries")
            else:
                area = page.locator(".dots .u-over").bounding_box()
                assert area is not None
                page.mouse.move(area["x"] + area["width"] - 3, area["y"] + 5)  # the nearest dot is the best one
                page.mouse.click(area["x"] + area["width"] - 3, area["y"] + 5)
                page.wait_for_selector(".count")
                best = "only_one" if "aspect=only_one" in page.url else "colour"
                number = 1 if best == "only_one" else 2
                expect(page.locator(".count")).to_contain_text(f"{number} of 3 queries")
            assert "aspect=" in page.url and "split=val" in page.url and "w=" in page.url
