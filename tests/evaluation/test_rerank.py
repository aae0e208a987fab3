"""The stage rerank against plain definitions: the order, the ranks, the metrics, and judges whose outcome is known."""

import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cvsi.core import params, parquet, tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import RANKINGS, per_query
from cvsi.datasets.formats import FORMATS
from cvsi.evaluation import rerank
from cvsi.pipeline import verdicts
from tests.conftest import Workspace
from tests.rerank_world import judging, make_world, oracle, targets, with_rerank, write_verdicts
from tests.vision_server import error, serving

SCORES, SECOND = Path("cache/toy/tiny/scores"), Path("cache/toy/tiny/rerank/second")
COUNTS = ("judged", "failed")


def metrics(folder: Path) -> dict[str, float]:
    """The metrics of split val."""
    return json.loads((folder / "metrics.json").read_text())["val"]  # type: ignore[no-any-return]


def expected_order(
    rows: list[tuple[str, float, int]], yes: dict[str, float | None], mean: Any, mix: float
) -> list[str]:
    """Images of (image, score, rank) by the definition, one query at a time."""
    if not rows:
        return []
    low, high = min(score for _, score, _ in rows), max(score for _, score, _ in rows)

    def value(image: str, score: float) -> float:
        verdict = yes[image] if yes[image] is not None else mean
        scaled = (score - low) / (high - low) if high > low else 0.0
        return 0.0 if verdict is None else mix * verdict + (1 - mix) * scaled

    return [image for image, score, _ in sorted(rows, key=lambda row: (-value(row[0], row[1]), row[2]))]


def as_lists(table: pl.DataFrame) -> dict[tuple[str, str], list[tuple[str, float, int]]]:
    found = defaultdict(list)
    for row in table.sort("rank").iter_rows(named=True):
        found[row["split"], row["query_id"]].append((row["image_id"], row.get("score", 0.0), row["rank"]))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_the_order_is_that_of_a_plain_computation(seed: int, mix: float) -> None:
    chance = random.Random(seed)
    rankings, judged, plain = [], [], {}
    for query in range(25):
        size, top = chance.randrange(0, 14), 8
        levels = sorted((chance.choice([0.1, 0.2, 0.25, 0.7]) for _ in range(size)), reverse=True)
        rows = [(f"i{place}", float(np.float32(score)), place + 1) for place, score in enumerate(levels)]
        fails = chance.choice([0.0, 0.3, 1.0])
        drawn = (None if chance.random() < fails else chance.choice([0.0, 0.5, 0.5, 0.9]) for _ in rows)
        yes = {image: value for (image, _, _), value in zip(rows[:top], drawn, strict=False)}
        there = [value for value in yes.values() if value is not None]
        mean = sum(there) / len(there) if there else None
        order = expected_order(rows[:top], yes, mean, mix)
        plain[str(query)] = order + [image for image, _, _ in rows[top:]]
        rankings += [("val", str(query), rank, image, score) for image, score, rank in rows]
        judged += [("val", str(query), image, value, "ok") for image, value in yes.items()]
    key = {"split": pl.String, "query_id": pl.String}
    table = pl.DataFrame(
        rankings, schema=key | {"rank": pl.Int32, "image_id": pl.String, "score": pl.Float32}, orient="row"
    )
    found = pl.DataFrame(
        judged, schema=key | {"image_id": pl.String, "yes": pl.Float64, "status": pl.String}, orient="row"
    )
    made = rerank.in_order(rerank.reordered(table.with_row_index("row"), found, 8, mix), RANKINGS.names)
    lists = {query: [image for image, _, _ in rows] for (_, query), rows in as_lists(made).items()}
    assert lists == {query: images for query, images in plain.items() if images}
    assert made.sort("query_id", "rank")["rank"].to_list() == table.sort("query_id", "rank")["rank"].to_list()
    if mix == 0:
        assert made.equals(table.select(RANKINGS.names))


