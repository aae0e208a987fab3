"""FashionIQ's folder to a listing: the gallery and the labelled `val` queries of one category.

A query has two captions by two people; stripped of punctuation at their ends they become one instruction, joined by
" and ", and nothing more: an empty one still gets its " and ", as in the published protocol. Images may be `.png` or
`.jpg`; no copy of the dataset is complete (`missing_images` decides whether missing ones are dropped).
"""

import os
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel, Field

from cvsi.core.params import Dataset
from cvsi.datasets.base import (
    QUERY_COLUMNS,
    FormatSettings,
    Listing,
    annotation_path,
    gallery,
    load_json,
    relative_path,
    wanted_splits,
)
from cvsi.datasets.formats import Format
from cvsi.datasets.metrics import Protocol, recall

SUFFIXES = (".png", ".jpg")


class FashionIQSettings(FormatSettings):
    """The category, which is one gallery with its queries."""

    category: Literal["dress", "shirt", "toptee"]

    @property
    def averaged_as(self) -> str | None:
        """The category; the benchmark's figure is the average over the three."""
        return self.category


class Query(BaseModel):
    """One query of a caption file."""

    candidate: str
    target: str
    captions: list[str] = Field(min_length=1)


def read(dataset: Dataset, settings: FashionIQSettings) -> Listing:
    """Read the category that the dataset names; query ids are the rows of the caption file, from 0."""
    root = Path(dataset.root)
    wanted_splits(dataset.splits, ("val",), root)
    image_list = annotation_path(root, f"image_splits/split.{settings.category}.val.json")
    source = annotation_path(root, f"captions/cap.{settings.category}.val.json")
    names = load_json(image_list, list[str])
    files = _existing(root / "images", names)
    images = [(name, f"images/{relative_path(name, image_list)}{_suffix(name, files)}") for name in names]
    rows = [_row(number, query) for number, query in enumerate(load_json(source, list[Query]))]
    return Listing(gallery(images), pl.DataFrame(rows, schema=QUERY_COLUMNS), {"val": source})


def instruction(captions: list[str]) -> str:
    """The captions of one query as one text."""
    return " and ".join(caption.strip(".?, ") for caption in captions)


def _existing(folder: Path, names: list[str]) -> dict[str, bool]:
    """The files of these names with either suffix, and whether each has content (not empty, no broken link)."""
    wanted = {name + suffix for name in names for suffix in SUFFIXES}
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        named = [entry for entry in entries if entry.name in wanted]
        return {entry.name: entry.is_file() and entry.stat().st_size > 0 for entry in named}


def _suffix(name: str, files: dict[str, bool]) -> str:
    """The first suffix whose file has content; else the first whose file exists; else the first."""
    full = (suffix for suffix in SUFFIXES if files.get(name + suffix))
    return next(full, next((suffix for suffix in SUFFIXES if name + suffix in files), SUFFIXES[0]))


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


FORMAT = Format(settings=FashionIQSettings, read=read, protocol=Protocol("Recall@10", recall(1, 5, 10, 50)))
