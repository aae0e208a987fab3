"""A folder of own photos to a listing: every image file below the root is the gallery, `queries.jsonl` the questions.

A line of `queries.jsonl` is `{"reference": "cat.jpg", "instruction": "is asleep", "targets": ["nap.jpg"]}`, paths below
the root, targets optional. Queries with targets are split `val`, those without are split `test`; a query's own
reference is never ranked for it.
"""

import os
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from cvsi.datasets.listing import QUERY_COLUMNS, Listing, gallery, inside, load_lines, wanted_splits
from cvsi.errors import CvsiError
from cvsi.params import Dataset
from cvsi.pictures import SUFFIXES

QUERIES = "queries.jsonl"


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
    paths = [path for path in files if Path(path).suffix.lower() in SUFFIXES]
    source = root / QUERIES
    chosen = wanted_splits(dataset.splits, ("val", "test"), root)
    rows = [_row(number, query, source) for number, query in enumerate(load_lines(source, Query))]
    return Listing(
        gallery(zip(paths, paths, strict=True)),
        pl.DataFrame([row for split in chosen for row in rows if row["split"] == split], schema=QUERY_COLUMNS),
        dict.fromkeys(chosen, source),
        ignored=len(files) - len(paths) - (QUERIES in files),
    )


def _walk(root: Path) -> list[str]:
    """Paths of all files below the root, hidden ones left out; links to folders are not followed."""
    found: list[str] = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(place, root)
        for name in names:
            if not name.isprintable() or name != os.fsencode(name).decode("utf-8", "replace"):
                raise CvsiError(f"{place}: the file name {name!r} is not plain text; rename it")
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
