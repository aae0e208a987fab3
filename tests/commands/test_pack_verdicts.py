"""Packs of verdicts: what they contain, a teammate without the judge's model, several judges, and untrusted rows."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cvsi.commands import pack, pack_format
from cvsi.commands.main import app
from cvsi.commands.unpack import unpack
from cvsi.core import params, tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import STORED_VERDICTS
from cvsi.evaluation import rerank
from cvsi.pipeline import verdicts as stage
from tests.commands.test_pack import make, seal
from tests.conftest import Workspace
from tests.rerank_world import make_world, with_rerank

VERDICTS, SECOND = Path("cache/toy/tiny/verdicts/second"), Path("cache/toy/tiny/rerank/second")
TOKENS = [" Yes", "no", "maybe"]
MODEL = "models/judge-7b"


def judged(toy: Workspace, top: int = 6, name: str = "second", **judge: Any) -> None:
    """The verdicts of a judge that is a folder of this machine, in the store and as an output, without the model."""
    folder = toy.path / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    block = {"engine": "vllm", "model": MODEL, "precision": "fp32"} | judge
    run = {"dataset": "toy", "backbone": "tiny"}
    reranks = toy.params()["reranks"] | {name: {"run": run, "judge": block, "top": top, "mix": 1}}
    toy.params(reranks=reranks, runs={"toy": run})
    job = stage.verdict_job(name, params.load())
    keys = job.candidates()["key"].unique(maintain_order=True)
    shares = [(number * 7 % 11 + 1) / 13 for number in range(keys.len())]
    logs = [[math.log(share), math.log(1 - share), -9.0] for share in shares]
    rows = pl.DataFrame({"key": keys, "tokens": [TOKENS] * keys.len(), "logprobs": logs, "finish": "length"})
    missing = job.rows().missing(keys)
    job.rows().append(rows.filter(keys.is_in(missing.implode())).to_arrow().cast(STORED_VERDICTS))
    stage.write(name, params.load())


@pytest.fixture
def other(toy: Workspace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Workspace:
    """A teammate's workspace beside `toy`, which has a pack of verdicts: no model, an empty store, no verdicts."""
    make_world(toy)
    judged(toy)
    pack.write("toy", toy.path / "pack", params.load(), ["verdicts"])
    second = Workspace(tmp_path_factory.mktemp("other"))
    shutil.copytree(toy.path / "plain", second.path / "plain")
    shutil.copy(toy.path / "params.yaml", second.path)
    shutil.copytree(toy.path / "cache" / "toy", second.path / "cache" / "toy")
    shutil.rmtree(second.path / VERDICTS.parent)
    monkeypatch.chdir(second.path)
    second.params(reranks__second__judge__model="other/place/judge-7b")
    return second


def test_a_pack_has_the_rows_the_recipe_and_a_readme(toy: Workspace) -> None:
    make_world(toy)
    judged(toy)
    pack.write("toy", toy.path / "pack", params.load(), ["verdicts"])
    names = {
        file.relative_to(toy.path / "pack").as_posix() for file in (toy.path / "pack").rglob("*") if file.is_file()
    }
    assert names == {"manifest.json", "README.md", "verdicts/recipe.json", "verdicts/part-00000.parquet"}
    rows = pl.read_parquet(toy.path / "pack/verdicts/*.parquet")
    assert rows.columns == ["key", "tokens", "logprobs", "finish"] and rows["key"].is_sorted()
    assert set(rows["key"]) == set(stage.verdict_job("second", params.load()).candidates()["key"])
    manifest = json.loads((toy.path / "pack/manifest.json").read_text())
    assert manifest["kinds"]["verdicts"]["rows"] == rows.height == 34 * 6
    assert manifest["kinds"]["verdicts"]["model"] == MODEL
    recipe = json.loads((toy.path / "pack/verdicts/recipe.json").read_text())
    assert recipe == tables.provenance(VERDICTS)["judge"]
    readme = (toy.path / "pack/README.md").read_text()
    assert readme.startswith("# Verdicts of toy\n") and "204 answers of a judge" in readme
    assert "| answers | yes / no |" in readme and "Prompt of the verdicts, task question" in readme
    assert "You compare a photo" in readme and "### verdicts" in readme and '"logprobs": [-' in readme
    assert "| prompt |" not in readme
    everything = b"".join(file.read_bytes() for file in (toy.path / "pack").rglob("*") if file.is_file())
    assert str(toy.path).encode() not in everything


