"""Exact streaming top-k and target ranks against a plain sort: ties, exclusions, groups, any shards and blocks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.ranking import PRODUCT, Combination, LinearScore, group_ranks, rank, rank_targets, topk_stable
from cvsi.evaluation.target_ranks import TargetRanks

NO_PAIRS = np.empty((0, 2), dtype=np.int64)


def named(queries: int, excluded: np.ndarray = NO_PAIRS, groups: Any = None, targets: Any = None) -> NamedImages:
    none = np.full((queries, 1), -1, dtype=np.int64)
    return NamedImages(excluded, *(none if images is None else np.asarray(images) for images in (groups, targets)))


def shards(matrix: np.ndarray, size: int) -> list[list[np.ndarray]]:
    return [[matrix[start : start + size]] for start in range(0, len(matrix), size)]


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 5),
    images=st.integers(1, 40),
    k=st.integers(1, 12),
    shard=st.integers(1, 15),
    excluded=st.integers(0, 10),
)
def test_equals_a_stable_sort(seed: int, queries: int, images: int, k: int, shard: int, excluded: int) -> None:
    random = np.random.default_rng(seed)
    # Small integers: exact in float32, and full of ties.
    left = random.integers(-2, 3, (queries, 4)).astype(np.float32)
    right = random.integers(-2, 3, (images, 4)).astype(np.float32)
    pairs = np.stack([random.integers(queries, size=excluded), random.integers(images, size=excluded)], axis=1)
    groups = random.integers(-1, images, (queries, 3))
    ranking = rank([left], shards(right, shard), named(queries, pairs, groups), k)

    scores = left @ right.T
    scores[pairs[:, 0], pairs[:, 1]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    assert np.array_equal(ranking.positions, np.where(best == -np.inf, -1, order))
    assert np.array_equal(ranking.scores, best)
    expected = np.where(groups >= 0, np.take_along_axis(scores, np.maximum(groups, 0), axis=1), -np.inf)
    assert np.array_equal(ranking.group_scores, expected)


def test_all_equal_scores_rank_by_position() -> None:
    ones = np.ones((2, 3), dtype=np.float32)
    gallery = np.ones((1000, 3), dtype=np.float32)
    ranking = rank([ones], shards(gallery, 64), named(2, targets=[[999, 0], [5, -1]]))
    assert ranking.positions.tolist() == [list(range(100))] * 2
    assert ranking.target_ranks.tolist() == [[1000, 1], [6, 0]]


def test_a_tie_at_the_edge_takes_the_lower_position() -> None:
    values, columns = topk_stable(torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]), 2)
    assert values.tolist() == [[3.0, 2.0]] and columns.tolist() == [[1, 2]]


def test_an_excluded_image_is_never_ranked() -> None:
    left, right = np.ones((1, 2), dtype=np.float32), np.ones((3, 2), dtype=np.float32)
    ranking = rank([left], [[right]], named(1, np.array([[0, 1]]), targets=[[1, 2]]), 3)
    assert ranking.positions.tolist() == [[0, 2, -1]] and ranking.target_ranks.tolist() == [[0, 2]]


@pytest.mark.parametrize("images", [1, 7])
def test_fewer_images_than_k(images: int) -> None:
    left, right = np.ones((1, 2), dtype=np.float32), np.ones((images, 2), dtype=np.float32)
    assert rank([left], [[right]], named(1), 10).positions.tolist() == [list(range(images))]


@pytest.mark.parametrize("shard", [1, 37, 4096, 5000])
def test_shards_change_no_bit_and_equal_images_score_equally(shard: int) -> None:
    random = np.random.default_rng(2)
    left, right = random.normal(size=(30, 48)).astype(np.float32), random.normal(size=(5003, 48)).astype(np.float32)
    right[::7] = right[3]
    images = named(
        30, groups=np.tile(np.arange(0, 5003, 7), (30, 1)), targets=np.tile(np.arange(0, 5003, 501), (30, 1))
    )
    ranking = rank([left], shards(right, shard), images, 50)
    assert (ranking.group_scores == ranking.group_scores[:, :1]).all()
    whole = rank([left], [[right]], images, 50)
    assert np.array_equal(ranking.scores, whole.scores) and np.array_equal(ranking.positions, whole.positions)
    assert np.array_equal(ranking.target_ranks, whole.target_ranks)
    alone = [Combination(PRODUCT, (0,))]
    ((target_ranks, group_scores),) = rank_targets([LinearScore(left, 0)], alone, shards(right, shard), images)
    assert np.array_equal(target_ranks, whole.target_ranks) and np.array_equal(group_scores, whole.group_scores)


@pytest.mark.parametrize("levels", [3, 10_000])
def test_target_ranks_to_the_thousandth_over_several_blocks(levels: int) -> None:
    """The real block size: targets in every block, many past the first 1,000, with and without ties."""
    random = np.random.default_rng(levels)
    left = random.integers(-levels, levels, (12, 3)).astype(np.float32)
    right = random.integers(-levels, levels, (10_000, 3)).astype(np.float32)
    targets = random.integers(-1, 10_000, (12, 40))
    excluded = np.stack([np.arange(12), targets[:, 0].clip(0)], axis=1)
    scores = left.astype(np.float64) @ right.T.astype(np.float64)
    best = np.argsort(-scores, axis=1)
    targets[:, 20:] = np.take_along_axis(best, random.integers(0, 1200, (12, 20)), axis=1)
    ranks = rank([left], shards(right, 3000), named(12, excluded, targets=targets)).target_ranks
    scores[excluded[:, 0], excluded[:, 1]] = -np.inf
    assert np.array_equal(ranks, ranks_of(scores, targets, 1000))
    assert (ranks[targets >= 0] == 0).any() and (ranks > 900).any() and (ranks[:, :20] > 0).any()


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 6),
    images=st.integers(1, 80),
    last=st.integers(1, 30),
    block=st.integers(1, 20),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_target_ranks_equal_a_stable_sort(
    seed: int, queries: int, images: int, last: int, block: int, levels: int
) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, levels, (queries, images)).astype(np.float32)
    scores[random.random(scores.shape) < 0.1] = -np.inf
    targets = random.integers(-1, images, (queries, random.integers(1, 6)))
    counter = TargetRanks(targets, block, last)
    for start in range(0, images, block):
        counter.update(scores[:, start : start + block], start)
    assert np.array_equal(counter.ranks(), ranks_of(scores, targets, last))


def ranks_of(scores: np.ndarray, targets: np.ndarray, last: int) -> np.ndarray:
    """The ranks from 1 of positions by a stable sort of whole rows; 0 for none, unranked and past the last rank."""
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) + 1
    chosen, value = (np.take_along_axis(array, targets.clip(0), axis=1) for array in (ranks, scores))
    return np.where((targets >= 0) & (value > -np.inf) & (chosen <= last), chosen, 0)


def test_group_ranks_by_hand() -> None:
    groups = np.array([[4, 2, 9, -1], [1, 2, 3, 4], [5, 6, -1, -1], [-1, -1, -1, -1]])
    scores = np.array([[1, 1, 0.5, -np.inf], [3, 2, 1, -np.inf], [1, 2, -np.inf, -np.inf], [-np.inf] * 4])
    assert group_ranks(scores, groups, np.array([4, 3, 7, 0])).tolist() == [2, 3, 0, 0]


def test_memory_of_the_highest_scores_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    counter = TargetRanks(np.full((4, 1), 200_000), 1000, 50)
    for start in range(0, 200_000, 1000):
        counter.update(random.random((4, 1000), dtype=np.float32), start)
    kept = counter._earlier._kept
    assert kept is not None and kept.shape == (4, 1050)
