"""Submission files: what the server would refuse is refused here."""

import json

import polars as pl
import pytest

from cvsi.errors import CvsiError
from cvsi.submissions import SUBMISSIONS, build

FORM = SUBMISSIONS["circo"][0]
QUERIES = pl.DataFrame({"query_id": ["10", "2"]})


def rankings(images: int, queries: tuple[str, ...] = ("10", "2")) -> pl.DataFrame:
    rows = [(query, rank, str(100 + rank)) for query in queries for rank in range(1, images + 1)]
    return pl.DataFrame(rows, schema=["query_id", "rank", "image_id"], orient="row")


def test_all_queries_with_fifty_integers_in_order() -> None:
    content = json.loads(build(FORM, QUERIES, rankings(100)))
    assert content == {"10": list(range(101, 151)), "2": list(range(101, 151))}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(CvsiError, match="query 10 has 49 ranked images, the server wants 50"):
        build(FORM, QUERIES, rankings(49))


def test_a_query_without_images_is_refused() -> None:
    with pytest.raises(CvsiError, match="query 2 has 0 ranked images"):
        build(FORM, QUERIES, rankings(100, ("10",)))


def test_an_image_twice_is_refused() -> None:
    twice = rankings(100).with_columns(pl.col("image_id").replace("102", "101"))
    with pytest.raises(CvsiError, match="50 different ones"):
        build(FORM, QUERIES, twice)
