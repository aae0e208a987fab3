"""PinPoint: its reader on the real files and on faulty ones, and its metrics against a plain computation."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from cvsi.commands import sweep
from cvsi.commands.compare import compare as compare_runs
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.core.schema import queries_schema
from cvsi.datasets import formats, index
from cvsi.datasets.base import Listing, check_listing
from cvsi.datasets.pinpoint import CUT_OFFS, FORMAT
from cvsi.evaluation.metrics import by_query, summarise, with_ranks
from cvsi.evaluation.queries import NamedImages, QueryTable
from cvsi.evaluation.queries import read as read_queries
from cvsi.evaluation.ranking import PRODUCT, Combination, LinearScore, rank, rank_targets
from cvsi.evaluation.scores import evaluate
from tests.conftest import Workspace, draw_pictures, project_params

SAMPLE = 150
ROW = {
    "query_id": "q1", "query_image_signature": "red", "query_image_signature2": "None", "instruction": "is green",
    "positive_candidates": ["green"], "negative_candidates": ["blue"],
}  # fmt: skip


def read(root: Path, **keys: Any) -> Listing:
    content = project_params()["datasets"]["circo"] | {"format": "pinpoint", "root": str(root)} | keys
    content.pop("benchmark")
    return formats.read(Dataset.model_validate(content | {"sizes": {}}), "pinpoint")


def write(root: Path, *rows: dict[str, Any], names: str | bytes = "red\ngreen\nblue\nblack\n") -> Path:
    root.mkdir(exist_ok=True)
    schema = {name: pl.List(pl.String) if name.endswith("candidates") else pl.String for name in ROW}
    pl.DataFrame([ROW | row for row in rows], schema=schema).write_parquet(root / "pinpoint_licensed.parquet")
    (root / "index_signatures.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
    return root


@pytest.fixture(scope="module")
def real() -> Listing:
    from tests.imports import ROOT

    folder = ROOT.parent / "shared/annotations/PINPOINT"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return read(folder)


def test_the_real_files(real: Listing, shared: Path) -> None:
    raw = pl.read_parquet(shared / "annotations/PINPOINT/pinpoint_licensed.parquet")
    queries = real.queries
    check_listing(real, shared)
    assert real.images.height == 109_600 and real.images["in_gallery"].all()
    assert real.images.row(1)[:2] == ((name := real.images["image_id"][1]), f"images/{name}.jpg")
    assert queries["query_id"].equals(raw["query_id"]) and queries["split"].unique().to_list() == ["test"]
    for column, source in (("target_ids", "positive_candidates"), ("negative_ids", "negative_candidates")):
        expected = [list(dict.fromkeys(filter(None, names))) for names in raw[source].to_list()]
        assert queries[column].to_list() == expected
    assert (queries["second_reference_id"] != "").sum() == 1006 and queries["variant_of"].n_unique() == 1260
    sizes = queries["variant_of"].value_counts()["count"]
    assert sizes.mode().to_list() == [6]
    assert [note.partition(".parquet: ")[2] for note in real.notes] == [
        "positive_candidates: 0 null and 2,719 repeated of 69,278 entries left out",
        "negative_candidates: 6,729 null and 8,856 repeated of 264,112 entries left out",
    ]


def reference(ranked: list[str], positives: list[str], negatives: list[str]) -> dict[str, float]:
    """The metrics of one query by their definitions."""
    values: dict[str, float] = {}
    clean = [image for image in ranked if image not in set(negatives)]
    for k in CUT_OFFS:
        for name, images in ((f"mAP@{k}", ranked), (f"mAP@{k} clean", clean)):
            hits, total = 0, 0.0
            for place, image in enumerate(images[:k], 1):
                if image in positives:
                    hits += 1
                    total += hits / place
            values[name] = 100 * total / min(len(positives), k)
        found = sum(image in positives for image in ranked[:k])
        values[f"precision@{k}"] = 100 * found / k
        values[f"recall@{k}"] = 100 * found / len(positives)
        values[f"negative recall@{k}"] = 100 * sum(image in negatives for image in ranked[:k]) / min(len(negatives), k)
    return values


def compare(real: Listing, queries: pl.DataFrame, seed: int) -> None:
    """Random vectors, candidates nearer to their query, through the streaming ranking and by a plain sort."""
    random, ids = np.random.default_rng(seed), real.images["image_id"]
    left = random.normal(size=(queries.height, 96)).astype(np.float32)
    right = random.normal(size=(ids.len(), 96)).astype(np.float32)
    position = {image: number for number, image in enumerate(ids)}
    for column, much in (("target_ids", 0.34), ("negative_ids", 0.3)):
        pairs = queries.select(row=pl.int_range(pl.len()), image=column).explode("image").drop_nulls()
        places = np.array([position[image] for image in pairs["image"]])
        np.add.at(right, places, much * left[pairs["row"].to_numpy()])
    matrices = []
    for column in ("target_ids", "negative_ids"):
        lists = queries[column].to_list()
        matrices.append(np.full((queries.height, max(map(len, lists))), -1))
        for row, images in enumerate(lists):
            matrices[-1][row, : len(images)] = [position[image] for image in images]
    targets, negatives = np.concatenate(matrices, 1), matrices[1].shape[1]
    none = np.full((queries.height, 1), -1)
    named = NamedImages(np.empty((0, 2), np.int64), none, targets, negatives=negatives)
    shards = [[right[start : start + 20_000]] for start in range(0, len(right), 20_000)]
    ranking = rank([left], shards, named, k=160)
    ((together, _),) = rank_targets([LinearScore(left, 0)], [Combination(PRODUCT, (0,))], shards, named)
    assert np.array_equal(ranking.target_ranks, together)
    evaluation = evaluate(
        FORMAT.protocol, QueryTable(queries, named, ("test",)), ranking.target_ranks, ranking.group_scores
    )
    lists = queries.select("target_ids", "negative_ids").rows()
    expected = [
        reference([ids[place] for place in places], *of_query)
        for places, of_query in zip(ranking.positions.tolist(), lists, strict=True)
    ]
    assert list(evaluation.per_query.columns[5:]) == FORMAT.protocol.names()
    for name in FORMAT.protocol.names():
        assert evaluation.per_query[name].to_list() == pytest.approx([values[name] for values in expected]), name
    metrics = evaluation.metrics["test"]
    means = {name: np.mean([values[name] for values in expected]) for name in expected[0]}
    assert {name: metrics[name] for name in means} == pytest.approx(means)
    assert 5 < means["mAP@10"] < means["mAP@10 clean"] < 95 and means["negative recall@10"] > 5
    by_images = sorted(
        (images, values["precision@10"]) for images, values in zip(queries["variant_of"], expected, strict=True)
    )
    groups = [[value for _, value in rows] for _, rows in groupby(by_images, key=lambda pair: pair[0])]
    ranges = [max(values) - min(values) for values in groups if len(values) > 1]
    assert metrics["precision@10 range"] == pytest.approx(np.mean(ranges)) and len(ranges) < len(groups)
    assert "precision@10 range" not in evaluation.per_query.columns


def test_metrics_equal_the_definitions_on_a_sample_of_the_real_queries(real: Listing) -> None:
    both = real.queries.filter(pl.col("target_ids").list.set_intersection("negative_ids").list.len() > 0)
    compare(real, pl.concat([real.queries.head(SAMPLE), both.tail(10)]), seed=1)


@pytest.mark.slow
def test_metrics_equal_the_definitions_on_all_real_queries(real: Listing) -> None:
    for start in range(0, real.queries.height, 1200):
        compare(real, real.queries.slice(start, 1200), seed=start)


def table(targets: list[list[int | None]], negatives: list[list[int | None]]) -> pl.DataFrame:
    """Queries with these ranks of their targets and negatives."""
    ids = [[[str(n) for n in range(len(ranks))] for ranks in lists] for lists in (targets, negatives)]
    kind = {"target_ranks": pl.List(pl.Int32), "negative_ranks": pl.List(pl.Int32)}
    columns = {"target_ids": ids[0], "negative_ids": ids[1], "target_ranks": targets, "negative_ranks": negatives}
    lists = {"target_ids": pl.List(pl.String), "negative_ids": pl.List(pl.String)}
    return pl.DataFrame(columns, schema=lists | kind)


@pytest.mark.parametrize(
    ("targets", "negatives", "expected"),
    [
        ([3], [1, 2], 100.0),  # first, once both negatives are gone
        ([3], [4, None], 100 / 3),
        ([3], [1, 3], 0.0),  # the target is a negative, too
        ([2, 4], [1, 3], 100.0),
        ([None, 2], [1, None], 50.0),
        ([1], [], 100.0),
        ([None], [None], 0.0),
    ],
)
def test_clean_average_precision_by_hand(
    targets: list[int | None], negatives: list[int | None], expected: float
) -> None:
    values = FORMAT.protocol.values(table([targets, [1]], [negatives, []]))
    assert values["mAP@10 clean"].tolist() == pytest.approx([expected, 100])


def test_negative_recall_by_hand() -> None:
    values = FORMAT.protocol.values(table([[1]] * 3, [[1, 5, None], [], list(range(1, 21))]))
    assert values["negative recall@1"].tolist() == [100, 0, 100]
    assert values["negative recall@5"].tolist() == pytest.approx([200 / 3, 0, 100])
    assert values["negative recall@50"].tolist() == pytest.approx([200 / 3, 0, 100])


def test_without_ranks_of_negatives_no_query_counts_in_their_metrics() -> None:
    queries = pl.DataFrame({"target_ids": [["a", "b"]]})
    values = FORMAT.protocol.values(with_ranks(queries, np.array([[2, 0]]), np.zeros(1, dtype=np.int64)))
    nothing = {name for name, numbers in values.items() if np.isnan(numbers).all()}
    assert nothing == {name for name in FORMAT.protocol.names() if "negative" in name or "clean" in name}


@pytest.mark.parametrize(
    ("precisions", "variants", "expected"),
    [
        ([10.0, 30.0, 50.0], ["a", "a", "b"], 20.0),  # a group of one does not count
        ([10.0, 30.0, 50.0, 40.0], ["a", "a", "b", "b"], 15.0),
        ([10.0, None, 50.0, 40.0], ["a", "a", "b", "b"], 10.0),  # of one that counts, too
        ([10.0, 30.0], ["a", "b"], None),
        ([10.0, 30.0], None, None),
    ],
)
def test_the_range_over_wordings(precisions: list[Any], variants: list[str] | None, expected: float | None) -> None:
    columns = {name: precisions for name in FORMAT.protocol.names()}
    values = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Float64))
    aspects = pl.Series([[]] * len(precisions), dtype=pl.List(pl.String))
    summary = summarise(FORMAT.protocol, values, aspects, None if variants is None else pl.Series(variants))
    assert summary.get("precision@10 range") == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"positive_candidates": ["green", None, "green"]}, {"target_ids": ["green"]}),
        ({"negative_candidates": None}, {"negative_ids": []}),
        ({"negative_candidates": [None, "blue", None]}, {"negative_ids": ["blue"]}),
        ({"query_image_signature2": None}, {"second_reference_id": "", "variant_of": "red"}),
        ({"query_image_signature2": " nan "}, {"second_reference_id": "", "variant_of": "red"}),
        ({"query_image_signature2": "blue"}, {"second_reference_id": "blue", "variant_of": "red+blue"}),
    ],
)
def test_nulls_and_repeats(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    listing = read(write(tmp_path, changes))
    row = listing.queries.row(0, named=True)
    assert {name: row[name] for name in expected} == expected
    changed = changes.get("positive_candidates") or changes.get("negative_candidates") or []
    assert bool(listing.notes) == (None in changed)


def test_an_ignored_second_reference_leaves_the_groups_of_wordings_as_they_are(tmp_path: Path) -> None:
    root = write(tmp_path, {"query_image_signature2": "blue"})
    mean, ignored = read(root), read(root, second_reference="ignore")
    assert "second_reference_id" not in ignored.queries.columns
    assert ignored.queries.equals(mean.queries.drop("second_reference_id"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"query_id": None}, "1 row without query_id, query_image_signature or instruction: row 2; remove these rows"),
        ({"query_image_signature": ""}, "1 row without query_id, query_image_signature or instruction: row 2"),
        ({"instruction": None}, "1 row without query_id, query_image_signature or instruction: row 2"),
        ({"positive_candidates": []}, "no positive_candidates for query q2; remove it"),
        ({"positive_candidates": [None, None]}, "no positive_candidates for query q2; remove it"),
        ({"positive_candidates": None}, "no positive_candidates for query q2; remove it"),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(CvsiError) as error:
        read(write(tmp_path, {}, {"query_id": "q2"} | changes))
    assert str(error.value).startswith(f"{tmp_path}/pinpoint_licensed.parquet: {line}")


def spoilt(root: Path, name: str, content: Callable[[Path], object]) -> None:
    (root / name).unlink()
    content(root / name)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("pinpoint_licensed.parquet", lambda file: None, "no such file; check the dataset's root"),
        ("pinpoint_licensed.parquet", lambda file: file.write_bytes(b"PAR1 no"), "not a readable Parquet file"),
        ("pinpoint_licensed.parquet", lambda file: file.mkdir(), "not a file"),
        (
            "pinpoint_licensed.parquet",
            lambda file: pl.DataFrame({"query_id": ["a"]}).write_parquet(file),
            "no column 'query_image_signature'; there are: query_id",
        ),
        (
            "pinpoint_licensed.parquet",
            lambda file: pl.DataFrame([ROW | {"positive_candidates": "green"}]).write_parquet(file),
            "columns of other types",
        ),
        ("index_signatures.txt", lambda file: None, "no such file; check the dataset's root"),
        ("index_signatures.txt", lambda file: file.write_bytes(b"a\xff\xfe"), "not UTF-8 text"),
        ("index_signatures.txt", lambda file: file.write_text("../../etc/passwd"), "leaves the dataset's folder"),
    ],
)
def test_faulty_files_are_one_line(tmp_path: Path, name: str, content: Callable[[Path], object], line: str) -> None:
    root = write(tmp_path, {})
    spoilt(root, name, content)
    with pytest.raises(CvsiError, match=name) as error:
        read(root)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("folder", ["images", "."])
def test_images_are_found_where_a_user_has_them(tmp_path: Path, folder: str) -> None:
    draw_pictures(tmp_path / folder)
    paths = dict(read(write(tmp_path, {}, names="red\r\n\ngreen\nred\nblue")).images.select("image_id", "path").rows())
    assert {name: Path(path) for name, path in paths.items()} == {
        name: Path(folder, f"{name}.png") for name in ("red", "green", "blue")
    }


def test_a_reference_outside_of_the_list_is_no_candidate(tmp_path: Path) -> None:
    root = write(tmp_path, {"query_image_signature2": "black"}, names="green\nblue\n")
    assert read(root).images.select("image_id", "in_gallery").rows() == [
        ("green", True), ("blue", True), ("red", False), ("black", False),
    ]  # fmt: skip


def test_from_files_to_metrics(toy: Workspace) -> None:
    root = toy.path / "pinpoint"
    draw_pictures(root / "images")
    names = "red green blue yellow orange purple black white"
    rows = [
        {"query_id": f"q{number}", "instruction": text, "query_image_signature2": second,
         "positive_candidates": ["green", "orange"], "negative_candidates": ["blue", "gone", None]}
        for number, (text, second) in enumerate([("is green", "None"), ("green", "None"), ("is green", "black")])
    ]  # fmt: skip
    write(root, *rows, names=names.replace(" ", "\n"))
    captioner = project_params()["captioners"]["tiny"] | {"n": 2, "max_tokens": 8}
    toy.params(
        datasets__toy__format="pinpoint", datasets__toy__root="pinpoint", datasets__toy__missing_images="drop",
        datasets__toy__sizes={"images": 9, "test": 3}, datasets__toy__captioner=captioner,
    )  # fmt: skip
    printed = toy.run_all("toy", "tiny")
    assert "negative_candidates: 3 null and 0 repeated of 9 entries left out" in printed
    assert "list 8 images, expected 9 (1 too few)" in printed and "3 queries" in printed
    queries = pl.read_parquet("cache/toy/index/queries.parquet")
    assert queries["negative_ids"].to_list() == [["blue"]] * 3
    assert queries["second_reference_id"].to_list() == ["", "", "black"]
    (values,) = json.loads(Path("cache/toy/tiny/scores/metrics.json").read_bytes()).values()
    assert {"precision@10 range", "mAP@10 clean", "negative recall@10", "mAP@10 low"} <= set(values)
    assert values["negative recall@10"] == 100 and values["recall@10"] == 100  # eight images
    table = json.loads(Path("cache/toy/tiny/report/weightings.json").read_bytes())["splits"]["test"]
    assert table["cvsi"] == {name: value for name, value in values.items() if name in table["cvsi"]}
    assert all("precision@10 range" in row and "mAP@50 clean" in row for row in table.values())

    vectors = {
        kind: pl.concat(
            pl.read_parquet(file) for file in sorted(Path(f"cache/toy/tiny/{kind}_vectors").glob("*.parquet"))
        )
        for kind in ("gallery", "query")
    }
    images = {image: number for number, image in enumerate(vectors["gallery"]["image_id"])}
    both = [images["red"], images["black"]]
    columns = {name: vectors["query"][name].to_numpy() for name in ("reference", "source", "pseudo", "instruction")}
    mean = vectors["gallery"]["image"].to_numpy()[both].astype(np.float32).sum(axis=0)
    assert np.allclose(columns["reference"][2], mean / np.linalg.norm(mean), atol=2e-3)
    captions = vectors["gallery"]["caption"].to_numpy()[both].astype(np.float32).mean(axis=0)
    assert np.allclose(columns["source"][2], captions, atol=2e-3)  # as many captions of each image
    assert np.allclose(np.linalg.norm(columns["pseudo"], axis=1), 1, atol=1e-5)
    assert not np.allclose(columns["pseudo"][0], columns["pseudo"][2], atol=1e-2)
    assert np.array_equal(columns["instruction"][0], columns["instruction"][2])

    written = pl.read_parquet("cache/toy/tiny/scores/per_query.parquet")
    methods = pl.read_parquet("cache/toy/tiny/report/methods.parquet")
    assert written.schema["negative_ranks"] == pl.List(pl.Int32) and written["negative_ranks"].list.len().sum() == 3
    assert methods.filter(method="cvsi").drop("method").equals(written)
    compared = compare_runs(params.load(), "toy-tiny", "toy-tiny")
    differences = {row.name: row.difference for row in compared.splits["test"]}
    assert differences["precision@10 range"] == differences["mAP@10 clean"] == 0
    page = Path("cache/toy/tiny/report/index.html").read_text()
    assert page.count('alt="second reference image black"') == 1 and page.count(' negative<span class="file">') == 3
    swept = sweep.build("toy", "tiny", params.load(), step=1.0).frame  # from products kept in memory
    own = swept.row(by_predicate=pl.col("name").str.contains("cvsi"), named=True)
    assert {name: own[name] for name in FORMAT.protocol.names()} == pytest.approx(
        {name: values[name] for name in FORMAT.protocol.names()}
    )


@pytest.mark.parametrize(
    ("gone", "reasons", "negatives"),
    [
        ("black", [("q2", "its second reference was dropped")], [["blue"], ["blue"]]),
        ("blue", [], [[], [], []]),
        ("green", [(f"q{number}", "its main target was dropped") for number in range(2)], [["blue"]]),
    ],
)
def test_what_a_missing_image_takes_with_it(
    toy: Workspace, gone: str, reasons: list[tuple[str, str]], negatives: list[list[str]]
) -> None:
    draw_pictures(toy.path / "pinpoint")
    (toy.path / f"pinpoint/{gone}.png").unlink()
    third = {"query_id": "q2", "query_image_signature2": "black", "positive_candidates": ["red"]}
    write(toy.path / "pinpoint", {"query_id": "q0"}, {"query_id": "q1"}, third)
    toy.params(
        datasets__toy__format="pinpoint", datasets__toy__root="pinpoint", datasets__toy__missing_images="drop",
        datasets__toy__sizes={},
    )  # fmt: skip
    index.build("toy", params.load())
    dropped = pl.read_parquet("cache/toy/index/dropped_queries.parquet")
    assert dropped.select("query_id", "reason").rows() == reasons
    queries = pl.read_parquet("cache/toy/index/queries.parquet")
    assert queries["negative_ids"].to_list() == negatives
    assert pq.read_schema("cache/toy/index/queries.parquet").remove_metadata() == queries_schema(queries.columns)
    table, gallery = read_queries("toy")
    assert table.named.negatives == 1 and table.named.targets.shape == (queries.height, 2) and gallery.size == 3


def test_negatives_change_no_rank_of_a_target() -> None:
    random = np.random.default_rng(0)
    left, right = (random.normal(size=(size, 16)).astype(np.float32) for size in (5, 3000))
    targets, negatives = random.integers(0, 3000, (5, 3)), random.integers(-1, 3000, (5, 40))
    named = NamedImages(np.empty((0, 2), np.int64), np.full((5, 1), -1), targets)
    alone = rank([left], [[right]], named)
    wide = rank([left], [[right]], replace(named, targets=np.concatenate([targets, negatives], 1), negatives=40))
    assert np.array_equal(wide.target_ranks[:, :3], alone.target_ranks)
    assert np.array_equal(wide.scores, alone.scores)


def test_the_ranks_of_negatives_are_a_column_of_their_own() -> None:
    frame = table([[1]], [[2, None]]).with_columns(
        query_id=pl.lit("a"), split=pl.lit("test"), group_rank=pl.lit(None, pl.Int32)
    )
    values = by_query(FORMAT.protocol, frame)
    assert values.columns[:5] == ["query_id", "split", "target_ranks", "group_rank", "negative_ranks"]
    assert values["negative_ranks"].to_list() == [[2, None]]
    assert "negative_ranks" not in by_query(FORMAT.protocol, frame.drop("negative_ranks")).columns
