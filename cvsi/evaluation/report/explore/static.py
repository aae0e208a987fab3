"""A run's artifacts to `explore.html` and the folder `explore`: the explorer's page with its data, opened from a disk.

A browser that opens a file refuses `fetch` and modules, so the data are classic scripts that hand JSON to the page, and
small pictures are parts of sheets.
"""

import importlib.resources
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cvsi.core import tables
from cvsi.core.params import Params
from cvsi.core.tables import Output
from cvsi.datasets.formats import format_of
from cvsi.evaluation import methods, vectors
from cvsi.evaluation.breakdown import Pairs, Terms, break_down
from cvsi.evaluation.gallery import Gallery
from cvsi.evaluation.queries import QueryTable
from cvsi.evaluation.ranking import Ranking
from cvsi.evaluation.report.explore import query_data, sprites
from cvsi.evaluation.report.explore.query_data import Strip
from cvsi.evaluation.report.method_table import Table

SHOWN = 10  # results of a query and method
CHUNK = 50  # queries per file of details
MOST_BROKEN_DOWN = 60_000  # results whose scores are broken down; of more, only those of the dataset's own method
FOLDER = "explore"
ASSETS = ("vendor/htm-preact.js", "model.js", "widgets.js", "table.js", "query.js", "app.js", "style.css")


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


def write(run: Run, out: Output) -> None:
    """Write the page and its data into a report's folder; raises CvsiError for an image that changed."""
    images, strips, terms = _images_and_strips(run)
    numbers = dict(zip(images["image_id"], range(images.height), strict=True))
    pictures = images.filter("exists").head(sprites.MOST)
    side = sprites.side_for(pictures.height)
    root = Path(run.params.dataset(run.name).root)
    sheets = 0
    for sheet in sprites.sheets(root, pictures, side):
        out.file(f"{FOLDER}/pictures/{sheets:02d}.jpg").write_bytes(sheet)
        sheets += 1
    queries = query_data.queries_with_texts(run.name, run.table.frame)
    main = _main(run)
    facts = _facts(run, terms) | {
        "sheets": sheets,
        "side": side,
        "columns": sprites.COLUMNS,
        "pictures": pictures.height,
    }
    _script(out, "run", facts)
    _script(out, "images", {name: images[name].to_list() for name in ("image_id", "path", "caption", "ratio")})
    _script(out, "queries", query_data.columns(queries, run.values, main, numbers))
    for number, start in enumerate(range(0, queries.height, CHUNK)):
        rows = slice(start, start + CHUNK)
        _script(out, f"details-{number:03d}", query_data.details(queries, run.values, strips, rows, numbers))
    page = importlib.resources.files(__package__)
    for name in ASSETS:
        out.file(f"{FOLDER}/{Path(name).name}").write_bytes(page.joinpath(name).read_bytes())
    out.file("explore.html").write_bytes(page.joinpath("page.html").read_bytes())


def _main(run: Run) -> str:
    return format_of(run.params.dataset(run.name), run.name).protocol.main


def _facts(run: Run, terms: Mapping[str, Terms]) -> dict[str, Any]:
    """What is shown of the run and of each method."""
    main, known = _main(run), methods.methods(run.params)
    fusions = methods.table(run.params, run.name)
    splits = {
        split: {
            method: [values[key] for key in (main, f"{main} low", f"{main} high")] for method, values in rows.items()
        }
        for split, rows in run.metrics.items()
    }
    return {
        "dataset": run.name,
        "backbone": run.backbone,
        "metric": main,
        "own": run.own,
        "splits": splits,
        "gallery": run.gallery.size,
        "chunk": CHUNK,
        "methods": [
            {
                "name": name,
                "about": known[name].about.about if name in known else "",
                "fusion": fusions[name].describe(),
                "terms": list(terms[name].names) if name in terms else [],
                "addsUp": name in terms and terms[name].adds_up,
            }
            for name in run.rankings
        ],
    }


