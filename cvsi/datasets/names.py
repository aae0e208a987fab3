"""Names in annotations to ids of images: names that other systems wrote in another form are matched where unique.

Systems differ in the case and the Unicode form of file names, in slashes, and in whether a path is relative. Such a
name is matched if exactly one image has it; otherwise the error contains what differs.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from urllib.parse import unquote

import polars as pl

from cvsi.core.errors import CvsiError
from cvsi.datasets.base import Listing, first_names, loose, relative_path, split_suffix
from cvsi.datasets.roots import Roots

LISTS = ("target_ids", "exclude_ids", "group_ids", "negative_ids")  # the last one is optional
SINGLE = ("reference_id", "second_reference_id")  # likewise; an empty second reference is none
SHOWN = 20  # names in a message
COMPARED = 20_000  # ids that a name is compared with letter by letter, which takes long


class Names:
    """The ids of a listing, to look up names that are none of them."""

    def __init__(self, listing: Listing, roots: Roots) -> None:
        """Keep the ids; the tables that a look-up needs are made with the first one."""
        self.ids, self.paths = listing.images["image_id"], listing.images["path"]
        self.roots = roots

    def match(self, name: str) -> str | None:
        """The one id that a name means, or None."""
        forms = self._forms(name)
        if exact := [form for form in forms if form in self._exact]:
            return exact[0]
        ids = dict.fromkeys(image for form in forms for image in self._by_form.get(loose(form), []))
        if ids:
            return next(iter(ids)) if len(ids) == 1 else None
        return self._by_file.get(os.path.realpath(name)) if name.startswith("/") and "\0" not in name else None

    def near(self, name: str) -> list[str]:
        """Ids that a name that has no match may mean: alike in form, or in name without folder and suffix."""
        for form in (*self._forms(name), unquote(name)):
            if ids := self._by_form.get(loose(form)) or self._by_stem.get(_stem(form)):
                return ids
        if self.ids.len() > COMPARED:
            return []
        return difflib.get_close_matches(name, self.ids.to_list(), n=1, cutoff=0.8)

    def _forms(self, name: str) -> list[str]:
        """The name, and what it is with plain slashes, without blanks at its ends, and below the root."""
        forms = [name, name.replace("\\", "/"), name.strip(), name.replace("\\", "/").strip()]
        below = [self.roots.inside(form) for form in forms if "/" in form]
        return list(dict.fromkeys([*forms, *filter(None, below)]))

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(self.ids)

    @cached_property
    def _by_form(self) -> dict[str, list[str]]:
        return _grouped((loose(image), image) for image in self.ids)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return _grouped((_stem(image), image) for image in self.ids)

    @cached_property
    def _by_file(self) -> dict[str, str]:
        """The ids by the real paths of their files, where these are unique."""
        real = (
            (os.path.realpath(self.roots.root / path), image) for image, path in zip(self.ids, self.paths, strict=True)
        )
        return {path: images[0] for path, images in _grouped(real).items() if len(images) == 1}


def match_names(listing: Listing, roots: Roots) -> Listing:
    """The listing with every image that its queries name in another form under its id; `matched` has these names."""
    single, lists = naming_columns(listing.queries)
    named = [
        *(listing.queries[column] for column in single),
        *(listing.queries[column].explode().drop_nulls() for column in lists),
    ]
    used = pl.concat([column.alias("image") for column in named]).unique(maintain_order=True)
    unknown = used.filter(~used.is_in(listing.images["image_id"].implode()))
    if not unknown.len():
        return listing
    names = Names(listing, roots)
    matched = {name: image for name in unknown if name and (image := names.match(name)) is not None}
    if not matched:
        return listing
    replaced = [pl.col(column).replace(matched) for column in single]
    replaced += [
        pl.col(column).list.eval(pl.element().replace(matched)).list.unique(maintain_order=True) for column in lists
    ]
    return replace(listing, queries=listing.queries.with_columns(replaced), matched=matched)


def naming_columns(queries: pl.DataFrame) -> tuple[list[str], list[str]]:
    """The columns of queries that name one image, and those that are lists of images."""
    single, lists = ([name for name in names if name in queries.columns] for names in (SINGLE, LISTS))
    return single, lists


def ids_are_paths(listing: Listing) -> bool:
    """Whether images have no names but their paths, as in a folder of own photos."""
    return listing.images["image_id"].equals(listing.images["path"].alias("image_id"))


def unlisted_images(listing: Listing) -> pl.DataFrame:
    """What queries name that is no image of the listing: `split`, `query_id`, `column`, `image`."""
    tables = []
    single, lists = naming_columns(listing.queries)
    for column in (*single, *lists):
        named = listing.queries.select("split", "query_id", column=pl.lit(column), image=column)
        if column in lists:
            named = named.explode("image").drop_nulls("image")
        if column != "reference_id" and column in single:
            named = named.filter(pl.col("image") != "")
        tables.append(named.filter(~pl.col("image").is_in(listing.images["image_id"].implode())))
    return pl.concat(tables)


def refuse_unlisted(unlisted: pl.DataFrame, listing: Listing, roots: Roots, stop: bool) -> None:
    """Raise CvsiError for names that leave the root, and with `stop` for every name that is no image.

    The line names the first ones of one column and file, and what they may mean.
    """
    if not unlisted.height:
        return
    split, column = unlisted.row(0)[0], unlisted["column"][0]
    if ids_are_paths(listing):
        for name in unlisted["image"].unique(maintain_order=True):
            relative_path(name, listing.sources[split])
    if stop:
        rows = unlisted.filter((pl.col("split") == split) & (pl.col("column") == column))
        names = Names(listing, roots)
        shown = first_names(
            f"query {query} names {image!r}{_meant(names.near(image))}"
            for query, image in rows.head(SHOWN).select("query_id", "image").iter_rows()
        )
        more = f" and {rows.height - SHOWN:,} more" if rows.height > SHOWN else ""
        raise CvsiError(
            f"{listing.sources[split]}: {column} not among the images: {shown}{more}; correct the annotation, or set "
            "missing_images: drop to leave out these queries"
        )


def _meant(ids: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(map(repr, ids[:3]))}?)" if ids else ""


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _stem(path: str) -> str:
    """The loose name without folder and suffix."""
    return loose(split_suffix(path.rpartition("/")[2])[0])
