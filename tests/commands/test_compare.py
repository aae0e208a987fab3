"""`cvsi compare`: two runs' metrics with paired intervals, what differs in their recipes, one line per warning."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from cvsi.commands import consistency
from cvsi.commands.compare import compare
from cvsi.commands.comparison import Comparison, Row
from cvsi.commands.comparison import tables as shown
from cvsi.commands.main import app
from cvsi.core import params, parquet, provenance, schema, tables
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.paths import folder
from cvsi.datasets.formats import FORMATS
from cvsi.evaluation.metrics import by_query, interval, summarise, with_ranks
from tests.conftest import environment, project_params

QUERIES, GALLERY, RANKS = 40, 300, 100
CIRCO = FORMATS.get("circo", "test").protocol
RUNS = {
    "first": ("toy", "tiny"),
    "second": ("toy", "vit-b-32"),
    "renamed": ("again", "tiny"),
    "later": ("toy", "vit-l-14"),
}
VECTORS = {"kind": "image", "code": 1, "precision": "fp32", "weights": "aa", "preprocess": "target-pad"}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two scored runs of one dataset, whose backbones differ and nothing else."""
    monkeypatch.chdir(tmp_path)
    content = project_params()
    content["datasets"]["toy"] = content["datasets"]["demo"]
    content["datasets"]["again"] = content["datasets"]["demo"]
    content["runs"] = {name: {"dataset": dataset, "backbone": backbone} for name, (dataset, backbone) in RUNS.items()}
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    index("toy")
    score("first", 1, "aa", "phi1")
    score("second", 2, "bb", "phi2")
    return tmp_path


def index(dataset: str, aspects: tuple[str, ...] = ()) -> None:
    """An index of random queries, the captions and the edits: recipes alone, no test reads the rows.

    Every query has the first of the aspects, every second one also the second, and so on.
    """
    random = np.random.default_rng(0)
    ids = [f"i{number}" for number in range(GALLERY)]
    rows = [
        {
            "query_id": str(number), "split": "val" if number < QUERIES - 5 else "test", "reference_id": "i0",
            "instruction": f"is {number}", "exclude_ids": [], "group_ids": [],
            "aspects": [aspect for place, aspect in enumerate(aspects, 1) if number % place == 0],
            "target_ids": [ids[i] for i in random.choice(GALLERY, 3, replace=False)] if number < QUERIES - 5 else [],
        }
        for number in range(QUERIES)
    ]  # fmt: skip
    images = [{"image_id": i, "path": i, "digest": i, "width": 1, "height": 1, "in_gallery": True} for i in ids]
    with tables.output("index", dataset, recipe={"format": "circo", "bad_images": "stop"}) as out:
        out.table("images.parquet", pl.DataFrame(images).to_arrow(), schema.IMAGES)
        out.table("queries.parquet", pl.DataFrame(rows).to_arrow(), schema.QUERIES)
    for stage, recipe in (
        ("captions", {"n": 5, "precision": "fp32"}),
        ("edits", {"mode": "joint", "prompts": {"edited": "Say it.", "added": "Name it."}}),
    ):
        with tables.output(stage, dataset, recipe=recipe):
            pass


def score(run: str, seed: int, weights: str, phi: str, **fusion: float) -> None:
    """Random rankings of a run that find some right answers, their metrics, and the recipes of its stages."""
    dataset, backbone = RUNS[run]
    random = np.random.default_rng(seed)
    queries = pl.DataFrame(tables.read("index", dataset, "queries.parquet"))
    rows = []
    for query in queries.to_dicts():
        others = [f"i{i}" for i in random.permutation(GALLERY)[:RANKS]]
        ranked = list(dict.fromkeys([*query["target_ids"][: random.integers(0, 3)], *others]))[:RANKS]
        ranked = [ranked[i] for i in np.argsort(np.arange(RANKS) + random.normal(scale=5, size=RANKS))]
        rows += [
            {
                "query_id": query["query_id"],
                "split": query["split"],
                "rank": rank,
                "image_id": image,
                "score": 1.0 / rank,
            }
            for rank, image in enumerate(ranked, 1)
        ]
    vectors = VECTORS | {"weights": weights}
    recipe: dict[str, Any] = {"image": vectors, "text": vectors | {"kind": "text"}, "normalize_captions": False}
    with tables.output(
        "gallery_vectors", dataset, backbone, recipe | provenance.inputs("gallery_vectors", dataset, backbone)
    ):
        pass
    recipe = {
        "image": vectors,
        "text": vectors | {"kind": "text"},
        "pseudo": vectors | {"phi": {"weights": phi}, "template": "$"},
    }
    with tables.output(
        "query_vectors", dataset, backbone, recipe | provenance.inputs("query_vectors", dataset, backbone)
    ):
        pass
    recipe = {"fusion": {"query": {"edited": 0.6, **fusion}}, "format": "circo"}
    with tables.output("scores", dataset, backbone, recipe | provenance.inputs("scores", dataset, backbone)) as out:
        out.table("rankings.parquet", pl.DataFrame(rows).to_arrow(), schema.RANKINGS)
        values = by_query(CIRCO, ranked_queries(queries, rows))
        out.table("per_query.parquet", values.to_arrow(), schema.per_query(CIRCO.names()))
        labelled = queries.filter(pl.col("split") == "val")
        by_aspect = {n: v for n, v in summarise(CIRCO, values, labelled["aspects"]).items() if "/" in n}
        plain = {name: values[name].mean() for name in CIRCO.names()} | by_aspect
        counts = {"mAP@10 low": 0.0, "mAP@10 high": 1.0, "queries": 35, "dropped": 0, "fallbacks": 2}
        out.json("metrics.json", {"val": plain | counts})


