"""Score forms: one registered from here, with several linear scores and numbers of its own."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cvsi.core.errors import CvsiError
from cvsi.evaluation.fusion import read_fusion
from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.ranking import rank
from cvsi.evaluation.scorers import SCORERS, Scorer, Tile, scorer_of

BLOCK = {
    "forms": {
        "likeness": {"query": {"edited": 1.0}, "gallery": {"image": 1.0}, "unit": True},
        "penalty": {"query": {"forbidden": 1.0}, "gallery": {"image": 1.0}, "unit": True},
    },
    "score": {"kind": "without", "scale": 0.5},
}


class Without(Scorer):
    """A score less a scaled penalty; a query without a text for the penalty has none."""

    forms: ClassVar[tuple[str, ...]] = ("likeness", "penalty")

    scale: float

    def combine(self, tiles: Mapping[str, Tile]) -> Tensor:
        """The difference, element by element."""
        penalty = (tiles["penalty"].products + 1).masked_fill_(tiles["penalty"].empty, 0)
        return tiles["likeness"].products - self.scale * penalty


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    SCORERS.register("without", Without)
    yield
    del SCORERS._registered["without"]


def test_a_registered_form_is_read_with_its_numbers() -> None:
    fusion = read_fusion(BLOCK, "here")
    assert fusion.scorer == Without(kind="without", scale=0.5) and list(fusion.forms) == ["likeness", "penalty"]
    assert fusion.weights is None and fusion.recipe()["score"] == {"kind": "without", "scale": 0.5}
    assert fusion.recipe()["forms"]["penalty"] == BLOCK["forms"]["penalty"]  # type: ignore[index]
    assert fusion.describe() == (
        "without (scale 0.5) of likeness: 1 edited, on 1 image; penalty: 1 forbidden, on 1 image"
    )


def test_unknown_kinds_forms_and_numbers_are_one_line() -> None:
    for block, line in (
        (
            BLOCK | {"score": {"kind": "nothing"}},
            r"here\.score\.kind: unknown score form 'nothing'; there are: sum, gate, soft, slope, product, wi",
        ),
        (BLOCK | {"score": {"kind": "without"}}, r"here\.score\.scale: key is missing"),
        (BLOCK | {"forms": {}}, r"here\.forms: score form 'without' takes the forms likeness, penalty \(got none\)"),
        ({"score": BLOCK["score"], "query": {}, "gallery": {}}, r"here\.forms: score form 'without' takes the forms"),
    ):
        with pytest.raises(CvsiError, match=rf"^params\.yaml: {line}"):
            read_fusion(block, "here")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(CvsiError, match="score form 'without' is defined twice"):
        SCORERS.register("without", Without)


@pytest.mark.parametrize("images", [40, 5000])
def test_a_ranking_by_several_linear_scores(images: int) -> None:
    random = np.random.default_rng(1)
    left, penalty = random.normal(size=(2, 7, 8)).astype(np.float32)
    right = random.normal(size=(images, 8)).astype(np.float32)
    penalty[3] = 0
    named = NamedImages(np.array([[0, 5]]), np.full((7, 1), 3), random.integers(0, images, (7, 2)))
    shards = ([right[start : start + 900]] * 2 for start in range(0, images, 900))
    ranking = rank([left, penalty], shards, named, 10, scorer_of(BLOCK["score"], "here"))
    scores = left @ right.T - 0.5 * np.where(penalty.any(axis=1, keepdims=True), penalty @ right.T + 1, 0)
    scores[0, 5] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    assert np.array_equal(ranking.positions, order[:, :10])
    ranks = np.take_along_axis(np.argsort(order, axis=1), named.targets, axis=1) + 1
    assert np.array_equal(ranking.target_ranks, np.where(ranks <= 1000, ranks, 0))
    assert ranking.group_scores[:, 0] == pytest.approx(scores[:, 3], abs=1e-5)


def test_the_sum_writes_its_products_in_one_step() -> None:
    """No copy: the tensor that is returned is the one that the product was written to."""
    products = torch.ones(2, 3)
    scorer = scorer_of({"kind": "sum"}, "here")
    assert scorer.combine({"similarity": Tile(products, torch.zeros(2, 1, dtype=torch.bool))}) is products
