"""Exact streaming top-k against a plain sort, with ties, exclusions, probes and shards of any size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvsi.evaluation.ranking import best_of, rank

NO_PAIRS = np.empty((0, 2), dtype=np.int64)


def no_probes(queries: int) -> np.ndarray:
    return np.full((queries, 1), -1, dtype=np.int64)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 5),
    images=st.integers(1, 40),
    k=st.integers(1, 12),
    shard=st.integers(1, 15),
    barred=st.integers(0, 10),
)
def test_equals_a_stable_sort(seed: int, queries: int, images: int, k: int, shard: int, barred: int) -> None:
    random = np.random.default_rng(seed)
    # Small integers: exact in float32, and full of ties.
    left = random.integers(-2, 3, (queries, 4)).astype(np.float32)
    right = random.integers(-2, 3, (images, 4)).astype(np.float32)
    pairs = np.stack([random.integers(queries, size=barred), random.integers(images, size=barred)], axis=1)
    probes = random.integers(-1, images, (queries, 3))
    found = rank(left, (right[at : at + shard] for at in range(0, images, shard)), k, pairs, probes)

    scores = left @ right.T
    scores[pairs[:, 0], pairs[:, 1]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    assert np.array_equal(found.positions.numpy(), np.where(best == -np.inf, -1, order))
    assert np.array_equal(found.scores.numpy(), best)
    asked = np.where(probes >= 0, np.take_along_axis(scores, np.maximum(probes, 0), axis=1), -np.inf)
    assert np.array_equal(found.probed.numpy(), asked)


def test_all_equal_scores_rank_by_position() -> None:
    ones = np.ones((2, 3), dtype=np.float32)
    gallery = np.ones((1000, 3), dtype=np.float32)
    found = rank(ones, (gallery[at : at + 64] for at in range(0, 1000, 64)), 100, NO_PAIRS, no_probes(2))
    assert found.positions.tolist() == [list(range(100))] * 2


def test_a_tie_at_the_edge_takes_the_lower_position() -> None:
    values, columns = best_of(torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]), 2)
    assert values.tolist() == [[3.0, 2.0]] and columns.tolist() == [[1, 2]]


def test_an_excluded_image_is_never_ranked() -> None:
    left, right = np.ones((1, 2), dtype=np.float32), np.ones((3, 2), dtype=np.float32)
    found = rank(left, [right], 3, np.array([[0, 1]]), no_probes(1))
    assert found.positions.tolist() == [[0, 2, -1]]


@pytest.mark.parametrize("images", [1, 7])
def test_fewer_images_than_k(images: int) -> None:
    left, right = np.ones((1, 2), dtype=np.float32), np.ones((images, 2), dtype=np.float32)
    assert rank(left, [right], 10, NO_PAIRS, no_probes(1)).positions.tolist() == [list(range(images))]


@pytest.mark.parametrize("shard", [1, 37, 4096, 5000])
def test_shards_change_no_bit_and_equal_images_score_equally(shard: int) -> None:
    random = np.random.default_rng(2)
    left, right = random.normal(size=(30, 48)).astype(np.float32), random.normal(size=(5003, 48)).astype(np.float32)
    right[::7] = right[3]
    probes = np.tile(np.arange(0, 5003, 7), (30, 1))
    found = rank(left, (right[at : at + shard] for at in range(0, 5003, shard)), 50, NO_PAIRS, probes)
    assert (found.probed == found.probed[:, :1]).all()
    whole = rank(left, [right], 50, NO_PAIRS, probes)
    assert torch.equal(found.scores, whole.scores) and torch.equal(found.positions, whole.positions)
