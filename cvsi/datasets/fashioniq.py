"""FashionIQ's folder to a listing: the gallery and the labelled `val` queries of one category.

A query has two captions by two people; stripped of punctuation at their ends they become one instruction, joined by
" and ", and nothing more: an empty one still gets its " and ", as in the published protocol. Images may have any usual
suffix and be in `images` or `resized_images`; no copy of the dataset is complete (`missing_images` decides whether
missing ones are dropped).
"""

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
from cvsi.datasets.named_files import existing
from cvsi.datasets.roots import Roots

FOLDERS = ("images", "resized_images")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".jpe", ".jfif", ".gif", ".bmp", ".tif", ".tiff")  # the first one counts


class FashionIQSettings(FormatSettings):
    """The category, which is one gallery with its queries, and which images are ranked.

    `split` are all of the split's list; `pairs` are only references and targets, as some publications rank (the
    "union" protocol); their figures are not comparable.
    """

    category: Literal["dress", "shirt", "toptee"]
    gallery: Literal["split", "pairs"] = "split"

    @property
    def averaged_as(self) -> str | None:
        """The category; the benchmark's figure is the average over the three."""
        return self.category

    @property
    def variant(self) -> str:
        """A gallery of references and targets alone."""
        return "gallery: pairs" if self.gallery == "pairs" else ""


class Query(BaseModel):
    """One query of a caption file."""

    candidate: str
    target: str
    captions: list[str] = Field(min_length=1)


def read(dataset: Dataset, settings: FashionIQSettings) -> Listing:
    """Read the category that the dataset names; query ids are the rows of the caption file, from 0."""
    root = Path(dataset.root)
    wanted_splits(dataset.splits, ("val",), root)
    image_list = annotation_path(root, f"image_splits/split.{settings.category}.val.json", dataset.roots)
    source = annotation_path(root, f"captions/cap.{settings.category}.val.json", dataset.roots)
    names = load_json(image_list, list[str])
    queries = load_json(source, list[Query])
    if settings.gallery == "pairs":
        paired = {query.candidate for query in queries} | {query.target for query in queries}
        names = [name for name in names if name in paired]
    files = existing(Roots(root, dataset.roots), names, FOLDERS, SUFFIXES)
    images = [(name, files.get(name) or f"images/{relative_path(name, image_list)}{SUFFIXES[0]}") for name in names]
    rows = [_row(number, query) for number, query in enumerate(queries)]
    return Listing(gallery(images), pl.DataFrame(rows, schema=QUERY_COLUMNS), {"val": source})


def instruction(captions: list[str]) -> str:
    """The captions of one query as one text."""
    return " and ".join(caption.strip(".?, ") for caption in captions)


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