@pytest.mark.parametrize("groups", [False, True], ids=["circo", "cirr"])
@pytest.mark.parametrize("mix", [0.4, 1.0])
def test_rankings_ranks_and_metrics_are_those_of_a_plain_computation(toy: Workspace, groups: bool, mix: float) -> None:
    make_world(toy, groups)
    with_rerank(toy, "http://localhost:1/v1", top=20, mix=mix)
    chance = random.Random(1)
    judged = write_verdicts(toy, 20, lambda row: chance.choice([None, 0.0, 0.25, 0.5, 1.0]))
    rerank.build("second", params.load())
    of_query: dict[tuple[str, str], dict[str, float | None]] = defaultdict(dict)
    means: dict[tuple[str, str], float | None] = {}
    for row in judged.iter_rows(named=True):
        of_query[row["split"], row["query_id"]][row["image_id"]] = row["yes"]
    for key, yes in of_query.items():
        there = [value for value in yes.values() if value is not None]
        means[key] = sum(there) / len(there) if there else None
    first = as_lists(pl.read_parquet(SCORES / "rankings.parquet"))
    orders = {
        key: expected_order(rows[:20], of_query[key], means[key], mix) + [image for image, _, _ in rows[20:]]
        for key, rows in first.items()
    }
    made = pl.read_parquet(SECOND / "rankings.parquet")
    assert {key: [image for image, _, _ in rows] for key, rows in as_lists(made).items()} == orders
    names = FORMATS.get("cirr" if groups else "circo", "").protocol.names()
    assert parquet.read_file(SECOND / "per_query.parquet").schema == per_query(names)
    assert parquet.read_file(SECOND / "rankings.parquet").schema == RANKINGS
    in_groups = as_lists(pl.read_parquet(SCORES / "group_rankings.parquet"))
    queries = {
        (row["split"], row["query_id"]): row for row in tables.read("index", "toy", "queries.parquet").to_pylist()
    }
    before = pl.read_parquet(SCORES / "per_query.parquet").rows(named=True)
    for old, new in zip(before, pl.read_parquet(SECOND / "per_query.parquet").iter_rows(named=True), strict=True):
        key = (new["split"], new["query_id"])
        wanted = queries[key]["target_ids"]
        assert new["target_ranks"] == [
            orders[key].index(image) + 1 if image in orders[key] else rank
            for image, rank in zip(wanted, old["target_ranks"], strict=True)
        ]
        if groups:
            order = expected_order(in_groups[key], of_query[key], means[key], mix)
            assert new["group_rank"] == order.index(wanted[0]) + 1
            assert new["Recall_subset@1"] == (100 if order[0] == wanted[0] else 0)
        else:
            assert new["mAP@10"] == pytest.approx(average_precision(orders[key], wanted, 10))
    numbers = metrics(SECOND)
    val = judged.filter(pl.col("split") == "val")
    assert (numbers["judged"], numbers["failed"]) == (val["yes"].count(), val["yes"].null_count())
    assert set(numbers) == {*metrics(SCORES), *COUNTS} and numbers["queries"] == 30


def average_precision(order: list[str], wanted: list[str], k: int) -> float:
    """AP@k in percent by its definition."""
    hits, total = 0, 0.0
    for place, image in enumerate(order[:k], start=1):
        if image in wanted:
            hits += 1
            total += hits / place
    return 100 * total / min(len(wanted), k)


