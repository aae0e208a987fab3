"""Pictures as SVG files whose bytes depend only on what is drawn: no date, no random ids, no settings of the user.

Text stays text, so a browser shows names in every script. Importing this module loads matplotlib, which takes about a
second.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# A hash of this text names clip paths; names from datasets may have `$`, which would begin a formula.
SETTINGS = {
    "svg.hashsalt": "cvsi",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it; a browser without it takes another sans-serif
}
INK, PALE = "#1f4e79", "#b9cfe4"
COLOURS = (INK, "#c55a11", "#548235", "#7f6000", "#7030a0")


@contextmanager
def svg(width: float, height: float) -> Iterator[tuple[Figure, io.StringIO]]:
    """An empty figure of a size in inches, and the text that is its SVG when the block ends."""
    text = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # DejaVu Sans has no glyphs of some scripts; it only measures the text, which the browser draws.
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, text
        figure.savefig(text, format="svg", metadata={"Date": None})
