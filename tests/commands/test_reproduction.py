"""The page of published and measured figures: a row for each benchmark and backbone, computed or not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.core import params
from tests.conftest import project_params


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The project's params.yaml in an empty folder."""
    monkeypatch.chdir(tmp_path)
    content = project_params()
    save(content)
    return content


def save(content: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def page() -> str:
    done = CliRunner().invoke(app, ["summary", "--page", "out.html"])
    assert done.exit_code == 0, done.output
    return Path("out.html").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r'<summary class="run"><b>([^<]*)</b>(.*?)</details>', text, re.DOTALL))


def test_every_benchmark_has_a_row_with_its_commands_before_anything_is_computed(settings: dict[str, Any]) -> None:
    found = rows(page())
    benchmarks = [name for name, block in settings["datasets"].items() if "benchmark" in block]
    for dataset in benchmarks:
        for backbone in ("vit-b-32", "vit-l-14", "vit-bigg-14"):
            text = found[f"{dataset}-{backbone}"]
            assert "not computed here" in text and "CIReVL" in text
            assert (
                f"{dataset}-{backbone}: {{dataset: {dataset}" in text
                and f"dvc repro report@{dataset}-{backbone}" in text
            )
    assert "demo-tiny" not in found


def test_the_entry_gives_the_run(settings: dict[str, Any]) -> None:
    text = rows(page())["circo-vit-l-14"]
    (entry,) = re.findall(r"<pre>(active:.*?)</pre>", text, re.DOTALL)
    save(settings | yaml.safe_load(entry))
    run = params.load().run("circo-vit-l-14")
    assert (run.dataset, run.backbone) == ("circo", "vit-l-14")
    again = rows(page())["circo-vit-l-14"]
    assert "active:" not in again and "dvc repro report@circo-vit-l-14" in again


def test_measured_figures_stand_beside_published_ones(settings: dict[str, Any]) -> None:
    run = {"dataset": "fashioniq-dress", "backbone": "vit-l-14"}
    save(settings | {"active": ["fashioniq-dress"], "runs": {"mine": run}})
    folder = Path("cache/fashioniq-dress/vit-l-14/report")
    folder.mkdir(parents=True)
    metrics = {"Recall@10": 24.8, "Recall@50": 44.9}
    (folder / "weightings.json").write_text(json.dumps({"metric": "Recall@10", "splits": {"val": {"edited": metrics}}}))
    text = rows(page())["mine"]
    assert "measured 24.80 to 24.80" in text and "edited, val" in text
    assert re.search(r"\d+ (near|off|not comparable)</span>", text)
    (folder / "weightings.json").write_text("{}")
    done = CliRunner().invoke(app, ["summary", "--page", "out.html"])
    assert done.exit_code == 1 and "weightings.json" in str(done.exception)


@pytest.mark.parametrize(
    ("change", "line"),
    [({"active": ["demo"]}, "no dataset names a benchmark"), ({}, "nowhere/out.html")],
)
def test_bad_input_is_one_line(settings: dict[str, Any], change: dict[str, Any], line: str) -> None:
    target = "nowhere/out.html"
    if change:
        save(settings | change | {"datasets": {"demo": settings["datasets"]["demo"]}})
        target = "out.html"
    done = CliRunner().invoke(app, ["summary", "--page", target])
    assert done.exit_code == 1 and line in str(done.exception)
