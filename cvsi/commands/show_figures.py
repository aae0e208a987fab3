"""A run's report, edits and index to what `cvsi show` prints besides the methods' metrics.

These are the paired differences of every method against the run's own fusion, the queries behind each aspect and tag,
and the statuses of the edits. Metrics are read (`weightings.json`, `methods.parquet`), not computed again; what cannot
be read is one line of `notes`.
"""

from collections.abc import Callable
from typing import TypeVar

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from cvsi.commands.moved import KEY
from cvsi.core import parquet, paths, provenance, schema, tables
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params, Run, explain
from cvsi.core.statuses import counts, fallbacks
from cvsi.evaluation import OWN
from cvsi.evaluation.paired import Difference, differences

LABELS = ("aspects", "tags")  # columns of the index's queries; tags are optional
ASPECTS, TAGS = LABELS
STATUS = "reader_status"  # of the table of edits, where the dataset names a reader
Methods = dict[str, dict[str, float]]
T = TypeVar("T")


class Report(BaseModel):
    """The file `weightings.json` of a report: metrics by split and method, and methods left out with the reasons."""

    model_config = ConfigDict(frozen=True)

    metric: str
    own: str = OWN
    splits: dict[str, Methods]
    left_out: dict[str, str] = {}


class Label(BaseModel):
    """An aspect or a tag: how many queries that count have it (None where unknown), and the main metric by method."""

    model_config = ConfigDict(frozen=True)

    name: str
    queries: int | None
    values: dict[str, float]


class Figures(BaseModel):
    """One labelled split: metrics by method, differences from the own fusion, and values by aspect and by tag.

    Aspects and tags are those with the most queries first.
    """

    model_config = ConfigDict(frozen=True)

    methods: Methods
    differences: list[Difference]
    aspects: list[Label]
    tags: list[Label]


class Edits(BaseModel):
    """How many of a dataset's edits have each status, and the share of fallbacks with its limit, in percent."""

    model_config = ConfigDict(frozen=True)

    queries: int
    statuses: dict[str, int]
    fallbacks: int
    percent: float
    limit: float


class Readings(BaseModel):
    """How many of a dataset's readings have each status, how many have no usable text, and queries by role."""

    model_config = ConfigDict(frozen=True)

    queries: int
    statuses: dict[str, int]
    unusable: int
    roles: dict[str, int]


class Shown(BaseModel):
    """A run as `cvsi show --json` prints it; `notes` are lines about what could not be read."""

    model_config = ConfigDict(frozen=True)

    run: str
    dataset: str
    backbone: str
    metric: str
    own: str
    splits: dict[str, Figures]
    edits: Edits | None
    readings: Readings | None = None
    left_out: dict[str, str]
    report: str
    notes: list[str]


def collect(name: str, settings: Params) -> Shown:
    """All figures of a run of params.yaml; raises CvsiError for an unknown run and where there is no report."""
    run, notes = settings.run(name), list[str]()
    report = read_report(run)
    values = _or_note(notes, lambda: _values(run, report)) if any(report.splits.values()) else None
    labels = _or_note(notes, lambda: _labels(run, values)) if values is not None else None
    splits = {
        split: _figures(
            report,
            methods,
            *(None if table is None else table.filter(split=split) for table in (values, labels)),
        )
        for split, methods in report.splits.items()
        if methods
    }
    return Shown(
        run=name, dataset=run.dataset, backbone=run.backbone, metric=report.metric, own=report.own, splits=splits,
        edits=_or_note(notes, lambda: edits_of(run.dataset, settings.dataset(run.dataset).fallback_limit)),
        readings=_or_note(notes, lambda: readings_of(run.dataset)),
        left_out=report.left_out, report=str(paths.folder("report", run.dataset, run.backbone) / "index.html"),
        notes=notes,
    )  # fmt: skip


def read_report(run: Run) -> Report:
    """The table of methods in a run's report; raises CvsiError where there is none, or another thing than a table."""
    path = paths.folder("report", run.dataset, run.backbone) / "weightings.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CvsiError(f"{path.parent}: no table of methods; run dvc repro first") from None
    except OSError as error:
        raise CvsiError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValidationError as error:
        raise CvsiError(f"{path}: {explain(error)}; run the stage report again (dvc repro)") from None


def edits_of(dataset: str, limit: float) -> Edits | None:
    """The statuses of a dataset's edits; None without queries. Raises CvsiError for edits that cannot be read."""
    folder = paths.folder("edits", dataset)
    if not any(folder.glob("*.parquet")):
        raise CvsiError(f"{folder}: no edits, so it is not known how many fell back")
    table = tables.whole("edits", dataset)
    frame = pl.DataFrame(parquet.fit(table, pa.schema({"status": pa.string()}), str(folder)))
    if not frame.height:
        return None
    fallen = fallbacks(frame)
    return Edits(
        queries=frame.height, statuses=counts(frame["status"]), fallbacks=fallen.number,
        percent=100 * fallen.share, limit=100 * limit,
    )  # fmt: skip


def readings_of(dataset: str) -> Readings | None:
    """The statuses of a dataset's readings, and how many queries have texts of each role; None without a reader.

    Raises CvsiError for a table that cannot be read.
    """
    folder = paths.folder("edits", dataset)
    if not any(folder.glob("*.parquet")) or STATUS not in (columns := tables.schema_of("edits", dataset)).names:
        return None
    roles = {role: pa.list_(pa.string()) for role in schema.roles_in(columns)}
    wanted = pa.schema({STATUS: pa.string(), **roles})
    frame = pl.DataFrame(parquet.fit(tables.whole("edits", dataset), wanted, str(folder)))
    if not frame.height:
        return None
    return Readings(
        queries=frame.height, statuses=counts(frame[STATUS]), unusable=fallbacks(frame, STATUS).number,
        roles={role: int((frame[role].list.len() > 0).sum()) for role in roles},
    )  # fmt: skip


