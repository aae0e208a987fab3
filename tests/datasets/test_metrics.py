"""Metrics of ranks against values worked out by hand."""

import numpy as np
import polars as pl
import pytest

from cvsi.datasets import metrics
from cvsi.datasets.formats import FORMATS

BENCHMARKS = ("circo", "cirr", "fashioniq", "genecis", "pinpoint")
HITS = np.array([[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=bool)
TABLE = pl.DataFrame(
    {
        "target_ids": [["a", "b"], ["c"], ["d", "e", "f"]],
        "target_ranks": [[3, 1], [6], [None, 2, None]],
        "group_rank": [2, None, 4],
    },
    schema={"target_ids": pl.List(pl.String), "target_ranks": pl.List(pl.Int32), "group_rank": pl.Int32},
)


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


def test_ranks_become_hits_within_the_cut_off() -> None:
    assert metrics.hits(TABLE, 3).astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert metrics.hits(TABLE.head(0), 3).shape == (0, 3)


def test_each_metric_is_in_percent_and_reads_its_own_ranks() -> None:
    protocol = metrics.Protocol(
        "mAP@5", (*metrics.mean_average_precision(5), *metrics.recall(1, 3), *metrics.subset_recall(2, 4))
    )
    values = {name: value.tolist() for name, value in protocol.values(TABLE).items()}
    assert values == {
        # Of the third query, whose main target is beyond the table, one of three targets is at rank 2.
        "mAP@5": pytest.approx([100 * (1 + 2 / 3) / 2, 0, 100 * (1 / 2) / 3]),
        "Recall@1": [0, 0, 0],  # the first target alone counts
        "Recall@3": [100, 0, 0],
        "Recall_subset@2": [100, 0, 0],  # a query without a group has no rank in it
        "Recall_subset@4": [100, 0, 100],
    }
    assert protocol.names() == list(values)


def test_a_query_without_a_target_rank_is_no_hit() -> None:
    none = pl.DataFrame({"ranks": [None, 1]}, schema={"ranks": pl.Int32})["ranks"]
    assert metrics.within(none, 10).tolist() == [0, 100]


def test_cut_offs_are_those_of_the_main_metric_and_of_its_kind_within_a_group() -> None:
    cut_offs = {name: FORMATS.get(name, "test").protocol.cut_offs() for name in BENCHMARKS}
    assert cut_offs == {
        "circo": ["mAP@5", "mAP@25", "mAP@50"],
        "cirr": ["Recall@1", "Recall@10", "Recall@50", "Recall_subset@1", "Recall_subset@2", "Recall_subset@3"],
        "fashioniq": ["Recall@1", "Recall@5", "Recall@50"],
        "genecis": ["Recall_subset@2", "Recall_subset@3"],
        "pinpoint": ["mAP@1", "mAP@5", "mAP@50"],
    }


def test_the_protocols_of_the_benchmarks() -> None:
    protocols = {name: FORMATS.get(name, "test").protocol for name in BENCHMARKS}
    assert {name: protocol.main for name, protocol in protocols.items()} == {
        "circo": "mAP@10", "cirr": "Recall@5", "fashioniq": "Recall@10",
        "genecis": "Recall_subset@1", "pinpoint": "mAP@10",
    }  # fmt: skip
    assert protocols["circo"].names() == [f"{kind}@{k}" for kind in ("mAP", "Recall") for k in (5, 10, 25, 50)]
    assert protocols["genecis"].names() == [f"Recall_subset@{k}" for k in (1, 2, 3)]
    kinds = ("mAP@{}", "mAP@{} clean", "precision@{}", "recall@{}", "negative recall@{}")
    assert protocols["pinpoint"].names() == [kind.format(k) for kind in kinds for k in (1, 5, 10, 50)]
    assert [metric.name for metric in protocols["pinpoint"].groups] == ["precision@10 range"]
    assert protocols["fashioniq"].names() == [f"Recall@{k}" for k in (1, 5, 10, 50)]
    assert protocols["cirr"].names() == [
        *(f"Recall@{k}" for k in (1, 5, 10, 50)), *(f"Recall_subset@{k}" for k in (1, 2, 3)),
    ]  # fmt: skip
