"""A submission file, and an index or an annotation file, to what the submission should have answered.

For the command `check-submission`; the stage scores knows its queries and asks `submission_check` itself.
"""

from pathlib import Path
from typing import Any

import polars as pl

from cvsi.core import paths, tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import DROPPED_QUERIES, QUERIES
from cvsi.core.strict_json import parse_json
from cvsi.datasets import circo, cirr
from cvsi.datasets.base import QUERY_COLUMNS
from cvsi.datasets.submissions import CIRCO, MAX_BYTES, Known, kind_of


def read(path: Path) -> str:
    """The text of a submission file; raises CvsiError where there is none that is worth reading."""
    try:
        if path.stat().st_size > 10 * MAX_BYTES:
            raise CvsiError(f"{path}: {path.stat().st_size:,} bytes, the server takes {MAX_BYTES:,} at most")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CvsiError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise CvsiError(f"{path}: {error.strerror}; give a submission file") from None


def known_of(named: str, text: str, where: str) -> Known:
    """What an index (a dataset's name, or a `queries.parquet`) or a benchmark's annotation file (`.json`) says.

    Of several splits it is the one with hidden labels; where that leaves a choice, the one that shares most queries
    with the submission.
    """
    content = parse_json(text, dict[str, Any], where)
    path = Path(named)
    if path.suffix == ".json":
        reader = circo if kind_of(content)[0] is CIRCO else cirr
        return Known(reader.queries(path, "asked"))
    place = path.parent if path.is_file() else paths.folder("index", named)
    source = path if path.is_file() else place / "queries.parquet"
    queries = pl.DataFrame(tables.fit(tables.read_file(source), QUERIES, str(source)))
    if (place / "dropped_queries.parquet").exists():
        lost = pl.DataFrame(tables.read_file(place / "dropped_queries.parquet")).select(DROPPED_QUERIES.names[:2])
        queries = pl.concat([queries, lost], how="diagonal").cast(dict(QUERY_COLUMNS))  # type: ignore[arg-type]
    images = None
    if (place / "images.parquet").exists():
        listed = pl.DataFrame(tables.read_file(place / "images.parquet"))
        images = listed.filter("in_gallery")["image_id"]
    return Known(_split(queries, list(content)), images)


def _split(queries: pl.DataFrame, answered: list[str]) -> pl.DataFrame:
    labels = queries.group_by("split", maintain_order=True).agg(
        hidden=pl.col("target_ids").list.len().fill_null(0).max() == 0,
        shared=pl.col("query_id").is_in(answered).sum(),
    )
    chosen: str = labels.sort("hidden", "shared", descending=True, maintain_order=True)["split"][0]
    return queries.filter(pl.col("split") == chosen)
