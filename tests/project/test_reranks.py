"""Reranks in DVC: their two stages over entries of params.yaml, and which of them a change of one key runs."""

import json
import shutil
import subprocess
from pathlib import Path

import polars as pl
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


def test_a_change_of_mix_runs_rerank_alone_and_one_of_top_both(toy: Workspace) -> None:
    make_world(toy)
    for name in ("stages", "cvsi"):
        shutil.copytree(ROOT / name, toy.path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, toy.path)
    queries, edits = pl.read_parquet("cache/toy/index/queries.parquet"), toy.path / "cache/toy/edits"
    edits.mkdir()
    queries.select("query_id", "split", status=pl.lit("ok")).write_parquet(edits / "part-00000.parquet")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "config", "core.analytics", "false"]):
        subprocess.run(command, cwd=toy.path, check=True, env=environment(toy.path), capture_output=True)
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
