"""A dataset's edits to one line, where more of them fell back to the captions than its `fallback_limit` allows."""

import polars as pl

from cvsi.core import tables
from cvsi.core.params import Params
from cvsi.core.paths import folder
from cvsi.core.statuses import fallbacks


def fallback_warning(name: str, params: Params) -> str:
    """The line for a dataset, or an empty text; also where it has no edits yet."""
    if not any(folder("edits", name).glob("*.parquet")):
        return ""
    line = fallbacks(pl.DataFrame(tables.whole("edits", name))).warning(params.dataset(name).fallback_limit)
    return f"{name}: {line}" if line else ""
