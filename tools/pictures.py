"""Draws the pictures of the documentation: the demo's report and explorer, photographed in the system's Chromium.

`python tools/pictures.py` after `make demo`; writes docs/report.png and docs/explore*.png.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import uvicorn
from playwright.sync_api import Page, sync_playwright

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.explorer.page_server import application
from cvsi.explorer.run_view import RunView
from cvsi.explorer.server import listen

RUN = "demo-tiny"
CHANGED = '{"query": {"edited": 0.6, "pseudo": 0.4, "target": 0.5}, "gallery": {"image": 0.8, "caption": 0.2}}'
DOCS = Path("docs")
REPORT = Path("cache/demo/tiny/report/index.html")
TOKEN = "pictures"
# Name of the picture, the page's address after `#/`, what has to be there, and its height in pixels.
EXPLORER = (
    ("explore", "queries?view=lost", ".row a", 760),
    ("explore_query", "query/val/2?show=cvsi&show=osrcir&show=image", ".strip ol li", 1180),
    ("explore_weights", f"weights?query=val/2&w={quote(CHANGED)}", ".metric .value", 1100),
)


@contextmanager
def served() -> Iterator[str]:
    """The address of the explorer's page."""
    listener = listen(0)
    runs = {RUN: RunView(RUN, params.load())}
    server = uvicorn.Server(uvicorn.Config(application(runs, TOKEN), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/{TOKEN}/"
    server.should_exit = True
    thread.join(10)


def photograph(page: Page, name: str, height: int) -> None:
    """Write one picture of the page as it is."""
    page.set_viewport_size({"width": 1200, "height": height})
    page.wait_for_timeout(1500)  # pictures and charts
    page.screenshot(path=DOCS / f"{name}.png")


def main() -> None:
    """Draw all pictures; raises CvsiError without Chromium or the demo's report."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise CvsiError("chromium: not installed; install it with the system's packages")
    if not REPORT.exists():
        raise CvsiError(f"{REPORT}: no such file; run make demo first")
    with sync_playwright() as playwright, served() as address:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(REPORT.resolve().as_uri())
        page.locator("h2", has_text="Methods on").first.evaluate("title => title.scrollIntoView()")
        photograph(page, "report", 1000)
        for name, place, ready, height in EXPLORER:
            page.goto(f"{address}#/{place}")
            page.reload()
            page.wait_for_selector(ready)
            photograph(page, name, height)
        browser.close()


if __name__ == "__main__":
    main()
