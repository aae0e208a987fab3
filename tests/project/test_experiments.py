"""Experiments by DVC's own commands: metrics and plots of every run, pages without a network, real output in the docs.

The pipeline is the project's stage `scores` without what it reads; its outputs are written here.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
import yaml
from dvc.cli import main as run_dvc
from dvc.repo import Repo
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.core import paths
from cvsi.core.errors import CvsiError
from cvsi.datasets.metrics import Protocol, recall
from cvsi.evaluation.plots import UNLABELLED, pictures
from cvsi.training.plots import losses_picture
from tests.imports import ROOT

PROTOCOL = Protocol("Recall@1", recall(1, 5))
RUNS = {
    "demo-tiny": {"dataset": "demo", "backbone": "tiny"},
    "own": {"dataset": "own.photos", "backbone": "vit-b-32"},
    "later": {"dataset": "demo", "backbone": "vit-b-32"},
}
COMPUTED = ("demo-tiny", "own")
DOCUMENT = ROOT / "docs" / "experiments.md"
Dvc = Callable[..., None]


def values(ranks: list[int | None]) -> pl.DataFrame:
    """Values per query of one split `val`, from the ranks of the queries' only targets."""
    return pl.DataFrame({"split": ["val"] * len(ranks), "target_ranks": [[rank] for rank in ranks]})


def scores(dataset: str, backbone: str, value: float) -> None:
    """Write what the stage would: metrics and pictures, the other outputs without content."""
    folder = paths.folder("scores", dataset, backbone)
    for name in ("submissions", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("rankings", "group_rankings", "per_query"):
        (folder / f"{name}.parquet").touch()
    (folder / "provenance.json").write_text("{}")
    metrics = {"val": {"Recall@1": value, "Recall@5": 90.0, "queries": 3}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for name, text in pictures(PROTOCOL, metrics, values([1, 3, None])).items():
        (folder / "plots" / name).write_text(text, encoding="utf-8")


@pytest.fixture
def dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dvc:
    """A workspace with two computed runs and one that is not, in a commit; runs DVC's command line there."""
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "test@example.org")

    def call(*words: str) -> None:
        assert run_dvc(list(words)) == 0, words

    subprocess.run(["git", "init", "-q"], check=True)
    call("init", "-q")
    for name in ("config", "plots_page.html"):
        shutil.copy(ROOT / ".dvc" / name, tmp_path / ".dvc")
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["scores"]
    for key in ("deps", "params"):
        del stage["do"][key]
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"scores": stage | {"do": stage["do"] | {"cmd": "true"}}}}))
    Path("params.yaml").write_text(yaml.safe_dump({"runs": RUNS}, sort_keys=False))
    Path(".gitignore").write_text("/cache\n")
    for number, run in enumerate(COMPUTED):
        scores(**RUNS[run], value=50.0 + number)
        call("commit", "-q", "-f", f"scores@{run}")
    subprocess.run("git add -A && git commit -qm first", shell=True, check=True)
    return call


def path_of(run: str) -> str:
    return paths.folder("scores", **RUNS[run]).as_posix()


def test_metrics_show_lists_every_run(dvc: Dvc) -> None:
    dvc("metrics", "show")  # a run without metrics is no error
    shown: dict[str, Any] = Repo().metrics.show()[""]["data"]
    assert set(shown) == {f"{path_of(run)}/metrics.json" for run in RUNS}
    found = {run: shown[f"{path_of(run)}/metrics.json"].get("data") for run in RUNS}
    assert [found[run]["val"]["Recall@1"] for run in COMPUTED] == [50.0, 51.0] and found["later"] is None


def test_metrics_diff_compares_every_run_with_a_commit(dvc: Dvc) -> None:
    for run in COMPUTED:
        scores(**RUNS[run], value=60.0)
    dvc("metrics", "diff", "HEAD")
    shown = Repo().metrics.diff("HEAD", "workspace")["diff"]
    changes = {path: item["val.Recall@1"] for path, item in shown.items() if "later" not in path}
    assert {path: (change["old"], change["new"]) for path, change in changes.items()} == {
        f"{path_of('demo-tiny')}/metrics.json": (50.0, 60.0), f"{path_of('own')}/metrics.json": (51.0, 60.0)
    }  # fmt: skip


SCRIPTS = re.compile(r'<template id="scripts">.*?</template>', flags=re.S)


def test_plots_show_and_diff_need_no_network(dvc: Dvc) -> None:
    scores(**RUNS["own"], value=10.0)
    for words, revisions in ((["show"], ["workspace"]), (["diff", "HEAD"], ["workspace", "HEAD"])):
        dvc("plots", *words, "-o", words[0])
        page = Path(words[0], "index.html").read_text(encoding="utf-8")
        # What is in a `template` element is not loaded; it is there because a run has no plots yet.
        assert "http" not in SCRIPTS.sub("", page) and "function vegaEmbed" in page
        images = re.findall(r'<img src="([^"]+)"', page)
        assert len(images) == len(COMPUTED) * 2 * len(revisions)
        for image in images:
            ElementTree.parse(Path(words[0], image))
    assert Path("diff/static").is_dir()
    changed = {file.name: file.read_bytes() for file in Path("diff/static").iterdir() if "own" in file.name}
    (new,) = [text for name, text in changed.items() if name.startswith("workspace") and "metrics" in name]
    (old,) = [text for name, text in changed.items() if name.startswith("HEAD") and "metrics" in name]
    assert b"10.00" in new and b"51.00" in old


