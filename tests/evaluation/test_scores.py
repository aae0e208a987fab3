"""The stage scores on vectors that another program wrote, against a second computation from the definition."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvsi.commands.compare import compare
from cvsi.core import params, schema
from cvsi.datasets import metrics
from tests.conftest import Workspace

WIDTH, IMAGES, VAL, TEST = 16, 120, 9, 5
WEIGHTS = {"edited": 0.6, "pseudo": 0.4}


def vectors(random: np.random.Generator, rows: int, kind: Any) -> pa.Array:
    matrix = random.normal(size=(rows, WIDTH))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(kind).reshape(-1)), WIDTH)


def matrix(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist(), dtype=np.float64)


@pytest.fixture
def foreign(toy: Workspace) -> Workspace:
    """A CIRCO-like index and random vectors, written here and not by our stages."""
    random = np.random.default_rng(5)
    toy.params(datasets__toy__format="circo")
    cache = toy.path / "cache" / "toy"
    ids = [str(1000 + 7 * number) for number in range(IMAGES)]
    images = pa.table(
        [
            ids,
            [f"{i}.png" for i in ids],
            ["0" * 64] * IMAGES,
            [4] * IMAGES,
            [4] * IMAGES,
            [True] * (IMAGES - 1) + [False],
        ],
        schema=schema.IMAGES,
    )
    rows = []
    for split, number in (("val", VAL), ("test", TEST)):
        for query in range(number):
            chosen = random.choice(IMAGES - 1, 4, replace=False)
            rows.append(
                {
                    "query_id": str(query), "split": split, "reference_id": ids[chosen[0]], "instruction": "is red",
                    "target_ids": [ids[i] for i in chosen[1:]][: 1 + query % 3] if split == "val" else [],
                    "exclude_ids": [ids[chosen[0]]] if query % 2 else [], "group_ids": [],
                    "aspects": ["odd" if query % 2 else "even"] if split == "val" else [],
                }
            )  # fmt: skip
    queries = pa.Table.from_pylist(rows, schema.QUERIES)
    (cache / "index").mkdir(parents=True)
    pq.write_table(images, cache / "index" / "images.parquet")
    pq.write_table(queries, cache / "index" / "queries.parquet")
    place = cache / "tiny" / "gallery_vectors"
    place.mkdir(parents=True)
    gallery = images["image_id"].slice(0, IMAGES - 1)
    for number, start in enumerate(range(0, len(gallery), 50)):
        part = gallery.slice(start, 50)
        columns = {"image": vectors(random, len(part), np.float16), "caption": vectors(random, len(part), np.float16)}
        pq.write_table(pa.table({"image_id": part} | columns), place / f"part-{number}.parquet")
    place = cache / "tiny" / "query_vectors"
    place.mkdir(parents=True)
    order = random.permutation(VAL + TEST)
    table = queries.select(["query_id", "split"]).take(order)
    for part_name in schema.QUERY_PARTS:
        table = table.append_column(part_name, vectors(random, VAL + TEST, np.float32))
    pq.write_table(table, place / "all.parquet")
    return toy


def expected(workspace: Workspace) -> dict[tuple[str, str], list[str]]:
    """The first 100 of every query, by the definition, in float64."""
    rows = pq.read_table(workspace.path / "cache" / "toy" / "index" / "queries.parquet").to_pylist()
    order = full_order(workspace)
    keys = {(row["split"], row["query_id"]): row["exclude_ids"] for row in rows}
    return {key: [image for image in order[key] if image not in barred][:100] for key, barred in keys.items()}


def test_rankings_equal_the_definition(foreign: Workspace) -> None:
    foreign.run("scores", "toy", "tiny")
    rankings = pq.read_table(foreign.path / "cache/toy/tiny/scores/rankings.parquet")
    assert rankings.schema.equals(schema.RANKINGS)
    frame = pl.DataFrame(rankings)
    lists = frame.group_by("split", "query_id", maintain_order=True).agg("image_id", "rank")
    wanted = expected(foreign)
    assert lists.height == len(wanted)
    for split, query, images, ranks in lists.iter_rows():
        assert images == wanted[split, query]
        assert ranks == list(range(1, 101))


def test_metrics_equal_the_definition(foreign: Workspace) -> None:
    foreign.run("scores", "toy", "tiny")
    metrics = json.loads((foreign.path / "cache/toy/tiny/scores/metrics.json").read_text())
    assert list(metrics) == ["val"]
    wanted = expected(foreign)
    queries = pq.read_table(foreign.path / "cache/toy/index/queries.parquet").to_pylist()
    precisions: dict[str, list[float]] = {"odd": [], "even": []}
    recalls = []
    for row in queries[:VAL]:
        ranked, targets = wanted["val", row["query_id"]], row["target_ids"]
        hits = total = 0.0
        for rank, image in enumerate(ranked[:10], start=1):
            if image in targets:
                hits += 1
                total += hits / rank
        precisions[row["aspects"][0]].append(100 * total / min(len(targets), 10))
        recalls.append(100.0 * (targets[0] in ranked[:25]))
    both = [*precisions["odd"], *precisions["even"]]
    assert metrics["val"]["mAP@10"] == pytest.approx(np.mean(both))
    assert metrics["val"]["mAP@10/odd"] == pytest.approx(np.mean(precisions["odd"]))
    assert metrics["val"]["Recall@25"] == pytest.approx(np.mean(recalls))
    assert metrics["val"]["mAP@10 low"] <= metrics["val"]["mAP@10"] <= metrics["val"]["mAP@10 high"]
    assert metrics["val"]["queries"] == VAL and metrics["val"]["dropped"] == metrics["val"]["fallbacks"] == 0


def test_what_was_dropped_is_counted(foreign: Workspace) -> None:
    index = foreign.path / "cache/toy/index"
    rows = [{"path": f"{number}.png", "reason": "empty file"} for number in range(3)]
    pq.write_table(pa.Table.from_pylist(rows, schema.DROPPED), index / "dropped.parquet")
    lost = [
        {"query_id": str(900 + n), "split": split, "reason": "gone"} for n, split in enumerate(("val", "val", "test"))
    ]
    pq.write_table(pa.Table.from_pylist(lost, schema.DROPPED_QUERIES), index / "dropped_queries.parquet")
    said = foreign.run("scores", "toy", "tiny")
    assert "test: 1 dropped query not in the submission" in said
    found = json.loads((foreign.path / "cache/toy/tiny/scores/metrics.json").read_text())["val"]
    assert (found["queries"], found["dropped"], found["dropped images"]) == (VAL, 2, 3)


def test_the_submission_has_fifty_integers_for_every_hidden_query(foreign: Workspace) -> None:
    foreign.run("scores", "toy", "tiny")
    files = list((foreign.path / "cache/toy/tiny/scores/submissions").glob("*.json"))
    assert len(files) == 1
    content = json.loads(files[0].read_text())
    wanted = expected(foreign)
    assert content == {str(q): [int(image) for image in wanted["test", str(q)][:50]] for q in range(TEST)}


def test_scoring_twice_gives_the_same_bytes(foreign: Workspace) -> None:
    foreign.run("scores", "toy", "tiny")
    first = foreign.bytes_below("toy/tiny/scores")
    foreign.run("scores", "toy", "tiny")
    assert foreign.bytes_below("toy/tiny/scores") == first


def test_a_part_without_weight_may_be_missing(foreign: Workspace) -> None:
    file = foreign.path / "cache/toy/tiny/query_vectors/all.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["source"]), file)
    foreign.run("scores", "toy", "tiny")
    pq.write_table(pq.read_table(file).drop_columns(["pseudo"]), file)
    assert "no column 'pseudo', which has a weight in the dataset's fusion" in foreign.error("scores", "toy", "tiny")


def test_vectors_that_do_not_fit_the_index(foreign: Workspace) -> None:
    place = foreign.path / "cache/toy/tiny/gallery_vectors"
    first, _, third = sorted(place.glob("*.parquet"))
    third.rename(third.with_suffix(".away"))
    assert "100 rows, the index has 119 gallery images" in foreign.error("scores", "toy", "tiny")
    third.with_suffix(".away").rename(third)
    first.rename(place / "part-9.parquet")
    assert "not in the order of the index" in foreign.error("scores", "toy", "tiny")


def test_numbers_that_are_not_finite(foreign: Workspace) -> None:
    file = foreign.path / "cache/toy/tiny/query_vectors/all.parquet"
    table = pq.read_table(file)
    bad = np.full((VAL + TEST) * WIDTH, np.nan, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(bad, from_pandas=False), WIDTH)
    table = table.set_column(table.column_names.index("edited"), "edited", column)
    pq.write_table(table, file)
    assert "not finite" in foreign.error("scores", "toy", "tiny")


def test_missing_vectors_name_the_stage(foreign: Workspace) -> None:
    file = foreign.path / "cache/toy/tiny/query_vectors/all.parquet"
    file.unlink()
    assert "run the stage query_vectors first" in foreign.error("scores", "toy", "tiny")


def test_a_dataset_that_is_not_active_can_be_scored(foreign: Workspace) -> None:
    foreign.params(active=[], runs={})
    foreign.run("scores", "toy", "tiny")
    assert Path(foreign.path / "cache/toy/tiny/scores/metrics.json").exists()


def test_groups_are_ranked_without_the_reference(foreign: Workspace) -> None:
    """CIRR's protocol: the reference is out of gallery and group, and the group has a ranking and a file of its own."""
    foreign.params(datasets__toy__format="cirr")
    cache = foreign.path / "cache/toy"
    rows = pq.read_table(cache / "index/queries.parquet").to_pylist()
    gallery = pq.read_table(cache / "index/images.parquet")["image_id"].to_pylist()[:-1]
    random = np.random.default_rng(1)
    for row in rows:
        others = [gallery[place] for place in random.choice(len(gallery), 5, replace=False)]
        group = list(dict.fromkeys([row["reference_id"], *row["target_ids"][:1], *others]))[:6]
        row |= {
            "group_ids": group,
            "exclude_ids": [row["reference_id"]],
            "target_ids": row["target_ids"][:1],
            "aspects": [],
        }
    pq.write_table(pa.Table.from_pylist(rows, schema.QUERIES), cache / "index/queries.parquet")
    foreign.run("scores", "toy", "tiny")
    wanted, everything = expected(foreign), full_order(foreign)
    found = json.loads((cache / "tiny/scores/metrics.json").read_text())["val"]
    for k in (1, 2, 3):
        hits = [row["target_ids"][0] in group_of(row, everything)[:k] for row in rows[:VAL]]
        assert found[f"Recall_subset@{k}"] == pytest.approx(100 * np.mean(hits))
    hits = [row["target_ids"][0] in wanted["val", row["query_id"]][:5] for row in rows[:VAL]]
    assert found["Recall@5"] == pytest.approx(100 * np.mean(hits))
    files = {file.name: json.loads(file.read_text()) for file in (cache / "tiny/scores/submissions").glob("*.json")}
    assert sorted(files) == ["test.recall.json", "test.recall_subset.json"]
    head = {"version": "rc2", "metric": "recall"}
    assert files["test.recall.json"] == head | {str(q): wanted["test", str(q)][:50] for q in range(TEST)}
    head = {"version": "rc2", "metric": "recall_subset"}
    groups = {row["query_id"]: group_of(row, everything)[:3] for row in rows[VAL:]}
    assert files["test.recall_subset.json"] == head | groups
    kept = pl.read_parquet(cache / "tiny/scores/group_rankings.parquet").sort("split", "query_id", "rank")
    lists = kept.group_by("split", "query_id", maintain_order=True).agg("image_id")
    assert {(split, query): images for split, query, images in lists.iter_rows()} == {
        (row["split"], row["query_id"]): group_of(row, everything) for row in rows
    }
    # `cvsi compare` finds the stage's own metrics again by query, those of groups too.
    (compared,) = compare(params.load(), "toy-tiny", "toy-tiny").splits.values()
    assert [row.name for row in compared if row.low is not None] == metrics.PROTOCOLS["cirr"].names()


def full_order(workspace: Workspace) -> dict[tuple[str, str], list[str]]:
    """All gallery images in the order of their score, by the definition."""
    cache = workspace.path / "cache" / "toy"
    gallery = pa.concat_tables(pq.read_table(file) for file in sorted((cache / "tiny" / "gallery_vectors").glob("*")))
    right = 0.8 * matrix(gallery, "image") + 0.2 * matrix(gallery, "caption")
    asked = pq.read_table(cache / "tiny" / "query_vectors" / "all.parquet")
    left = sum(weight * matrix(asked, part) for part, weight in WEIGHTS.items())
    keys = zip(asked["split"].to_pylist(), asked["query_id"].to_pylist(), strict=True)
    ids = gallery["image_id"].to_pylist()
    return {
        key: [ids[place] for place in np.argsort(-row, kind="stable")]
        for key, row in zip(keys, left @ right.T, strict=True)
    }


def group_of(row: dict[str, Any], order: dict[tuple[str, str], list[str]]) -> list[str]:
    return [
        image
        for image in order[row["split"], row["query_id"]]
        if image in row["group_ids"] and image != row["reference_id"]
    ]
