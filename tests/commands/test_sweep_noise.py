"""What a sweep's figures are worth: noise band and halves against plain numpy, and YAML that gives the same metric."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from cvsi.commands import sweep, sweep_noise, sweep_values
from cvsi.commands.main import app
from cvsi.commands.sweep_findings import findings, noise_text, set_command, to_paste
from cvsi.commands.sweep_grid import Split
from cvsi.commands.sweep_noise import FEWEST, Noise, counting, halves_of, noise_of
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.datasets.metrics import Metric, Protocol, recall
from cvsi.evaluation import metrics, scores
from cvsi.evaluation.halves import in_first_half
from tests.commands.conftest import SPLITS, World
from tests.commands.test_sweep import COMPONENTS, frame_of

NUMBER = 7


def reference(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a mean: a plain loop over the resamples."""
    random = np.random.default_rng(0)
    draws = random.integers(len(values), size=(1000, len(values)))
    means = sorted(sum(values[draw]) / len(values) for draw in draws)
    return tuple(np.percentile(means, [2.5, 97.5]))


def recalls(random: np.random.Generator, queries: int) -> np.ndarray:
    """0 or 100 for each weighting and query; every weighting finds a little less than the one before."""
    return 100.0 * (random.random((NUMBER, queries)) < np.linspace(0.8, 0.2, NUMBER)[:, None])


