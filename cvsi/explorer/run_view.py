"""A run's artifacts to the data of the explorer's page, on demand: the table of queries, one query, one strip.

The table comes from what the stages wrote; results of other methods than the run's own are ranked when they are asked
for. Nothing is written.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core import parquet, paths
from cvsi.core.errors import CvsiError, cause
from cvsi.core.images import load
from cvsi.core.params import Params
from cvsi.core.schema import per_method
from cvsi.core.vector_columns import names_of
from cvsi.datasets import folder, labels
from cvsi.datasets.base import annotation_path
from cvsi.datasets.formats import format_of
from cvsi.evaluation import methods, queries, scores, vectors
from cvsi.evaluation.breakdown import Pairs, adds_up, break_down, term_names
from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.report.explore import page_data, query_data
from cvsi.evaluation.report.explore.query_data import Strip
from cvsi.evaluation.report.method_table import Table
from cvsi.evaluation.report.thumbnails import encoded, file_of
from cvsi.explorer.kept_gallery import KeptGallery
from cvsi.explorer.live_ranking import LiveRanking
from cvsi.explorer.requests import Label, NewQuery, Request
from cvsi.explorer.split_metric import Progress, measure

if TYPE_CHECKING:
    from cvsi.explorer.components import Edit
    from cvsi.explorer.engine import Engine

SHOWN = 20  # results of a query and method


class RunView:
    """What the page shows of one run; for one thread at a time, apart from `picture`, `metric` and `ask`."""

    def __init__(self, name: str, params: Params) -> None:
        """Read the tables; raises CvsiError where one is missing, damaged or of a later version."""
        run = params.run(name)
        self.name, self.params, self.dataset, self.backbone = name, params, run.dataset, run.backbone
        self.table, self.gallery = queries.read(run.dataset)
        self.frame = query_data.queries_with_texts(run.dataset, self.table.frame)
        self.images = page_data.image_table(run.dataset)
        self.numbers = page_data.numbers_of(self.images)
        self.root = Path(params.dataset(run.dataset).root)
        self.fusions = methods.table(params, run.dataset)
        self.own = methods.own_name(params, run.dataset)
        self.protocol = format_of(params.dataset(run.dataset), run.dataset).protocol
        self.inputs = vectors.read(self.table.frame, self.gallery, run.backbone)
        self.vectors = KeptGallery(self.inputs)
        self.live = LiveRanking(self.inputs, self.vectors)
        self.shown = [method for method, fusion in self.fusions.items() if not self.inputs.missing(fusion)]
        self._values, self._metrics = self._read_values(), self._read_metrics()

    def facts(self) -> dict[str, Any]:
        """What is said of the run and its methods."""
        facts = page_data.facts(self.dataset, self.backbone, self.params, self._metrics, self.shown, self.gallery.size)
        return facts | {
            "queryColumns": list(names_of(self.inputs.queries.schema)),
            "galleryColumns": list(names_of(self.inputs.gallery_schema)),
            "noLabels": self.no_labels,
            "queryFile": "" if self.no_labels else labels.digest(self._query_file),
        }

    def queries(self) -> dict[str, Any]:
        """The table of queries, column by column."""
        return query_data.columns(self.frame, self._values, self.protocol.main, self.numbers)

    def references(self) -> list[list[Any]]:
        """The images that the table shows."""
        ids = self.frame["reference_id"].unique(maintain_order=True)
        return page_data.image_rows(self.images, (self.numbers[image] for image in ids if image in self.numbers))

    def query(self, row: int) -> dict[str, Any]:
        """Everything about one query that the table does not have, with the images that it names."""
        (details,) = query_data.details(self.frame, self._values, {}, self._rows(row), self.numbers)
        named = {number for _, number in (*details["targets"], *details["negatives"]) if number >= 0}
        return details | {"images": page_data.image_rows(self.images, sorted(named))}

    def strip(self, row: int, method: str) -> dict[str, Any]:
        """The first images of one of the table's methods for one query, with what their scores consist of."""
        if method not in self.shown:
            raise CvsiError(f"{self.name} has no method {method[:80]}; there are: {', '.join(self.shown)}")
        return self.ranked(row, self.fusions[method])

    def ranked(self, row: int, fusion: Fusion) -> dict[str, Any]:
        """The first images for one query by any fusion, with what their scores consist of."""
        self._rows(row)
        excluded = self.table.named.excluded
        first = self.live.rank(row, fusion, excluded[excluded[:, 0] == row, 1], SHOWN)
        numbers = self._gallery_numbers[first.positions]
        pairs = Pairs(np.full(len(numbers), row, dtype=np.int64), np.arange(len(numbers), dtype=np.int64))
        terms = break_down(self.inputs, [self.vectors.rows(first.positions)], {"": (fusion, pairs)})[""]
        (results,) = query_data.results(Strip(numbers[None], first.scores[None], terms[None]), slice(0, 1))
        return {
            "results": results, "terms": term_names(fusion), "addsUp": adds_up(fusion),
            "images": page_data.image_rows(self.images, numbers.tolist()),
        }  # fmt: skip

    def metric(self, split: str, fusion: Fusion, cancelled: Event, progress: Progress) -> dict[str, Any]:
        """The metric of a labelled split by any fusion, beside that of the run's own."""
        own = self._values.filter(pl.col("method") == self.own)
        return measure(fusion, split, self.table, self.vectors, self.protocol, own, cancelled, progress)

    def ask(self, request: Request, told: "Callable[[Edit], object]") -> dict[str, Any]:
        """The first images for a new query; `told` gets its edit before the images are ranked."""
        answer = self._engine.answer(request, told)
        numbers = [self.numbers[result.image_id] for result in answer.results]
        results = [[number, round(result.score, 4)] for number, result in zip(numbers, answer.results, strict=True)]
        return {
            "results": results, "images": page_data.image_rows(self.images, numbers), "query": self._same(request),
        }  # fmt: skip

    def _same(self, request: Request) -> list[str]:
        """The split and id of the dataset's query with this image and text, whose edit was used; empty without one."""
        image = pl.col("image_id") == request.image_id
        if request.image:
            image = pl.col("digest") == hashlib.sha256(request.image).hexdigest()
        references = self.images.filter(image)["image_id"].implode()
        same = self.frame.filter(pl.col("reference_id").is_in(references), pl.col("instruction") == request.text)
        return [] if request.edited or not same.height else [same["split"][0], same["query_id"][0]]

    def label(self, wanted: Label) -> dict[str, str]:
        """Write a query or a mark into the dataset's file of queries; the digest of its new content."""
        if why := self.no_labels:
            raise CvsiError(why)
        if isinstance(wanted, NewQuery):
            reference = self._image(wanted.reference)["image_id"]
            return {"queryFile": labels.append(self._query_file, reference, wanted.instruction, wanted.seen)}
        self._rows(wanted.row)
        number, image = int(self.frame["query_id"][wanted.row]), self._image(wanted.image)["image_id"]
        return {"queryFile": labels.mark(self._query_file, number, image, wanted.mark, wanted.seen)}

    @property
    def no_labels(self) -> str:
        """Why labels cannot be written; empty where they can."""
        kind = self.params.dataset(self.dataset).format
        if kind == "folder":
            return ""
        return f"the queries of a benchmark ({kind}) are not changed; labels are for a folder of your own photos"

    @property
    def _query_file(self) -> Path:
        return annotation_path(self.root, folder.QUERIES, self.params.dataset(self.dataset).roots)

    @cached_property
    def _engine(self) -> "Engine":
        """What answers new queries; its models are loaded when they are needed."""
        from cvsi.explorer.engine import Engine  # hundreds of megabytes of libraries, which only questions need

        return Engine(self.name, self.params)

    def picture(self, number: int, side: int) -> tuple[bytes, str]:
        """A small picture of an image of the index and its media type; raises CvsiError for one that is gone."""
        path, digest, _, *crop = file_of(self._image(number), self.root)
        try:
            return load(path, digest, lambda image: encoded(image, side), *crop)
        except OSError as error:
            raise CvsiError(f"{path}: {error.strerror or error}") from None

    def _rows(self, row: int) -> slice:
        if not 0 <= row < self.frame.height:
            raise CvsiError(f"{self.name} has {self.frame.height:,} queries, no number {row}")
        return slice(row, row + 1)

    def _image(self, number: int) -> dict[str, Any]:
        if not 0 <= number < self.images.height:
            raise CvsiError(f"{self.name} has {self.images.height:,} images, no number {number}")
        return self.images.row(number, named=True)

    @cached_property
    def _gallery_numbers(self) -> np.ndarray:
        """The row among all images of each position of the gallery."""
        return np.flatnonzero(self.images["in_gallery"].to_numpy())

    def _read_values(self) -> pl.DataFrame:
        """Values and ranks per method and query: of the own method those of `scores`, of others the report's, if any.

        Raises CvsiError for a report with other columns.
        """
        schema, own_file = per_method(self.protocol.names()), paths.folder("scores", self.dataset, self.backbone)
        own = scores.read_values(self.dataset, self.backbone, self.protocol)
        own = own.select(pl.lit(self.own).alias("method"), pl.all())
        values = _cast(own.to_arrow(), schema, own_file / "per_query.parquet")
        file = paths.folder("report", self.dataset, self.backbone) / "methods.parquet"
        if not file.exists():
            return values
        others = _cast(parquet.read_file(file), schema, file)
        return pl.concat([values, others.filter(pl.col("method") != self.own)])

    def _read_metrics(self) -> Table:
        """The metrics of the own method, which `scores` wrote, and of others, where there is a report."""
        scored = paths.folder("scores", self.dataset, self.backbone) / "metrics.json"
        report = paths.folder("report", self.dataset, self.backbone) / "weightings.json"
        splits: Table = {split: {self.own: values} for split, values in _json(scored).items()}
        others = _json(report).get("splits") if report.exists() else {}
        for split in splits:
            rows = others.get(split, {}) if isinstance(others, dict) else None
            if not isinstance(rows, dict):
                raise CvsiError(f"{report}: no methods of split {split}; run the stage report again (dvc repro)")
            splits[split] = rows | splits[split]
        for split, methods_of in splits.items():
            for method, values in methods_of.items():
                _check_ends(
                    values, self.protocol.main, f"{method} in split {split}", (report, scored)[method == self.own]
                )
        return splits


