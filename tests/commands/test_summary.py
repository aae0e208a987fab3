"""`cvsi summary`: a row per run and labelled split, averages over categories, and what has no metrics yet."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvsi.commands import summary
from cvsi.core import params, paths, tables
from cvsi.core.errors import CvsiError
from cvsi.datasets.formats import FORMATS
from tests.conftest import environment, project_params

RUNS = {
    "circo-b": ("circo", "vit-b-32"),
    "cirr-b": ("cirr-test1", "vit-b-32"),
    "dress-b": ("fashioniq-dress", "vit-b-32"),
    "toptee-b": ("fashioniq-toptee", "vit-b-32"),
    "shirt-l": ("fashioniq-shirt", "vit-l-14"),
    "later": ("circo", "vit-l-14"),
}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with six runs: four with metrics, one with hidden labels alone, one not scored."""
    monkeypatch.chdir(tmp_path)
    write(RUNS)
    score("circo-b", {"val": numbers("circo", 20.0)})
    score("cirr-b", {}, "test1.recall.json", "test1.recall_subset.json")
    score("dress-b", {"val": numbers("fashioniq", 10.0) | {"queries": 2017, "dropped": 3, "fallbacks": 5}})
    score("toptee-b", {"val": numbers("fashioniq", 30.0) | {"queries": 1961, "dropped": 4, "fallbacks": 0}})
    score("shirt-l", {"val": numbers("fashioniq", 50.0)})
    return tmp_path


def write(chosen: dict[str, tuple[str, str]]) -> None:
    content = project_params()
    content["runs"] = {name: {"dataset": dataset, "backbone": backbone} for name, (dataset, backbone) in chosen.items()}
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def numbers(form: str, value: float) -> dict[str, float]:
    """Metrics of a format: `value` at the first name, one more at each following."""
    protocol = FORMATS.get(form, "test").protocol
    values = {name: value + index for index, name in enumerate(protocol.names())}
    main = protocol.main
    return values | {f"{main} low": value - 1, f"{main} high": value + 9, "queries": 220, "dropped": 0, "fallbacks": 1}


def score(run: str, metrics: Any, *submissions: str) -> Path:
    folder = paths.folder("scores", *RUNS[run])
    (folder / "submissions").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    for name in submissions:
        (folder / "submissions" / name).write_text("{}", encoding="utf-8")
    return folder / "metrics.json"


def command(folder: Path, *arguments: str, then: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from cvsi.commands.main import main; main()", "summary", *arguments],
        cwd=folder, env=environment(folder), text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == (f"next: {then}\n" if then else ""), done.stderr
    return done.stdout


def test_every_run_with_metrics_has_a_row_per_split(runs: Path) -> None:
    collected = summary.collect(params.load())
    assert [(line.run, line.split) for line in collected.runs] == [
        ("circo-b", "val"),
        ("dress-b", "val"),
        ("toptee-b", "val"),
        ("shirt-l", "val"),
    ]
    assert collected.runs[0].metrics["mAP@5"] == 20


def test_the_average_is_that_of_the_categories_that_were_run_with_a_backbone(runs: Path) -> None:
    (average,) = summary.collect(params.load()).averages
    assert (average.run, average.backbone, average.split) == ("average of dress, toptee", "vit-b-32", "val")
    assert average.metrics == {
        "Recall@1": 20, "Recall@5": 21, "Recall@10": 22, "Recall@50": 23, "queries": 3978, "dropped": 7, "fallbacks": 5,
    }  # fmt: skip


def test_two_runs_of_a_category_have_no_average_and_it_says_why(runs: Path) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    content["datasets"]["other"] = content["datasets"]["fashioniq-dress"] | {"root": "data/other"}
    content["runs"]["other-b"] = {"dataset": "other", "backbone": "vit-b-32"}
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    folder = paths.folder("scores", "other", "vit-b-32")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"val": numbers("fashioniq", 1.0)}), encoding="utf-8")
    collected = summary.collect(params.load())
    assert not collected.averages
    assert collected.without[-1].run == "average of dress, toptee, vit-b-32"
    assert collected.without[-1].why == "a category has several runs: dress-b, other-b, toptee-b"


