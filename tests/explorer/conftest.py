"""A run of eight pictures and a copy of one, with its scores, on engines that need no model but the tiny backbone."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, sync_playwright

from cvsi.core import params
from cvsi.datasets import index
from cvsi.evaluation import scores
from cvsi.evaluation.report.build import build
from cvsi.explorer.engine import Engine
from cvsi.explorer.run_view import RunView
from cvsi.models.engines import CAPTIONERS, EDITORS
from cvsi.pipeline import captions, edits, vectors
from tests import toy_engines
from tests.conftest import Workspace, draw_pictures, project_params, write_queries

QUERIES = (
    {"reference": "red.png", "instruction": "is green", "targets": ["green.png", "blue.png"]},
    {"reference": "blue.png", "instruction": "is yellow", "targets": ["yellow.png"]},
    {"reference": "black.png", "instruction": "costs $5 & is <b>white</b>"},
)
CHROMIUM = shutil.which("chromium")
COPY = "a copy of [red] & <b>blue.png"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run `toy-tiny`, made once; no test changes it."""
    place = tmp_path_factory.mktemp("searched")
    draw_pictures(place / "photos")
    shutil.copy(place / "photos" / "blue.png", place / "photos" / COPY)
    write_queries(place / "photos", *QUERIES)
    content = project_params()
    own = {
        "format": "folder",
        "root": "photos",
        "captioner": {"engine": "colour", "n": 2},
        "editor": {"engine": "rule", "ending": "now"},
    }
    content["datasets"] = {"toy": content["datasets"]["demo"] | own}
    content |= {"active": ["toy"], "runs": {"toy-tiny": {"dataset": "toy", "backbone": "tiny"}}}
    (place / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    before = Path.cwd()
    with CAPTIONERS.using("colour", toy_engines.CAPTIONER), EDITORS.using("rule", toy_engines.EDITOR):
        os.chdir(place)
        try:
            settings = params.load()
            for stage in (index.build, captions.write, edits.write):
                stage("toy", settings)
            for of_run in (vectors.write_gallery, vectors.write_queries, scores.build):
                of_run("toy", "tiny", settings)
        finally:
            os.chdir(before)
        yield place


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A copy of the run, as the working directory."""
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return Workspace(tmp_path / "run")


@pytest.fixture
def engine(run: Workspace) -> Engine:
    """An engine of the run."""
    return Engine("toy-tiny", params.load())


def without_queries() -> RunView:
    """A folder of pictures without a file of queries, all stages run."""
    Path("photos/queries.jsonl").unlink()
    settings = params.load()
    for stage in (index.build, captions.write, edits.write):
        stage("toy", settings)
    for of_run in (vectors.write_gallery, vectors.write_queries, scores.build, build):
        of_run("toy", "tiny", settings)
    return RunView("toy-tiny", settings)


@dataclass
class Watched:
    """A page with what went wrong on it, and the hosts that it asked."""

    page: Page
    wrong: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def open(self, address: str, ready: str = ".row a") -> Page:
        """Load an address and wait for an element."""
        self.page.goto(address)
        self.page.wait_for_selector(ready, timeout=20_000)
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A fresh page; afterwards, nothing went wrong on it and nothing came from elsewhere."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, accept_downloads=True)
    seen = Watched(context.new_page())
    seen.page.on("console", lambda message: seen.wrong.append(message.text) if message.type == "error" else None)
    seen.page.on("pageerror", lambda error: seen.wrong.append(str(error)))
    seen.page.on("request", lambda request: seen.addresses.append(request.url))
    yield seen
    context.close()
    assert not seen.wrong
    assert all(re.match(r"(http://127\.0\.0\.1:\d+/|file://|blob:)", address) for address in seen.addresses)
