"""CIRCO's folder to a listing: one gallery of COCO images, queries of `val` (labelled) and `test` (labels hidden).

Several images may be right for a query; the reference stays in the gallery. The instruction is the relative caption
alone: `shared_concept`, which annotators saw, is not part of the query unless the dataset sets `shared_concept: true`.
Some published figures were reached with it and are not comparable with the others.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import BaseModel

from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.datasets.base import (
    NO_QUERIES,
    QUERY_COLUMNS,
    FormatSettings,
    Listing,
    annotation_path,
    first_names,
    gallery,
    load_json,
    relative_path,
    wanted_splits,
)
from cvsi.datasets.formats import Format
from cvsi.datasets.metrics import Protocol, mean_average_precision, recall
from cvsi.datasets.roots import Roots
from cvsi.datasets.submissions import Submission

SPLITS = ("val", "test")
IMAGES = Path("COCO2017_unlabeled")


class CircoSettings(FormatSettings):
    """Whether the instruction also names the concept that reference and target share."""

    shared_concept: bool = False

    @property
    def variant(self) -> str:
        """Instructions with the shared concept."""
        return "shared_concept: true" if self.shared_concept else ""


@dataclass(slots=True)
class CocoImage:
    """One image of COCO's image list; a plain class, since pydantic's take twice the time for 123,403 of them."""

    id: int
    file_name: str


class CocoImages(BaseModel):
    """COCO's image list."""

    images: list[CocoImage]


class Query(BaseModel):
    """One query of an annotation file; targets and aspects are missing where labels are hidden."""

    id: int
    reference_img_id: int
    relative_caption: str
    shared_concept: str = ""
    target_img_id: int | None = None
    gt_img_ids: list[int] = []
    semantic_aspects: list[str] = []

    @property
    def targets(self) -> list[str]:
        """The right answers, the main target first."""
        first = [] if self.target_img_id is None else [self.target_img_id]
        return [str(image) for image in dict.fromkeys([*first, *self.gt_img_ids])]


def read(dataset: Dataset, settings: CircoSettings) -> Listing:
    """Read the annotations of the dataset's splits; ids become strings without leading zeros."""
    root = Path(dataset.root)
    image_list = annotation_path(root, f"{IMAGES}/annotations/image_info_unlabeled2017.json", dataset.roots)
    folder, roots = f"{IMAGES}/unlabeled2017", Roots(root, dataset.roots)
    images = [
        (str(image.id), relative_path(_below(folder, image.file_name), image_list, roots))
        for image in load_json(image_list, CocoImages).images
    ]
    splits = wanted_splits(dataset.splits, SPLITS, root)
    sources = {split: annotation_path(root, f"annotations/{split}.json", dataset.roots) for split in splits}
    tables = [queries(file, split, settings.shared_concept) for split, file in sources.items()]
    return Listing(gallery(images), pl.concat([NO_QUERIES, *tables]), sources)


def queries(file: Path, split: str, shared_concept: bool = False) -> pl.DataFrame:
    """The queries of one annotation file; raises CvsiError for a query without the shared concept that is wanted."""
    listed = load_json(file, list[Query])
    without = [str(query.id) for query in listed if shared_concept and not query.shared_concept.strip()]
    if without:
        raise CvsiError(f"{file}: no shared_concept for query {first_names(without)}; set shared_concept: false")
    rows = [_row(query, split, shared_concept) for query in listed]
    return pl.DataFrame(rows, schema=QUERY_COLUMNS)


def _below(folder: str, name: str) -> str:
    """A file name of the image list below the folder of images; an absolute one stays as it is."""
    return name if name.startswith("/") else f"{folder}/{name}"


def _row(query: Query, split: str, shared_concept: bool) -> dict[str, object]:
    concept = f", and shows {query.shared_concept.strip()}" if shared_concept else ""
    return {
        "query_id": str(query.id),
        "split": split,
        "reference_id": str(query.reference_img_id),
        "instruction": f"{query.relative_caption}{concept}",
        "target_ids": query.targets,
        "exclude_ids": [],
        "group_ids": [],
        "aspects": query.semantic_aspects,
    }


FORMAT = Format(
    settings=CircoSettings,
    read=read,
    protocol=Protocol("mAP@10", (*mean_average_precision(5, 10, 25, 50), *recall(5, 10, 25, 50))),
    submissions=(Submission("CIRCO", "map", images=50, hidden_queries=800, integer_ids=True),),
    queries=queries,
)
