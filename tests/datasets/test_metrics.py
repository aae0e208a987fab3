"""Metrics against values worked out by hand, the interval against its own definition."""

import numpy as np
import polars as pl
import pytest

from cvsi.datasets import metrics

HITS = np.array([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=bool)


def test_average_precision_by_hand() -> None:
    targets = np.array([2, 8, 1])
    # Query 1: hits at ranks 1 and 3 of 2 targets, (1/1 + 2/3) / 2. Query 2: a hit at rank 6 of 8 targets, (1/6) / 6.
    assert metrics.average_precision(HITS, targets, 6) == pytest.approx([(1 + 2 / 3) / 2, 1 / 36, 0])
    # Cut at 1: one hit of min(2, 1) targets.
    assert metrics.average_precision(HITS, targets, 1) == pytest.approx([1, 0, 0])


def test_average_precision_is_one_only_for_a_perfect_start() -> None:
    perfect = np.array([[1, 1, 1, 0]], dtype=bool)
    assert metrics.average_precision(perfect, np.array([3]), 4) == pytest.approx([1])
    assert metrics.average_precision(perfect[:, ::-1], np.array([3]), 4)[0] < 0.7


def test_recall_counts_the_first_target_alone() -> None:
    assert metrics.recall(HITS, 5).tolist() == [1, 0, 0]
    assert metrics.recall(HITS, 6).tolist() == [1, 1, 0]


def test_per_query_is_in_percent_and_uses_each_its_own_hits() -> None:
    protocol = metrics.Protocol("mAP@5", average_precision=(5,), recall=(1,), subset_recall=(1, 2))
    main = np.array([[0, 0, 1, 0, 0]], dtype=bool)
    hits = np.array([[1, 0, 1, 0, 0]], dtype=bool)
    found = metrics.per_query(protocol, hits, main, np.array([2]), np.array([2]))
    assert {name: value.tolist() for name, value in found.items()} == {
        "mAP@5": [pytest.approx(100 * (1 + 2 / 3) / 2)],
        "Recall@1": [0],
        "Recall_subset@1": [0],
        "Recall_subset@2": [100],
    }


def test_the_interval_covers_the_mean_and_shrinks_with_more_queries() -> None:
    random = np.random.default_rng(0)
    few, many = random.random(20) * 100, random.random(2000) * 100
    low, high = metrics.interval(few)
    assert low < few.mean() < high
    narrow = metrics.interval(many)
    assert narrow[1] - narrow[0] < (high - low) / 4
    # The normal approximation of a mean's 95% interval.
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * many.std() / np.sqrt(2000), rel=0.1)
    assert metrics.interval(few) == (low, high)


def test_aspects_average_their_own_queries() -> None:
    protocol = metrics.PROTOCOLS["circo"]
    values = {protocol.main: np.array([100.0, 50.0, 0.0])}
    found = metrics.summarise(
        protocol, values, pl.Series([["number", "change"], ["change"], []], dtype=pl.List(pl.String))
    )
    assert found["mAP@10"] == 50
    assert found["mAP@10/number"] == 100
    assert found["mAP@10/change"] == 75
    assert not any("None" in name or "null" in name for name in found)


def test_the_protocol_of_circo() -> None:
    protocol = metrics.PROTOCOLS["circo"]
    assert protocol.average_precision == protocol.recall == (5, 10, 25, 50)