def ranked_queries(queries: pl.DataFrame, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The labelled queries with the ranks of their targets in these rankings."""
    ranks = {(row["query_id"], row["image_id"]): row["rank"] for row in rows}
    labelled = queries.filter(pl.col("split") == "val")
    targets = [[ranks.get((row["query_id"], image), 0) for image in row["target_ids"]] for row in labelled.to_dicts()]
    return with_ranks(labelled, np.array(targets), np.zeros(labelled.height, dtype=np.int64))


def by_hand(queries: pl.DataFrame, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """CIRCO's metrics by query from their definition, slowly, in percent."""
    ranked: dict[str, list[str]] = {}
    for row in rows:
        ranked.setdefault(row["query_id"], []).append(row["image_id"])
    values_of: dict[str, list[float]] = {name: [] for name in CIRCO.names()}
    for query in queries.filter(pl.col("split") == "val").to_dicts():
        mine, right = ranked[query["query_id"]], query["target_ids"]
        for name, values in values_of.items():
            kind, _, k = name.partition("@")
            ranks = [rank for rank, image in enumerate(mine[: int(k)], 1) if image in right]
            precision = sum(number / rank for number, rank in enumerate(ranks, 1)) / min(len(right), int(k))
            values.append(100 * (precision if kind == "mAP" else right[0] in mine[: int(k)]))
    return {name: np.array(values) for name, values in values_of.items()}


def rows_of(run: str) -> list[dict[str, Any]]:
    return pl.read_parquet(folder("scores", *RUNS[run]) / "rankings.parquet").to_dicts()


def change(stage: str, dataset: str, backbone: str | None = None, **facts: Any) -> None:
    """Change facts of a stage's provenance, as running it under other parameters would."""
    path = folder(stage, dataset, backbone) / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def row(comparison: Comparison, name: str) -> Row:
    return next(item for item in comparison.splits["val"] if item.name == name)


def test_differences_and_their_intervals_are_those_of_the_queries(work: Path) -> None:
    comparison = compare(params.load(), "first", "second")
    assert list(comparison.splits) == ["val"], "test has no labels"
    queries = pl.DataFrame(tables.read("index", "toy", "queries.parquet"))
    first, second = (by_hand(queries, rows_of(run)) for run in ("first", "second"))
    for name in CIRCO.names():
        mine, apart = row(comparison, name), second[name] - first[name]
        assert mine.difference == pytest.approx(apart.mean())
        assert (mine.low, mine.high) == pytest.approx(interval(apart))
    assert row(comparison, "mAP@10").low != row(comparison, "mAP@10").high
    assert [item.name for item in comparison.splits["val"] if item.low is None] == ["queries", "dropped", "fallbacks"]


def test_a_backbone_with_its_phi_is_one_thing_that_differs(work: Path) -> None:
    comparison = compare(params.load(), "first", "second")
    assert comparison.differences == {"backbone": {"weights": ("aa", "bb")}, "phi": {"weights": ("phi1", "phi2")}}
    assert comparison.doubts == []


def test_the_same_run_differs_in_nothing(work: Path) -> None:
    comparison = compare(params.load(), "first", "first")
    assert comparison.differences == {} and comparison.doubts == []
    assert {(item.difference, item.low, item.high) for item in comparison.splits["val"] if item.low is not None} == {
        (0, 0, 0)
    }


def test_more_than_one_part_is_a_warning(work: Path) -> None:
    other = work / "elsewhere"
    shutil.copytree(work / "cache", other)
    change("captions", "toy", precision="bf16", temperature=0.7)
    score("first", 1, "aa", "phi1", pseudo=0.4)
    comparison = compare(params.load(), "first", "first", other)
    assert comparison.differences == {
        "captioner": {"precision": ("bf16", "fp32"), "temperature": ("0.7", "")},
        "fusion": {"query.pseudo": ("0.4", "")},
    }
    assert comparison.doubts == [
        "these runs differ in more than what is compared: captioner and fusion",
        "these runs differ in precision: captioner",
    ]
    assert (comparison.first, comparison.second) == ("first", f"first in {other}")


def test_another_version_of_the_code_is_a_warning(work: Path) -> None:
    change("captions", "toy", code=2)
    other = work / "elsewhere"
    shutil.copytree(work / "cache", other)
    change("captions", "toy", code=3)
    assert "these runs differ in code version: captioner" in compare(params.load(), "first", "first", other).doubts


def test_vectors_made_from_other_edits_are_a_warning(work: Path) -> None:
    change("edits", "toy", prompts={"edited": "Say it well.", "added": "Name it."})
    score("second", 2, "bb", "phi2")
    settings = params.load()
    line = "first: its query_vectors were made by another recipe of edits than the current one; run dvc repro"
    assert compare(settings, "first", "second").doubts == [line]
    assert consistency.of_summary(settings, ["first"], []) == [line]
    both = "first and second: made from different edits of toy; run dvc repro for the older ones"
    assert consistency.of_summary(settings, ["first", "second"], []) == [both]


def test_gallery_and_queries_of_two_backbones_are_a_warning(work: Path) -> None:
    vectors = VECTORS | {"weights": "cc"}
    change("gallery_vectors", "toy", "tiny", image=vectors)
    lines = compare(params.load(), "first", "second").doubts
    assert "first: its query and gallery vectors differ in weights; run dvc repro" in lines


def test_a_dataset_under_another_name_is_the_same_data(work: Path) -> None:
    index("again")
    score("renamed", 3, "aa", "phi1")
    change("edits", "again", mode="each")
    score("renamed", 3, "aa", "phi1")
    comparison = compare(params.load(), "first", "renamed")
    assert comparison.differences == {"editor": {"mode": ("joint", "each")}} and comparison.doubts == []
    assert row(comparison, "mAP@10").low is not None


def test_other_queries_have_no_interval(work: Path) -> None:
    index("again")
    path = folder("index", "again") / "queries.parquet"
    queries = pl.read_parquet(path).with_columns(instruction=pl.lit("is other"))
    parquet.write_parquet(queries.to_arrow().cast(schema.QUERIES), path)
    score("renamed", 3, "aa", "phi1")
    comparison = compare(params.load(), "first", "renamed")
    assert comparison.differences["dataset"] == {
        "name": ("toy", "again"),
        "queries": ("40 rows", "40 rows, not the same"),
    }
    assert comparison.doubts == ["val: not the same queries with the same right answers; no interval"]
    assert {item.low for item in comparison.splits["val"]} == {None}


def test_an_index_newer_than_the_scores_is_a_warning(work: Path) -> None:
    path = folder("index", "toy") / "queries.parquet"
    queries = pl.read_parquet(path).with_columns(pl.col("target_ids").list.reverse())
    parquet.write_parquet(queries.to_arrow().cast(schema.QUERIES), path)
    comparison = compare(params.load(), "first", "second")
    for run in ("first", "second"):
        assert (
            f"{run}: its scores were made from other queries than the index has; no interval; run dvc repro"
            in comparison.doubts
        )
    assert row(comparison, "Recall@5").low is None and row(comparison, "mAP@10").low is None


def test_every_metric_of_per_query_is_paired_over_the_queries_that_count_in_both(work: Path) -> None:
    values = {"first": [None, 10.0, 20.0], "second": [5.0, None, 50.0]}
    for run, percents in values.items():
        path = folder("scores", *RUNS[run]) / "per_query.parquet"
        table = pl.read_parquet(path)
        column = pl.Series("own metric", [*percents, *[30.0] * (table.height - 3)])
        parquet.write_parquet(
            table.with_columns(column).to_arrow().cast(schema.per_query([*CIRCO.names(), "own metric"])), path
        )
        path = path.with_name("metrics.json")
        content = json.loads(path.read_text())
        content["val"]["own metric"] = column.mean()
        path.write_text(json.dumps(content))
    own = row(compare(params.load(), "first", "second"), "own metric")
    assert (own.low, own.high) == pytest.approx(interval(np.array([30.0] + [0.0] * (QUERIES - 5 - 3))))


def test_scores_of_an_earlier_version_have_no_interval(work: Path) -> None:
    (folder("scores", *RUNS["second"]) / "per_query.parquet").unlink()
    comparison = compare(params.load(), "first", "second")
    (line,) = comparison.doubts
    assert line.endswith("per_query.parquet: no such file; no interval; run the stage scores again (dvc repro)")
    assert {item.low for item in comparison.splits["val"]} == {None}


def test_the_recipes_of_other_programs_are_unknown(work: Path) -> None:
    (folder("query_vectors", "toy", "tiny") / "provenance.json").unlink()
    lines = compare(params.load(), "first", "second").doubts
    assert "first: the recipe of its query_vectors is unknown: no provenance.json" in lines


def test_a_later_schema_is_refused(work: Path) -> None:
    change("edits", "toy", schema=99)
    with pytest.raises(CvsiError, match=r"edits/provenance.json: schema version 99, this cvsi reads up to \d+; update"):
        compare(params.load(), "first", "second")
    assert any("schema version 99" in line for line in consistency.of_summary(params.load(), ["first"], []))


@pytest.mark.parametrize(
    ("runs", "other", "expected"),
    [
        (("first", "nothing"), None, "no run 'nothing'; there are: first, later"),
        (("first", "later"), None, "cache/toy/vit-l-14/scores: no scores of later; run dvc repro"),
        (("first", "first"), "nowhere", "nowhere/toy/tiny/scores: no scores of first; --other names another workspace"),
    ],
)
def test_mistakes_are_one_line(work: Path, runs: tuple[str, str], other: str | None, expected: str) -> None:
    with pytest.raises(CvsiError, match=expected) as error:
        compare(params.load(), *runs, Path(other) if other else None)
    assert "\n" not in str(error.value)


def test_no_split_in_both_is_one_line(work: Path) -> None:
    (folder("scores", *RUNS["second"]) / "metrics.json").write_text("{}")
    with pytest.raises(CvsiError, match="no labelled split in both runs: first has val and second has none"):
        compare(params.load(), "first", "second")


def test_the_command_prints_tables_and_warnings(work: Path) -> None:
    change("edits", "toy", prompts={"edited": "A" * 200 + " [b]first[/b]", "added": "Name it."})
    score("second", 2, "bb", "phi2")
    done = subprocess.run(
        [sys.executable, "-c", "from cvsi.commands.main import main; main()", "compare", "first", "second"],
        cwd=work, env=environment(work), text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mAP@10" in done.stdout and "what differs in their recipes" in done.stdout and "phi1" in done.stdout
    assert done.stderr.splitlines() == [
        "cvsi: warning: first: its query_vectors were made by another recipe of edits than the current one; "
        "run dvc repro",
        "next: dvc repro",
    ]
    result = CliRunner().invoke(app, ["compare", "first", "second", "--json"])
    assert json.loads(result.stdout) == json.loads(compare(params.load(), "first", "second").model_dump_json())
    assert CliRunner().invoke(app, ["compare", "first"]).exit_code == 1


def test_long_values_are_cut_to_where_they_part(work: Path) -> None:
    other = work / "elsewhere"
    shutil.copytree(work / "cache", other)
    change("edits", "toy", prompts={"edited": "A" * 200 + " [b]first[/b] end", "added": "Name it."})
    shutil.copytree(work / "cache", work / "third")
    change("edits", "toy", prompts={"edited": "A" * 200 + " [b]second[/b] end", "added": "Name it."})
    console = Console(width=200, record=True)
    for table in shown(compare(params.load(), "first", "first", work / "third")):
        console.print(table)
    text = console.export_text()
    assert "[b]first" in text and "[b]second" in text and "A" * 60 not in text


def test_compare_and_summary_load_no_torch() -> None:
    code = "import sys, cvsi.commands.compare, cvsi.commands.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_inputs_are_named_by_the_digest_of_their_recipe(work: Path) -> None:
    made = provenance.inputs("query_vectors", "toy", "tiny")
    assert made["from"]["edits"] == digest(tables.provenance(folder("edits", "toy")))
