"""A run's artifacts to `explore.html` and the folder `explore`: the explorer's page with its data, opened from a disk.

A browser that opens a file refuses `fetch` and modules, so the data are classic scripts that hand JSON to the page, and
small pictures are parts of sheets.
"""

import importlib.resources
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cvsi.core.params import Params
from cvsi.core.tables import Output
from cvsi.datasets.formats import format_of
from cvsi.evaluation import methods, vectors
from cvsi.evaluation.breakdown import Pairs, break_down
from cvsi.evaluation.gallery import Gallery
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.ranking import Ranking
from cvsi.evaluation.report.explore import page_data, query_data, sprites
from cvsi.evaluation.report.explore.query_data import Strip
from cvsi.evaluation.report.method_table import Table

SHOWN = 10  # results of a query and method
MOST_RESULTS = 300_000  # of all queries and methods; of more, methods other than the dataset's own have fewer each
FEWEST = 3
CHUNK = 50  # queries per file of details
MOST_BROKEN_DOWN = 60_000  # results whose scores are broken down; of more, only those of the dataset's own method
MOST_RAW = 2_000_000  # characters of the models' answers; more are left to the page that has a server
FOLDER = "explore"
VENDORED = ("vendor/htm-preact.js", "vendor/uplot.js", "vendor/uplot.css", "vendor/LICENSES.txt")
SCRIPTS = ("model.js", "widgets.js", "table.js", "query.js", "weights.js", "ask.js", "app.js")
ASSETS = (*VENDORED, *SCRIPTS, "style.css", "icon.svg")


@dataclass(frozen=True)
class Run:
    """What the explorer shows of a run: its names, its queries, and the values and first images of its methods."""

    name: str
    backbone: str
    params: Params
    table: QueryTable
    gallery: Gallery
    values: pl.DataFrame  # the rows of methods.parquet
    metrics: Table
    rankings: Mapping[str, Ranking]

    @property
    def own(self) -> str:
        """The name of the dataset's own method."""
        return methods.own_name(self.params, self.name)

    @property
    def label(self) -> str:
        """The name of the run in the page and of its folder of data."""
        return f"{self.name}-{self.backbone}"


def write(run: Run, out: Output) -> None:
    """Write the page and its data into a report's folder; raises CvsiError for an image that changed."""
    run = replace(run, rankings=_shortened(run))
    images, strips = _images_and_strips(run)
    numbers = page_data.numbers_of(images)
    pictures = images.filter("exists").head(sprites.MOST)
    side, root = sprites.side_for(pictures.height), Path(run.params.dataset(run.name).root)
    for number, sheet in enumerate(sprites.sheets(root, pictures, side)):
        out.file(f"{FOLDER}/pictures/{number:02d}.jpg").write_bytes(sheet)
    queries = query_data.queries_with_texts(run.name, run.table.frame)
    main = format_of(run.params.dataset(run.name), run.name).protocol.main
    facts = page_data.facts(run.name, run.backbone, run.params, run.metrics, run.rankings, run.gallery.size)
    sheet_facts = {"columns": sprites.COLUMNS, "pictures": pictures.height}
    _script(out, "runs", {"runs": [run.label], "served": False})
    _script(out, f"{run.label}/run", facts | sheet_facts | {"chunk": CHUNK})
    _script(out, f"{run.label}/images", page_data.image_rows(images, range(images.height)))
    _script(out, f"{run.label}/queries", query_data.columns(queries, run.values, main, numbers))
    raw = query_data.raw_characters(queries) <= MOST_RAW
    for number, start in enumerate(range(0, queries.height, CHUNK)):
        rows = slice(start, start + CHUNK)
        content = query_data.details(queries, run.values, strips, rows, numbers, raw)
        _script(out, f"{run.label}/details-{number:03d}", content)
    for name in ASSETS:
        out.file(f"{FOLDER}/{Path(name).name}").write_bytes(asset(name))
    out.file("explore.html").write_bytes(asset("page.html"))