@pytest.mark.parametrize("groups", [False, True], ids=["circo", "cirr"])
@pytest.mark.parametrize("kind", ["mix 0", "failing", "constant", "constant, mix 0.5"])
def test_what_says_nothing_leaves_everything_as_it_was(toy: Workspace, groups: bool, kind: str) -> None:
    make_world(toy, groups)
    mix = {"mix 0": 0.0, "constant, mix 0.5": 0.5}.get(kind, 1)
    with_rerank(toy, "http://localhost:1/v1", top=20, mix=mix)
    chance = random.Random(2)
    judged = write_verdicts(toy, 20, lambda row: chance.random() if mix == 0 else None if kind == "failing" else 0.37)
    rerank.build("second", params.load())
    names = ["rankings.parquet", "per_query.parquet"]
    names += [f"submissions/{file.name}" for file in (SCORES / "submissions").iterdir()]
    assert len(names) > 2
    for name in names:
        assert (SECOND / name).read_bytes() == (SCORES / name).read_bytes(), name
    numbers = metrics(SECOND)
    assert {name: value for name, value in numbers.items() if name not in COUNTS} == metrics(SCORES)
    pairs = judged.filter(pl.col("split") == "val").height
    assert (numbers["judged"], numbers["failed"]) == ((0, pairs) if kind == "failing" else (pairs, 0))


def test_an_oracle_lifts_recall_to_that_of_the_first_top_and_map_to_that_of_the_best_order(toy: Workspace) -> None:
    make_world(toy)
    with serving(judging(oracle())) as server:
        settings = with_rerank(toy, server.address, top=25)
        verdicts.write("second", settings)
    rerank.build("second", settings)
    before, after, known = metrics(SCORES), metrics(SECOND), targets()
    assert before["Recall@5"] < before["Recall@25"] < 100
    assert {after[f"Recall@{k}"] for k in (5, 10, 25)} == {before["Recall@25"]}
    assert after["Recall@50"] == before["Recall@50"]
    queries = {row["query_id"]: row for row in tables.read("index", "toy", "queries.parquet").to_pylist()}
    first = as_lists(pl.read_parquet(SCORES / "rankings.parquet"))
    for k in (5, 10, 25):
        best = []
        for (split, query), rows in first.items():
            if split == "val":
                wanted = known[queries[query]["instruction"]]
                images = [image for image, _, _ in rows[:25]]
                best.append(average_precision(sorted(images, key=lambda image: image not in wanted), wanted, k))
        assert after[f"mAP@{k}"] == pytest.approx(sum(best) / len(best))
    assert after["mAP@10"] > before["mAP@10"] + 10


def test_an_oracle_lifts_the_recall_of_groups_to_one_hundred(toy: Workspace) -> None:
    make_world(toy, groups=True)
    with serving(judging(oracle())) as server:
        settings = with_rerank(toy, server.address, top=10)
        verdicts.write("second", settings)
    rerank.build("second", settings)
    before, after = metrics(SCORES), metrics(SECOND)
    assert before["Recall_subset@1"] < 50 and after["Recall_subset@1"] == 100
    assert after["Recall@1"] == after["Recall@5"] == after["Recall@10"] == before["Recall@10"] < 100
    assert after["Recall@50"] == before["Recall@50"]


def test_a_judge_whose_requests_fail_for_some_pairs_is_counted(toy: Workspace) -> None:
    make_world(toy)
    with serving(lambda seen, before: error(400, "blocked by the content policy")) as server:
        settings = with_rerank(toy, server.address, top=4)
        verdicts.write("second", settings)
    rerank.build("second", settings)
    assert (SECOND / "rankings.parquet").read_bytes() == (SCORES / "rankings.parquet").read_bytes()
    assert metrics(SECOND)["failed"] == 30 * 4 and metrics(SECOND)["judged"] == 0


def test_noise_gives_the_metric_of_a_random_order(toy: Workspace) -> None:
    make_world(toy, queries=200, hidden=0)
    settings = with_rerank(toy, "http://localhost:1/v1", top=25)
    chance = random.Random(5)
    write_verdicts(toy, 25, lambda row: chance.random())
    rerank.build("second", settings)
    after, known = metrics(SECOND), targets()
    queries = {row["query_id"]: row for row in tables.read("index", "toy", "queries.parquet").to_pylist()}
    shuffled = random.Random(6)
    expected = []
    for (_, query), rows in as_lists(pl.read_parquet(SCORES / "rankings.parquet")).items():
        images, wanted = [image for image, _, _ in rows[:25]], known[queries[query]["instruction"]]
        for _ in range(100):
            shuffled.shuffle(images)
            expected.append(average_precision(images, wanted, 10))
    mean = sum(expected) / len(expected)
    assert after["mAP@10 low"] < mean < after["mAP@10 high"]
    assert after["Recall@25"] == metrics(SCORES)["Recall@25"]


