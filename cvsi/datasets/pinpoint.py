"""PinPoint's folder to a listing: one gallery of photographs, labelled queries of the split `test`.

A query has one or two reference images, several right answers, and images that look right and are wrong. The same
request is asked in about six wordings: queries of the same reference images are variants of each other. The files are
`pinpoint_licensed.parquet` and `index_signatures.txt`; an image is `<signature>.jpg` (or of another usual suffix) in
the folder `images`, or in the root itself.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from cvsi.core.console import count
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.core.schema import STRINGS
from cvsi.datasets.base import (
    FormatSettings,
    Listing,
    annotation_path,
    first_names,
    gallery,
    load_names,
    load_parquet,
    relative_path,
    wanted_splits,
)
from cvsi.datasets.formats import Format
from cvsi.datasets.metrics import (
    GroupMetric,
    Metric,
    Protocol,
    average_precision,
    hits,
    mean_average_precision,
)
from cvsi.datasets.named_files import existing
from cvsi.datasets.roots import Roots

QUERIES_FILE, IMAGES_FILE = "pinpoint_licensed.parquet", "index_signatures.txt"
SPLIT = "test"
FOLDERS = ("images", "")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".jpe", ".jfif")  # the first one counts
NO_IMAGE = ("none", "nan", "null", "")  # what the file has instead of a second reference
CUT_OFFS = (1, 5, 10, 50)
COLUMNS = pa.schema(
    {
        "query_id": pa.string(),
        "query_image_signature": pa.string(),
        "query_image_signature2": pa.string(),
        "instruction": pa.string(),
        "positive_candidates": STRINGS,
        "negative_candidates": STRINGS,
    }
)
REQUIRED = ("query_id", "query_image_signature", "instruction")


class PinPointSettings(FormatSettings):
    """What a query's second reference image does: the reference is the mean of both, or it is left out."""

    second_reference: Literal["mean", "ignore"] = "mean"

    @property
    def variant(self) -> str:
        """Queries without their second reference."""
        return "second_reference: ignore" if self.second_reference == "ignore" else ""


def read(dataset: Dataset, settings: PinPointSettings) -> Listing:
    """Read the queries and the list of images; a reference that is not in the list is an image that is not ranked."""
    root, roots = Path(dataset.root), Roots(Path(dataset.root), dataset.roots)
    wanted_splits(dataset.splits, (SPLIT,), root)
    source = annotation_path(root, QUERIES_FILE, dataset.roots)
    image_list = annotation_path(root, IMAGES_FILE, dataset.roots)
    rows = _checked(load_parquet(source, COLUMNS), source)
    queries = _queries(rows, settings.second_reference == "mean")
    listed = list(dict.fromkeys(load_names(image_list)))
    references = pl.concat([queries[name].alias("image") for name in queries.columns if name.endswith("reference_id")])
    unlisted = references.filter((references != "") & ~references.is_in(listed)).unique(maintain_order=True).to_list()
    names = [*listed, *unlisted]
    files = existing(roots, names, FOLDERS, SUFFIXES)
    paths = [files.get(name) or _usual_path(name, image_list) for name in names]
    images = gallery(zip(names, paths, strict=True))
    images = images.with_columns(in_gallery=pl.int_range(pl.len()) < len(listed))
    return Listing(images, queries, {SPLIT: source}, notes=_notes(rows, source))


def _usual_path(name: str, image_list: Path) -> str:
    return f"{FOLDERS[0]}/{relative_path(name, image_list)}{SUFFIXES[0]}"


def _checked(rows: pl.DataFrame, source: Path) -> pl.DataFrame:
    """The rows; raises CvsiError for one without an id, a reference, an instruction or a right answer."""
    empty = rows.with_row_index("row", 1).filter(
        pl.any_horizontal(pl.col(name).is_null() | (pl.col(name) == "") for name in REQUIRED)
    )
    if empty.height:
        raise CvsiError(
            f"{source}: {count(empty.height, 'row')} without {', '.join(REQUIRED[:-1])} or {REQUIRED[-1]}: row "
            f"{first_names(map(str, empty['row']))}; remove these rows"
        )
    without = rows.filter(_distinct("positive_candidates").list.len() == 0)
    if without.height:
        raise CvsiError(f"{source}: no positive_candidates for query {first_names(without['query_id'])}; remove it")
    return rows


