"""A listing and the files on disk to the index: `images`, `queries` and `dropped`.

Every file is opened once in its life: digest, size and readability of a known one are found in the store by path, size
and modification time. All faults of a kind are reported together, before any long work starts.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from cvsi.core.console import complain, count, say
from cvsi.core.errors import CvsiError
from cvsi.core.images import Unreadable, contents, use
from cvsi.core.params import Dataset, Params
from cvsi.core.schema import DROPPED, DROPPED_QUERIES, IMAGES, QUERIES, STORED_FACTS
from cvsi.core.tables import output
from cvsi.datasets.base import Listing
from cvsi.datasets.files import stat_files
from cvsi.datasets.formats import READERS
from cvsi.datasets.rules import check
from cvsi.store.jobs import Step, Work, fill
from cvsi.store.rows import Shelf

FACTS_RECIPE = {"code": 2}
BLOCK = 512


def build(name: str, params: Params) -> tuple[str, list[str]]:
    """Write `cache/<name>/index`: the tables, and the optional parameters that later stages depend on.

    Returns what it holds, in words, and a warning for each size that is not the known one; both are said, too. Raises
    CvsiError for a missing folder, broken annotations, ids that are unknown or stand twice, and for missing or
    unreadable images unless the dataset drops these.
    """
    dataset = params.dataset(name)
    root = Path(dataset.root)
    if not root.is_dir():
        raise CvsiError(f"{root}: no such folder; put the dataset there or change its root in params.yaml")
    listing = READERS[dataset.format](dataset)
    check(listing, root)
    images, dropped = _examine(root, listing, dataset, params)
    queries, lost = _keep(listing.queries, images)
    for table, word in ((images, "images"), (queries, "queries")):
        if not table.height:
            raise CvsiError(f"{root}: no {word} to work on; see what its annotations list and what was dropped")
    rules = {"bad_images", "missing_images", "format", "category", "splits"}
    with output("index", name, recipe=dataset.model_dump(include=rules) | {"files": FACTS_RECIPE}) as out:
        out.table("images.parquet", images.to_arrow(), IMAGES)
        out.table("queries.parquet", queries.to_arrow(), QUERIES)
        out.table("dropped.parquet", dropped.to_arrow(), DROPPED)
        out.table("dropped_queries.parquet", lost.to_arrow(), DROPPED_QUERIES)
        # DVC refuses a parameter that params.yaml leaves out; it sees the optional ones through these files.
        out.json("options/edits.json", {"prompts": dataset.prompts.model_dump()})
        out.json("options/gallery_vectors.json", {"normalize_captions": dataset.normalize_captions})
        out.json("options/report.json", {"benchmark": dataset.benchmark})
    summary = _words(listing, images, queries, dropped, lost)
    warnings = compare_sizes(name, dataset, listing)
    say(summary)
    for warning in warnings:
        complain(warning)
    return summary, warnings


def compare_sizes(name: str, dataset: Dataset, listing: Listing) -> list[str]:
    """A line for each number of the dataset's `sizes` that the annotations, before anything is dropped, differ from.

    `images` are those of the gallery, any other name is a split's queries; a split that was not read is left out.
    """
    found = {"images": int(listing.images["in_gallery"].sum())}
    found |= {split: listing.queries.filter(pl.col("split") == split).height for split in listing.sources}
    return [
        f"the annotations of {name} list {_sized(what, found[what])}, expected {expected:,} "
        f"({abs(found[what] - expected):,} too {'few' if found[what] < expected else 'many'}); "
        "see sizes in params.yaml"
        for what, expected in dataset.sizes.items()
        if what in found and found[what] != expected
    ]


def _sized(what: str, number: int) -> str:
    return count(number, "image") if what == "images" else f"{count(number, 'query')} of split {what}"


def _words(
    listing: Listing, images: pl.DataFrame, queries: pl.DataFrame, dropped: pl.DataFrame, lost: pl.DataFrame
) -> str:
    """What the index holds and what it had to leave out, in a line."""
    ignored = f", {count(listing.ignored, 'other file')} ignored" if listing.ignored else ""
    references = queries["reference_id"].unique()
    inside = images.filter("in_gallery")["image_id"].is_in(references.implode()).sum()
    shared = f", {inside:,} of {count(references.len(), 'reference')} among the gallery" if references.len() else ""
    summary = f"{count(images.height, 'image')}, {count(queries.height, 'query')}{shared}{ignored}"
    if not dropped.height:
        return summary
    summary += f"; dropped {count(dropped.height, 'image')}, and {count(lost.height, 'query')} with them"
    before = listing.queries.join(lost, on=["split", "query_id"], how="anti")
    targets = before["target_ids"].explode().count() - queries["target_ids"].explode().count()
    return summary + (f"; other queries lost {count(targets, 'further target')}" if targets else "")


def _examine(root: Path, listing: Listing, dataset: Dataset, params: Params) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Join digest, width and height to the images; second, those that are missing or unreadable, with the reason."""
    images = listing.images
    found = images.join(stat_files(root, images["path"]), on="path", how="left", maintain_order="left")
    present = found.filter(pl.col("refused") == "")
    keys = pl.concat_str(pl.lit(f"{root}/"), "path", pl.lit(" "), "size", pl.lit(" "), "modified")
    present = present.with_columns(key=keys)
    shelf = Shelf(params.store, "files", FACTS_RECIPE, STORED_FACTS)
    read = partial(_facts, root, workers=params.compute.workers)
    step = Step("file", "to read", "read", BLOCK, lambda _: Work(read))
    fill(shelf, step, present.unique("key", maintain_order=True), present.height)
    facts = pl.DataFrame(shelf.take(present["key"])).drop("key")
    present = pl.concat([present, facts], how="horizontal")
    missing = found.filter(pl.col("size").is_null()).select("path", reason=pl.lit("no such file"))
    refused = found.filter(pl.col("refused") != "").select("path", reason="refused")
    unnamed = pl.DataFrame(list(listing.refused.items()), schema=refused.schema, orient="row")
    unreadable = pl.concat([unnamed, refused, present.filter(pl.col("reason") != "").select("path", "reason")])
    _stop_at(root, missing, dataset.missing_images, "missing", "missing_images")
    _stop_at(root, unreadable, dataset.bad_images, "unreadable", "bad_images")
    return present.filter(pl.col("reason") == ""), pl.concat([missing, unreadable])


