"""A listing and the files on disk to the index: `images`, `queries` and `dropped`.

Files whose facts are stored are not opened again (see `files`). All faults of a kind are reported together, before any
long work starts.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import polars as pl

from cvsi.core.console import count, info, warn
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Dataset, Params
from cvsi.core.schema import DROPPED, DROPPED_QUERIES, images_schema, queries_schema
from cvsi.core.tables import output
from cvsi.datasets import formats
from cvsi.datasets.base import Listing, check_listing
from cvsi.datasets.faults import absent_images, faults, links_outside, roots_advice
from cvsi.datasets.files import FACTS_RECIPE, read_facts, read_parts, stat_files
from cvsi.datasets.names import ids_are_paths, match_names, naming_columns, refuse_unlisted, unlisted_images
from cvsi.datasets.roots import Roots, roots_of
from cvsi.datasets.tags import with_tags
from cvsi.datasets.walk import skipped_lines

SHOWN = 3  # names in a message


class Index(NamedTuple):
    """The tables of an index: what later stages work on, and what is dropped, with reasons."""

    images: pl.DataFrame
    queries: pl.DataFrame
    dropped: pl.DataFrame
    dropped_queries: pl.DataFrame


def build(name: str, params: Params) -> None:
    """Write `cache/<name>/index`: the tables, and the optional parameters that later stages depend on.

    Prints what it holds, and a warning for each size that is not the expected one. Raises CvsiError for a missing
    folder, broken annotations, ids that are unknown or duplicate, for missing or unreadable images unless the dataset
    drops these, and for no images, or no queries unless the format does without.
    """
    if "methods" not in params.model_fields_set:
        warn(f"{PATH}: the key methods is missing; add methods: {{}}, or dvc repro stops at the stage scores")
    dataset = params.dataset(name)
    root = Path(dataset.root)
    if not root.is_dir():
        raise CvsiError(f"{root}: no such folder; put the dataset there or change its root in params.yaml")
    roots = roots_of(dataset, name)
    listing = read_listing(dataset, name, roots)
    for line in (*skipped_lines(listing.skipped), *listing.notes):
        info(line)
    images, dropped, advice = _examine(name, roots, listing, dataset, params)
    queries, dropped_queries = _keep(listing.queries, images)
    optional = bool(formats.format_of(dataset, name).query_file)
    for table, known, noun in ((images, dropped, "images"), (queries, listing.queries, "queries")):
        if not table.height and not (noun == "queries" and optional):
            why = f"{faults(dropped, 'dropped')}; {advice}" if known.height else "the dataset lists none"
            raise CvsiError("; ".join([f"{root}: no {noun} to work on: {why}", *skipped_lines(listing.skipped)]))
    index = Index(images, queries, dropped, dropped_queries)
    _write(name, dataset, index)
    info(_summary(listing, index))
    if not queries.height:
        say = warn if listing.queries.height else info
        say(f"{name} has no queries: edits, query vectors and rankings are empty, and the report shows the gallery")
    for warning in compare_sizes(name, dataset, listing):
        warn(warning)


def read_listing(dataset: Dataset, name: str, roots: Roots) -> Listing:
    """The checked listing of a dataset, names in another form matched; raises CvsiError for what is wrong in it."""
    listing = match_names(formats.read(dataset, name), roots)
    check_listing(listing, roots.root)
    if dataset.tags is not None:
        listing = replace(listing, queries=with_tags(listing.queries, Path(dataset.tags)))
    refuse_unlisted(unlisted_images(listing), listing, roots, dataset.missing_images == "stop")
    return listing


def compare_sizes(name: str, dataset: Dataset, listing: Listing) -> list[str]:
    """A line for each number of the dataset's `sizes` that the annotations, before anything is dropped, differ from.

    `images` are those of the gallery, any other name is a split's queries; a split that was not read is left out.
    """
    listed = {"images": int(listing.images["in_gallery"].sum())}
    listed |= {split: listing.queries.filter(pl.col("split") == split).height for split in listing.sources}
    return [
        f"the annotations of {name} list {_sized(what, listed[what])}, expected {expected:,} "
        f"({abs(listed[what] - expected):,} too {'few' if listed[what] < expected else 'many'}); "
        "see sizes in params.yaml"
        for what, expected in dataset.sizes.items()
        if what in listed and listed[what] != expected
    ]


def _sized(what: str, number: int) -> str:
    return count(number, "image") if what == "images" else f"{count(number, 'query')} of split {what}"


def _write(name: str, dataset: Dataset, index: Index) -> None:
    """Write the index's folder."""
    rules = dataset.model_dump(include={"bad_images", "missing_images", "format", "splits", "ignore"})
    rules |= formats.settings_of(dataset, name).model_dump(exclude_defaults=True)
    with output("index", name, recipe=rules | {"files": FACTS_RECIPE}) as out:
        out.table("images.parquet", index.images.to_arrow(), images_schema(index.images.columns))
        out.table("queries.parquet", index.queries.to_arrow(), queries_schema(index.queries.columns))
        out.table("dropped.parquet", index.dropped.to_arrow(), DROPPED)
        out.table("dropped_queries.parquet", index.dropped_queries.to_arrow(), DROPPED_QUERIES)
        # DVC refuses a parameter that params.yaml leaves out; it tracks the optional ones through these files.
        reader = {} if dataset.reader is None else {"reader": dataset.reader}
        out.json("options/edits.json", {"prompts": dataset.prompts.model_dump()} | reader)
        out.json("options/gallery_vectors.json", {"normalize_captions": dataset.normalize_captions})
        out.json("options/report.json", dataset.model_dump(include={"benchmark", "fallback_limit"}))


