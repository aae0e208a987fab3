"""A dataset's folder as it is now against its index: new, changed and removed files and queries; no file is opened.

The index is older than what a person did to the folder since. Files are compared by what the store knows of them at
their present size and time, so only what is neither indexed nor known counts as new or changed.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cvsi.commands.requirements import Inventory
from cvsi.core.console import count
from cvsi.core.images import image_digest
from cvsi.core.params import Params
from cvsi.core.schema import DROPPED, DROPPED_QUERIES
from cvsi.core.tables import exists, optional, read
from cvsi.datasets.files import FileFactsJob
from cvsi.store.rows import Store

EDITED_BY = ("split", "reference_id", "instruction")  # what decides a query's edits, its reference's captions aside


@dataclass(frozen=True)
class Changes:
    """Numbers of files and queries that differ from the index; `unread` are files of it that may have changed."""

    new: int = 0
    changed: int = 0
    unread: int = 0
    removed: int = 0
    queries: int = 0
    removed_queries: int = 0
    edits: int = 0  # queries that are new or changed, or whose reference image may be

    @property
    def files(self) -> int:
        """The files that may need new captions and vectors."""
        return self.new + self.changed + self.unread

    def line(self, name: str) -> str:
        """The changes in one line; empty without any."""
        counts = (
            (self.new, "new file", ""),
            (self.changed, "changed file", ""),
            (self.unread, "file", " that changed, or that this store has not seen yet"),
            (self.removed, "removed file", ""),
            (self.queries, "new or changed query", ""),
            (self.removed_queries, "removed query", ""),
        )
        listed = ", ".join(f"{count(number, noun)}{which}" for number, noun, which in counts if number)
        return f"{name}: {listed}, not yet indexed; the index is older, so the numbers below are at most" * bool(listed)


def since_index(name: str, params: Params, inventory: Inventory) -> Changes:
    """What changed in a dataset's folder since its index was made; nothing where either cannot be read.

    Raises CvsiError for a damaged index.
    """
    if not exists("index", name) or name not in inventory.listings:
        return Changes()
    images = pl.DataFrame(read("index", name, "images.parquet"))
    crop = ["crop"] if "crop" in images.columns else []
    indexed = images.select("path", *crop, indexed="digest").unique("path")
    files = _with_facts(params, Path(params.dataset(name).root), inventory.present[name])
    files = files.join(indexed, on="path", how="left", maintain_order="left")
    if crop:  # one image of each file shows whether the file is another one
        digests = [digest and image_digest(digest, box) for digest, box in files.select("digest", "crop").iter_rows()]
        files = files.with_columns(digest=pl.Series(digests, dtype=pl.String)).drop("crop")
    known, unread = pl.col("indexed").is_not_null(), pl.col("digest").is_null()
    new = files.filter(
        ~known & ((unread & ~pl.col("path").is_in(_unusable(name).implode())) | (pl.col("reason") == ""))
    )
    changed = files.filter(known & (pl.col("digest") != pl.col("indexed")))
    again = files.filter(known & unread)
    queries, edits, gone = _queries(
        name,
        inventory.listings[name].queries,
        images.join(pl.concat([changed, again]), on="path", how="semi")["image_id"],
    )
    return Changes(
        new=new.height,
        changed=changed.height,
        unread=again.height,
        removed=indexed.join(files, on="path", how="anti").height,
        queries=queries,
        removed_queries=gone,
        edits=edits,
    )


def _unusable(name: str) -> pl.Series:
    """The files that the index dropped because they are no usable images; those that were missing may be there now."""
    dropped = pl.DataFrame(optional("index", name, "dropped.parquet", DROPPED))
    return dropped.filter(pl.col("reason") != "no such file")["path"]


def _queries(name: str, listed: pl.DataFrame, touched: pl.Series) -> tuple[int, int, int]:
    """New or changed queries, queries whose edits may change (`touched` are ids of images), and removed queries."""
    before = pl.DataFrame(read("index", name, "queries.parquet"))
    dropped = pl.DataFrame(optional("index", name, "dropped_queries.parquet", DROPPED_QUERIES))
    other = listed.join(before, on=EDITED_BY, how="anti").join(dropped, on=["split", "query_id"], how="anti")
    edits = pl.concat([other, listed.filter(pl.col("reference_id").is_in(touched.implode()))])
    gone = max(before.height + dropped.height - listed.height, 0)
    return other.height, edits.unique(["split", "query_id"]).height, gone


def _with_facts(params: Params, root: Path, present: pl.DataFrame) -> pl.DataFrame:
    """The files that may be read: `path`, and `digest` and `reason` as the store knows them, null where it does not."""
    readable = present.filter(pl.col("size").is_not_null() & (pl.col("refused") == ""))
    job = FileFactsJob(params.compute, Store(Path(params.store)), root, readable)
    rows, wanted = job.rows(), job.wanted().select("key", "path")
    known = wanted.filter(~pl.col("key").is_in(rows.missing(wanted["key"]).implode()))
    facts = pl.DataFrame(rows.get(known["key"])).select("key", "digest", "reason").unique("key")
    files = wanted.join(facts, on="key", how="left", maintain_order="left").drop("key")
    return files.unique("path", keep="first", maintain_order=True)
