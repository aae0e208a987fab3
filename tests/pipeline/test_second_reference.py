"""Second reference images: captions of both in turn, files, and the unit mean of both vectors."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from cvsi.pipeline.second_reference import (
    mean_of_references,
    second_references,
    with_second_captions,
    with_second_files,
)

LIST = pl.List(pl.String)
CAPTIONS = pl.DataFrame(
    {"image_id": ["a", "b", "c", "d"], "captions": [["a1", "a2", "a3"], ["b1"], [], ["a1", "d2", "d3", "d4"]]},
    schema={"image_id": pl.String, "captions": LIST},
)
IMAGES = pl.DataFrame({"image_id": ["a", "b", "c", "d"], "digest": list("ABCD"), "path": ["1", "2", "3", "4"]})


def queries(*pairs: tuple[str, str]) -> pl.DataFrame:
    frame = pl.DataFrame(pairs, schema=["reference_id", "second_reference_id"], orient="row")
    joined = frame.join(CAPTIONS.rename({"image_id": "reference_id"}), on="reference_id", how="left")
    joined = joined.join(IMAGES.rename({"image_id": "reference_id"}), on="reference_id", how="left")
    return joined.with_columns(query_id=pl.int_range(pl.len()).cast(pl.String))


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (("a", ""), ["a1", "a2", "a3"]),
        (("a", "b"), ["a1", "b1", "a2", "a3"]),
        (("b", "a"), ["b1", "a1", "a2", "a3"]),
        (("a", "d"), ["a1", "a1", "a2", "d2", "a3", "d3", "d4"]),
        (("c", "b"), ["b1"]),
        (("b", "c"), ["b1"]),
        (("c", ""), []),
        (("c", "c"), []),
    ],
)
def test_captions_of_both_images_in_turn(pair: tuple[str, str], expected: list[str]) -> None:
    rows = queries(("b", ""), pair, ("a", "b"))
    joined = with_second_captions(rows, CAPTIONS)
    assert joined["captions"].to_list() == [["b1"], expected, ["a1", "b1", "a2", "a3"]]
    assert joined.drop("captions").equals(rows.drop("captions"))


def test_queries_without_the_column_stay_as_they_are() -> None:
    rows = queries(("a", "")).drop("second_reference_id")
    assert with_second_captions(rows, CAPTIONS) is rows and with_second_files(rows, IMAGES) is rows
    assert second_references(rows).is_empty()


def test_the_mean_of_both_vectors_is_scaled_to_unit_length() -> None:
    vector_of: dict[Any, list[float]] = {"A": [1, 0, 0], "B": [0, 1, 0], "C": [0, 0, 1], "D": [-1, 0, 0]}
    rows = with_second_files(queries(("a", ""), ("a", "b"), ("a", "a"), ("c", "d"), ("a", "d")), IMAGES)
    means = mean_of_references(
        rows, lambda chosen: np.array([vector_of[digest] for digest in chosen["digest"]], dtype=np.float32)
    )
    half = 0.5**0.5
    assert means == pytest.approx(np.array([[1, 0, 0], [half, half, 0], [1, 0, 0], [-half, 0, half], [0, 0, 0]]))
    assert second_references(rows).select("digest", "path").rows() == [("B", "2"), ("A", "1"), ("D", "4"), ("D", "4")]
