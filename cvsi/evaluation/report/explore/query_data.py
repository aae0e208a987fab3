"""Queries, edits, captions and values per query to the data of the explorer's page, as JSON values.

Images are numbers: their place in a table of images, which the page loads once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import polars as pl

from cvsi.core import tables
from cvsi.core.schema import roles_in

KEY = ("split", "query_id")
DIGITS = 4
ROLE = "role "  # before the name of a role, in the columns of queries with texts
RAW = ("answers", "answer_status", "finish", "reader_answer", "reader_finish")  # of edits; the last two have a reader


@dataclass(frozen=True)
class Strip:
    """One method's first images of every query.

    `images` int64 [queries, k] are numbers of images, -1 where there are fewer; `scores` float32 has the same shape.
    `terms` float32 [queries, k, terms] are what each score consists of; none where they are not broken down.
    """

    images: np.ndarray
    scores: np.ndarray
    terms: np.ndarray | None = None


def queries_with_texts(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The queries of an index with the captions of their references, their edits, and the reader's roles."""
    references = frame["reference_id"].unique().implode()
    captions = pl.concat(
        pl.DataFrame(shard)
        .select(reference_id="image_id", captions="captions")
        .filter(pl.col("reference_id").is_in(references))
        for shard in tables.shards("captions", name)
    )
    edits = tables.whole("edits", name)
    more = [pl.col(role).alias(ROLE + role) for role in roles_in(edits.schema)]
    more += [pl.col(name) for name in ("reader_status", *RAW) if name in edits.column_names]
    texts = pl.DataFrame(edits).select(*KEY, "edited", "added", "status", *more)
    joined = frame.join(captions, on="reference_id", how="left", maintain_order="left")
    return joined.join(texts, on=KEY, how="left", maintain_order="left")


def columns(queries: pl.DataFrame, values: pl.DataFrame, main: str, numbers: Mapping[str, int]) -> dict[str, Any]:
    """The table of queries, column by column: what it shows, sorts and filters by.

    `values` are the rows of `methods.parquet`. A rank is that of the best target, null past the first 1,000.
    """
    best = pl.col("target_ranks").list.min().alias("rank")
    of_method = {}
    for method, rows in values.group_by("method", maintain_order=True):
        own = rows.select(*KEY, best, pl.col(main).round(2).alias("value"))
        joined = queries.select(*KEY).join(own, on=KEY, how="left", maintain_order="left")
        of_method[str(method[0])] = {"rank": joined["rank"].to_list(), "value": joined["value"].to_list()}
    aspects = queries["aspects"].explode().drop_nulls().unique(maintain_order=True).to_list()
    codes = {name: code for code, name in enumerate(aspects)}
    return {
        "split": queries["split"].to_list(),
        "id": queries["query_id"].to_list(),
        "reference": [numbers.get(image, -1) for image in queries["reference_id"]],
        "instruction": queries["instruction"].to_list(),
        "aspects": [[codes[name] for name in names] for names in queries["aspects"].to_list()],
        "aspectNames": aspects,
        "status": queries["status"].fill_null("").to_list(),
        "readerStatus": queries["reader_status"].fill_null("").to_list()
        if "reader_status" in queries.columns
        else None,
        "methods": of_method,
    }


def raw_characters(queries: pl.DataFrame) -> int:
    """How many characters the answers of the editor and of the reader have, all queries together."""
    texts = [queries["answers"].explode()] if "answers" in queries.columns else []
    texts += [queries["reader_answer"]] if "reader_answer" in queries.columns else []
    return sum(int(column.str.len_chars().sum()) for column in texts)


def details(
    queries: pl.DataFrame, values: pl.DataFrame, strips: Mapping[str, Strip], rows: slice, numbers: Mapping[str, int],
    raw: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """Everything about some queries that the table does not show, one entry per query.

    Without `raw`, the answers of the editor and of the reader are left out.
    """
    chosen = queries[rows]
    roles = [name.removeprefix(ROLE) for name in chosen.columns if name.startswith(ROLE)]
    keys = chosen.select(*KEY)
    ranks = {
        str(method[0]): keys.join(of_method, on=KEY, how="left", maintain_order="left")["target_ranks"].to_list()
        for method, of_method in values.group_by("method", maintain_order=True)
    }
    shown = {method: results(strip, rows) for method, strip in strips.items()}
    return [
        {
            "captions": row["captions"] or [],
            "edited": row["edited"] or [],
            "added": row["added"] or "",
            "roles": {role: row[ROLE + role] for role in roles if row[ROLE + role]},
            "reference": row["reference_id"],
            "second": numbers.get(row.get("second_reference_id") or "", -1),
            "targets": [[image, numbers.get(image, -1)] for image in row["target_ids"]],
            "negatives": [[image, numbers.get(image, -1)] for image in row.get("negative_ids") or ()],
            "ranks": {method: of_method[number] or [] for method, of_method in ranks.items()},
            "strips": {method: of_method[number] for method, of_method in shown.items()},
            "raw": _raw(row) if raw else None,
        }
        for number, row in enumerate(chosen.iter_rows(named=True))
    ]


def _raw(query: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """The answers of the editor and of the reader: text, status where each has one, and why it ended."""
    answers, statuses, ends = (query.get(name) or [] for name in RAW[:3])
    padded = zip_longest(answers, statuses[: len(answers)], ends[: len(answers)], fillvalue="")
    reader = query.get("reader_answer") or ""
    return {
        "editor": [list(answer) for answer in padded],
        "reader": [[reader, query.get("reader_status") or "", query.get("reader_finish") or ""]] if reader else [],
    }


def results(strip: Strip, rows: slice) -> list[list[list[float]]]:
    """For each query its results: number of the image, score, then the terms of the score."""
    images, scores = strip.images[rows], strip.scores[rows].astype(np.float64)
    parts: list[np.ndarray] = [images[..., None].astype(np.float64), np.round(scores, DIGITS)[..., None]]
    if strip.terms is not None:
        parts.append(np.round(strip.terms[rows].astype(np.float64), DIGITS))
    table = np.concatenate(parts, axis=2)
    return [[_whole(result) for result in query if result[0] >= 0] for query in table.tolist()]


def _whole(result: Sequence[float]) -> list[float]:
    """A result with its image's number as an integer, and no minus before a zero."""
    return [int(result[0]), *(number + 0.0 for number in result[1:])]