def _queries(rows: pl.DataFrame, with_second: bool) -> pl.DataFrame:
    """The rows as queries, with the optional columns; each candidate counts once, and nulls do not."""
    second = pl.col("query_image_signature2").fill_null("")
    second = pl.when(second.str.strip_chars().str.to_lowercase().is_in(NO_IMAGE)).then(pl.lit("")).otherwise(second)
    first, none = pl.col("query_image_signature"), pl.lit([], dtype=pl.List(pl.String))
    queries = rows.select(
        "query_id",
        split=pl.lit(SPLIT),
        reference_id=first,
        instruction="instruction",
        target_ids=_distinct("positive_candidates"),
        exclude_ids=none,
        group_ids=none,
        aspects=none,
        negative_ids=_distinct("negative_candidates"),
        variant_of=pl.when(second == "").then(first).otherwise(pl.format("{}+{}", first, second)),
        second_reference_id=second,
    )
    return queries if with_second else queries.drop("second_reference_id")


def _distinct(column: str) -> pl.Expr:
    return pl.col(column).list.drop_nulls().list.unique(maintain_order=True).fill_null([])


def _notes(rows: pl.DataFrame, source: Path) -> tuple[str, ...]:
    """How many entries of the lists of candidates are null or repeated, where any are."""
    notes = []
    for column in ("positive_candidates", "negative_candidates"):
        lists = (rows[column], rows[column].list.drop_nulls(), rows.select(_distinct(column)).to_series())
        every, entries, distinct = (int(part.list.len().sum()) for part in lists)
        if distinct < every:
            nulls, repeats = every - entries, entries - distinct
            notes.append(f"{source}: {column}: {nulls:,} null and {repeats:,} repeated of {every:,} entries left out")
    return tuple(notes)


def _precision(k: int, table: pl.DataFrame) -> np.ndarray:
    return np.asarray(100 * hits(table, k).sum(axis=1) / k)


def _recall(k: int, table: pl.DataFrame) -> np.ndarray:
    return np.asarray(100 * hits(table, k).sum(axis=1) / table["target_ids"].list.len().to_numpy())


def _clean_average_precision(k: int, table: pl.DataFrame) -> np.ndarray:
    """AP@k of the ranking without the query's negatives; a target that is also a negative is no hit."""
    if "negative_ranks" not in table.columns:
        return np.full(table.height, np.nan)
    found = hits(without_negatives(table), k)
    return 100 * average_precision(found, table["target_ids"].list.len().to_numpy(), k)


def _negative_recall(k: int, table: pl.DataFrame) -> np.ndarray:
    """Negatives within the first k, over min(number of negatives, k); 0 for a query without any."""
    if "negative_ranks" not in table.columns:
        return np.full(table.height, np.nan)
    ranks = table.select(row=pl.int_range(pl.len()), rank="negative_ranks").explode("rank")
    found = np.bincount(ranks.filter(pl.col("rank") <= k)["row"].to_numpy(), minlength=table.height)
    negatives = table["negative_ids"].list.len().to_numpy()
    return np.asarray(100 * found / np.clip(negatives, 1, k))


def _range(values: pl.Expr) -> pl.Expr:
    return values.max() - values.min()


def without_negatives(table: pl.DataFrame) -> pl.DataFrame:
    """The table with the target ranks as they are once the negatives are removed from the ranking.

    A rank falls by the number of negatives before it. It is null for a target that is itself a negative.
    """
    targets = table.select(row=pl.int_range(pl.len()), rank="target_ranks").explode("rank")
    negatives = table.select(row=pl.int_range(pl.len()), rank="negative_ranks").explode("rank").drop_nulls()
    width = 1 + int(max(targets["rank"].max() or 0, negatives["rank"].max() or 0))  # type: ignore[arg-type]
    places = np.sort((negatives["row"] * width + negatives["rank"]).to_numpy())
    ranked = targets["rank"].fill_null(0).to_numpy()
    place = targets["row"].to_numpy() * width + ranked
    before = np.searchsorted(places, place) - np.searchsorted(places, targets["row"].to_numpy() * width)
    clean = pl.Series("rank", ranked - before, dtype=pl.Int32)
    gone = pl.Series(np.isin(place, places) | (ranked == 0))
    lists = targets.with_columns(rank=clean.set(gone, None)).group_by("row", maintain_order=True).agg("rank")
    return table.with_columns(target_ranks=lists["rank"])


def _at(name: str, values: Callable[[int, pl.DataFrame], np.ndarray]) -> tuple[Metric, ...]:
    """A metric at every cut-off; `{}` of its name stands for the cut-off."""
    return tuple(Metric(name.format(k), partial(values, k)) for k in CUT_OFFS)


FORMAT = Format(
    settings=PinPointSettings,
    read=read,
    protocol=Protocol(
        "mAP@10",
        (
            *mean_average_precision(*CUT_OFFS),
            *_at("mAP@{} clean", _clean_average_precision),
            *_at("precision@{}", _precision),
            *_at("recall@{}", _recall),
            *_at("negative recall@{}", _negative_recall),
        ),
        (GroupMetric("precision@10 range", "precision@10", _range),),
    ),
)