def test_a_page_of_computed_runs_names_no_other_server(dvc: Dvc) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"runs": {run: RUNS[run] for run in COMPUTED}}))
    dvc("plots", "show")
    assert "http" not in Path("dvc_plots/index.html").read_text(encoding="utf-8")


METRICS = {"val": {"Recall@1": 33.3, "Recall@1 low": 10.0, "Recall@1 high": 60.0, "Recall@5": 66.7, "queries": 3}}
ODD = ("$x", "\\frac{", "日本語", "<b>&amp;", 'a "b"', "tab\there", "bell\x07", "😀", "ف")


@pytest.mark.parametrize(
    ("metrics", "ranks", "texts"),
    [
        ({}, [], [UNLABELLED]),
        (METRICS, [1, 3, None], ["33.30", "66.70", "val, 3 queries, percent"]),
        ({"val": METRICS["val"] | {f"Recall@1/{name}": 5.0 for name in ODD}}, [1], ["Recall@1/日本語", "Recall@1/$x"]),
        ({"val": METRICS["val"] | {f"Recall@1/{number}": 5.0 for number in range(999)}}, [1], ["(959 more aspects)"]),
        ({"val": METRICS["val"], "train": METRICS["val"]}, [None, None], ["train, 3 queries, percent"]),
        ({"val": {"queries": 2}}, [None], ["val, 2 queries, percent"]),  # no query counts in any metric
    ],
)
def test_pictures_are_well_formed_and_always_the_same(
    metrics: dict[str, dict[str, float]], ranks: list[int | None], texts: list[str]
) -> None:
    table = values(ranks) if ranks else values([1]).clear()
    first, second = (pictures(PROTOCOL, metrics, table) for _ in range(2))
    assert first == second and set(first) == {"metrics.svg", "ranks.svg"}
    for picture in first.values():
        ElementTree.fromstring(picture)
        assert "dc:date" not in picture and "<image" not in picture
    shown = "".join(ElementTree.fromstring(first["metrics.svg"]).itertext())
    assert all(text in shown for text in texts)


def test_the_share_within_k_is_that_of_the_ranks() -> None:
    picture = pictures(PROTOCOL, METRICS, values([1, 10, 11, None]))["ranks.svg"]
    shown = "".join(ElementTree.fromstring(picture).itertext())
    assert all(f" {share} " in " ".join(shown.split()) for share in ("25.0", "50.0", "75.0"))


def test_settings_of_the_user_change_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pictures(PROTOCOL, METRICS, values([1]))
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "path", "font.size": 30, "axes.facecolor": "red"}):
        assert pictures(PROTOCOL, METRICS, values([1])) == before
        assert mpl.rcParams["font.size"] == 30


def test_losses_are_drawn() -> None:
    table = pl.DataFrame({"step": [4, 8], "train": [0.5, 0.2], "validation": [0.6, 0.3]})
    assert "phi $x" in losses_picture("$x", table) == losses_picture("$x", table)


def documented() -> list[tuple[list[str], str]]:
    """Each block of `cvsi set` commands of the page that is followed by its output."""
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = re.findall(r"((?:^    cvsi set .*\n)+)\n```text\n((?:cvsi: .*\n)+)```", text, flags=re.M)
    assert len(blocks) == 5
    return [(re.findall("^    (.*)$", commands, flags=re.M), output) for commands, output in blocks]


@pytest.mark.parametrize(("commands", "output"), documented())
def test_the_page_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: list[str], output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    printed = ""
    for command in commands:
        try:
            result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
            printed += result.stdout
        except CvsiError as error:
            printed += f"cvsi: {error}\n"
    assert printed == output


def test_what_the_page_says_of_set_param_is_so(tmp_path: Path) -> None:
    from dvc.exceptions import InvalidArgumentError
    from dvc.utils.hydra import apply_overrides

    file = tmp_path / "params.yaml"
    before = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))

    def after(override: str) -> Any:
        shutil.copy(ROOT / "params.yaml", file)
        apply_overrides(str(file), [override])
        return yaml.safe_load(file.read_text(encoding="utf-8"))

    rows = dict(re.findall(r"^\| (`\S+=.*?) \| (.*) \|$", DOCUMENT.read_text(encoding="utf-8"), flags=re.M))
    tried = {key: effect for keys, effect in rows.items() for key in re.findall(r"`([^`]+=[^`]+)`", keys)}
    assert len(tried) == 9
    for override, effect in tried.items():
        assert (after(override) == before) == ("nothing changes" in effect), override
    assert "root" in re.findall(r"  cirr-val:.*?  cirr-test1", file.read_text(encoding="utf-8"), flags=re.S)[0]
    with pytest.raises(InvalidArgumentError):
        after("datasets.demo.fusion.query.edits=1")
