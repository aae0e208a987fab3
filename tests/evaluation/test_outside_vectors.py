"""The benchmarks at real size on an index and vectors that another program wrote: numpy and pyarrow, not our writers.

Rankings, metrics and submissions are held against a second computation from each benchmark's definition, in float64.
Each benchmark's files are written in another way that such a program may choose.
"""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import Workspace, environment, project_params

WIDTH, BACKBONE = 32, "vit-b-32"
ASPECTS = ("addition", "cardinality", "negation", "viewpoint")
Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """How the files of one benchmark are written."""

    vectors: Any = np.float16
    shard: int = 4096
    row_group: int = 1024
    name: str = "part-{:05d}.parquet"
    strings: pa.DataType = field(default_factory=pa.string)
    lists: Any = pa.list_
    loose_vectors: bool = False
    shuffled: bool = False
    extra: bool = False
    hidden_rows: int = 0
    parts: tuple[str, ...] = ("edited", "pseudo", "reference", "source", "instruction")


FORMS = {
    "circo": Form(shard=50_000, row_group=7_777, extra=True, parts=("edited", "pseudo")),
    "cirr-test1": Form(np.float32, 999, 1, "gallery.{:03d}.parquet", pa.large_string(), pa.large_list, shuffled=True),
    "cirr-val": Form(strings=pa.dictionary(pa.int32(), pa.string()), shard=1_000, shuffled=True, hidden_rows=40),
    "fashioniq-dress": Form(np.float32, 1_000_000, loose_vectors=True, parts=("pseudo", "reference", "edited")),
    "fashioniq-shirt": Form(shard=1_057, row_group=10_000, extra=True, shuffled=True),
}


@dataclass
class World:
    """One benchmark as lists, and the vectors: `copies` says which image's vectors an image shares."""

    images: list[str]
    queries: list[Row]
    form: Form
    gallery: dict[str, np.ndarray] = field(default_factory=dict)
    components: dict[str, np.ndarray] = field(default_factory=dict)
    copies: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def question(number: object, split: str, reference: str, targets: list[str], **more: list[str]) -> Row:
    row: Row = {"query_id": str(number), "split": split, "reference_id": reference, "instruction": "is red"}
    row |= {"target_ids": targets, "exclude_ids": [], "group_ids": [], "aspects": []}
    return row | more


def circo(random: np.random.Generator, annotations: Path | None) -> tuple[list[str], list[Row]]:
    if annotations is None:
        images = [str(1 + 5 * number) for number in range(123_403)]
        drawn = [[images[position] for position in random.integers(0, 123_403, 9)] for _ in range(1_020)]
        val = [
            question(n, "val", r[0], list(dict.fromkeys(r[1 : 2 + n % 8])), aspects=[*{ASPECTS[n % 4], ASPECTS[n % 3]}])
            for n, r in enumerate(drawn[:220])
        ]  # fmt: skip
        return images, val + [question(n, "test", r[0], []) for n, r in enumerate(drawn[220:])]
    rows = []
    for split in ("val", "test"):
        for query in json.loads((annotations / f"CIRCO/annotations/{split}.json").read_text()):
            others = [image for image in query.get("gt_img_ids", []) if image != query["target_img_id"]]
            targets = [query["target_img_id"], *others] if split == "val" else []
            aspects = query.get("semantic_aspects", [])
            reference = str(query["reference_img_id"])
            rows.append(question(query["id"], split, reference, [str(t) for t in targets], aspects=aspects))
    named = {int(image) for row in rows for image in (row["reference_id"], *row["target_ids"])}
    filler = (number for number in range(1, 600_000) if number not in named)
    return [str(i) for i in sorted(named | {next(filler) for _ in range(123_403 - len(named))})], rows


