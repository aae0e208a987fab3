"""A user's methods under DVC: adding, changing, naming and removing one runs `scores` and `report`, and no other stage.

The stages before are not run: their outputs are written here and committed as theirs. DVC, its file and the stages
`index`, `scores` and `report` are the project's own.
"""

import json
from typing import Any

import polars as pl
import pytest

from cvsi.core import params
from cvsi.core.schema import QUERY_PARTS
from cvsi.datasets import index
from cvsi.evaluation import scores
from cvsi.evaluation.report import build as report
from tests.conftest import Workspace, repro
from tests.project.collaboration import call
from tests.project.tracked import changed_stages, track
from tests.stage_inputs import write_captions, write_edits, write_vectors

MINE = {
    "known_as": "mine",
    "parts": {"between": {"slerp": {"from": "reference", "to": "edited", "at": 0.5}}},
    "query": {"between": 1.0, "instruction": 0.25},
    "gallery": {"image": 1.0},
}
BOTH = ["scores@toy-tiny", "report@toy-tiny"]


@pytest.fixture
def tracked(toy: Workspace) -> Workspace:
    """The toy dataset under DVC with every stage up to date."""
    toy.params(compute={"device": "cpu"})
    settings = params.load()
    index.build("toy", settings)
    write_captions()
    write_edits()
    write_vectors(QUERY_PARTS)
    scores.build("toy", "tiny", settings)
    report.build("toy", "tiny", settings)
    track(toy)
    assert changed(toy) == []
    return toy


def changed(toy: Workspace) -> list[str]:
    """The stages with a changed dependency, `scores` and `report` first."""
    listed = changed_stages(toy)
    return sorted(listed, key=[*BOTH, *listed].index)


def figures(toy: Workspace) -> dict[str, dict[str, float]]:
    content: dict[str, Any] = json.loads((toy.path / "cache/toy/tiny/report/weightings.json").read_text())
    return content["splits"]["val"]  # type: ignore[no-any-return]


def test_a_method_of_ones_own_runs_scores_and_report_alone(tracked: Workspace) -> None:
    before = figures(tracked)
    vectors = tracked.bytes_below("toy/captions", "toy/edits", "toy/tiny/gallery_vectors", "toy/tiny/query_vectors")
    ranked = tracked.bytes_below("toy/tiny/scores")
    tracked.params(methods={"mine": MINE})
    ran, printed = repro(tracked)
    assert ran == ["scores", "report"], printed
    added = figures(tracked)
    assert set(added) == {*before, "mine"} and all(added[name] == before[name] for name in before)
    page = (tracked.path / "cache/toy/tiny/report/index.html").read_text(encoding="utf-8")
    assert "<td>mine</td>" in page
    values = pl.read_parquet(tracked.path / "cache/toy/tiny/report/methods.parquet")
    assert values.filter(method="mine").height == values.filter(method="cvsi").height > 0
    assert tracked.bytes_below("toy/tiny/scores") == ranked  # the dataset's own fusion is the same
    assert changed(tracked) == []

    tracked.params(methods={"mine": MINE | {"query": {"between": -1.0}}})  # a number changes
    assert changed(tracked) == BOTH
    assert repro(tracked)[0] == ["scores", "report"]
    assert figures(tracked)["mine"] != added["mine"] and figures(tracked)["cvsi"] == before["cvsi"]

    tracked.params(datasets__toy__fusion="mine")  # the method becomes the dataset's own
    assert changed(tracked) == BOTH
    assert repro(tracked)[0] == ["scores", "report"]
    metrics = json.loads((tracked.path / "cache/toy/tiny/scores/metrics.json").read_text())["val"]
    assert {name: metrics[name] for name in ("mAP@10", "Recall@10") if name in metrics} == {
        name: figures(tracked)["mine"][name] for name in ("mAP@10", "Recall@10") if name in metrics
    }
    assert next(iter(figures(tracked))) == "mine"
    assert tracked.bytes_below("toy/tiny/scores") != ranked

    fusion = {"query": {"edited": 0.6, "pseudo": 0.4}, "gallery": {"image": 0.8, "caption": 0.2}}
    tracked.params(methods={}, datasets__toy__fusion=fusion)  # the method is removed
    assert changed(tracked) == BOTH
    repro(tracked)
    assert figures(tracked) == before and tracked.bytes_below("toy/tiny/scores") == ranked
    inputs = ("toy/captions", "toy/edits", "toy/tiny/gallery_vectors", "toy/tiny/query_vectors")
    assert tracked.bytes_below(*inputs) == vectors


CHANGES: dict[str, dict[str, Any]] = {
    "a gallery weight": MINE | {"gallery": {"image": 0.5, "caption": 0.5}},
    "a part's number": MINE | {"parts": {"between": {"slerp": {"from": "reference", "to": "edited", "at": 0.4}}}},
    "a constant": MINE | {"constants": {"folder": {"gallery": {"caption": 1.0}}}},
    "forms with a score": {
        "forms": {name: {"query": {part: 1.0}, "gallery": {"image": 1.0}} for name, part in
                  (("after", "edited"), ("before", "source"))},
        "score": {"kind": "slope", "neg": 2.0, "pos": 0.5},
    },
}  # fmt: skip


def test_every_change_of_a_method_is_one_of_scores_and_report_alone(tracked: Workspace) -> None:
    tracked.params(methods={"mine": MINE})
    call(tracked, "dvc", "commit", "-q", "-f")
    for what, block in CHANGES.items():
        tracked.params(methods={"mine": block})
        assert changed(tracked) == BOTH, what
    tracked.params(methods={"mine": MINE, "second": CHANGES["a gallery weight"]})
    assert changed(tracked) == BOTH
    tracked.params(methods={"renamed": MINE})
    assert changed(tracked) == BOTH
    tracked.params(methods={"mine": MINE})
    assert changed(tracked) == []
