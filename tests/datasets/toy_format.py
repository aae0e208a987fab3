"""A dataset format of another package, for tests: a CSV file of queries, a metric and a submission of its own."""

from pathlib import Path

import numpy as np
import polars as pl

from cvsi.core.params import Dataset
from cvsi.datasets.base import QUERY_COLUMNS, FormatSettings, Listing, annotation_path, gallery
from cvsi.datasets.formats import Format
from cvsi.datasets.metrics import Metric, Protocol, recall
from cvsi.datasets.submissions import Submission

NO_LISTS: pl.Expr = pl.lit([], dtype=pl.List(pl.String))


class ToySettings(FormatSettings):
    """The folder of the images."""

    folder: str = "pictures"


def read(dataset: Dataset, settings: ToySettings) -> Listing:
    """Every file of the folder, and the rows of `queries.csv`."""
    root = Path(dataset.root)
    source = annotation_path(root, "queries.csv")
    names = sorted(path.name for path in (root / settings.folder).iterdir())
    return Listing(
        gallery((name, f"{settings.folder}/{name}") for name in names), queries(source, "val"), {"val": source}
    )


def queries(file: Path, split: str) -> pl.DataFrame:
    """The queries of one CSV file: `query_id`, `reference_id`, `instruction`, `target`."""
    rows = pl.read_csv(file, infer_schema=False)
    rows = rows.with_columns(
        split=pl.lit(split), target_ids=pl.concat_list("target"),
        exclude_ids=NO_LISTS, group_ids=NO_LISTS, aspects=NO_LISTS,
    )  # fmt: skip
    return rows.select(QUERY_COLUMNS.names())


def reciprocal_rank(table: pl.DataFrame) -> np.ndarray:
    """One over the rank of the first target, in percent."""
    return np.asarray((100 / table["target_ranks"].list.first().cast(pl.Float64)).fill_null(0).to_numpy())


FORMAT = Format(
    settings=ToySettings,
    read=read,
    protocol=Protocol("MRR", (Metric("MRR", reciprocal_rank), *recall(1))),
    submissions=(
        Submission("TOY", "first", images=1, hidden_queries=2, header={"task": "toy"}, numbered_queries=False),
    ),
    queries=queries,
)
