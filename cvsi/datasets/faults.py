"""Images that have no file or may not be read, to lines for people: how many, the first names, and what to do.

The stage `index` and `cvsi check` use the same functions, so they report the same.
"""

import os

import polars as pl

from cvsi.core.console import count
from cvsi.datasets.base import OUTSIDE_ROOT, first_names

SHOWN = 3  # images of one reason in a message


def absent_images(images: pl.DataFrame) -> pl.DataFrame:
    """`path` and `reason` of the images (with the columns of `stat_files`) that have no file."""
    return images.filter(pl.col("size").is_null()).select("path", reason=pl.lit("no such file"))


def links_outside(images: pl.DataFrame) -> pl.DataFrame:
    """`path`, `reason` and `target` of the images (with the columns of `stat_files`) behind a link that is not read."""
    return images.filter(pl.col("refused") != "").select("path", reason=pl.lit(OUTSIDE_ROOT), target="refused")


def faults(rows: pl.DataFrame, adjective: str) -> str:
    """Images (`path`, `reason`) as `3 missing images: a.png (no such file), ...`; many of one reason as a number."""
    parts = []
    for (reason,), group in rows.group_by("reason", maintain_order=True):
        if group.height <= SHOWN:
            parts += [f"{path} ({reason})" for path in group["path"]]
        else:
            parts.append(f"{', '.join(group['path'].head(SHOWN))} and {group.height - SHOWN:,} more ({reason})")
    return f"{count(rows.height, f'{adjective} image')}: {first_names(parts)}"


def roots_advice(links: pl.DataFrame, name: str) -> str:
    """What to write into params.yaml so that these links are read."""
    folders = sorted(links.select(pl.col("target").str.replace(r"/[^/]*$", "")).to_series().unique())
    common = os.path.commonpath(folders)
    if common == os.path.dirname(common):  # nothing but the root of the file system
        shown = ", ".join(folders[:SHOWN]) + (", ..." if len(folders) > SHOWN else "")
        return f"add the folders that they lead to ({shown}) to roots of datasets.{name} in params.yaml"
    return f"add {common}, to which they lead, to roots of datasets.{name} in params.yaml"
