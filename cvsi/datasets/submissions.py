"""A submission's text to a list of what its benchmark's server would refuse; nothing is written here.

The stage scores checks a file before it writes it, the command `check-submission` at any time. How much is checked
depends on what is known of the queries: with an index everything, without one the form and the number of queries.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from pydantic import StrictInt, StrictStr, TypeAdapter, ValidationError

from cvsi.core.console import count
from cvsi.core.strict_json import parse_json

MAX_BYTES = 5_000_000
SHOWN = 10


@dataclass(frozen=True)
class Submission:
    """One kind of file that a benchmark's server takes: a JSON object with a list of image ids per query.

    A list has `images` ids, of the gallery or of the query's group. `hidden_queries` is the number of queries of the
    benchmark's hidden split. The keys of `header` precede the queries. `metric` is part of the file's name.
    """

    benchmark: str
    metric: str
    images: int
    hidden_queries: int
    header: Mapping[str, str] = field(default_factory=dict, hash=False)
    integer_ids: bool = False
    numbered_queries: bool = True
    of_group: bool = False
    without_reference: bool = False


@dataclass(frozen=True)
class SubmissionReference:
    """What a file is checked against: the queries to answer (as `schema.QUERIES`) and the gallery's ids, if known."""

    queries: pl.DataFrame | None = None
    images: pl.Series | None = None


def inspect(
    text: str, kinds: Sequence[Submission], reference: SubmissionReference, where: str
) -> tuple[Submission, int, list[str]]:
    """Which of `kinds` a file is, how many queries it answers, and its faults, one line each, 10 of each sort at most.

    Raises CvsiError that begins with `where` for text that is not one JSON object of plain values with distinct keys.
    """
    content = parse_json(text, dict[str, Any], where)
    kind = kind_of(content, kinds)
    faults = _header(content, kind, kinds)
    size = len(text.encode())
    if size > MAX_BYTES:
        faults.append(f"{size:,} bytes, the server takes {MAX_BYTES:,} at most")
    answers = {query: images for query, images in content.items() if query not in kind.header}
    typed, wrong = _typed(answers, kind)
    faults += _first(wrong)
    faults += _numbers(answers, kind) if reference.queries is None else _queries(answers, reference.queries)
    lists = pl.DataFrame(
        {"query_id": list(typed), "image_id": list(typed.values())},
        schema={"query_id": pl.String, "image_id": pl.List(pl.String)},
    )
    return kind, len(answers), faults + _lengths(lists, kind) + _images(lists, kind, reference)


def kind_of(content: Mapping[str, Any], kinds: Sequence[Submission]) -> Submission:
    """The kind whose header agrees best with a file's, by keys, then by values; then by the lengths of the lists."""
    lengths = [len(images) for images in content.values() if isinstance(images, list)]

    def agreement(kind: Submission) -> tuple[int, int, int, int]:
        present = kind.header.keys() & content.keys()
        equal = sum(content[key] == kind.header[key] for key in present)
        return len(present), -len(kind.header.keys() - present), equal, lengths.count(kind.images)

    return max(kinds, key=agreement)


def _header(content: Mapping[str, Any], kind: Submission, kinds: Sequence[Submission]) -> list[str]:
    """A line for each key of the header whose value is none that the server takes."""
    alike = [other.header for other in kinds if other.header.keys() == kind.header.keys()]
    faults = []
    for key in kind.header:
        values = list(dict.fromkeys(header[key] for header in alike))
        if content.get(key) not in values:
            wanted = " or ".join(map(repr, values))
            faults.append(f"{key} is {_short(content.get(key))}, the server expects {wanted}")
    return faults


def _typed(answers: dict[str, Any], kind: Submission) -> tuple[dict[str, list[str]], list[str]]:
    """The answers that are lists of ids of the right type, ids as strings; second, a line for each of the others."""
    shape: TypeAdapter[Any] = TypeAdapter(
        dict[str, list[StrictInt]] if kind.integer_ids else dict[str, list[StrictStr]]
    )
    wrong = []
    try:
        shape.validate_python(answers)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            query, *index = fault["loc"]
            what = f"image {int(index[0]) + 1}" if index else "its value"
            wanted = ("an integer" if kind.integer_ids else "a string") if index else "a list"
            line = f"query {_cut(query)}: {what} is {_short(fault['input'])}, the server expects {wanted}"
            wrong.append((query, line))
    bad = {query for query, _ in wrong}
    good = {query: [str(image) for image in images] for query, images in answers.items() if query not in bad}
    return good, [line for _, line in wrong]


def _numbers(answers: dict[str, Any], kind: Submission) -> list[str]:
    """Faults of the queries' ids where only the benchmark's form of ids and their number are known."""
    faults = []
    if kind.numbered_queries:
        faults = _first(
            f"query {_short(query)} is not a number as the benchmark writes it"
            for query in answers
            if not (query.isascii() and query.isdecimal() and str(int(query[:20])) == query)
        )
    if len(answers) != kind.hidden_queries:
        faults.append(f"{count(len(answers), 'query')}, {kind.benchmark}'s hidden split has {kind.hidden_queries:,}")
    return faults


def _queries(answers: dict[str, Any], queries: pl.DataFrame) -> list[str]:
    known = set(queries["query_id"])
    missing = (f"query {query} is missing" for query in queries["query_id"] if query not in answers)
    unknown = (f"query {_short(query)} is not one of the split's" for query in answers if query not in known)
    return [*_first(missing), *_first(unknown)]


def _lengths(lists: pl.DataFrame, kind: Submission) -> list[str]:
    ids = pl.col("image_id").list
    sizes = lists.select("query_id", number=ids.len(), duplicates=ids.len() - ids.n_unique())
    return [
        *_first(
            f"query {_cut(query)}: {count(number, 'image')}, the server expects {kind.images}"
            for query, number, _ in sizes.filter(pl.col("number") != kind.images).iter_rows()
        ),
        *_first(
            f"query {_cut(query)}: {count(duplicates, 'duplicate image id')}"
            for query, _, duplicates in sizes.filter(pl.col("duplicates") > 0).iter_rows()
        ),
    ]


def _images(lists: pl.DataFrame, kind: Submission, reference: SubmissionReference) -> list[str]:
    """Faults of single images: not in the gallery, the query's own reference, not of the query's group."""
    named = lists.explode("image_id").drop_nulls("image_id")
    faults = []
    if reference.images is not None:
        unknown = named.filter(~pl.col("image_id").is_in(reference.images.implode()))
        faults += _of_images(unknown, "which is not in the gallery")
    if reference.queries is not None:
        queries = reference.queries.select("query_id", "reference_id", "group_ids")
        joined = named.join(queries, on="query_id", maintain_order="left")
        if kind.without_reference:
            own = joined.filter(pl.col("image_id") == pl.col("reference_id"))
            faults += _of_images(own, "its own reference image")
        if kind.of_group:
            outside = joined.filter(~pl.col("image_id").is_in("group_ids"))
            faults += _of_images(outside, "which is not in its group")
    return faults


def _of_images(rows: pl.DataFrame, what: str) -> list[str]:
    pairs = rows.select("query_id", "image_id").iter_rows()
    return _first(f"query {_cut(query)}: names {_short(image)}, {what}" for query, image in pairs)


def _first(lines: Iterable[str]) -> list[str]:
    """The first lines, and how many more there are like them."""
    every = list(lines)
    more = [f"and {len(every) - SHOWN:,} more like the last"] if len(every) > SHOWN else []
    return every[:SHOWN] + more


def _short(value: object) -> str:
    return repr(value)[:80]


def _cut(query: object) -> str:
    return str(query)[:80]
