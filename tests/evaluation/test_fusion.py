"""Named weightings against the table of the design, and the weighted sum against numpy."""

import numpy as np
import pyarrow as pa
import pytest

from cvsi.core.errors import CvsiError
from cvsi.core.params import Fusion, GalleryWeights, QueryWeights
from cvsi.evaluation.fusion import fuse, needs, weightings

OWN = Fusion(query=QueryWeights(edited=0.6, pseudo=0.4), gallery=GalleryWeights(image=0.8, caption=0.2))


def test_the_named_weightings() -> None:
    named = weightings(OWN)
    assert list(named) == ["cvsi", "edited", "pseudo", "image", "text", "image+text", "pdv"]
    assert named["cvsi"] == OWN
    assert needs(named["image+text"].query) == {"reference": 0.5, "instruction": 0.5}
    assert all(needs(named[name].gallery) == {"image": 1.0} for name in named if name != "cvsi")
    # b aT + (1-b) aI, 0, 1-b, b (1-aT) - (1-b) aI, 0 with b = .75, aI = aT = 1.4
    assert needs(named["pdv"].query) == pytest.approx({"edited": 1.4, "reference": 0.25, "source": -0.65})


def test_pdv_is_what_its_paper_says() -> None:
    edited, reference, source = np.random.default_rng(0).normal(size=(3, 8))
    text_side = source + 1.4 * (edited - source)
    image_side = reference + 1.4 * (edited - source)
    mixed = 0.75 * text_side + 0.25 * image_side
    weights = needs(weightings(OWN)["pdv"].query)
    assert weights["edited"] * edited + weights["reference"] * reference + weights["source"] * source == pytest.approx(
        mixed
    )


def column(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def test_the_weighted_sum_of_a_sliced_table() -> None:
    random = np.random.default_rng(0)
    left, right = random.normal(size=(2, 10, 4)).astype(np.float16).astype(np.float64)
    table = pa.table({"image": column(left.astype(np.float16)), "caption": column(right.astype(np.float16))}).slice(
        3, 5
    )
    found = fuse(table, {"image": 0.8, "caption": -0.2}, "here")
    assert found.dtype == np.float32
    assert found == pytest.approx(0.8 * left[3:8] - 0.2 * right[3:8], abs=1e-6)


def test_weights_that_are_all_zero() -> None:
    with pytest.raises(CvsiError, match="all weights are zero"):
        fuse(pa.table({"image": column(np.ones((2, 2)))}), {}, "here")
