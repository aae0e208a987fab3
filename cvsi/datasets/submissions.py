"""A submission's text to a list of what its benchmark's server would refuse; nothing is written here.

The stage scores asks before it writes a file, the command `check-submission` at any time. What can be told depends on
what is known of the queries: with an index everything, without one the form and the number of queries.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl
from pydantic import StrictInt, StrictStr, TypeAdapter, ValidationError

from cvsi.core.console import count
from cvsi.core.strict_json import parse_json

MAX_BYTES = 5_000_000
SHOWN = 10
VERSION = "rc2"


@dataclass(frozen=True)
class Kind:
    """One kind of file: its metric, how many images a query gets, of the gallery or of its group, and how many queries.

    `queries` is the number of the benchmark's hidden split, which counts where nothing else is known.
    """

    benchmark: str
    metric: str
    images: int
    queries: int
    of_group: bool = False

    @property
    def integers(self) -> bool:
        """Whether the server wants ids as integers, and not as strings."""
        return self.benchmark == "CIRCO"


CIRCO = Kind("CIRCO", "map", 50, 800)
CIRR = {
    "recall": Kind("CIRR", "recall", 50, 4148),
    "recall_subset": Kind("CIRR", "recall_subset", 3, 4148, of_group=True),
}


@dataclass(frozen=True)
class Known:
    """What is known beforehand: the queries that are to be answered (as `schema.QUERIES`) and the gallery's ids."""

    queries: pl.DataFrame | None = None
    images: pl.Series | None = None


def inspect(text: str, known: Known, where: str) -> tuple[Kind, int, list[str]]:
    """The kind of a submission, how many queries it answers, and its faults, a line each, 10 of each sort at most.

    Raises CvsiError that begins with `where` for text that is not one JSON object of plain values with distinct keys.
    """
    content = parse_json(text, dict[str, Any], where)
    kind, faults = kind_of(content)
    size = len(text.encode())
    if size > MAX_BYTES:
        faults.append(f"{size:,} bytes, the server takes {MAX_BYTES:,} at most")
    answers = {
        query: images for query, images in content.items() if kind is CIRCO or query not in ("version", "metric")
    }
    typed, wrong = _typed(answers, kind)
    faults += _some(wrong)
    lists = pl.DataFrame(
        {"query_id": list(typed), "image_id": list(typed.values())},
        schema={"query_id": pl.String, "image_id": pl.List(pl.String)},
    )
    asked = _numbers(answers, kind) if known.queries is None else _queries(answers, known.queries)
    return kind, len(answers), faults + asked + _lengths(lists, kind) + _images(lists, kind, known)


def kind_of(content: dict[str, Any]) -> tuple[Kind, list[str]]:
    """The kind that a file says it is, and what is wrong with how it says so."""
    if not {"version", "metric"} & set(content):
        return CIRCO, []
    metric, version = content.get("metric"), content.get("version")
    faults = []
    if version != VERSION:
        faults.append(f"version is {_short(version)}, the server wants {VERSION!r}")
    if not isinstance(metric, str) or metric not in CIRR:
        faults.append(f"metric is {_short(metric)}, the server wants 'recall' or 'recall_subset'")
        metric = "recall"
    return CIRR[metric], faults


def _typed(answers: dict[str, Any], kind: Kind) -> tuple[dict[str, list[str]], list[str]]:
    """The answers that are lists of ids of the right type, ids as strings; second, what the others hold."""
    shape: TypeAdapter[Any] = TypeAdapter(dict[str, list[StrictInt]] if kind.integers else dict[str, list[StrictStr]])
    wrong = []
    try:
        shape.validate_python(answers)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            query, *place = fault["loc"]
            spot = f"image {int(place[0]) + 1}" if place else "its value"
            wanted = ("an integer" if kind.integers else "a string") if place else "a list"
            wrong.append((query, f"query {_cut(query)}: {spot} is {_short(fault['input'])}, the server wants {wanted}"))
    bad = {query for query, _ in wrong}
    good = {query: [str(image) for image in images] for query, images in answers.items() if query not in bad}
    return good, [line for _, line in wrong]


def _numbers(answers: dict[str, Any], kind: Kind) -> list[str]:
    odd = _some(
        f"query {_short(query)} is not a number as the benchmark writes it"
        for query in answers
        if not (query.isascii() and query.isdecimal() and str(int(query[:20])) == query)
    )
    if len(answers) != kind.queries:
        odd.append(f"{count(len(answers), 'query')}, {kind.benchmark}'s hidden split has {kind.queries:,}")
    return odd


def _queries(answers: dict[str, Any], queries: pl.DataFrame) -> list[str]:
    there = set(queries["query_id"])
    missing = (f"query {query} is missing" for query in queries["query_id"] if query not in answers)
    unknown = (f"query {_short(query)} is not one of the split's" for query in answers if query not in there)
    return [*_some(missing), *_some(unknown)]


def _lengths(lists: pl.DataFrame, kind: Kind) -> list[str]:
    sizes = lists.select("query_id", number=pl.col("image_id").list.len(), different=pl.col("image_id").list.n_unique())
    other = sizes.filter(pl.col("number") != kind.images)
    twice = sizes.filter(pl.col("number") != pl.col("different"))
    return [
        *_some(
            f"query {_cut(query)}: {count(number, 'image')}, the server wants {kind.images}"
            for query, number, _ in other.iter_rows()
        ),
        *_some(
            f"query {_cut(query)}: {count(number - different, 'image')} too many, since an id stands more than once"
            for query, number, different in twice.iter_rows()
        ),
    ]


def _images(lists: pl.DataFrame, kind: Kind, known: Known) -> list[str]:
    """Faults of single images, where the index tells: unknown ones, CIRR's own reference, not of the query's group."""
    named = lists.explode("image_id").drop_nulls("image_id")
    faults = []
    if known.images is not None:
        unknown = named.filter(~pl.col("image_id").is_in(known.images.implode()))
        faults += _of_images(unknown, "which is not in the gallery")
    if known.queries is not None and kind is not CIRCO:
        known_queries = known.queries.select("query_id", "reference_id", "group_ids")
        asked = named.join(known_queries, on="query_id", maintain_order="left")
        faults += _of_images(asked.filter(pl.col("image_id") == pl.col("reference_id")), "its own reference image")
        if kind.of_group:
            outside = asked.filter(~pl.col("image_id").is_in("group_ids"))
            faults += _of_images(outside, "which is not in its group")
    return faults


def _of_images(rows: pl.DataFrame, what: str) -> list[str]:
    pairs = rows.select("query_id", "image_id").iter_rows()
    return _some(f"query {_cut(query)}: names {_short(image)}, {what}" for query, image in pairs)


def _some(lines: Iterable[str]) -> list[str]:
    """The first lines, and how many more there are like them."""
    every = list(lines)
    more = [f"and {len(every) - SHOWN:,} more like the last"] if len(every) > SHOWN else []
    return every[:SHOWN] + more


def _short(value: object) -> str:
    return repr(value)[:80]


def _cut(query: object) -> str:
    return str(query)[:80]
