"""A run's weightings beside the published figures of its benchmark and backbone, as the page and `published.json` say.

Which benchmark a dataset is stands in its parameter `benchmark`; a dataset without one has no such section.
"""

from collections.abc import Sequence
from typing import Any

from cvsi.core.model_settings import Backbone
from cvsi.core.params import Dataset
from cvsi.evaluation.published import NEAR, Comparison, Row, compare, load, rows
from cvsi.evaluation.report.weightings import Table

Section = dict[str, Any]


def section(dataset: Dataset, backbone: Backbone, splits: Sequence[str], table: Table) -> Section | None:
    """Published rows in the order of `published.yaml`, each with ours of every split beside it where it has one.

    `splits` are the dataset's, `table` has those with labels: `{split: {weighting: {metric: percent}}}`. None where
    the dataset names no benchmark.
    """
    name = dataset.benchmark
    if name is None:
        return None
    published, found = load(), rows(name, backbone)
    ours = [
        pair
        for weighting in published.counterparts
        for split in splits
        for pair in compare(name, split, backbone, weighting, _measured(table, split, weighting))
    ]
    weightings = {row.weighting for row in found}
    return {
        "benchmark": name,
        "split": published.benchmarks[name].split,
        "model": f"{backbone.model} {backbone.pretrained or ''}".strip(),
        "near": NEAR,
        "metrics": list(published.benchmarks[name].metrics),
        "rows": [_row(row, name, [other for its, other in ours if its is row]) for row in found],
        "notes": {key: text for key, text in published.counterparts.items() if key in weightings},
    }


def _measured(table: Table, split: str, weighting: str) -> dict[str, float] | None:
    """Our metrics of a split; None where its labels are hidden, nothing where the weighting was left out."""
    return table[split].get(weighting, {}) if split in table else None


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
