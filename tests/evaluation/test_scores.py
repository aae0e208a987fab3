"""The stage scores on vectors that another program wrote, against a second computation from the definition."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks import random_vectors
from cvsi.commands.compare import compare
from cvsi.core import params, schema
from cvsi.datasets.formats import FORMATS
from cvsi.evaluation import queries, scores
from cvsi.evaluation.report import method_table
from tests.conftest import Workspace
from tests.imports import ROOT

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
    folder = cache / "tiny" / "gallery_vectors"
    folder.mkdir(parents=True)
    gallery = images["image_id"].slice(0, IMAGES - 1)
    for number, start in enumerate(range(0, len(gallery), 50)):
        part = gallery.slice(start, 50)
        columns = {"image": vectors(random, len(part), np.float16), "caption": vectors(random, len(part), np.float16)}
        pq.write_table(pa.table({"image_id": part} | columns), folder / f"part-{number}.parquet")
    folder = cache / "tiny" / "query_vectors"
    folder.mkdir(parents=True)
    order = random.permutation(VAL + TEST)
    table = queries.select(["query_id", "split"]).take(order)
    for part_name in schema.QUERY_PARTS:
        table = table.append_column(part_name, vectors(random, VAL + TEST, np.float32))
    pq.write_table(table, folder / "all.parquet")
    return toy


def expected(workspace: Workspace) -> dict[tuple[str, str], list[str]]:
    """The first 100 of every query, by the definition, in float64."""
    rows = pq.read_table(workspace.path / "cache" / "toy" / "index" / "queries.parquet").to_pylist()
    order = full_order(workspace)
    keys = {(row["split"], row["query_id"]): row["exclude_ids"] for row in rows}
    return {key: [image for image in order[key] if image not in excluded][:100] for key, excluded in keys.items()}


def untracked(workspace: Workspace) -> set[str]:
    """What the folder of the scores has and dvc.yaml does not list for it, or the other way round."""
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["scores"]["do"]
    listed = {path.rpartition("/")[2] for kind in ("outs", "metrics", "plots") for path in stage[kind]}
    return listed ^ {path.name for path in (workspace.path / "cache/toy/tiny/scores").iterdir()}


def test_rankings_equal_the_definition(foreign: Workspace) -> None:
    foreign.run("scores", "toy", "tiny")
    assert not untracked(foreign)
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
    dropped = [
        {"query_id": str(900 + n), "split": split, "reason": "gone"} for n, split in enumerate(("val", "val", "test"))
    ]
    pq.write_table(pa.Table.from_pylist(dropped, schema.DROPPED_QUERIES), index / "dropped_queries.parquet")
    assert "test: 1 dropped query not in the submission" in foreign.run("scores", "toy", "tiny")
    metrics = json.loads((foreign.path / "cache/toy/tiny/scores/metrics.json").read_text())["val"]
    assert (metrics["queries"], metrics["dropped"], metrics["dropped images"]) == (VAL, 2, 3)


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
    line = foreign.error("scores", "toy", "tiny")
    assert "query_vectors: no column 'pseudo', which has a weight in the dataset's fusion (params.yaml)" in line


def test_a_gallery_column_without_weight_may_be_missing(foreign: Workspace) -> None:
    for file in (foreign.path / "cache/toy/tiny/gallery_vectors").glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["caption"]), file)
    line = foreign.error("scores", "toy", "tiny")
    assert "gallery_vectors: no column 'caption', which has a weight in the dataset's fusion (params.yaml)" in line
    foreign.params(datasets__toy__fusion="edited")
    foreign.run("scores", "toy", "tiny")
    recipe = json.loads((foreign.path / "cache/toy/tiny/scores/provenance.json").read_text())
    assert recipe["fusion"] == {"query": {"edited": 1.0}, "gallery": {"image": 1.0}, "score": {"kind": "sum"}}


def test_a_method_of_params_gives_the_scores_of_its_weights(foreign: Workspace) -> None:
    foreign.run("scores", "toy", "tiny")
    files = ("rankings.parquet", "per_query.parquet", "metrics.json")
    scores = foreign.path / "cache/toy/tiny/scores"
    by_weights = [(scores / name).read_bytes() for name in files]
    weights = foreign.params()["datasets"]["toy"]["fusion"]
    foreign.params(datasets__toy__fusion="mine", methods={"mine": weights | {"source": "a test"}})
    foreign.run("scores", "toy", "tiny")
    assert [(scores / name).read_bytes() for name in files] == by_weights
    foreign.params(datasets__toy__fusion="other")
    assert "params.yaml: datasets.toy.fusion: unknown method 'other'" in foreign.error("scores", "toy", "tiny")


def test_the_values_per_query_are_those_of_the_definition(foreign: Workspace) -> None:
    foreign.run("scores", "toy", "tiny")
    names = FORMATS.get("circo", "test").protocol.names()
    table = pq.read_table(foreign.path / "cache/toy/tiny/scores/per_query.parquet")
    assert table.schema.remove_metadata().equals(schema.per_query(names))
    queries = pq.read_table(foreign.path / "cache/toy/index/queries.parquet").to_pylist()[:VAL]
    metrics = json.loads((foreign.path / "cache/toy/tiny/scores/metrics.json").read_text())["val"]
    order = full_order(foreign)
    rows = table.to_pylist()
    assert [(row["split"], row["query_id"]) for row in rows] == [(row["split"], row["query_id"]) for row in queries]
    for row, query in zip(rows, queries, strict=True):
        ranked = [image for image in order["val", query["query_id"]] if image not in query["exclude_ids"]]
        assert row["target_ranks"] == [ranked.index(image) + 1 for image in query["target_ids"]]
        assert row["group_rank"] is None
        assert row["Recall@25"] == 100 * (row["target_ranks"][0] <= 25)
    for name in names:
        assert float(table[name].to_numpy().mean()) == metrics[name], "a mean of the same numbers, to the last bit"


def test_without_labels_the_table_per_query_is_empty(foreign: Workspace) -> None:
    file = foreign.path / "cache/toy/index/queries.parquet"
    rows = [row | {"target_ids": []} for row in pq.read_table(file).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema.QUERIES), file)
    foreign.run("scores", "toy", "tiny")
    assert not untracked(foreign)
    scores = foreign.path / "cache/toy/tiny/scores"
    table = pq.read_table(scores / "per_query.parquet")
    assert table.num_rows == 0 and table.column_names[:4] == schema.RANKS.names and "mAP@10" in table.column_names
    assert json.loads((scores / "metrics.json").read_text()) == {}


def test_an_index_without_queries_has_empty_tables(foreign: Workspace) -> None:
    index, vectors = (
        foreign.path / "cache/toy" / name for name in ("index/queries.parquet", "tiny/query_vectors/all.parquet")
    )
    for file in (index, vectors):
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    foreign.run("scores", "toy", "tiny")
    assert not untracked(foreign)
    scores = foreign.path / "cache/toy/tiny/scores"
    assert (
        pq.read_table(scores / "rankings.parquet").num_rows == pq.read_table(scores / "per_query.parquet").num_rows == 0
    )
    assert json.loads((scores / "metrics.json").read_text()) == {}


def test_targets_past_the_thousandth_have_no_rank(tmp_path: Path) -> None:
    """A gallery of several blocks whose vectors are all alike in groups, so that ranks are known without scores."""
    images, queries = 9000, 8
    random_vectors.write(tmp_path, images, queries, WIDTH)
    folder = tmp_path / "cache/big/tiny/gallery_vectors"
    for number, file in enumerate(sorted(folder.glob("*.parquet"))):
        table = pq.read_table(file)
        ones = np.full((table.num_rows, WIDTH), 1 if number == 2 else 0.5, dtype=np.float16)
        values = pa.FixedSizeListArray.from_arrays(pa.array(ones.reshape(-1)), WIDTH)
        pq.write_table(pa.table({"image_id": table["image_id"], "image": values, "caption": values}), file)
    file = tmp_path / "cache/big/tiny/query_vectors/part-00000.parquet"
    table = pq.read_table(file)
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(queries * WIDTH, dtype=np.float32)), WIDTH)
    pq.write_table(
        pa.table({"query_id": table["query_id"], "split": table["split"], "edited": values, "pseudo": values}), file
    )
    # The third file has the highest score and 808 images; the first file is next, then the second.
    targets = [[8192], [8999, 0], [191], [192], [0, 8999, 4096], [4095], [5000, 8500], [191, 8193]]
    file = tmp_path / "cache/big/index/queries.parquet"
    rows = [
        row | {"target_ids": list(map(str, t))} for row, t in zip(pq.read_table(file).to_pylist(), targets, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema.QUERIES), file)
    Workspace(tmp_path).run("scores", "big", "tiny")
    ranks = pq.read_table(tmp_path / "cache/big/tiny/scores/per_query.parquet")["target_ranks"].to_pylist()
    assert ranks == [[1], [808, 809], [1000], [None], [809, 808, None], [None], [None, 309], [1000, 2]]


def test_vectors_that_do_not_fit_the_index(foreign: Workspace) -> None:
    folder = foreign.path / "cache/toy/tiny/gallery_vectors"
    first, _, third = sorted(folder.glob("*.parquet"))
    third.rename(third.with_suffix(".away"))
    assert "100 rows, the index has 119 gallery images" in foreign.error("scores", "toy", "tiny")
    third.with_suffix(".away").rename(third)
    first.rename(folder / "part-9.parquet")
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
        others = [gallery[number] for number in random.choice(len(gallery), 5, replace=False)]
        group = list(dict.fromkeys([row["reference_id"], *row["target_ids"][:1], *others]))[:6]
        row |= {
            "group_ids": group,
            "exclude_ids": [row["reference_id"]],
            "target_ids": row["target_ids"][:1],
            "aspects": [],
        }
    pq.write_table(pa.Table.from_pylist(rows, schema.QUERIES), cache / "index/queries.parquet")
    foreign.run("scores", "toy", "tiny")
    assert not untracked(foreign)
    wanted, everything = expected(foreign), full_order(foreign)
    metrics = json.loads((cache / "tiny/scores/metrics.json").read_text())["val"]
    for k in (1, 2, 3):
        hits = [row["target_ids"][0] in group_of(row, everything)[:k] for row in rows[:VAL]]
        assert metrics[f"Recall_subset@{k}"] == pytest.approx(100 * np.mean(hits))
    hits = [row["target_ids"][0] in wanted["val", row["query_id"]][:5] for row in rows[:VAL]]
    assert metrics["Recall@5"] == pytest.approx(100 * np.mean(hits))
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
    # `cvsi compare` pairs every metric by query, those of groups too.
    (compared,) = compare(params.load(), "toy-tiny", "toy-tiny").splits.values()
    assert [row.name for row in compared if row.low is not None] == FORMATS.get("cirr", "test").protocol.names()


def full_order(workspace: Workspace) -> dict[tuple[str, str], list[str]]:
    """All gallery images in the order of their score, by the definition."""
    cache = workspace.path / "cache" / "toy"
    gallery = pa.concat_tables(pq.read_table(file) for file in sorted((cache / "tiny" / "gallery_vectors").glob("*")))
    right = 0.8 * matrix(gallery, "image") + 0.2 * matrix(gallery, "caption")
    queries = pq.read_table(cache / "tiny" / "query_vectors" / "all.parquet")
    left = sum(weight * matrix(queries, part) for part, weight in WEIGHTS.items())
    keys = zip(queries["split"].to_pylist(), queries["query_id"].to_pylist(), strict=True)
    ids = gallery["image_id"].to_pylist()
    return {
        key: [ids[index] for index in np.argsort(-row, kind="stable")]
        for key, row in zip(keys, left @ right.T, strict=True)
    }


def group_of(row: dict[str, Any], order: dict[tuple[str, str], list[str]]) -> list[str]:
    return [
        image
        for image in order[row["split"], row["query_id"]]
        if image in row["group_ids"] and image != row["reference_id"]
    ]


def test_every_method_has_values_per_query_and_the_own_fusion_those_of_the_stage(
    foreign: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    file = foreign.path / "cache/toy/tiny/query_vectors/all.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["instruction"]), file)
    own_weights = foreign.params()["datasets"]["toy"]["fusion"]
    foreign.params(methods={"same": own_weights, "caption": {"query": {"edited": 1}, "gallery": {"caption": 1}}})
    foreign.run("scores", "toy", "tiny")
    settings, protocol = params.load(), FORMATS.get("circo", "test").protocol
    own = scores.read_values("toy", "tiny", protocol)
    table, gallery = queries.read("toy")
    evaluations = method_table.evaluate_all("toy", "tiny", settings, protocol, table, gallery, own).evaluations
    assert list(evaluations) == ["cvsi", "edited", "pseudo", "image", "pdv", "adast", "seize", "same", "caption"]
    messages = capsys.readouterr().out
    for name in ("text", "image+text"):
        assert f"method {name} left out: cache/toy/tiny/query_vectors: no column 'instruction'" in messages
    assert evaluations["same"] is evaluations["cvsi"] and evaluations["cvsi"].per_query.equals(own)
    metrics = json.loads((foreign.path / "cache/toy/tiny/scores/metrics.json").read_text())["val"]
    assert evaluations["cvsi"].metrics["val"].items() <= metrics.items()
    rows = method_table.values_table(evaluations)
    assert rows.to_arrow().cast(schema.per_method(protocol.names())).num_rows == VAL * len(evaluations)
    for name in ("edited", "caption"):
        foreign.params(datasets__toy__fusion=name)
        foreign.run("scores", "toy", "tiny")
        mine = rows.filter(pl.col("method") == name).drop("method")
        assert mine.equals(scores.read_values("toy", "tiny", protocol)), "as the stage scores computes it"