def _check_ends(values: Any, main: str, what: str, file: Path) -> None:
    """Raise CvsiError where a metric or an end of its interval is missing."""
    for name in (main, f"{main} low", f"{main} high"):
        if not isinstance(values, dict) or not isinstance(values.get(name), float | int):
            raise CvsiError(f"{file}: no number '{name}' of {what}; run the stage {file.parent.name} again (dvc repro)")


def _cast(table: pa.Table, schema: pa.Schema, file: Path) -> pl.DataFrame:
    """The columns of a schema, in its types; raises CvsiError for a table that an earlier program wrote otherwise."""
    again = f"run the stage {file.parent.name} again (dvc repro)"
    if missing := [name for name in schema.names if name not in table.column_names]:
        raise CvsiError(f"{file}: no column '{missing[0]}'; {again}")
    try:
        return pl.DataFrame(table.select(schema.names).cast(schema))
    except pa.ArrowException as error:
        raise CvsiError(f"{file}: columns of other types ({cause(error)}); {again}") from None


def _json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises CvsiError for anything else."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or cause(error)
        raise CvsiError(f"{file}: {reason}; run its stage again (dvc repro)") from None
    if not isinstance(content, dict):
        raise CvsiError(f"{file}: not a JSON object; run its stage again (dvc repro)")
    return content