def _facts(root: Path, block: pl.DataFrame, workers: int) -> pa.Table:
    """Read and decode every file of a block; rows of `STORED_FACTS`."""
    with ThreadPoolExecutor(max_workers=max(workers, os.cpu_count() or 1)) as pool:
        rows = list(pool.map(lambda path: _fact(root / path), block["path"]))
    return pa.Table.from_pylist([{"key": key} | row for key, row in zip(block["key"], rows, strict=True)], STORED_FACTS)


def _fact(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"digest": "", "width": 0, "height": 0, "reason": ""}
    try:
        with contents(path) as data:
            facts["digest"] = hashlib.sha256(data).hexdigest()
            width, height = use(data, lambda image: image.size)
    except Unreadable as reason:
        return facts | {"reason": str(reason)}
    return facts | {"width": width, "height": height}


def _stop_at(root: Path, faults: pl.DataFrame, rule: str, word: str, parameter: str) -> None:
    if faults.height and rule == "stop":
        listed = ", ".join(f"{path} ({reason})" for path, reason in faults.iter_rows())
        raise CvsiError(
            f"{root}: {count(faults.height, f'{word} image')}: {listed}; mend them or set {parameter}: drop"
        )


def _keep(queries: pl.DataFrame, images: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Queries whose reference and main target are still there, with other lost ids taken out; second, the lost ones."""
    ids = images["image_id"].implode()
    main = pl.col("target_ids").list.first()
    reason = (
        pl.when(~pl.col("reference_id").is_in(ids)).then(pl.lit("its reference was dropped"))
        .when(~main.is_in(ids)).then(pl.lit("its main target was dropped"))
    )  # fmt: skip
    judged = queries.with_columns(reason=reason).with_row_index("row")
    kept = judged.filter(pl.col("reason").is_null()).drop("reason")
    for name in ("target_ids", "exclude_ids", "group_ids"):
        there = kept.select("row", name).explode(name).filter(pl.col(name).is_in(ids))
        lists = there.group_by("row", maintain_order=True).agg(name)
        kept = kept.drop(name).join(lists, on="row", how="left", maintain_order="left")
        kept = kept.with_columns(pl.col(name).fill_null(pl.lit([], dtype=pl.List(pl.String))))
    lost = judged.filter(pl.col("reason").is_not_null()).select("query_id", "split", "reason")
    return kept.select(queries.columns), lost