def asset(name: str) -> bytes:
    """A file of the page itself."""
    return importlib.resources.files(__package__).joinpath(name).read_bytes()


def script(name: str, content: Any) -> str:
    """A classic script that hands JSON to the page by a name."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"explorerData({json.dumps(name)},{text});\n"


def _script(out: Output, name: str, content: Any) -> None:
    out.file(f"{FOLDER}/data/{name}.js").write_text(script(name, content), encoding="ascii")


def _shortened(run: Run) -> dict[str, Ranking]:
    """The rankings, those of other methods than the own one without their last results where all would be too many."""
    kept = max(MOST_RESULTS // max(len(run.rankings) * run.table.frame.height, 1), FEWEST)
    shortened = {}
    for method, ranking in run.rankings.items():
        positions = ranking.positions.copy()
        if method != run.own:
            positions[:, kept:] = -1
        shortened[method] = replace(ranking, positions=positions)
    return shortened


def _images_and_strips(run: Run) -> tuple[pl.DataFrame, dict[str, Strip]]:
    """The images that the page shows, the more important first, and the first images of every method among them."""
    positions = np.stack([ranking.positions for ranking in run.rankings.values()])  # [methods, queries, k]
    shown = np.unique(positions[positions >= 0])
    ids = run.gallery.ids(shown)
    wanted = pl.concat([column.alias("image_id") for column in _by_importance(run, positions, shown, ids)])
    images = wanted.unique(maintain_order=True).to_frame().join(
        page_data.image_table(run.name), on="image_id", how="left", maintain_order="left"
    )  # fmt: skip
    images = images.with_columns(exists=pl.col("digest").is_not_null())
    images = images.sort("exists", descending=True, maintain_order=True)
    numbers = page_data.numbers_of(images)
    number_of = np.array([numbers[image] for image in ids], dtype=np.int64)
    return images, _strips(run, shown, number_of)


def _by_importance(run: Run, positions: np.ndarray, shown: np.ndarray, ids: pl.Series) -> Iterator[pl.Series]:
    """Image ids, some of them several times: references, results of the own method by rank, targets, the rest."""
    frame, own = run.table.frame, list(run.rankings).index(run.own)
    yield frame["reference_id"]
    for rank in range(positions.shape[2]):
        found = positions[own, :, rank]
        yield ids.gather(np.searchsorted(shown, found[found >= 0]))
    for column in ("target_ids", "second_reference_id", "negative_ids"):
        if column in frame.columns:
            values = frame[column]
            yield (values.explode() if values.dtype == pl.List else values).drop_nulls()
    yield ids


def _strips(run: Run, shown: np.ndarray, number_of: np.ndarray) -> dict[str, Strip]:
    """The first images of every method as numbers of the page, and their scores' terms where these are not too many."""
    terms = _terms(run)
    strips = {}
    for method, ranking in run.rankings.items():
        found = ranking.positions >= 0
        images = np.full(ranking.positions.shape, -1, dtype=np.int64)
        images[found] = number_of[np.searchsorted(shown, ranking.positions[found])]
        values = None
        if method in terms:
            values = np.zeros((*images.shape, terms[method].shape[1]), dtype=np.float32)
            values[found] = terms[method]
        strips[method] = Strip(images, np.where(found, ranking.scores, 0), values)
    return strips


def _terms(run: Run) -> dict[str, np.ndarray]:
    """The terms of the first images' scores."""
    fusions = methods.table(run.params, run.name)
    size = sum(int((ranking.positions >= 0).sum()) for ranking in run.rankings.values())
    chosen = run.rankings if size <= MOST_BROKEN_DOWN else {run.own: run.rankings[run.own]}
    pairs = {}
    for method, ranking in chosen.items():
        rows, columns = np.nonzero(ranking.positions >= 0)
        pairs[method] = (fusions[method], Pairs(rows, ranking.positions[rows, columns]))
    inputs = vectors.read(run.table.frame, run.gallery, run.backbone)
    return break_down(inputs, run.gallery.shards(run.backbone), pairs)
