"""A folder of own photos to a listing: every image file below the root is the gallery, `queries.jsonl` the questions.

A line of `queries.jsonl` is `{"reference": "cat.jpg", "instruction": "is asleep", "targets": ["nap.jpg"]}`, paths below
the root, targets optional. Queries with targets are split `val`, those without are split `test`; a query's own
reference is never ranked for it.
"""

import os
import re
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from cvsi.core.errors import CvsiError
from cvsi.core.images import SUFFIXES
from cvsi.core.params import Dataset
from cvsi.datasets.base import QUERY_COLUMNS, Listing, annotation, gallery, inside, load_lines, wanted_splits

QUERIES = "queries.jsonl"
# Control characters, line breaks and bytes that are no UTF-8 (Python names them by surrogates) can be in no id.
ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Query(BaseModel):
    """One line of `queries.jsonl`."""

    model_config = ConfigDict(extra="forbid")

    reference: str
    instruction: str
    targets: list[str] = []


def read(dataset: Dataset) -> Listing:
    """List the images below the root in the order of their paths, and the queries in the order of their lines."""
    root = Path(dataset.root)
    if not root.is_dir():
        raise CvsiError(f"{root}: no such folder; check the dataset's root in params.yaml")
    files = sorted(_walk(root))
    pictures = [path for path in files if Path(path).suffix.lower() in SUFFIXES]
    paths = [path for path in pictures if not ODD.search(path)]
    source = annotation(root, QUERIES)
    chosen = wanted_splits(dataset.splits, ("val", "test"), root)
    rows = [_row(number, query, source) for number, query in enumerate(load_lines(source, Query))]
    return Listing(
        gallery(zip(paths, paths, strict=True)),
        pl.DataFrame([row for split in chosen for row in rows if row["split"] == split], schema=QUERY_COLUMNS),
        dict.fromkeys(chosen, source),
        ignored=len(files) - len(pictures) - (QUERIES in files),
        refused={
            os.fsencode(path).decode("utf-8", "backslashreplace"): f"the file name {path!r} is not plain text"
            for path in pictures
            if ODD.search(path)
        },
    )


def _walk(root: Path) -> list[str]:
    """Paths of all files below the root, hidden ones left out; links to folders are not followed."""
    found: list[str] = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(place, root)
        found += [os.path.normpath(os.path.join(below, name)) for name in names if not name.startswith(".")]
    return found


def _row(number: int, query: Query, source: Path) -> dict[str, object]:
    reference = inside(query.reference, source)
    return {
        "query_id": str(number),
        "split": "val" if query.targets else "test",
        "reference_id": reference,
        "instruction": query.instruction,
        "target_ids": [inside(target, source) for target in query.targets],
        "exclude_ids": [reference],
        "group_ids": [],
        "aspects": [],
    }
