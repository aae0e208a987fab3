"""Raw answers of models as the store keeps them: bounded, writable as UTF-8, and never with a failure that may pass."""

import polars as pl
import pyarrow as pa

from cvsi.models.editor import FAILED

LONGEST_STORED = 20_000  # characters of an answer
LONGEST_FINISH = 300  # characters of a finish reason, which may quote a server
FAILED_ONCE = pl.col("finish").list.eval(pl.element().str.starts_with(FAILED)).list.any()  # any answer of a row


def storable(text: str) -> str:
    """The beginning of a text, without what cannot be written as UTF-8."""
    return text[:LONGEST_STORED].encode("utf-8", "replace").decode("utf-8")


def failed_once(rows: pa.Table) -> pl.Series:
    """Whether any answer of each stored row is a failure that may pass."""
    return pl.Series("finish", rows["finish"]).to_frame().select(FAILED_ONCE).to_series()
