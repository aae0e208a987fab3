"""The benchmarks' own arithmetic: ratios and differences by turns, memory of processes, tables and records."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import __main__ as bench
from benchmarks import edits, growth, measure, repro, worlds
from benchmarks.drawing import draw
from benchmarks.measure import MB, Case
from cvsi.core.errors import CvsiError

GRAB = "import sys; held = bytearray(int(sys.argv[1]) << 20); held[:: 1 << 12] = b'x' * len(held[:: 1 << 12])"


def case(**targets: Any) -> Case:
    """Three turns; the machine was three times slower in the second one."""
    return Case("work", {"slow": [4.0, 12.0, 5.0], "quick": [2.0, 6.0, 1.0]}, peak={"slow": 300 * MB}, **targets)


def test_a_ratio_is_the_median_of_the_turns() -> None:
    assert case().ratio("slow", "quick") == 2.0
    assert case().ratio("quick", "slow") == 0.5


def test_a_difference_is_the_median_of_the_turns() -> None:
    assert case().difference("slow", "quick") == 4.0


def test_targets_state_whether_they_are_met() -> None:
    pair = ("slow", "quick")
    tried = case(at_least={pair: 2.5}, at_most={pair: 2.0}, at_most_more={pair: 3.0})
    targets = [(target["target"], target["figure"], target["met"]) for target in tried.record()["targets"]]
    assert targets == [("at least 2.5", 2.0, False), ("at most 2", 2.0, True), ("at most 3 s", 4.0, False)]


def test_variants_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return float(len(order))

    seconds = measure.in_turn({"a": lambda: work("a"), "b": lambda: work("b")}, repeats=2)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert measure.in_turn({"a": lambda: 7.0}, repeats=1, warm=False) == {"a": [7.0]}


def test_work_that_does_not_measure_itself_is_timed() -> None:
    (seconds,) = measure.in_turn({"nothing": lambda: None}, repeats=3).values()
    assert len(seconds) == 3 and all(value >= 0 for value in seconds)


def test_a_process_that_takes_more_memory_shows_it(tmp_path: Path) -> None:
    small, large = (measure.process([sys.executable, "-c", GRAB, size], tmp_path).peak for size in ("1", "200"))
    assert 180 * MB < large - small < 260 * MB


def test_a_process_gives_its_output_and_a_failed_one_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os, sys; print(os.environ['WORD']); sys.exit('no luck')"]
    with pytest.raises(RuntimeError, match="exit 1: well\nno luck"):
        measure.process(command, tmp_path, WORD="well")
    ended = measure.process([sys.executable, "-c", "print('well')"], tmp_path)
    assert ended.output == "well\n" and ended.seconds > 0


def test_what_is_published_is_kept_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "results")
    measure.publish("trial", [case(at_least={("slow", "quick"): 3.0})], threads=2)
    kept = json.loads((tmp_path / "results" / "trial.json").read_text())
    assert kept == measure.read("trial")
    assert kept["threads"] == 2 and kept["machine"]["cores"]
    (row,) = kept["cases"]
    assert row["variants"]["slow"] == {"median_seconds": 5.0, "seconds": [4.0, 12.0, 5.0], "peak_mb": 300}
    printed = capsys.readouterr().out
    assert "slow / quick" in printed and "target at least 3: NOT met" in printed
    with pytest.raises(CvsiError, match=r"run python -m benchmarks\.other first"):
        measure.read("other")


def test_the_summary_names_every_variant_and_what_was_missed() -> None:
    record = {"benchmark": "trial", "machine": measure.machine()}
    records = [record | {"cases": [case(at_least={("slow", "quick"): 3.0}).record()]}]
    lines = bench.summary(records).splitlines()
    assert "| trial | work | slow | 5.000 | 300 |  |  |  |" in lines
    assert "| trial | work | slow / quick |  |  | 2.00 | at least 3 | **not met** |" in lines
    assert bench.missed(records) == ["not met: trial, work: slow / quick is 2.00, wanted at least 3"]


def test_one_variant_may_have_targets_of_its_own() -> None:
    targets = case(most_seconds={"slow": 4.0, "quick": 4.0}, most_mb={"slow": 301}).record()["targets"]
    assert [(one["what"], one["target"], one["met"]) for one in targets] == [
        ("slow", "at most 4 s", False), ("quick", "at most 4 s", True), ("slow", "at most 301 MB", True),
    ]  # fmt: skip


def test_benchmarks_are_chosen_by_name() -> None:
    assert bench.chosen("") == list(bench.NAMES)
    assert bench.chosen("edits, scores") == ["scores", "edits"]
    with pytest.raises(CvsiError, match="no benchmark 'score'"):
        bench.chosen("score")
    assert all((worlds.ROOT / "benchmarks" / f"{name}.py").exists() for name in bench.NAMES)


def test_a_generated_dataset_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cvsi.core import params, tables
    from cvsi.datasets import index

    monkeypatch.chdir(tmp_path)
    demo = worlds.parameters(tmp_path)["datasets"]["demo"] | {"root": "made"}
    worlds.parameters(tmp_path, datasets={"made": demo}, active=["made"], runs={}, phis={})
    worlds.circo(tmp_path / "made", images=12, val=3, test=2, distinct=5)
    index.build("made", params.load())
    images = tables.read("index", "made", "images.parquet")
    assert images.num_rows == 12 and len(set(images["digest"].to_pylist())) == 5
    assert tables.read("index", "made", "queries.parquet").num_rows == 5


def test_instructions_come_from_the_annotations_or_are_invented(tmp_path: Path) -> None:
    assert len(set(edits.instructions(None, 6))) > 1
    with pytest.raises(CvsiError, match=r"no cap\.rc2\.test1\.json below it"):
        edits.annotation(tmp_path)
    file = tmp_path / "deep" / edits.FILE
    file.parent.mkdir(parents=True)
    row = {"pairid": 1, "reference": "a", "caption": "is red", "img_set": {"members": ["a"]}}
    file.write_text(json.dumps([row]))
    assert edits.annotation(tmp_path) == file
    assert edits.instructions(file, 6) == ["is red"]


def test_only_what_always_runs_may_run_when_nothing_changed() -> None:
    repro.nothing_ran("Running stage 'index@circo':\nStage 'captions@circo' didn't change, skipping")
    with pytest.raises(RuntimeError, match="captions@circo"):
        repro.nothing_ran("Running stage 'captions@circo':")


def test_the_hollow_graph_has_the_same_stages(tmp_path: Path) -> None:
    whole = yaml.safe_load((worlds.ROOT / "dvc.yaml").read_text())["stages"]
    hollow = repro.without_commands(whole)
    assert list(hollow) == list(whole)
    commands = {stage.get("do", stage)["cmd"] for stage in hollow.values()}
    assert commands == {"true"}
    assert hollow["index"]["do"]["outs"] == [{"cache/${item}/index": {"persist": True}}]
    assert hollow["scores"]["do"]["deps"] == whole["scores"]["do"]["deps"]


def test_growth_is_drawn_with_one_line_per_stage(tmp_path: Path) -> None:
    grown = growth.Grown()
    for stage in growth.STAGES:
        for size, seconds in ((30, 1.0), (300, 2.0)):
            grown.keep(stage, size, measure.Ended(seconds, 100 * MB, ""))
    cases = [case.record() for case in grown.cases()]
    assert [case["case"] for case in cases] == list(growth.STAGES)
    assert cases[0]["targets"][0]["target"] == "at most 10"
    assert list(cases[2]["variants"]) == ["30 queries", "300 queries"]
    draw({"machine": measure.machine(), "cases": cases}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
