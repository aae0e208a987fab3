"""A run's methods beside the published figures of its benchmark and backbone, for the page and `published.json`.

The parameter `benchmark` of a dataset names its benchmark; a dataset without one has no such section.
"""

from collections.abc import Sequence
from typing import Any

from cvsi.core.params import Backbone, Dataset
from cvsi.datasets.formats import settings_of
from cvsi.evaluation.published import NEAR, Comparison, Row, check_benchmark, compare, load, rows
from cvsi.evaluation.report.method_table import Table

Section = dict[str, Any]


def section(name: str, dataset: Dataset, backbone: Backbone, splits: Sequence[str], table: Table) -> Section | None:
    """Published rows in the order of `published.yaml`, each with this run's values of every split where it has some.

    `splits` are the dataset's, `table` has those with labels: `{split: {method: {metric: percent}}}`. None where the
    dataset names no benchmark; raises CvsiError for one without published figures.
    """
    benchmark, published = dataset.benchmark, load()
    if benchmark is None:
        return None
    check_benchmark(benchmark, name)
    theirs, variant = rows(benchmark, backbone), settings_of(dataset, name).variant
    ours = [
        pair
        for method in published.counterparts
        for split in splits
        for pair in compare(benchmark, split, backbone, method, _measured(table, split, method), variant)
    ]
    methods = {row.weighting for row in theirs}
    return {
        "benchmark": benchmark,
        "split": published.benchmarks[benchmark].split,
        "model": f"{backbone.model} {backbone.pretrained or ''}".strip(),
        "near": NEAR,
        "metrics": list(published.benchmarks[benchmark].metrics),
        "rows": [_row(row, benchmark, [comparison for other, comparison in ours if other is row]) for row in theirs],
        "notes": {key: text for key, text in published.counterparts.items() if key in methods},
    }


def _measured(table: Table, split: str, method: str) -> dict[str, float] | None:
    """This run's metrics of a split; None where its labels are hidden, nothing where the method was left out."""
    return table[split].get(method, {}) if split in table else None


def _row(row: Row, benchmark: str, ours: list[Comparison]) -> dict[str, Any]:
    published = load()
    return {
        "method": row.method,
        "kind": row.kind,
        "weighting": row.weighting,
        "figures": published.figures(row, benchmark),
        "sources": [published.sources[key] for key in row.sources],
        "note": row.note,
        "ours": [comparison.model_dump() for comparison in ours],
    }
