"""A query ranked for changed numbers has the images of `scores`, for every score form and part; terms add up."""

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cvsi.core.params import Params
from cvsi.evaluation import methods
from cvsi.evaluation.breakdown import Pairs, adds_up, break_down, term_names
from cvsi.evaluation.fusion import Fusion, read_fusion
from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.ranking import rank
from cvsi.evaluation.vectors import fuse, fuse_queries
from cvsi.explorer.kept_gallery import KeptGallery
from cvsi.explorer.live_ranking import LiveRanking
from tests.conftest import project_params
from tests.evaluation.test_forms import COLUMNS, IMAGES, QUERIES, table, vectors

ROWS = (0, 3, 7, 55, 90, 999)  # some with zero vectors, equal and opposite ones
SHARD = 1777
METHODS = {
    name: fusion
    for name, fusion in methods.table(Params.model_validate(project_params()), "demo").items()
    if set(fusion.query_columns) <= set(COLUMNS)
}
CHANGED: dict[str, dict[str, Any]] = {
    "weights": {
        "query": {"edited": 0.35, "instruction": -0.2, "pseudo": 1.5},
        "gallery": {"image": 0.1, "caption": 0.9},
    },
    "unit": {"query": {"edited": 0.5, "reference": 0.5}, "gallery": {"image": 0.7, "caption": -0.3}, "unit": True},
}


def shards() -> Iterator[pa.Table]:
    whole = table(vectors()[1])
    for start in range(0, IMAGES, SHARD):
        yield whole.slice(start, SHARD)


@cache
def live() -> LiveRanking:
    gallery = SimpleNamespace(size=IMAGES, shards=lambda backbone: shards())
    inputs: Any = SimpleNamespace(
        gallery=gallery, backbone="tiny", queries=table(vectors()[0]), query_path="q", gallery_path="g",
        gallery_schema=table(vectors()[1]).schema,
    )  # fmt: skip
    return LiveRanking(inputs, KeptGallery(inputs))


def excluded() -> NamedImages:
    none = np.full((QUERIES, 1), -1, dtype=np.int64)
    return NamedImages(np.array([[row, 41] for row in range(QUERIES)]), none, none)


@cache
def of_scores(name: str) -> tuple[np.ndarray, np.ndarray]:
    fusion = chosen(name)
    images = ([fuse(part, form.gallery, "g", form.unit) for form in fusion.forms.values()] for part in shards())
    ranking = rank(fuse_queries(table(vectors()[0]), fusion, "q"), images, excluded(), 100, fusion.scorer)
    return ranking.positions, ranking.scores


def chosen(name: str) -> Fusion:
    return METHODS[name] if name in METHODS else read_fusion(CHANGED[name], "here")


@pytest.mark.parametrize("name", [*METHODS, *CHANGED])
def test_the_first_images_are_those_of_scores(name: str) -> None:
    positions, scores = of_scores(name)
    for row in ROWS:
        first = live().rank(row, chosen(name), np.array([41]), 20)
        assert first.scores == pytest.approx(scores[row, :20], abs=2e-6)
        differ = first.positions != positions[row, :20]
        # Another number of queries in one product may round the last bit otherwise: only near-ties may change places.
        assert not differ.any() or np.ptp(first.scores[differ]) < 2e-6 * differ.sum()
        assert 41 not in first.positions


@pytest.mark.parametrize("name", [*METHODS, *CHANGED])
def test_terms_are_the_linear_scores_and_add_up(name: str) -> None:
    fusion, (positions, scores) = chosen(name), of_scores(name)
    rows = np.repeat(np.array(ROWS), 20)
    pairs = Pairs(rows, positions[list(ROWS), :20].reshape(-1))
    values = break_down(live().inputs, shards(), {name: (fusion, pairs)})[name]
    assert values.shape == (len(rows), len(term_names(fusion)))
    if adds_up(fusion):
        assert values.sum(axis=1) == pytest.approx(scores[list(ROWS), :20].reshape(-1), abs=1e-5)
        return
    queries = fuse_queries(table(vectors()[0]), fusion, "q")
    for term, (form, query) in enumerate(zip(fusion.forms.values(), queries, strict=True)):
        images = fuse(table(vectors()[1]), form.gallery, "g", form.unit)
        assert values[:, term] == pytest.approx((query[rows] * images[pairs.positions]).sum(axis=1), abs=1e-5)


def test_a_small_gallery_has_fewer_images() -> None:
    first = live().rank(0, chosen("cvsi"), np.arange(IMAGES - 5), 20)
    assert set(first.positions.tolist()) == set(range(IMAGES - 5, IMAGES))
