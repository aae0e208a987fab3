"""Ranks counted above a margin are those of `scores`, for every score form, with equal scores and excluded images."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cvsi.core.vector_columns import column
from cvsi.evaluation.fusion import Fusion, read_fusion
from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.ranking import TILE_ROWS, Combination, LinearScore, rank_targets
from cvsi.evaluation.vectors import fuse_queries
from cvsi.explorer import target_counts
from cvsi.explorer.kept_gallery import KeptGallery
from tests.evaluation.test_forms import IMAGES, QUERIES, table, vectors
from tests.explorer.test_live_ranking import CHANGED, METHODS, chosen

SHARD = 1777


def gallery_of(whole: pa.Table) -> KeptGallery:
    def shards(backbone: str) -> Any:
        return (whole.slice(start, SHARD) for start in range(0, whole.num_rows, SHARD))

    inputs: Any = SimpleNamespace(
        gallery=SimpleNamespace(size=whole.num_rows, shards=shards), backbone="tiny", gallery_path="g"
    )
    return KeptGallery(inputs)


def named(kind: str) -> NamedImages:
    """Targets, some of them none, excluded or the same, and groups."""
    random = np.random.default_rng(3)
    slots = 1 if kind == "one each" else 7
    targets = random.integers(IMAGES, size=(QUERIES, slots))
    if kind == "some":
        targets[random.random(targets.shape) < 0.5] = -1
        targets[5] = targets[5, 0]
    groups = random.integers(-1, IMAGES, size=(QUERIES, 4))
    excluded = np.array([[row, targets[row, 0]] for row in range(0, QUERIES, 9) if targets[row, 0] >= 0])
    if kind == "one each":
        excluded = np.empty((0, 2), dtype=np.int64)
    return NamedImages(excluded, groups, targets)


def both(
    fusion: Fusion, gallery: KeptGallery, queries: list[np.ndarray], images: NamedImages
) -> tuple[tuple[np.ndarray, np.ndarray] | None, tuple[np.ndarray, np.ndarray]]:
    sides = [(form.gallery, form.unit) for form in fusion.forms.values()]
    fused = [np.concatenate(parts) for parts in zip(*gallery.fused(sides), strict=True)]

    def tiles() -> Any:
        return ([matrix[start : start + TILE_ROWS] for matrix in fused] for start in range(0, IMAGES, TILE_ROWS))

    linear = [LinearScore(matrix, side) for side, matrix in enumerate(queries)]
    scored = [Combination(fusion.scorer, tuple(range(len(linear))))]
    (expected,) = rank_targets(linear, scored, tiles(), images)
    return target_counts.rank_targets(queries, fusion, gallery, tiles(), images), expected


@pytest.mark.parametrize("kind", ["one each", "some"])
@pytest.mark.parametrize("name", [*METHODS, *CHANGED])
def test_ranks_are_those_of_scores(name: str, kind: str) -> None:
    fusion = chosen(name)
    queries, images = vectors()
    found, expected = both(fusion, gallery_of(table(images)), fuse_queries(table(queries), fusion, "q"), named(kind))
    assert found is not None
    assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    assert (expected[0] > 0).any()


OWN = read_fusion({"query": {"edited": 1.0}, "gallery": {"image": 1.0}}, "here")


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-6])
@pytest.mark.parametrize("copies", [1, 3, 50])
def test_copies_of_a_target_rank_by_position(copies: int, scale: float) -> None:
    random = np.random.default_rng(1)
    matrix = random.standard_normal((IMAGES, 16)).astype(np.float32) * scale
    matrix[np.arange(copies) * 37 + 11] = matrix[4000]
    queries = [random.standard_normal((QUERIES, 16)).astype(np.float32)]
    nothing = np.full((QUERIES, 1), -1)
    wanted = np.full((QUERIES, 1), 4000)
    found, expected = both(
        OWN,
        gallery_of(pa.table({"image": column(matrix)})),
        queries,
        NamedImages(np.empty((0, 2), int), nothing, wanted),
    )
    assert found is not None and np.array_equal(found[0], expected[0])


def test_it_does_not_tell_where_very_many_scores_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_counts, "MOST_KEPT", 1000)
    queries = [np.zeros((QUERIES, 16), dtype=np.float32)]
    nothing, wanted = np.full((QUERIES, 1), -1), np.full((QUERIES, 1), 3)
    images = pa.table({"image": column(np.ones((IMAGES, 16), dtype=np.float32))})
    found, expected = both(OWN, gallery_of(images), queries, NamedImages(np.empty((0, 2), int), nothing, wanted))
    assert found is None and (expected[0] == 4).all()


def test_it_does_not_tell_where_a_target_is_not_within_its_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_counts, "MARGIN", -1.0)
    queries, images = vectors()
    found, _ = both(OWN, gallery_of(table(images)), fuse_queries(table(queries), OWN, "q"), named("some"))
    assert found is None
