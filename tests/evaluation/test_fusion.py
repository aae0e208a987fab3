"""A block `fusion` to a fusion: which ones are refused and how, and the weighted sum against numpy."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cvsi.core.errors import CvsiError
from cvsi.evaluation.fusion import read_fusion
from cvsi.evaluation.vectors import fuse

OWN = {"query": {"edited": 0.6, "pseudo": 0.4}, "gallery": {"image": 0.8, "caption": 0.2}}


def column(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def test_the_weighted_sum_of_a_sliced_table() -> None:
    random = np.random.default_rng(0)
    left, right = random.normal(size=(2, 10, 4)).astype(np.float16).astype(np.float64)
    table = pa.table({"image": column(left.astype(np.float16)), "caption": column(right.astype(np.float16))}).slice(
        3, 5
    )
    fused = fuse(table, {"image": 0.8, "caption": -0.2}, "here")
    assert fused.dtype == np.float32
    assert fused == pytest.approx(0.8 * left[3:8] - 0.2 * right[3:8], abs=1e-6)


def test_unit_vectors_and_a_zero_vector_that_remains_zero() -> None:
    table = pa.table({"image": column(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))})
    assert fuse(table, {"image": 2.0}, "here", unit=True) == pytest.approx(np.array([[0.6, 0.8], [0, 0]]), abs=1e-7)


def test_weights_that_are_all_zero() -> None:
    with pytest.raises(CvsiError, match="all weights are zero"):
        fuse(pa.table({"image": column(np.ones((2, 2)))}), {}, "here")


def test_the_order_in_the_file_and_zeros_change_nothing() -> None:
    turned = {
        "gallery": {"caption": 0.2, "image": 0.8},
        "query": {"source": 0, "pseudo": 0.4, "edited": 0.6},
        "score": {"kind": "sum"},
    }
    fusion, other = read_fusion(OWN, "here"), read_fusion(turned, "here")
    assert fusion == other and fusion.recipe() == other.recipe() == OWN | {"score": {"kind": "sum"}}
    assert fusion.weights is not None and list(fusion.weights.query) == ["edited", "pseudo"]
    assert fusion.describe() == "0.6 edited + 0.4 pseudo, on 0.8 image + 0.2 caption"


def test_any_column_may_have_a_weight() -> None:
    fusion = read_fusion({"query": {"target": 1, "forbidden": -0.25}, "gallery": {"objects": 1}}, "here")
    assert fusion.weights is not None and fusion.weights.query == {"forbidden": -0.25, "target": 1.0}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"query": {"edited": "much"}}, "datasets.toy.fusion.query.edited: .*number.* (got 'much')"),
        ({"query": {"edited": float("nan")}}, "datasets.toy.fusion.query.edited: .*finite"),
        ({"query": {"an image": 1.0}}, "datasets.toy.fusion.query.an image"),
        ({"query": 1}, "datasets.toy.fusion.query: .*dictionary"),
        ({"galery": {"image": 1}}, "datasets.toy.fusion.galery: unknown key"),
        (
            {"score": {"kind": "gates"}},
            "datasets.toy.fusion.score.kind: unknown score form 'gates'; there are: sum, gate",
        ),
        ({"score": {"kind": "gate"}}, "datasets.toy.fusion.score.scale: key is missing"),
        ({"score": {"kind": "sum", "scale": 4}}, "datasets.toy.fusion.score.scale: unknown key"),
        ({"score": "sum"}, "datasets.toy.fusion.score: must be a mapping with the key kind; there are: sum"),
        ({"forms": {}}, "datasets.toy.fusion.query: unknown key"),
    ],
)
def test_a_bad_fusion_is_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(
        CvsiError, match=f"^params.yaml: {line}".replace("(got", r"\(got").replace("')", r"'\)")
    ) as error:
        read_fusion(OWN | change, "datasets.toy.fusion")
    assert "\n" not in str(error.value)


def test_a_fusion_without_a_gallery_and_one_with_other_forms() -> None:
    with pytest.raises(CvsiError, match=r"params\.yaml: datasets\.toy\.fusion\.gallery: key is missing"):
        read_fusion({"query": {"edited": 1.0}}, "datasets.toy.fusion")
    with pytest.raises(CvsiError, match=r"fusion.forms: score form 'sum' takes the forms similarity \(got base\)"):
        read_fusion({"forms": {"base": OWN}}, "datasets.toy.fusion")