def cirr(random: np.random.Generator, annotations: Path | None, split: str) -> tuple[list[str], list[Row]]:
    if annotations is not None and split == "test1":
        folder = annotations / "CIRR" / "cirr"
        images = list(json.loads((folder / "image_splits/split.rc2.test1.json").read_text()))
        annotated = json.loads((folder / "captions/cap.rc2.test1.json").read_text())
        return images, [
            question(q["pairid"], split, own, [], exclude_ids=[own], group_ids=q["img_set"]["members"])
            for q in annotated
            for own in [q["reference"]]
        ]
    numbers = {"val": (2_297, 4_181), "test1": (2_315, 4_148)}[split]
    images = [f"{split}-{number}-0-img{number % 2}" for number in range(numbers[0])]
    rows = []
    for number in range(numbers[1]):
        group = [images[position] for position in random.choice(len(images), 6, replace=False)]
        targets = [group[1 + number % 5]] if split == "val" else []
        rows.append(question(3 * number, split, group[0], targets, exclude_ids=[group[0]], group_ids=group))
    return images, rows


def fashioniq(random: np.random.Generator, annotations: Path | None, category: str) -> tuple[list[str], list[Row]]:
    if annotations is not None and category == "dress":
        folder = annotations / "FASHIONIQ"
        images = json.loads((folder / "image_splits/split.dress.val.json").read_text())
        annotated = json.loads((folder / "captions/cap.dress.val.json").read_text())
        return images, [question(n, "val", q["candidate"], [q["target"]]) for n, q in enumerate(annotated)]
    numbers = {"dress": (3_817, 2_017), "shirt": (6_346, 2_038)}[category]
    images = [f"B{number:09X}" for number in range(numbers[0])]
    pairs = [random.choice(len(images), 2, replace=False) for _ in range(numbers[1])]
    return images, [question(n, "val", images[a], [images[b]]) for n, (a, b) in enumerate(pairs)]


def unit(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


def world(name: str, annotations: Path | None) -> World:
    """A benchmark with vectors that find the targets now and then; some images share all their numbers."""
    random = np.random.default_rng(len(name))
    makers = {"circo": circo, "cirr": cirr, "fashioniq": fashioniq}
    kind, _, part = name.partition("-")
    images, queries = makers[kind](random, annotations, *([part] if part else []))  # type: ignore[operator]
    made = World(images, queries, FORMS[name])
    number, positions = len(images), {image: position for position, image in enumerate(images)}
    # Some images have another's numbers, and more of them than a ranking keeps have those of the first query's target.
    often = positions[(queries[0]["target_ids"] or [images[7]])[0]]
    chosen = random.permutation(np.delete(np.arange(number), often))[: number // 20 + 150]
    made.copies = np.arange(number)
    made.copies[chosen] = random.choice(np.setdiff1d(np.arange(number), chosen), len(chosen))
    made.copies[chosen[:150]] = often
    image = unit(random.normal(size=(number, WIDTH)))
    caption = unit(random.normal(size=(number, WIDTH)) + image) * (1.0 if kind == "fashioniq" else 0.9)
    made.gallery = {p: m.astype(made.form.vectors)[made.copies] for p, m in (("image", image), ("caption", caption))}
    aims = [positions[(row["target_ids"] or row["group_ids"][1:] or images[:1])[0]] for row in queries]
    for number, part in enumerate(made.form.parts):
        drawn = unit(random.normal(size=(len(queries), WIDTH))) * ((1 if kind == "circo" else 2) + number / 2)
        made.components[part] = unit(made.gallery["image"][aims].astype(np.float64) + drawn).astype(np.float32)
    return made


def column(matrix: np.ndarray, loose: bool) -> pa.Array:
    flat = pa.array(matrix.reshape(-1))
    if loose:
        return pa.LargeListArray.from_arrays(pa.array(np.arange(len(matrix) + 1) * WIDTH, pa.int64()), flat)
    return pa.FixedSizeListArray.from_arrays(flat, WIDTH)


def texts(values: list[str], form: Form) -> pa.Array:
    return pa.array(values, pa.string()).cast(form.strings)


def write(cache: Path, made: World) -> None:
    """The index and both kinds of vectors, in the benchmark's form."""
    form = made.form
    hidden = [f"hidden-{number}" for number in range(form.hidden_rows)]
    images = [*hidden, *made.images]
    table = pa.table(
        {
            "in_gallery": [False] * len(hidden) + [True] * len(made.images),
            "image_id": texts(images, form),
            "path": texts([f"{image}.png" for image in images], form),
            "digest": texts(["0" * 64] * len(images), form),
            "width": pa.array([4] * len(images), pa.int32()),
            "height": pa.array([4] * len(images), pa.int32()),
        }
    )
    (cache / "index").mkdir(parents=True)
    pq.write_table(table, cache / "index" / "images.parquet")
    columns = {}
    for name, value in made.queries[0].items():
        values = [row[name] for row in made.queries]
        listed = form.lists(pa.large_string() if pa.types.is_large_string(form.strings) else pa.string())
        columns[name] = pa.array(values, listed) if isinstance(value, list) else texts(values, form)
    pq.write_table(pa.table(columns), cache / "index" / "queries.parquet")
    folder = cache / BACKBONE / "gallery_vectors"
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(made.images), form.shard)):
        rows = slice(start, start + form.shard)
        shard = {part: column(matrix[rows], form.loose_vectors) for part, matrix in made.gallery.items()}
        shard["image_id"] = texts(made.images[rows], form)
        if form.extra:
            shard["norm"] = pa.array(np.ones(len(shard["image_id"])))
        pq.write_table(pa.table(shard), folder / form.name.format(number), row_group_size=max(form.row_group, 100))
    folder = cache / BACKBONE / "query_vectors"
    folder.mkdir(parents=True)
    order = np.arange(len(made.queries))
    if form.shuffled:
        np.random.default_rng(1).shuffle(order)
    shard = {part: column(matrix[order], form.loose_vectors) for part, matrix in made.components.items()}
    shard |= {name: texts([made.queries[row][name] for row in order], form) for name in ("query_id", "split")}
    pq.write_table(pa.table(shard), folder / "everything.parquet")