def test_submissions_have_the_new_order(toy: Workspace) -> None:
    make_world(toy, groups=True)
    settings = with_rerank(toy, "http://localhost:1/v1", top=20)
    chance = random.Random(3)
    judged = write_verdicts(toy, 20, lambda row: chance.random())
    rerank.build("second", settings)
    made = json.loads((SECOND / "submissions" / "test.recall.json").read_text())
    lists = as_lists(pl.read_parquet(SECOND / "rankings.parquet"))
    assert made["30"] == [image for image, _, _ in lists["test", "30"][:50]]
    old = json.loads((SCORES / "submissions" / "test.recall.json").read_text())
    assert made["30"] != old["30"] and made["30"][20:] == old["30"][20:]
    subset = json.loads((SECOND / "submissions" / "test.recall_subset.json").read_text())["30"]
    yes = {row["image_id"]: row["yes"] for row in judged.iter_rows(named=True) if row["query_id"] == "30"}
    members = {row["query_id"]: row for row in tables.read("index", "toy", "queries.parquet").to_pylist()}["30"]
    ranked = [image for image in members["group_ids"] if image != members["reference_id"]]
    assert subset == sorted(ranked, key=lambda image: -yes[image])[:3]


def test_scores_of_other_metrics_are_one_line(toy: Workspace) -> None:
    make_world(toy)
    settings = with_rerank(toy, "http://localhost:1/v1", top=5)
    write_verdicts(toy, 5, lambda row: 0.5)
    path = SCORES / "per_query.parquet"
    pl.read_parquet(path).drop("mAP@10").write_parquet(path)
    with pytest.raises(CvsiError, match=r"per_query.parquet: no column 'mAP@10'; run the stage scores again"):
        rerank.build("second", settings)


def broken(column: str, value: Any) -> Any:
    return lambda table: table.with_columns(pl.lit(value).alias(column))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda table: table.head(-1), "no verdict on 1 image, the first is"),
        (lambda table: table.filter(pl.col("rank") != 3), "no verdict on 34 images, the first is"),
        (lambda table: table.clear(), "the rankings are newer than the verdicts, run dvc repro verdicts@second"),
        (lambda table: pl.concat([table, table.head(1)]), "two verdicts on"),
        (broken("yes", 1.5), "not a probability"),
        (broken("yes", math.nan), "not a probability"),
        (broken("yes", -0.1), "not a probability"),
        (lambda table: table.drop("yes"), "no column 'yes'"),
        (lambda table: table.drop("status"), "no column 'status'"),
    ],
)
def test_verdicts_that_do_not_fit_are_one_line(toy: Workspace, change: Any, line: str) -> None:
    make_world(toy)
    settings = with_rerank(toy, "http://localhost:1/v1", top=5)
    write_verdicts(toy, 5, lambda row: 0.5)
    file = Path("cache/toy/tiny/verdicts/second/part-00000.parquet")
    change(pl.read_parquet(file)).write_parquet(file)
    with pytest.raises(CvsiError) as raised:
        rerank.build("second", settings)
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert not SECOND.exists()


def test_group_rankings_of_an_earlier_version_are_one_line(toy: Workspace) -> None:
    make_world(toy, groups=True)
    settings = with_rerank(toy, "http://localhost:1/v1", top=5)
    write_verdicts(toy, 5, lambda row: 0.5)
    file = SCORES / "group_rankings.parquet"
    pl.read_parquet(file).drop("score").write_parquet(file)
    with pytest.raises(CvsiError, match="no column 'score', as earlier versions wrote it; run the stage scores again"):
        rerank.build("second", settings)