VALUES = {
    "recall": recalls(np.random.default_rng(1), 60),
    "precision": np.random.default_rng(2).random((NUMBER, 60)) * np.linspace(100, 60, NUMBER)[:, None],
    "all ties": np.full((NUMBER, 60), 33.3),
    "equal means of other queries": np.array([[0.0, 100] * 30, [100.0, 0] * 30, [50.0] * 60]),
    "one weighting": np.random.default_rng(3).random((1, 60)),
    "two queries": recalls(np.random.default_rng(4), 2),
    "all zero": np.zeros((NUMBER, 30)),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_intervals_of_many_rows_are_those_of_each_row(values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 3)
    low, high = metrics.intervals(values)
    assert np.stack([low, high], axis=1) == pytest.approx(np.array([metrics.interval(row) for row in values]))
    assert np.stack([low, high], axis=1) == pytest.approx(np.array([reference(row) for row in values]))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_the_noise_band_is_a_paired_bootstrap_against_the_best(
    values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_noise, "BLOCK", 2)
    best = int(values.mean(axis=1).argmax())
    noise = noise_of(values, best)
    for index, row in enumerate(values):
        low, high = reference(row - values[best])
        assert noise.difference[index] == pytest.approx((row - values[best]).mean())
        assert (noise.low[index], noise.high[index]) == pytest.approx((low, high))
        assert noise.within[index] == (low <= 1e-9 and high >= -1e-9)
    assert noise.within[best] and noise.difference[best] == noise.low[best] == noise.high[best] == 0
    assert (noise.best, noise.queries) == (best, values.shape[1])


def test_bands_of_values_that_differ_are_neither_empty_nor_everything() -> None:
    noise = noise_of(VALUES["recall"], int(VALUES["recall"].mean(axis=1).argmax()))
    assert 1 < noise.within.sum() < NUMBER
    assert noise_of(VALUES["all ties"], 0).within.all()


@pytest.mark.parametrize("queries", [1, 2, 20, 21, 240])
def test_halves_depend_on_the_ids_alone(queries: int) -> None:
    ids = [f"q{number}" for number in range(queries)]
    first = in_first_half(ids)
    assert first.sum() == (queries + 1) // 2
    order = np.random.default_rng(0).permutation(queries)
    assert (in_first_half([ids[index] for index in order]) == first[order]).all()
    assert queries < 20 or 2 < abs(np.diff(first)).sum(), "the halves are the beginning and the end"


@pytest.mark.parametrize(
    "ids",
    [
        [str(number) for number in range(30)],
        [f"dev-{'é' * (n % 5)}{n}" for n in range(30)],
        ["", *"abcdefghijklmnopqrst"],
    ],
    ids=["numbers", "other letters", "an empty id"],
)
@pytest.mark.parametrize("kind", ["recall", "precision"])
def test_weights_are_chosen_on_one_half_and_reported_on_the_other(ids: list[str], kind: str) -> None:
    values = VALUES[kind][:, : len(ids)]
    first, own = in_first_half(ids), NUMBER - 1
    best = int(values.mean(axis=1).argmax())
    halves = halves_of(values, first, own, best)
    assert halves is not None
    honest = np.empty(len(ids))
    for half, mine in ((halves.first, first), (halves.second, ~first)):
        means = [row[mine].sum() / mine.sum() for row in values]
        assert half.chosen == means.index(max(means)) and half.queries == mine.sum()
        assert half.here == pytest.approx(max(means))
        assert half.other == pytest.approx(values[half.chosen][~mine].mean())
        honest[~mine] = values[half.chosen][~mine]
    for mean, wanted in (
        (halves.honest, honest),
        (halves.gain, honest - values[own]),
        (halves.optimistic, values[best]),
    ):
        assert mean is not None
        assert (mean.value, mean.low, mean.high) == pytest.approx((wanted.mean(), *reference(wanted)))
    assert halves.honest.value <= halves.optimistic.value
    if len(ids) % 2 == 0:
        assert halves.honest.value == pytest.approx((halves.first.other + halves.second.other) / 2)


def test_of_equal_weightings_a_half_chooses_the_first() -> None:
    values = np.stack([VALUES["precision"][3], *[VALUES["precision"][0]] * 3])
    halves = halves_of(values, in_first_half([str(n) for n in range(60)]), 0, 1)
    assert halves is not None and (halves.first.chosen, halves.second.chosen) == (1, 1)


@pytest.mark.parametrize("queries", [1, 2, 2 * FEWEST - 1, 2 * FEWEST, 2 * FEWEST + 1])
def test_halves_of_few_queries(queries: int) -> None:
    ids = [str(number) for number in range(queries)]
    halves = halves_of(VALUES["recall"][:, :queries], in_first_half(ids), 0, 0)
    assert (halves is None) == (queries < 2 * FEWEST)


def judged(values: np.ndarray | None, queries: int = 60) -> Split:
    table = np.zeros((NUMBER, len(COMPONENTS.names)))
    means = np.zeros(NUMBER) if values is None else np.nanmean(values, axis=1)
    return sweep.judged(table, pl.Series([str(n) for n in range(queries)]), means, values, 2)


def test_queries_that_do_not_count_are_left_out() -> None:
    values = VALUES["precision"].copy()
    values[:, 5] = np.nan  # counts nowhere
    values[3, 7] = np.nan  # counts under all weightings but one
    split = judged(values)
    counted = np.delete(VALUES["precision"], [5, 7], axis=1)
    assert counting(values).sum() == 58
    assert split.noise is not None and split.halves is not None and split.why == ""
    assert split.noise.queries == 58 and split.queries == 60
    wanted = noise_of(counted, split.noise.best)
    assert (split.noise.low == wanted.low).all() and (split.noise.within == wanted.within).all()
    assert split.halves.first.queries + split.halves.second.queries == 58
    assert "58 of 60 queries: those that count under every weighting" in noise_text(split, split.noise, 3)


@pytest.mark.parametrize(
    ("counted", "why"), [(0, "no query counts under every weighting"), (1, "1 query counts under every weighting")]
)
def test_too_few_queries_for_any_interval(counted: int, why: str) -> None:
    values = VALUES["precision"].copy()
    values[0, counted:] = np.nan
    values[0, -1] = 1.0
    values[1, -1] = np.nan
    split = judged(values)
    assert split.noise is None and split.halves is None
    assert split.why == f"no noise band and no halves: {why}"
    assert [column.null_count() for column in sweep.noise_columns(split)] == [NUMBER] * 4


@pytest.mark.parametrize("queries", [1, 2, 19, 20])
def test_splits_with_few_queries_say_what_is_left_out(queries: int) -> None:
    split = judged(VALUES["precision"][:, :queries], queries)
    assert (split.noise is None) == (queries == 1) and (split.halves is None) == (queries < 20)
    wanted = {2: "no halves: 2 queries, and each half needs 10", 19: "no halves: 19 queries, and each half needs 10"}
    assert split.why == (wanted.get(queries, "") if queries > 1 else split.why) and bool(split.why) == (queries < 20)


def test_values_that_were_too_large_to_keep(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    advice = "take a larger --step, fewer --parts or shorter lists"
    assert f"the values of 60 queries take 0.0 GiB; {advice}" in judged(None).why
    world("circo")
    kept = sweep.build("toy", "tiny", params.load(), step=0.5).frame
    monkeypatch.setattr(sweep_values, "KEPT", 8 * 22 * 37 - 1)  # dev has fewer queries
    outcome = sweep.build("toy", "tiny", params.load(), step=0.5)
    assert outcome.splits["val"].noise is None and outcome.splits["dev"].noise is not None
    val = outcome.frame.filter(split="val")
    assert val["in_noise"].null_count() == val.height
    assert outcome.frame.drop("difference", "low", "high", "in_noise").equals(
        kept.drop("difference", "low", "high", "in_noise")
    )


def per_query(monkeypatch: pytest.MonkeyPatch, values: Any) -> None:
    """Give the toy dataset a protocol whose main metric is a function of the table."""
    protocol = Protocol("odd", (Metric("odd", values), *recall(1, 5)))
    monkeypatch.setattr(sweep, "format_of", lambda *_: SimpleNamespace(protocol=protocol))


def test_the_columns_are_those_of_plain_numpy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank of the first target as the metric: every weighting has other values, and each is known from a table."""
    workspace, seen = world("circo"), []

    def inverse_rank(table: pl.DataFrame) -> np.ndarray:
        values = (100 / table["target_ranks"].list.first()).fill_null(0).to_numpy().copy()
        values[table["query_id"].is_in(["3", "5"]).to_numpy()] = np.nan
        seen.append(table.select("split", "query_id").with_columns(value=values))
        return np.asarray(values)

    per_query(monkeypatch, inverse_rank)
    outcome = sweep.build("toy", "tiny", params.load(), ["edited", "pseudo"], 0.5)
    frame = frame_of(workspace)
    assert frame.equals(outcome.frame)
    for split, number in SPLITS.items():
        if split == "hidden":
            continue
        mine = pl.concat(table for table in seen if table["split"][0] == split)
        values = {query: rows["value"].to_numpy() for (query,), rows in mine.group_by("query_id")}
        ids = [str(n) for n in range(number) if n not in (3, 5)]
        matrix = np.stack([values[query] for query in ids], axis=1)  # [weightings, queries], in the grid's order
        rows = frame.filter(split=split)
        order = np.argsort(-matrix.mean(axis=1).round(9), kind="stable")
        assert rows["odd"].to_list() == pytest.approx(matrix.mean(axis=1)[order])
        for place, index in enumerate(order):
            low, high = reference(matrix[index] - matrix[order[0]])
            wanted = (matrix[index].mean() - matrix[order[0]].mean(), low, high)
            assert rows.select("difference", "low", "high").row(place) == pytest.approx(wanted, abs=1e-9)
            assert rows["in_noise"][place] == (low <= 0 <= high)
        assert 0 < rows["in_noise"].sum() < rows.height


@pytest.mark.parametrize("splits", [["dev"], ["val"], ["dev", "val"]])
def test_splits_of_which_no_query_counts(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], splits: list[str]
) -> None:
    world("circo")
    per_query(monkeypatch, lambda table: np.where(table["split"].is_in(splits).to_numpy(), np.nan, 50.0))
    if len(splits) == 2:
        with pytest.raises(CvsiError, match="no query of val, dev counts in odd; no weights can be compared"):
            sweep.build("toy", "tiny", params.load(), step=0.5)
        return
    outcome = sweep.build("toy", "tiny", params.load(), step=0.5)
    assert f"{splits[0]}: no query counts in odd" in capsys.readouterr().out
    (split,) = outcome.splits
    assert split not in splits and outcome.frame["split"].unique().to_list() == [split]
    assert outcome.frame["in_noise"].all(), "all weightings tie"


def pasted(output: str, split: str) -> tuple[dict[str, Any], list[str]]:
    """The block and the command that a sweep printed for a split."""
    lines = output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"The best on {split}, "))
    (set_line,) = [line for line in lines[start : start + 8] if line.startswith("cvsi set ")]
    end = lines.index(set_line, start)
    datasets = "datasets:\n  toy:\n" + "\n".join(lines[start + 1 : end]) + "\n"
    return yaml.safe_load(datasets)["datasets"]["toy"]["fusion"], shlex.split(set_line)


@pytest.mark.parametrize("form", ["circo", "cirr", "fashioniq"])
def test_the_pasted_yaml_and_the_command_give_that_metric_in_the_scores(world: World, form: str) -> None:
    workspace = world(form)
    if form == "fashioniq":
        workspace.params(datasets__toy__category="dress")
    done = CliRunner().invoke(app, ["sweep", "toy", "tiny", "--step", "0.5"])
    assert done.exit_code == 0, done.stderr
    for split in ("dev", "val"):
        (best, *_) = frame_of(workspace).filter(split=split).to_dicts()
        block, words = pasted(done.stdout, split)
        workspace.params(datasets__toy__fusion=block)
        by_hand = params.load().dataset("toy").fusion
        workspace.params(datasets__toy__fusion="edited")
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
        assert params.load().dataset("toy").fusion == by_hand == block
        scores.build("toy", "tiny", params.load())
        stage = json.loads((workspace.path / "cache/toy/tiny/scores/metrics.json").read_text())[split]
        names = [name for name in best if "@" in name]
        assert {name: best[name] for name in names} == pytest.approx({name: stage[name] for name in names}, abs=1e-9)


@pytest.mark.parametrize(
    "weights",
    [
        {"edited": 0.00001, "pseudo": 0.99999, "image": 1.0},
        {"edited": 1.4, "reference": 0.25, "source": -0.6499999999999999, "image": 1.0},
        {"edited": 1 / 3, "pseudo": 2 / 3, "image": 0.1, "caption": 0.9},
        {"edited": 1e-7, "caption": 1e22},
    ],
    ids=["tiny", "negative", "thirds", "exponents"],
)
def test_weights_keep_every_bit_in_yaml(weights: dict[str, float]) -> None:
    form = COMPONENTS.form_of(dict.fromkeys(COMPONENTS.names, 0.0) | weights)
    block = yaml.safe_load("datasets:\n  toy:\n" + to_paste(form))["datasets"]["toy"]["fusion"]
    (_, _, key, value) = shlex.split(set_command("it's", form))
    assert block == yaml.safe_load(value) == form and key == "datasets.it's.fusion"
    assert block["query"] | block["gallery"] == weights


@pytest.mark.parametrize("own", ["best", "near", "far"])
def test_the_line_says_where_the_own_weighting_stands(own: str) -> None:
    index = ["best", "near", "far"].index(own)
    noise = Noise(0, 60, np.array([0, -1.0, -9]), np.array([0, -2.5, -11]), np.array([0, 0.5, -7]), np.array([1, 1, 0]))
    split = Split(np.zeros((3, 7)), 60, index, noise, None, "")
    wanted = {
        "best": "cvsi is the best.",
        "near": "cvsi, number 2, is one of them: -1.00 (-2.50 to +0.50) against the best.",
        "far": "cvsi, number 3, is not one of them: -9.00 (-11.00 to -7.00) against the best.",
    }
    start = "2 of 3 weightings cannot be told from the best at 95% (paired bootstrap over 60 queries)."
    assert noise_text(split, noise, index + 1) == f"{start} {wanted[own]}"


def test_the_terminal_shows_band_halves_and_yaml_in_80_columns(world: World) -> None:
    world("circo")
    outcome = sweep.build("toy", "tiny", params.load(), step=0.25)
    shown = list(findings(outcome, "toy"))
    console = Console(width=80)
    with console.capture() as capture:
        for finding in shown:
            console.print(finding, markup=False) if not isinstance(finding, str) else None
    lines = capture.get().splitlines()
    text = [line for finding in shown if isinstance(finding, str) for line in finding.splitlines()]
    assert max(len(line) for line in [*lines, *text] if not line.startswith("cvsi set ")) <= 80
    for split in ("dev", "val"):
        half = outcome.splits[split].halves
        assert half is not None
        assert any(
            line.startswith(f"{split}, halves of {half.first.queries} and {half.second.queries}") for line in lines
        )
        assert any(f"{half.first.here:.2f}" in line and f"{half.first.other:.2f}" in line for line in lines)
        honest = f"{half.honest.value:.2f} ({half.honest.low:.2f} to {half.honest.high:.2f})"
        assert f"Honest, on the queries that did not choose: {honest}" in " ".join(" ".join(text).split())
    assert sum(" fusion:" in line for line in text) == 2


def test_one_labelled_query(world: World) -> None:
    workspace = world("circo")
    file = workspace.path / "cache/toy/index/queries.parquet"
    table = pl.read_parquet(file)
    one = table.filter((pl.col("split") == "val") & (pl.col("query_id") == "0"))
    schema = pq.read_schema(file)
    pq.write_table(one.to_arrow().cast(schema), file)
    vectors = workspace.path / "cache/toy/tiny/query_vectors/all.parquet"
    rows = pq.read_table(vectors)
    pq.write_table(rows.slice(0, 1), vectors)
    done = CliRunner().invoke(app, ["sweep", "toy", "tiny", "--step", "0.5"])
    assert done.exit_code == 0, done.exception
    assert "val: no noise band and no halves: 1 query counts under every weighting." in done.stdout
    assert Path("cache/toy/tiny/sweep/sweep.png").exists()
    assert "fusion:" in done.stdout
