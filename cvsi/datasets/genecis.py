"""GeneCIS' folder to a listing: one of its four tasks, with labelled queries of the split `val`.

A query's condition is its instruction; it is ranked within its own small gallery, which is its group with the target
first. The file is `TASK.json`, in the root or in `genecis`. The object tasks have images of COCO val2017 (in `val2017`
or `images`), the attribute tasks parts of images of Visual Genome (in `VG_100K`, `VG_100K_2` or `images`). Such a part
is an object's box, dilated as in the published evaluation: its corner moves to the left and up by .7 of its width and
height, and it becomes 1.7 times as wide and high.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

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
from cvsi.datasets.metrics import Protocol, subset_recall
from cvsi.datasets.named_files import existing
from cvsi.datasets.roots import Roots

SPLIT = "val"
ANNOTATIONS = ("", "genecis/")
COCO, VISUAL_GENOME = ("val2017", "images", ""), ("VG_100K", "VG_100K_2", "images", "")  # the first one counts
SUFFIXES = (".jpg", ".jpeg", ".png")
OBJECT_TASKS = ("focus_object", "change_object")
DILATION = 0.7
LARGEST = 1_000_000  # pixels; no image is so wide
BOX = pl.Array(pl.Float32, 4)

Number = Annotated[int, Field(ge=0, le=10**12)]
Place = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Length = Annotated[float, Field(gt=0, le=LARGEST)]


class GeneCISSettings(FormatSettings):
    """The task, which is one set of queries with their images."""

    task: Literal["focus_object", "change_object", "focus_attribute", "change_attribute"]

    @property
    def averaged_as(self) -> str | None:
        """The task; the benchmark's figure is the average over the four."""
        return self.task


class Listed(BaseModel):
    """An image of a query: its id in the index, and its file."""

    @property
    def key(self) -> str:
        """The id."""
        raise NotImplementedError

    @property
    def file_name(self) -> str:
        """The file's name without its suffix."""
        raise NotImplementedError


class CocoImage(Listed):
    """An image of an object task."""

    val_image_id: Number

    @property
    def key(self) -> str:
        """The number, as the benchmark writes it."""
        return str(self.val_image_id)

    @property
    def file_name(self) -> str:
        """The file's name without its suffix."""
        return f"{self.val_image_id:012}"


class Part(Listed):
    """An object in an image of an attribute task; the box is x, y, width and height in pixels."""

    image_id: Number
    instance_bbox: tuple[Place, Place, Length, Length]

    @property
    def key(self) -> str:
        """The image's number and the box."""
        return f"{self.image_id} {','.join(f'{number:.10g}' for number in self.instance_bbox)}"

    @property
    def file_name(self) -> str:
        """The file's name without its suffix."""
        return str(self.image_id)

    @property
    def crop(self) -> list[int]:
        """The part of the image that is used, x, y, width and height; it may leave the image to the right and below."""
        x, y, width, height = self.instance_bbox
        left, top = max(0, x - DILATION * width), max(0, y - DILATION * height)
        right, bottom = left + (1 + DILATION) * width, top + (1 + DILATION) * height
        return [round(left), round(top), round(right) - round(left), round(bottom) - round(top)]


Image = TypeVar("Image", bound=Listed)


class Query(BaseModel, Generic[Image]):
    """One query of a task's file."""

    reference: Image
    target: Image
    gallery: list[Image]
    condition: str

    @property
    def ranked(self) -> list[Image]:
        """The target and the gallery."""
        return [self.target, *self.gallery]


def read(dataset: Dataset, settings: GeneCISSettings) -> Listing:
    """Read the task that the dataset names; query ids are the rows of its file, from 0."""
    root, roots = Path(dataset.root), Roots(Path(dataset.root), dataset.roots)
    wanted_splits(dataset.splits, (SPLIT,), root)
    places = [annotation_path(root, f"{folder}{settings.task}.json", dataset.roots) for folder in ANNOTATIONS]
    source = next((file for file in places if file.exists()), places[0])
    if settings.task in OBJECT_TASKS:
        of_images = load_json(source, list[Query[CocoImage]])
        return Listing(_listed(of_images, roots, COCO, source), _rows(of_images), {SPLIT: source})
    of_parts = load_json(source, list[Query[Part]])
    images = _listed(of_parts, roots, VISUAL_GENOME, source)
    crops = {part.key: part.crop for query in of_parts for part in (query.reference, *query.ranked)}
    images = images.with_columns(crop=pl.Series([crops[key] for key in images["image_id"]], dtype=BOX))
    return Listing(images, _rows(of_parts), {SPLIT: source})


def _listed(queries: Sequence[Query[Image]], roots: Roots, folders: Sequence[str], source: Path) -> pl.DataFrame:
    """The images of all queries in the order of their ids; a reference that no query ranks is not in the gallery."""
    ranked = {image.key: image.file_name for query in queries for image in query.ranked}
    references = {query.reference.key: query.reference.file_name for query in queries}
    names = dict(sorted((ranked | references).items()))
    files = existing(roots, set(names.values()), folders, SUFFIXES)
    usual = {name: f"{folders[0]}/{relative_path(name, source)}{SUFFIXES[0]}" for name in names.values()}
    images = gallery({key: files.get(name) or usual[name] for key, name in names.items()})
    return images.with_columns(in_gallery=pl.Series([key in ranked for key in names], dtype=pl.Boolean))


def _rows(queries: Sequence[Query[Image]]) -> pl.DataFrame:
    rows = [_row(number, query) for number, query in enumerate(queries)]
    return pl.DataFrame(rows, schema=QUERY_COLUMNS)


def _row(number: int, query: Query[Image]) -> dict[str, object]:
    return {
        "query_id": str(number),
        "split": SPLIT,
        "reference_id": query.reference.key,
        "instruction": query.condition,
        "target_ids": [query.target.key],
        "exclude_ids": [],
        "group_ids": list(dict.fromkeys(image.key for image in query.ranked)),
        "aspects": [],
    }


FORMAT = Format(settings=GeneCISSettings, read=read, protocol=Protocol("Recall_subset@1", subset_recall(1, 2, 3)))