def _images_and_strips(run: Run) -> tuple[pl.DataFrame, dict[str, Strip], dict[str, Terms]]:
    """The images that the page shows, the more important first, and the first images of every method among them."""
    positions = np.stack([ranking.positions for ranking in run.rankings.values()])  # [methods, queries, k]
    shown = np.unique(positions[positions >= 0])
    ids = run.gallery.ids(shown)
    images = _image_table(run, list(_by_importance(run, positions, shown, ids)))
    numbers = dict(zip(images["image_id"], range(images.height), strict=True))
    number_of = np.array([numbers[image] for image in ids], dtype=np.int64) if len(ids) else np.zeros(0, np.int64)
    terms = _terms(run)
    strips = {}
    for method, ranking in run.rankings.items():
        found = ranking.positions >= 0
        numbered = np.full(ranking.positions.shape, -1, dtype=np.int64)
        numbered[found] = number_of[np.searchsorted(shown, ranking.positions[found])]
        values = None
        if method in terms:
            values = np.zeros((*numbered.shape, len(terms[method].names)), dtype=np.float32)
            values[found] = terms[method].values
        strips[method] = Strip(numbered, np.where(found, ranking.scores, 0), values)
    return images, strips, terms


def _by_importance(run: Run, positions: np.ndarray, shown: np.ndarray, ids: pl.Series) -> Iterator[pl.Series]:
    """Image ids, some of them several times: references, results of the own method by rank, targets, the rest."""
    frame, own = run.table.frame, list(run.rankings).index(run.own)
    yield frame["reference_id"]
    for rank in range(positions.shape[2]):
        found = positions[own, :, rank]
        yield ids.gather(np.searchsorted(shown, found[found >= 0]))
    for column in ("target_ids", "second_reference_id", "negative_ids"):
        if column in frame.columns:
            yield frame[column].explode().drop_nulls() if frame[column].dtype == pl.List else frame[column].drop_nulls()
    yield ids


def _image_table(run: Run, ids: list[pl.Series]) -> pl.DataFrame:
    """Distinct images in order with path, digest, first caption, and whether the index has them."""
    wanted = pl.concat([column.alias("image_id") for column in ids]).unique(maintain_order=True).to_frame()
    index = pl.DataFrame(tables.read("index", run.name, "images.parquet"))
    shape = pl.col("width") / pl.col("height")
    if "crop" in index.columns:  # a part is shown as a square
        shape = pl.when(pl.col("crop").is_null()).then(shape).otherwise(1.0)
    crop = ["crop"] if "crop" in index.columns else []
    index = index.select("image_id", "path", "digest", *crop, ratio=shape.round(4))
    captions = pl.DataFrame(tables.whole("captions", run.name))
    captions = captions.select("image_id", caption=pl.col("captions").list.first().fill_null(""))
    joined = wanted.join(index, on="image_id", how="left", maintain_order="left")
    joined = joined.join(captions, on="image_id", how="left", maintain_order="left")
    return joined.with_columns(exists=pl.col("digest").is_not_null()).sort(
        "exists", descending=True, maintain_order=True
    )


def _terms(run: Run) -> dict[str, Terms]:
    """The terms of the first images' scores."""
    fusions = methods.table(run.params, run.name)
    size = sum(int((ranking.positions >= 0).sum()) for ranking in run.rankings.values())
    chosen = run.rankings if size <= MOST_BROKEN_DOWN else {run.own: run.rankings[run.own]}
    pairs = {}
    for method, ranking in chosen.items():
        rows, columns = np.nonzero(ranking.positions >= 0)
        pairs[method] = (fusions[method], Pairs(rows, ranking.positions[rows, columns]))
    return break_down(vectors.read(run.table.frame, run.gallery, run.backbone), pairs)


def _script(out: Output, name: str, content: Any) -> None:
    """A classic script that hands JSON to the page by the name of its file."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    out.file(f"{FOLDER}/data/{name}.js").write_text(f'explorerData("{name}",{text});\n', encoding="ascii")
