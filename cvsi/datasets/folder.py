"""A folder of own photos to a listing: every image file below the root is in the gallery, `queries.jsonl` has queries.

A file is an image by its suffix, or by its content where it has no suffix; everything else is counted by kind.

A line of `queries.jsonl` is `{"reference": "cat.jpg", "instruction": "is asleep", "targets": ["nap.jpg"]}`, paths below
the root, targets optional, as are `negatives`, images that are wrong although they look right. Queries with targets are
split `val`, those without are split `test`; a query's own reference is never ranked for it. Without the file, or with
an empty one, there are no queries.
"""

import os
import re
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.datasets.base import (
    QUERY_COLUMNS,
    FormatSettings,
    Listing,
    annotation_path,
    gallery,
    load_lines,
    relative_path,
    wanted_splits,
)
from cvsi.datasets.formats import Format
from cvsi.datasets.metrics import Protocol, mean_average_precision, recall
from cvsi.datasets.roots import Roots
from cvsi.datasets.walk import Walk

QUERIES = "queries.jsonl"
SIMILAR = re.compile(r"quer(y|ies)\b[^/]*", re.IGNORECASE)  # names that may have been meant
WITH_NEGATIVES = pl.Schema(QUERY_COLUMNS | {"negative_ids": pl.List(pl.String)})
SHOWN = 3  # names in a message
# Control characters, line breaks and bytes that are no UTF-8 (Python names them by surrogates) can be in no id.
NOT_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Query(BaseModel):
    """One line of `queries.jsonl`."""

    model_config = ConfigDict(extra="forbid")

    reference: str
    instruction: str
    targets: list[str] = []
    negatives: list[str] = []


def read(dataset: Dataset, settings: FormatSettings) -> Listing:
    """List the images below the root in the order of their paths, and the queries in the order of their lines."""
    root = Path(dataset.root)
    if not root.is_dir():
        raise CvsiError(f"{root}: no such folder; check the dataset's root in params.yaml")
    walk = Walk(Roots(root, dataset.roots), dataset.ignore, [QUERIES])
    paths = [path for path in walk.images if not NOT_TEXT.search(path)]
    source = annotation_path(root, QUERIES, dataset.roots)
    splits = wanted_splits(dataset.splits, ("val", "test"), root)
    written = os.path.lexists(source)  # a link to nothing is an error
    rows = [_row(number, query) for number, query in enumerate(load_lines(source, Query) if written else [])]
    return Listing(
        gallery(zip(paths, paths, strict=True)),
        pl.DataFrame(
            [row for split in splits for row in rows if row["split"] == split],
            # The column is there where a query has negatives: without them, the index stays as it always was.
            schema=WITH_NEGATIVES if any(row["negative_ids"] for row in rows) else QUERY_COLUMNS,
        ),
        dict.fromkeys(splits, source),
        skipped=walk.skipped,
        refused={
            os.fsencode(path).decode("utf-8", "backslashreplace"): f"the file name {path!r} is not plain text"
            for path in walk.images
            if NOT_TEXT.search(path)
        },
        notes=() if rows else (_without_queries(source, written, walk),),
    )


def _without_queries(source: Path, written: bool, walk: Walk) -> str:
    """A line about a folder without queries; it names files that may have been meant as the file of queries."""
    if written:
        return f"{source}: no query in it"
    names = sorted(name for names in walk.skipped.values() for name in names if SIMILAR.match(name))
    return f"{source}: no such file, so there are no queries" + (
        f"; {', '.join(names[:SHOWN])} is not read: rename the file of queries to {QUERIES}" if names else ""
    )


def _row(number: int, query: Query) -> dict[str, object]:
    reference = _normal(query.reference)
    return {
        "query_id": str(number),
        "split": "val" if query.targets else "test",
        "reference_id": reference,
        "instruction": query.instruction,
        "target_ids": [_normal(target) for target in query.targets],
        "exclude_ids": [reference],
        "group_ids": [],
        "aspects": [],
        "negative_ids": [_normal(image) for image in query.negatives],
    }


def _normal(path: str) -> str:
    """The path without `./` and `//`; one that leaves the root stays as it is, to be matched or refused later."""
    try:
        return relative_path(path, QUERIES)
    except CvsiError:
        return path


FORMAT = Format(
    settings=FormatSettings,
    read=read,
    protocol=Protocol("mAP@10", (*mean_average_precision(5, 10), *recall(1, 5, 10, 50))),
    query_file=QUERIES,
    excludes_reference=True,
)