@dataclass(frozen=True)
class Truth:
    """The definition: scores in float64 by unique vectors, so that equal images score exactly equally."""

    made: World
    left: np.ndarray
    right: np.ndarray
    positions: dict[str, int]

    def scores(self, row: int) -> np.ndarray:
        """Scores of all gallery images for a query; those that are never ranked are minus infinity."""
        values: np.ndarray = (self.right @ self.left[row])[self.made.copies]
        for image in self.made.queries[row]["exclude_ids"]:
            values[self.positions[image]] = -np.inf
        return values

    def group(self, row: int) -> list[str]:
        """The query's group in the order of its scores, without what is never ranked."""
        values = self.scores(row)
        members = [self.positions[image] for image in self.made.queries[row]["group_ids"]]
        ordered = sorted((m for m in members if values[m] > -np.inf), key=lambda m: (-values[m], m))
        return [self.made.images[member] for member in ordered]


def truth(made: World, fusion: dict[str, dict[str, float]]) -> Truth:
    left = sum(weight * made.components[part].astype(np.float64) for part, weight in fusion["query"].items())
    right = sum(weight * made.gallery[part].astype(np.float64) for part, weight in fusion["gallery"].items())
    assert isinstance(left, np.ndarray) and isinstance(right, np.ndarray)
    assert np.array_equal(right, right[made.copies])
    return Truth(made, left, right, {image: position for position, image in enumerate(made.images)})


