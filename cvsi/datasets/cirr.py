"""CIRR's folder to a listing: the gallery and queries of `val` (labelled) or `test1` (labels hidden).

Each query has one target and a set of six similar images, its group. The reference is never ranked for its query,
neither in the gallery nor in the group. `target_soft`, other images that annotators found right, is not part of the
protocol and is not read.
"""

from pathlib import Path

import polars as pl
from pydantic import BaseModel

from cvsi.core.params import Dataset
from cvsi.datasets.base import NO_QUERIES, QUERY_COLUMNS, Listing, annotation, gallery, inside, load_json, wanted_splits

SPLITS = ("val", "test1")


class ImageSet(BaseModel):
    """The similar images among which a query was asked."""

    members: list[str]


class Query(BaseModel):
    """One query of a caption file; the target is missing where labels are hidden."""

    pairid: int
    reference: str
    caption: str
    img_set: ImageSet
    target_hard: str | None = None


def read(dataset: Dataset) -> Listing:
    """Read the splits that the dataset asks for; galleries of several splits are one."""
    root = Path(dataset.root)
    sources, images, tables = {}, {}, [NO_QUERIES]
    for split in wanted_splits(dataset.splits, SPLITS, root):
        listed = annotation(root, f"cirr/image_splits/split.rc2.{split}.json")
        for name, path in load_json(listed, dict[str, str]).items():
            images[name] = inside(path, listed)
        sources[split] = annotation(root, f"cirr/captions/cap.rc2.{split}.json")
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
