"""What the listing of every dataset has to keep to: unique, known and short ids, no endless instruction.

All faults of a kind are reported together, and name the file to correct.
"""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from cvsi.core.errors import CvsiError
from cvsi.datasets.base import Listing

LONGEST_SHOWN = 200
LONGEST_WORD = 1_000  # characters; CLIP's tokenizer takes quadratic time for one word
LONGEST_ID, LONGEST_INSTRUCTION = 1_000, 50_000  # characters; a benchmark's instructions have a few hundred at most


def check(listing: Listing, root: Path) -> None:
    """Raise CvsiError for ids that stand twice, are unknown or too long, and for endless instructions."""
    _unique(listing.images, ["image_id"], str(root))
    _unique(listing.queries, ["split", "query_id"], str(root))
    _bounded(listing, root)
    _known(listing)


def _unique(table: pl.DataFrame, columns: list[str], where: str) -> None:
    twice = table.filter(table.select(columns).is_duplicated()).select(columns).unique(maintain_order=True)
    if twice.height:
        names = _some(" ".join(map(str, row)) for row in twice.iter_rows())
        raise CvsiError(f"{where}: {columns[-1]} stands twice: {names}; ids must be unique")


def _bounded(listing: Listing, root: Path) -> None:
    """Refuse ids and texts that no dataset has and no model reads."""
    names = pl.concat([listing.images["image_id"], listing.queries["aspects"].explode().drop_nulls()])
    long = names.filter(names.str.len_chars() > LONGEST_ID)
    if long.len():
        raise CvsiError(f"{root}: ids of more than {LONGEST_ID:,} characters: {_some(long)}; shorten them")
    endless = listing.queries.filter(pl.col("instruction").str.len_chars() > LONGEST_INSTRUCTION)
    if endless.height:
        raise CvsiError(
            f"{listing.sources[endless['split'][0]]}: instructions of more than {LONGEST_INSTRUCTION:,} characters: "
            f"query {_some(endless['query_id'])}; shorten them"
        )
    for row in listing.queries.filter(pl.col("instruction").str.len_chars() > LONGEST_WORD).iter_rows(named=True):
        if max(map(len, row["instruction"].split()), default=0) > LONGEST_WORD:
            raise CvsiError(
                f"{listing.sources[row['split']]}: a word of more than {LONGEST_WORD:,} characters in the instruction "
                f"of query {row['query_id'][:LONGEST_SHOWN]}; shorten it"
            )


def _known(listing: Listing) -> None:
    """Refuse queries that name an image which is not in the listing."""
    ids = listing.images["image_id"]
    for column in ("reference_id", "target_ids", "exclude_ids", "group_ids"):
        named = listing.queries.select("query_id", "split", image=column)
        if column != "reference_id":
            named = named.explode("image").drop_nulls("image")
        unknown = named.filter(~pl.col("image").is_in(ids.implode()))
        if unknown.height:
            split = unknown["split"][0]
            names = _some(f"query {row['query_id']} names {row['image']!r}" for row in unknown.iter_rows(named=True))
            raise CvsiError(f"{listing.sources[split]}: {column} not among the images: {names}; correct the annotation")


def _some(names: Iterable[str], limit: int = 20) -> str:
    listed = [name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..." for name in names]
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