def check_rankings(known: Truth, ranked: dict[tuple[str, str], list[str]]) -> None:
    """The first 100 of every query are the definition's; only what float32 cannot tell apart may change positions."""
    swapped = 0
    for row, query in enumerate(known.made.queries):
        values = known.scores(row)
        images = np.array([known.positions[image] for image in ranked[query["split"], query["query_id"]]])
        edge = np.partition(values, -100)[-100]
        candidates = np.flatnonzero(values >= edge)
        best = candidates[np.lexsort((candidates, -values[candidates]))][:100]
        assert len(images) == len(set(images)) == 100
        swapped += int((images != best).sum())
        assert np.abs(values[images] - values[best]).max() < 2e-6
        equal = values[images][1:] == values[images][:-1]
        assert (images[1:][equal] > images[:-1][equal]).all(), "equal scores not by position"
        same = np.flatnonzero((known.made.copies == known.made.copies[images[-1]]) & (values > -np.inf))
        there = np.isin(same, images)
        assert there[: there.sum()].all(), "of equal images, a later one is ranked and an earlier one is not"
    assert swapped <= 0.001 * 100 * len(known.made.queries), swapped


def circo_metrics(queries: list[Row], ranked: list[list[str]]) -> dict[str, float]:
    values_of: dict[str, list[float]] = {}
    for query, images in zip(queries, ranked, strict=True):
        for k in (5, 10, 25, 50):
            hits, total = 0, 0.0
            for rank, image in enumerate(images[:k], start=1):
                if image in query["target_ids"]:
                    hits += 1
                    total += hits / rank
            values_of.setdefault(f"mAP@{k}", []).append(total / min(len(query["target_ids"]), k))
            values_of.setdefault(f"Recall@{k}", []).append(float(query["target_ids"][0] in images[:k]))
        for aspect in query["aspects"]:
            values_of.setdefault(f"mAP@10/{aspect}", []).append(values_of["mAP@10"][-1])
    return {name: 100 * sum(values) / len(values) for name, values in values_of.items()}


def recalls(queries: list[Row], ranked: list[list[str]], cuts: tuple[int, ...], name: str) -> dict[str, float]:
    ranks = [lists.index(query["target_ids"][0]) if query["target_ids"][0] in lists else 10**9
             for query, lists in zip(queries, ranked, strict=True)]  # fmt: skip
    return {f"{name}@{k}": 100 * sum(rank < k for rank in ranks) / len(queries) for k in cuts}


@pytest.fixture
def annotations(request: pytest.FixtureRequest) -> Path | None:
    """The real annotation files, or None where they are not there."""
    try:
        return Path(request.getfixturevalue("shared")) / "annotations"
    except pytest.skip.Exception:
        return None


@pytest.mark.parametrize("name", FORMS)
def test_outside_vectors_give_the_benchmarks_rankings_metrics_and_files(
    name: str, annotations: Path | None, tmp_path: Path
) -> None:
    made = world(name, annotations)
    sizes = project_params()["datasets"][name]["sizes"]
    splits = {query["split"] for query in made.queries}
    numbers = {split: sum(query["split"] == split for query in made.queries) for split in splits}
    assert {"images": len(made.images)} | numbers == sizes
    write(tmp_path / "cache" / name, made)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(project_params(), sort_keys=False), encoding="utf-8")
    Workspace(tmp_path).run("scores", name, BACKBONE)

    known = truth(made, project_params()["datasets"][name]["fusion"])
    scores = tmp_path / "cache" / name / BACKBONE / "scores"
    table = pq.read_table(scores / "rankings.parquet")
    keys = list(zip(table["split"].to_pylist(), table["query_id"].to_pylist(), strict=True))
    assert keys == [(q["split"], q["query_id"]) for q in made.queries for _ in range(100)]
    assert table["rank"].to_pylist() == list(range(1, 101)) * len(made.queries)
    images = table["image_id"].to_pylist()
    ranked = {
        key: images[start : start + 100] for start, key in zip(range(0, len(images), 100), keys[::100], strict=True)
    }
    check_rankings(known, ranked)
    check_metrics(name, known, ranked, json.loads((scores / "metrics.json").read_text()))
    check_values(known, ranked, scores)
    check_submissions(name, known, ranked, scores / "submissions", tmp_path)