def test_a_teammate_without_the_model_gets_the_verdicts(
    other: Workspace, toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (other.path / "other").exists() and not (other.path / MODEL).exists()
    with pytest.raises(CvsiError, match="no such model folder"):
        stage.write("second", params.load())
    capsys.readouterr()
    unpack(toy.path / "pack", params.load())
    printed = capsys.readouterr().out
    assert "verdicts: 204 rows added, 0 already stored" in printed
    assert "judge other/place/judge-7b not found; using the pack's rows for it" in printed
    assert "rerank second: verdicts complete: 204 distinct pairs" in printed
    stage.write("second", params.load())
    rerank.build("second", params.load())
    for file in VERDICTS.iterdir():
        assert file.read_bytes() == (toy.path / VERDICTS / file.name).read_bytes()
    other.params(reranks__second__mix=0.5)
    rerank.build("second", params.load())
    other.params(reranks__second__top=9)  # pairs that were never judged need the model
    with pytest.raises(CvsiError, match="other/place/judge-7b: no such model, and the store has no rows of it"):
        stage.write("second", params.load())


def test_rows_that_are_there_already_are_kept(
    other: Workspace, toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    unpack(toy.path / "pack", params.load())
    capsys.readouterr()
    unpack(toy.path / "pack", params.load())
    assert "verdicts: 0 rows added, 204 already stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"answers": ["ja", "nein"]}, "answers is [ja, nein] here, [yes, no] in the pack: set answers: [yes, no] for"),
        ({"image_size": 64}, "image_size is 64 here, 768 in the pack: set image_size: 768 for the judge"),
        ({"precision": "bf16"}, "precision is bf16 here, fp32 in the pack: set precision: fp32 for the judge"),
        ({"prompt": "qwen_reranker"}, "the prompt differs: set prompt: match for the judge"),
        ({"images": "canvas"}, "images is canvas here, pair in the pack: set images: pair for the judge"),
        ({"model": "else/where/large"}, "set model: ./packed/judge-7b for the judge"),
    ],
)
def test_what_differs_is_one_line(
    other: Workspace, toy: Workspace, change: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other.params(**{f"reranks__second__judge__{key}": value for key, value in change.items()})
    unpack(toy.path / "pack", params.load())
    (printed,) = [text for text in capsys.readouterr().out.splitlines() if "rerank second: verdicts" in text]
    assert "not used" in printed and line in printed


def test_without_a_rerank_the_rows_are_added_and_nothing_uses_them(
    other: Workspace, toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    other.params(reranks={})
    unpack(toy.path / "pack", params.load())
    printed = capsys.readouterr().out
    assert "verdicts: 204 rows added" in printed and "rerank second" not in printed
    assert "verdicts not used: params.yaml has no rerank of toy" in printed


def test_before_the_run_is_ranked_the_number_is_unknown(
    other: Workspace, toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("cache/toy/tiny/scores")
    unpack(toy.path / "pack", params.load())
    assert "rerank second: verdicts fit; how many are used is known once its run is ranked" in capsys.readouterr().out


def test_reranks_of_one_judge_are_packed_together_and_those_of_several_are_named(toy: Workspace) -> None:
    make_world(toy)
    judged(toy)
    judged(toy, top=9, name="third")
    pack.write("toy", toy.path / "both", params.load(), ["verdicts"])
    assert pack_format.open_pack(toy.path / "both").manifest.kinds["verdicts"].rows == 34 * 9
    judged(toy, name="fourth", image_size=64)
    with pytest.raises(CvsiError, match=r"toy: the judges of its reranks differ \(fourth, second\).*with --rerank"):
        pack.write("toy", toy.path / "all", params.load(), ["verdicts"])
    done = CliRunner().invoke(app, ["pack", "toy", "one", "--only", "verdicts", "--rerank", "fourth"])
    assert done.exit_code == 0, done.output
    assert json.loads(Path("one/verdicts/recipe.json").read_text())["image_size"] == 64


def test_the_same_rows_give_the_same_bytes(toy: Workspace) -> None:
    make_world(toy)
    judged(toy)
    for name in ("one", "two"):
        pack.write("toy", toy.path / name, params.load(), ["verdicts"])
        job = stage.verdict_job("second", params.load())
        files = list(job.rows().folder.glob("*.parquet"))
        rows = job.rows().get(job.candidates()["key"].unique(maintain_order=True).reverse())
        for file in files:
            file.unlink()
        job.rows().append(rows)
    for file in (toy.path / "one").rglob("*.*"):
        assert file.read_bytes() == (toy.path / "two" / file.relative_to(toy.path / "one")).read_bytes()


def forget(number: int) -> Callable[[], None]:
    """Remove so many rows from the store; all where it is -1."""

    def change() -> None:
        job = stage.verdict_job("second", params.load())
        kept = job.rows().get(job.candidates()["key"].unique(maintain_order=True))
        shutil.rmtree(job.rows().folder)
        if number >= 0:
            job.rows().append(kept.slice(number))

    return change


def test_pairs_that_are_not_in_the_store_are_left_out_with_a_line(
    toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    make_world(toy)
    judged(toy)
    forget(5)()
    pack.write("toy", toy.path / "pack", params.load(), ["verdicts"])
    assert "5 verdicts of 204 not in the store, so not in the pack" in capsys.readouterr().err
    assert pack_format.open_pack(toy.path / "pack").manifest.kinds["verdicts"].rows == 199


def spoiled(column: str, value: Any) -> Callable[[], None]:
    def change() -> None:
        file = VERDICTS / "part-00000.parquet"
        pl.read_parquet(file).with_columns(pl.lit(value).alias(column)).write_parquet(file)

    return change


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda: shutil.rmtree(VERDICTS), "toy: no rerank of it was run, so there are no verdicts to pack"),
        (lambda: (VERDICTS / "provenance.json").unlink(), "no judge in its provenance.json"),
        (forget(-1), "cache/store: none of the verdicts of second"),
        (spoiled("image_id", "100"), "not made from the present index and rankings"),
        (spoiled("yes", 0.123), "not made from the present index and rankings"),
    ],
    ids=["no output", "no recipe", "no rows", "other images", "other values"],
)
def test_what_cannot_be_packed_is_one_line_and_leaves_nothing(
    toy: Workspace, spoil: Callable[[], Any], line: str
) -> None:
    make_world(toy)
    judged(toy)
    spoil()
    with pytest.raises(CvsiError) as raised:
        pack.write("toy", toy.path / "pack", params.load(), ["verdicts"])
    assert line in str(raised.value) and "\n" not in str(raised.value) and not (toy.path / "pack").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rerank", "none"], "no rerank 'none'; there are: second"),
        (["--only", "verdict"], "give captions, edits, readings or verdicts"),
    ],
)
def test_a_wrong_option_is_one_line(toy: Workspace, words: list[str], line: str) -> None:
    make_world(toy)
    judged(toy)
    done = CliRunner().invoke(app, ["pack", "toy", "out", *words])
    assert done.exit_code == 1 and line in str(done.exception)


