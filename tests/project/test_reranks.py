"""Reranks in DVC: their two stages over entries of params.yaml, and which of them a change of one key runs."""

import json
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
import yaml

from cvsi.core import params
from tests.conftest import Workspace, environment
from tests.imports import ROOT
from tests.rerank_world import judging, make_world, oracle, with_rerank
from tests.vision_server import serving

RUN = "cache/toy/tiny"


def repro(path: Path, *targets: str) -> list[str]:
    """Run stages by themselves; those that ran."""
    command = ["dvc", "repro", "--single-item", *targets]
    done = subprocess.run(command, cwd=path, env=environment(path), text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def project(toy: Workspace) -> None:
    """A project under git and DVC with the index and the scores of a run."""
    make_world(toy)
    for name in ("stages", "cvsi"):
        shutil.copytree(ROOT / name, toy.path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, toy.path)
    queries, edits = pl.read_parquet("cache/toy/index/queries.parquet"), toy.path / "cache/toy/edits"
    edits.mkdir()
    queries.select("query_id", "split", status=pl.lit("ok")).write_parquet(edits / "part-00000.parquet")
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "config", "core.analytics", "false"]):
        command(toy.path, *words)


def command(folder: Path, *words: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(words, cwd=folder, env=environment(folder), text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_change_of_mix_runs_rerank_alone_and_one_of_top_both(toy: Workspace) -> None:
    project(toy)
    both = ["verdicts@second", "rerank@second"]
    with serving(judging(oracle())) as server:
        with_rerank(toy, server.address, top=4)
        assert repro(toy.path, *both) == both
        assert len(server.seen) == 4 * 34
        assert repro(toy.path, *both) == []
        with_rerank(toy, server.address, top=4, mix=0)
        assert repro(toy.path, *both) == both[1:]
        with_rerank(toy, server.address, top=6, mix=0)
        assert repro(toy.path, *both) == both
        assert len(server.seen) == 6 * 34
    second, scores = toy.path / RUN / "rerank/second", toy.path / RUN / "scores"
    assert (second / "rankings.parquet").read_bytes() == (scores / "rankings.parquet").read_bytes()
    shown = subprocess.run(
        ["dvc", "metrics", "show", "--json"], cwd=toy.path, env=environment(toy.path), text=True, capture_output=True
    )
    assert f"{RUN}/rerank/second/metrics.json" in json.loads(shown.stdout)[""]["data"]


def test_a_teammate_without_the_model_gets_verdicts_by_dvc_pull(
    toy: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is judged again; another `mix`, and the views, need no model; pairs that were never judged do."""
    project(toy)
    team, remote = tmp_path_factory.mktemp("team") / "clone", tmp_path_factory.mktemp("remote")
    both, scored = ["verdicts@second", "rerank@second"], ["index", "tiny/scores"]
    with serving(judging(oracle())) as server:
        with_rerank(toy, server.address, top=4)
        toy.params(runs={"toy": {"dataset": "toy", "backbone": "tiny"}})
        assert repro(toy.path, *both) == both
    (toy.path / ".gitignore").write_text("/cache\n/plain\n__pycache__\n")
    command(toy.path, "dvc", "remote", "add", "-q", "-d", "team", str(remote))
    command(toy.path, "git", "add", "--all")
    command(toy.path, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
    command(toy.path, "dvc", "push", "-q", *both)
    command(toy.path, "git", "clone", "-q", str(toy.path), str(team))
    for name in (*scored, "tiny/query_vectors", "tiny/gallery_vectors", "edits"):  # of earlier stages
        shutil.copytree(toy.path / "cache/toy" / name, team / "cache/toy" / name)
    shutil.copytree(toy.path / "plain", team / "plain", dirs_exist_ok=True)
    command(team, "dvc", "pull", "-q", *both)
    for folder in ("verdicts/second", "rerank/second"):
        files = sorted((toy.path / RUN / folder).rglob("[a-z]*.*"))
        assert files
        for file in files:
            assert (team / file.relative_to(toy.path)).read_bytes() == file.read_bytes()
    assert not (team / "cache/store").exists()
    assert repro(team, *both) == []
    other = Workspace(team)
    other.params(reranks__second__mix=0.5)
    assert repro(team, *both) == both[1:]
    assert not list((team / "cache").glob("store/verdicts/*"))
    other.params(reranks__second__top=5)
    done = subprocess.run(
        ["dvc", "repro", "--single-item", "verdicts@second"], cwd=team, env=environment(team), text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode != 0 and "is the server up?" in done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_file_without_the_new_key_reranks_is_one_line_of_dvc(toy: Workspace) -> None:
    """`cvsi` reads the file without it, but DVC needs it to list the stages."""
    content = toy.params()
    del content["reranks"]
    (toy.path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert params.load().reranks == {}
    shutil.copy(ROOT / "dvc.yaml", toy.path)
    subprocess.run(["dvc", "init", "-q", "--no-scm"], cwd=toy.path, check=True, env=environment(toy.path))
    command = ["dvc", "stage", "list"]
    done = subprocess.run(command, cwd=toy.path, env=environment(toy.path), text=True, capture_output=True)
    assert done.returncode != 0 and "Could not find 'reranks'" in done.stderr and "Traceback" not in done.stderr