def check_metrics(name: str, known: Truth, ranked: dict[tuple[str, str], list[str]], metrics: Any) -> None:
    labelled = [row for row, query in enumerate(known.made.queries) if query["target_ids"]]
    assert list(metrics) == (["val"] if labelled else [])
    if not labelled:
        return
    queries = [known.made.queries[row] for row in labelled]
    lists = [ranked["val", query["query_id"]] for query in queries]
    if name == "circo":
        wanted = circo_metrics(queries, lists)
    else:
        wanted = recalls(queries, lists, (1, 5, 10, 50), "Recall")
    if name == "cirr-val":
        wanted |= recalls(queries, [known.group(row) for row in labelled], (1, 2, 3), "Recall_subset")
    split = metrics["val"]
    assert {metric: split[metric] for metric in wanted} == pytest.approx(wanted, abs=1e-6)
    others = {"queries", "dropped", "dropped images", "fallbacks", "fallback share"}
    assert {m for m in split if not m.endswith((" low", " high"))} == set(wanted) | others
    assert (split["queries"], split["dropped"], split["fallbacks"], split["fallback share"]) == (len(queries), 0, 0, 0)
    assert 0 < min(wanted.values()) and max(wanted.values()) < 100, "the vectors make the comparison empty"


def check_values(known: Truth, ranked: dict[tuple[str, str], list[str]], scores: Path) -> None:
    """Target ranks agree with the rankings to the 100th, and with the definition, rounding aside, to the 1,000th."""
    rows = pq.read_table(scores / "per_query.parquet").to_pylist()
    labelled = [row for row, query in enumerate(known.made.queries) if query["target_ids"]]
    assert len(rows) == len(labelled)
    for values, row in zip(rows, labelled, strict=True):
        query = known.made.queries[row]
        images = ranked[query["split"], query["query_id"]]
        assert (values["split"], values["query_id"]) == (query["split"], query["query_id"])
        assert [rank if rank and rank <= 100 else None for rank in values["target_ranks"]] == [
            images.index(image) + 1 if image in images else None for image in query["target_ids"]
        ]
        assert values["group_rank"] == (
            known.group(row).index(query["target_ids"][0]) + 1 if query["group_ids"] else None
        )
    for values, row in list(zip(rows, labelled, strict=True))[:60]:
        scored = known.scores(row)
        for image, rank in zip(known.made.queries[row]["target_ids"], values["target_ranks"], strict=True):
            own, position = scored[known.positions[image]], known.positions[image]
            equal = known.made.copies == known.made.copies[position]
            exact = 1 + (scored > own).sum() + (equal[:position] & (scored[:position] > -np.inf)).sum()
            close = (np.abs(scored - own) < 2e-6).sum() - equal.sum()
            assert (rank is None and exact > 1000 - close) or (rank is not None and abs(rank - exact) <= close)


def check_submissions(
    name: str, known: Truth, ranked: dict[tuple[str, str], list[str]], submissions: Path, folder: Path
) -> None:
    hidden = [row for row, query in enumerate(known.made.queries) if not query["target_ids"]]
    wanted: dict[str, Any] = {}
    if hidden and name == "circo":
        wanted["test.map.json"] = {
            query: [int(image) for image in images[:50]] for (split, query), images in ranked.items() if split == "test"
        }
    elif hidden:
        head, ids = {"version": "rc2"}, [known.made.queries[row]["query_id"] for row in hidden]
        recall = {query: ranked["test1", query][:50] for query in ids}
        subset = {query: known.group(row)[:3] for query, row in zip(ids, hidden, strict=True)}
        wanted["test1.recall.json"] = head | {"metric": "recall"} | recall
        wanted["test1.recall_subset.json"] = head | {"metric": "recall_subset"} | subset
    assert {file.name: json.loads(file.read_text()) for file in submissions.glob("*")} == wanted
    for file in wanted:
        command = ["cvsi", "check-submission", str(submissions / file), "--queries", name]
        done = subprocess.run(command, cwd=folder, env=environment(folder), text=True, capture_output=True)
        assert done.returncode == 0 and "no fault" in done.stdout, done.stderr