def test_a_run_without_metrics_says_why(runs: Path) -> None:
    collected = summary.collect(params.load())
    assert [(item.run, item.why) for item in collected.without] == [
        ("cirr-b", "no labelled split; its submission is in cache/cirr-test1/vit-b-32/scores/submissions"),
        ("later", "no scores yet; dvc repro makes cache/circo/vit-l-14/scores"),
    ]
    assert list(collected.submissions) == ["cirr-b"] and len(collected.submissions["cirr-b"]) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "metrics.json: .*; run the stage scores again"),
        ('{"val": {"mAP@5": "many"}}', "metrics.json: val.mAP@5: .*'many'"),
        ('{"val": {"mAP@5": NaN}}', "metrics.json: val.mAP@5: .*finite"),
        ('{"val": {"mAP@5": 1.0}}', "metrics.json: split val without mAP@10, queries"),
    ],
)
def test_a_broken_file_is_one_line(runs: Path, content: str, expected: str) -> None:
    (paths.folder("scores", *RUNS["circo-b"]) / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(CvsiError, match=expected) as error:
        summary.collect(params.load())
    assert "\n" not in str(error.value)


def test_the_tables_show_main_metric_interval_cut_offs_and_counts(runs: Path) -> None:
    shown = [line.split() for line in command(runs, then="dvc repro").splitlines()]
    assert ["circo-b", "val", "21.00", "19.0", "to", "29.0", "20.0", "22.0", "23.0", "220", "0", "1"] in shown
    average = [
        "average", "of", "dress,", "toptee,", "vit-b-32", "val", "22.00", "-", "20.0", "21.0", "23.0", "3,978", "7", "5"
    ]  # fmt: skip
    assert average in shown
    text = command(runs, then="dvc repro")
    assert text.count("interval") == 4, "a title and a head for each of two tables"
    assert "cirr-b, to submit: cache/cirr-test1/vit-b-32/scores/submissions/test1.recall.json, " in text
    assert "later: no scores yet" in text


def test_json_is_what_was_collected(runs: Path) -> None:
    assert json.loads(command(runs, "--json")) == summary.collect(params.load()).model_dump()


def test_an_average_over_other_captions_is_a_warning(runs: Path) -> None:
    for name, decoding in (("dress", "nucleus"), ("toptee", "beam-sample")):
        with tables.output("captions", f"fashioniq-{name}", recipe={"decoding": decoding}):
            pass
    (line,) = summary.collect(params.load()).doubts
    assert line == "the average of dress-b and toptee-b is over runs that differ in captioner"
    done = subprocess.run(
        [sys.executable, "-c", "from cvsi.commands.main import main; main()", "summary"],
        cwd=runs, env=environment(runs), text=True, capture_output=True,
    )  # fmt: skip
    assert done.stderr == f"cvsi: warning: {line}\nnext: dvc repro\n" and "average of dress" in done.stdout


def test_a_recipe_of_a_later_schema_is_a_warning(runs: Path) -> None:
    with tables.output("edits", "circo", recipe={"schema": 7}):
        pass
    (line,) = summary.collect(params.load()).doubts
    assert line.startswith("circo-b: cache/circo/edits/provenance.json: schema version 7, this cvsi reads up to ")


def test_nothing_scored_is_no_error(runs: Path) -> None:
    write({"later": RUNS["later"]})
    assert (
        command(runs, then="dvc repro").strip() == "later: no scores yet; dvc repro makes cache/circo/vit-l-14/scores"
    )


def test_summary_loads_no_torch() -> None:
    code = "import sys, cvsi.commands.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
