"""CIRR's folder to a listing: the gallery and queries of `val` (labelled) or `test1` (labels hidden).

Each query has one target and a set of six similar images, its group. The reference is never ranked for its query,
neither in the gallery nor in the group. `target_soft`, other images that annotators found right, is not part of the
protocol and is not read.
"""

from pathlib import Path

import polars as pl
from pydantic import BaseModel

from cvsi.core.params import Dataset
from cvsi.datasets.base import (
    NO_QUERIES,
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
from cvsi.datasets.metrics import Protocol, recall, subset_recall
from cvsi.datasets.roots import Roots
from cvsi.datasets.submissions import Submission

SPLITS = ("val", "test1")


class ImageSet(BaseModel):
    """A query's group of similar images."""

    members: list[str]


class Query(BaseModel):
    """One query of a caption file; the target is missing where labels are hidden."""

    pairid: int
    reference: str
    caption: str
    img_set: ImageSet
    target_hard: str | None = None


def read(dataset: Dataset, settings: FormatSettings) -> Listing:
    """Read the dataset's splits; the galleries of several splits become one."""
    root, roots = Path(dataset.root), Roots(Path(dataset.root), dataset.roots)
    sources, images, tables = {}, {}, [NO_QUERIES]
    for split in wanted_splits(dataset.splits, SPLITS, root):
        image_list = annotation_path(root, f"cirr/image_splits/split.rc2.{split}.json", dataset.roots)
        for name, path in load_json(image_list, dict[str, str]).items():
            images[name] = relative_path(path, image_list, roots)
        sources[split] = annotation_path(root, f"cirr/captions/cap.rc2.{split}.json", dataset.roots)
        tables.append(queries(sources[split], split))
    return Listing(gallery(images), pl.concat(tables), sources)


def queries(file: Path, split: str) -> pl.DataFrame:
    """The queries of one caption file."""
    rows = [_row(query, split) for query in load_json(file, list[Query])]
    return pl.DataFrame(rows, schema=QUERY_COLUMNS)


def _row(query: Query, split: str) -> dict[str, object]:
    return {
        "query_id": str(query.pairid),
        "split": split,
        "reference_id": query.reference,
        "instruction": query.caption,
        "target_ids": [] if query.target_hard is None else [query.target_hard],
        "exclude_ids": [query.reference],
        "group_ids": query.img_set.members,
        "aspects": [],
    }


def _submission(metric: str, images: int, of_group: bool = False) -> Submission:
    header = {"version": "rc2", "metric": metric}
    return Submission("CIRR", metric, images, 4148, header=header, of_group=of_group, without_reference=True)


FORMAT = Format(
    settings=FormatSettings,
    read=read,
    protocol=Protocol("Recall@5", (*recall(1, 5, 10, 50), *subset_recall(1, 2, 3))),
    submissions=(_submission("recall", 50), _submission("recall_subset", 3, of_group=True)),
    queries=queries,
    excludes_reference=True,
)