def test_a_judge_on_a_server_that_is_a_path_is_not_published(toy: Workspace) -> None:
    make_world(toy, queries=2, hidden=0)
    judged(toy, engine="server", address="http://localhost:1/v1", model="/srv/models/vl")
    with pytest.raises(CvsiError, match="rerank second: its recipe names the model by a path of this machine"):
        pack.write("toy", toy.path / "pack", params.load(), ["verdicts"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (pl.col("logprobs").list.head(2), "not as many logprobs as tokens"),
        (pl.col("tokens").list.head(1), "not as many logprobs as tokens"),
        (pl.lit([0.5, -1.0, -2.0], pl.List(pl.Float32)).alias("logprobs"), "no logarithm of a probability"),
        (pl.lit([math.nan, -1.0, -2.0], pl.List(pl.Float32)).alias("logprobs"), "no logarithm of a probability"),
        (pl.lit([math.inf, -1.0, -2.0], pl.List(pl.Float32)).alias("logprobs"), "no logarithm of a probability"),
        (pl.lit([None, -1.0, -2.0], pl.List(pl.Float32)).alias("logprobs"), "has nulls"),
        (pl.lit("x").alias("key"), "not a SHA-256"),
        (pl.col("logprobs").cast(pl.List(pl.Float64)), "columns"),
        (pl.lit(["x" * (2 << 20), "y", "z"]).alias("tokens"), "more text"),
    ],
)  # fmt: skip
def test_rows_that_are_no_verdicts_are_refused_and_none_is_added(
    other: Workspace, toy: Workspace, change: pl.Expr, line: str
) -> None:
    file = toy.path / "pack/verdicts/part-00000.parquet"
    frame = pl.read_parquet(file).with_columns(change)
    table = frame.to_arrow()
    cast = [STORED_VERDICTS.field(name) if "Float64" not in str(frame.schema[name]) else table.schema.field(name)
            for name in table.column_names]  # fmt: skip
    pq.write_table(table.cast(pa.schema(cast)), file)
    seal(toy.path / "pack")
    with pytest.raises(CvsiError) as raised:
        unpack(toy.path / "pack", params.load())
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert not list((other.path / "cache/store").rglob("verdicts/*/*.parquet"))


def test_an_infinitely_unlikely_token_is_a_verdict(other: Workspace, toy: Workspace) -> None:
    file = toy.path / "pack/verdicts/part-00000.parquet"
    table = pl.read_parquet(file).with_columns(logprobs=pl.lit([0.0, -math.inf, -1e30], pl.List(pl.Float32)))
    pq.write_table(table.to_arrow().cast(STORED_VERDICTS), file)
    seal(toy.path / "pack")
    unpack(toy.path / "pack", params.load())
    stage.write("second", params.load())
    assert set(pl.read_parquet(VERDICTS / "*.parquet")["yes"]) == {1.0}


def test_a_pack_of_all_has_verdicts_only_where_a_rerank_was_run(toy: Workspace) -> None:
    make()
    with_rerank(toy, "http://localhost:1/v1")
    pack.write("toy", toy.path / "pack", params.load())
    assert list(pack_format.open_pack(toy.path / "pack").manifest.kinds) == ["captions", "edits"]