def _summary(listing: Listing, index: Index) -> str:
    """What the index holds and what was dropped, in one line."""
    images, queries, dropped, dropped_queries = index
    references = queries["reference_id"].unique()
    ranked = images.filter("in_gallery")["image_id"].is_in(references.implode()).sum()
    among = f", {ranked:,} of {count(references.len(), 'reference')} among the gallery" if references.len() else ""
    summary = f"{count(images.height, 'image')}, {count(queries.height, 'query')}{among}"
    if not dropped.height:
        return summary
    summary += f"; dropped {count(dropped.height, 'image')}, and {count(dropped_queries.height, 'query')} with them"
    before = listing.queries.join(dropped_queries, on=["split", "query_id"], how="anti")
    targets = before["target_ids"].explode().count() - queries["target_ids"].explode().count()
    return summary + (f"; dropped {count(targets, 'further target')} of other queries" if targets else "")


def _examine(
    name: str, roots: Roots, listing: Listing, dataset: Dataset, params: Params
) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """The usable images with their facts; missing and unreadable ones, with the reason; what to do about these."""
    status = stat_files(roots, listing.images["path"])
    images = listing.images.join(status, on="path", how="left", maintain_order="left")
    _print_matched(listing, images)
    missing, links = absent_images(images), links_outside(images)
    files = images.filter(pl.col("refused") == "")
    files = read_parts(roots.root, files, params) if "crop" in files.columns else read_facts(roots.root, files, params)
    unnamed = pl.DataFrame(list(listing.refused.items()), schema=missing.schema, orient="row")
    unusable = files.filter(pl.col("reason") != "").select("path", "reason")
    unreadable = pl.concat([unnamed, links.select("path", "reason"), unusable])
    if "crop" in images.columns:  # several images of one file
        missing, unreadable = (rows.unique(maintain_order=True) for rows in (missing, unreadable))
    advice = roots_advice(links, name) if links.height else "repair them"
    if missing.height and dataset.missing_images == "stop":
        raise CvsiError(f"{roots.root}: {faults(missing, 'missing')}; repair them or set missing_images: drop")
    if unreadable.height and dataset.bad_images == "stop":
        raise CvsiError(f"{roots.root}: {faults(unreadable, 'unreadable')}; {advice} or set bad_images: drop")
    if links.height:
        info(f"{faults(links, 'dropped')}; to read them, {advice}")
    usable = files.filter(pl.col("reason") == "").with_columns(path="file")
    return usable, pl.concat([missing, _unlisted(listing), unreadable]), advice


def _print_matched(listing: Listing, images: pl.DataFrame) -> None:
    """Say which names of annotations were written in another form than the files'."""
    pairs = images.filter((pl.col("file") != pl.col("path")) & ~pl.col("file").str.starts_with("../"))
    matched = listing.matched | dict(pairs.select("path", "file").iter_rows())
    if matched:
        first = ", ".join(f"{written}: {image}" for written, image in list(matched.items())[:SHOWN])
        more = ", ..." if len(matched) > SHOWN else ""
        info(f"{count(len(matched), 'name')} matched in another case, Unicode form or way of writing ({first}{more})")


def _unlisted(listing: Listing) -> pl.DataFrame:
    """`path` and `reason` of what queries name although it is no image of the listing."""
    named = (
        unlisted_images(listing)
        .group_by("image", maintain_order=True)
        .agg(number=pl.struct("split", "query_id").n_unique())
    )
    what = "no such file" if ids_are_paths(listing) else "not in the list of images"
    reasons = [f"{what}, but named by {count(number, 'query')}" for number in named["number"]]
    return pl.DataFrame({"path": named["image"], "reason": pl.Series(reasons, dtype=pl.String)})


def _keep(queries: pl.DataFrame, images: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Queries whose reference and main target are usable, other dropped ids taken out; second, the dropped queries."""
    ids = images["image_id"].implode()
    main = pl.col("target_ids").list.first()
    single, lists = naming_columns(queries)
    second = pl.col("second_reference_id") if "second_reference_id" in single else pl.lit("")
    reason = (
        pl.when(~pl.col("reference_id").is_in(ids)).then(pl.lit("its reference was dropped"))
        .when((second != "") & ~second.is_in(ids)).then(pl.lit("its second reference was dropped"))
        .when(~main.is_in(ids)).then(pl.lit("its main target was dropped"))
    )  # fmt: skip
    judged = queries.with_columns(reason=reason).with_row_index("row")
    kept = judged.filter(pl.col("reason").is_null()).drop("reason")
    for name in lists:
        usable = kept.select("row", name).explode(name).filter(pl.col(name).is_in(ids))
        of_row = usable.group_by("row", maintain_order=True).agg(name)
        kept = kept.drop(name).join(of_row, on="row", how="left", maintain_order="left")
        kept = kept.with_columns(pl.col(name).fill_null(pl.lit([], dtype=pl.List(pl.String))))
    dropped = judged.filter(pl.col("reason").is_not_null()).select("query_id", "split", "reason")
    return kept.select(queries.columns), dropped
