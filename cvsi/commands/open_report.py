"""`cvsi open`: a run's report, or a rerank's page, in the browser, or its address without a browser or a display."""

import os
import sys
import webbrowser
from pathlib import Path

from cvsi.core import paths
from cvsi.core.errors import CvsiError
from cvsi.core.params import Run


def report_page(run: Run, rerank: str = "") -> Path:
    """Where a run's report, or the page of one of its reranks, is or will be."""
    return paths.folder("rerank" if rerank else "report", run.dataset, run.backbone, rerank) / "index.html"


def open_report(run: Run, rerank: str = "") -> str:
    """Open a run's report, or a rerank's page; the line that says so, or what to open.

    Raises CvsiError where there is no page.
    """
    page = report_page(run, rerank)
    if not page.is_file():
        raise CvsiError(f"{page}: no {'page' if rerank else 'report'} yet; dvc repro makes it")
    address = page.resolve().as_uri()
    if _has_display() and _opened(address):
        return f"{page}: opened in the browser ({address})"
    return f"{page}: no browser or display here; open {address}"


def _has_display() -> bool:
    """Whether a browser could show a window; one that BROWSER names need not."""
    if os.environ.get("BROWSER") or sys.platform in ("darwin", "win32"):
        return True
    # Without a display, webbrowser would start one of the browsers for terminals, which takes the terminal.
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"))


def _opened(address: str) -> bool:
    try:
        return webbrowser.open(address)
    except (webbrowser.Error, OSError, ValueError):  # none is installed, or BROWSER is no command
        return False
