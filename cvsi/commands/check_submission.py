"""A submission file, and an index or an annotation file, to the kind of the file and what its server would refuse."""

from pathlib import Path
from typing import Any

import polars as pl

from cvsi.core import parquet, paths
from cvsi.core.errors import CvsiError
from cvsi.core.schema import DROPPED_QUERIES, QUERIES
from cvsi.core.strict_json import parse_json
from cvsi.datasets.base import QUERY_COLUMNS
from cvsi.datasets.formats import FORMATS
from cvsi.datasets.submissions import MAX_BYTES, Submission, SubmissionReference, inspect, kind_of


def check(path: Path, queries: str = "") -> tuple[Submission, int, list[str]]:
    """The kind of a submission file, how many queries it answers, and its faults, one line each.

    `queries` names what it is checked against: a dataset, a `queries.parquet` or an annotation file (`.json`); without
    it only the form and the number of queries are checked.
    """
    text, where = _read(path), str(path)
    kinds = [kind for _, form in FORMATS for kind in form.submissions]
    reference = SubmissionReference()
    if queries:
        content = parse_json(text, dict[str, Any], where)
        if Path(queries).suffix == ".json":
            reference = _annotated(Path(queries), kind_of(content, kinds))
        else:
            reference = _indexed(queries, list(content))
    return inspect(text, kinds, reference, where)


def _read(path: Path) -> str:
    """The text of a submission file; raises CvsiError where it cannot be read or is far too large."""
    try:
        if path.stat().st_size > 10 * MAX_BYTES:
            raise CvsiError(f"{path}: {path.stat().st_size:,} bytes, the server takes {MAX_BYTES:,} at most")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CvsiError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror}; give a submission file") from None


def _annotated(file: Path, kind: Submission) -> SubmissionReference:
    """The queries of an annotation file, read by the format that the kind belongs to."""
    reader = next(form.queries for _, form in FORMATS if kind in form.submissions)
    if reader is None:
        raise CvsiError(f"{file}: annotation files of {kind.benchmark} are not read; give a dataset or queries.parquet")
    return SubmissionReference(reader(file, "hidden"))


def _indexed(name: str, answered: list[str]) -> SubmissionReference:
    """The queries, dropped ones included, and the gallery of an index: a dataset's name, or a `queries.parquet`.

    Of several splits it is the one with hidden labels; if there are several, the one with most of the submission's
    queries.
    """
    path = Path(name)
    folder = path.parent if path.is_file() else paths.folder("index", name)
    source = path if path.is_file() else folder / "queries.parquet"
    queries = pl.DataFrame(parquet.fit(parquet.read_file(source), QUERIES, str(source)))
    if (folder / "dropped_queries.parquet").exists():
        dropped = pl.DataFrame(parquet.read_file(folder / "dropped_queries.parquet")).select(DROPPED_QUERIES.names[:2])
        queries = pl.concat([queries, dropped], how="diagonal").cast(dict(QUERY_COLUMNS))  # type: ignore[arg-type]
    images = None
    if (folder / "images.parquet").exists():
        listed = pl.DataFrame(parquet.read_file(folder / "images.parquet"))
        images = listed.filter("in_gallery")["image_id"]
    return SubmissionReference(_split(queries, answered), images)


def _split(queries: pl.DataFrame, answered: list[str]) -> pl.DataFrame:
    if queries.is_empty():
        return queries
    labels = queries.group_by("split", maintain_order=True).agg(
        hidden=pl.col("target_ids").list.len().fill_null(0).max() == 0,
        shared=pl.col("query_id").is_in(answered).sum(),
    )
    chosen: str = labels.sort("hidden", "shared", descending=True, maintain_order=True)["split"][0]
    return queries.filter(pl.col("split") == chosen)