def _figures(report: Report, methods: Methods, values: pl.DataFrame | None, labels: pl.DataFrame | None) -> Figures:
    """The figures of one split, as far as its values and the queries' labels are known."""
    by_label = dict[str, list[Label]]()
    if values is not None and labels is not None:
        by_label = {kind: _by_label(values, labels, kind, report.own) for kind in LABELS}
    sizes = {label.name: label.queries for label in by_label.get(ASPECTS, [])}
    start = f"{report.metric}/"
    aspects = [
        Label(
            name=(name := key.removeprefix(start)), queries=sizes.get(name),
            values={method: row[key] for method, row in methods.items() if key in row},
        )
        for key in dict.fromkeys(key for row in methods.values() for key in row) if key.startswith(start)
    ]  # fmt: skip
    return Figures(
        methods=methods,
        differences=[] if values is None else differences(values, methods, report.own),
        aspects=sorted(aspects, key=lambda label: (-(label.queries or 0), label.name)),
        tags=by_label.get(TAGS, []),
    )


def _by_label(values: pl.DataFrame, labels: pl.DataFrame, kind: str, own: str) -> list[Label]:
    """The labels of one kind, the most queries first: queries that count with the own fusion, and means by method."""
    joined = values.join(labels.filter(kind=kind), on=KEY).drop_nulls("value")
    means = joined.group_by("label", "method").agg(pl.col("value").mean(), pl.len().alias("n"))
    sizes = means.filter(method=own).select("label", "n").sort("n", "label", descending=[True, False])
    order = {method: place for place, method in enumerate(values["method"].unique(maintain_order=True))}
    by_name: dict[str, dict[str, float]] = {label: {} for label in sizes["label"]}
    for label, method, value, _ in sorted(means.iter_rows(), key=lambda row: order[row[1]]):
        if label in by_name:
            by_name[label][method] = value
    return [Label(name=label, queries=number, values=by_name[label]) for label, number in sizes.iter_rows()]


def _values(run: Run, report: Report) -> pl.DataFrame:
    """The main metric as `value` per method and labelled query; raises CvsiError where the report has none."""
    path = paths.folder("report", run.dataset, run.backbone) / "methods.parquet"
    if not path.exists():
        raise CvsiError(f"{path}: no such file, so no paired differences and no counts; run dvc repro")
    table = parquet.read_file(path)
    if report.metric not in table.column_names:
        raise CvsiError(f"{path}: no column '{report.metric}', so no paired differences; run dvc repro")
    keys = parquet.fit(table, pa.schema(dict.fromkeys(("method", *KEY), pa.string())), str(path))
    try:
        column = pl.Series("value", table[report.metric]).cast(pl.Float64).fill_nan(None)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise CvsiError(f"{path}: column '{report.metric}' has no numbers ({' '.join(str(error).split())})") from None
    values = pl.DataFrame(keys).with_columns(column)
    if values.select("method", *KEY).is_duplicated().any():
        raise CvsiError(f"{path}: a method has two values of one query, so no paired differences; run dvc repro")
    if report.own not in values["method"]:
        raise CvsiError(f"{path}: no values of '{report.own}', so no paired differences; run dvc repro")
    return values


def _labels(run: Run, values: pl.DataFrame) -> pl.DataFrame:
    """The aspects and tags of the queries as rows of `split`, `query_id`, `kind` and `label`, each once.

    Raises CvsiError where the index has other queries than the run.
    """
    path = paths.folder("index", run.dataset) / "queries.parquet"
    table = pl.DataFrame(parquet.read_file(path))
    used = provenance.recipes(run.dataset, run.backbone)["scores"].get("from", {}).get("queries")
    changed = used is not None and used != provenance.queries_digest(run.dataset)
    if missing := [name for name in KEY if name not in table.columns]:
        raise CvsiError(f"{path}: no column '{missing[0]}', so no counts by aspect")
    if changed or values.join(table, on=KEY, how="anti").height:
        raise CvsiError(f"{path}: other queries than those of the report, so no counts by aspect; run dvc repro")
    parts = [_exploded(table, kind, str(path)) for kind in LABELS if kind in table.columns]
    empty = pl.DataFrame(schema=dict.fromkeys((*KEY, "kind", "label"), pl.String))
    return pl.concat([empty, *parts])


def _exploded(table: pl.DataFrame, kind: str, where: str) -> pl.DataFrame:
    """A column of labels, one or a list per query, as rows."""
    column = table[kind]
    if column.dtype == pl.Null:
        column = column.cast(pl.String)
    if column.dtype != pl.String and column.dtype != pl.List(pl.String):
        raise CvsiError(f"{where}: column '{kind}' is no text and no list of texts, so no counts by aspect")
    rows = table.select(*KEY, pl.lit(kind).alias("kind"), column.alias("label"))
    rows = rows.explode("label") if column.dtype != pl.String else rows
    return rows.drop_nulls("label").unique(maintain_order=True)


def _or_note(notes: list[str], read: Callable[[], T]) -> T | None:
    """What `read` returns; None, with one line added to `notes`, where it cannot be read."""
    try:
        return read()
    except CvsiError as error:
        if str(error) not in notes:  # two figures may come from one table
            notes.append(str(error))
        return None
