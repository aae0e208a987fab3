"""FashionIQ's folder to a listing: the gallery and the labelled `val` queries of one category.

A query has two captions by two people; stripped of punctuation at their ends they become one instruction, joined by
" and ", and nothing more: an empty one leaves the " and " standing, as in the published protocol. Images may be `.png`
or `.jpg`; nobody has all of them (`missing_images` says what then).
"""

import os
from pathlib import Path

import polars as pl
from pydantic import BaseModel, Field

from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.datasets.base import QUERY_COLUMNS, Listing, annotation, gallery, inside, load_json, wanted_splits

SUFFIXES = (".png", ".jpg")


class Query(BaseModel):
    """One query of a caption file."""

    candidate: str
    target: str
    captions: list[str] = Field(min_length=1)


def read(dataset: Dataset) -> Listing:
    """Read the category that the dataset names; query ids are the rows of the caption file, from 0."""
    root = Path(dataset.root)
    if dataset.category is None:
        raise CvsiError("params.yaml: a dataset of format fashioniq needs a category: dress, shirt or toptee")
    wanted_splits(dataset.splits, ("val",), root)
    listed = annotation(root, f"image_splits/split.{dataset.category}.val.json")
    source = annotation(root, f"captions/cap.{dataset.category}.val.json")
    names = load_json(listed, list[str])
    there = _there(root / "images", names)
    images = [(name, f"images/{inside(name, listed)}{_suffix(name, there)}") for name in names]
    rows = [_row(number, query) for number, query in enumerate(load_json(source, list[Query]))]
    return Listing(gallery(images), pl.DataFrame(rows, schema=QUERY_COLUMNS), {"val": source})


def instruction(captions: list[str]) -> str:
    """The captions of one query as one text."""
    return " and ".join(caption.strip(".?, ") for caption in captions)


def _there(folder: Path, names: list[str]) -> dict[str, bool]:
    """The files of these names with either suffix, and whether each holds anything (not empty, no dead link)."""
    wanted = {name + suffix for name in names for suffix in SUFFIXES}
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name in wanted]
        return {entry.name: entry.is_file() and entry.stat().st_size > 0 for entry in found}


def _suffix(name: str, there: dict[str, bool]) -> str:
    """The first suffix whose file holds something; else the first whose file is there; else the first."""
    full = (suffix for suffix in SUFFIXES if there.get(name + suffix))
    return next(full, next((suffix for suffix in SUFFIXES if name + suffix in there), SUFFIXES[0]))


def _row(number: int, query: Query) -> dict[str, object]:
    return {
        "query_id": str(number),
        "split": "val",
        "reference_id": query.candidate,
        "instruction": instruction(query.captions),
        "target_ids": [query.target],
        "exclude_ids": [],
        "group_ids": [],
        "aspects": [],
    }
