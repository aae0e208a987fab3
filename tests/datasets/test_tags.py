"""A user's file of tags to the queries' tags and metrics by tag; bad files are one line. Variants of two benchmarks."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.datasets import formats, index
from cvsi.evaluation import published, queries, scores
from tests.conftest import Workspace, project_params


def keys(toy: Workspace) -> list[tuple[str, str]]:
    """The labelled queries of the workspace: split and id."""
    index.build("toy", params.load())
    frame = pl.read_parquet(toy.path / "cache/toy/index/queries.parquet")
    return frame.filter(pl.col("target_ids").list.len() > 0).select("split", "query_id").rows()


def write(file: Path, rows: list[tuple[str, str, str]]) -> None:
    frame = pl.DataFrame(rows, schema=["split", "query_id", "tag"], orient="row")
    frame.write_parquet(file) if file.suffix == ".parquet" else frame.write_csv(file)


@pytest.mark.parametrize("name", ["tags.csv", "tags.parquet"])
def test_tags_are_in_the_index_and_among_the_aspects_of_metrics(toy: Workspace, name: str) -> None:
    (split, first), (_, second) = keys(toy)
    before = pl.read_parquet(toy.path / "cache/toy/index/queries.parquet")
    assert "tags" not in before.columns
    write(toy.path / name, [(split, first, "hard"), (split, second, "hard"), (split, second, "bright")] * 2)
    toy.params(datasets__toy__tags=name)
    index.build("toy", params.load())
    after = pl.read_parquet(toy.path / "cache/toy/index/queries.parquet")
    assert after.drop("tags").equals(before)
    assert after["tags"].to_list() == [["hard"], ["bright", "hard"], []]
    table, _ = queries.read("toy")
    assert table.frame["aspects"].to_list() == [["hard"], ["bright", "hard"], []]


def test_metrics_by_tag_are_means_over_its_queries(toy: Workspace) -> None:
    (split, first), (_, second) = keys(toy)
    write(toy.path / "tags.csv", [(split, first, "all"), (split, second, "all"), (split, second, "one")])
    toy.params(datasets__toy__tags="tags.csv")
    index.build("toy", params.load())
    table, _ = queries.read("toy")
    protocol = formats.format_of(params.load().dataset("toy"), "toy").protocol
    labelled = table.frame.filter(pl.col("split") == split)
    values = labelled.select("query_id", "split").with_columns(
        **{name: pl.Series([100.0, 0.0]) for name in protocol.names()}
    )
    metrics = scores.metrics_of(protocol, table, values)[split]
    assert metrics[f"{protocol.main}/all"] == 50 and metrics[f"{protocol.main}/one"] == 0


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "tags.csv: no such file; correct tags in params.yaml"),
        ("split,query,tag\nval,1,a\n", "tags.csv: no column 'query_id'; there are: split, query, tag"),
        ("split,query_id,tag\nval,,a\n", "tags.csv: 1 row with an empty cell"),
        ("split,query_id,tag\nval,1,  \n", "tags.csv: 1 row with an empty cell"),
        ("split,query_id,tag\nval,none,a\n", "tags.csv: names no query of the dataset (first: none of split val"),
        (f"split,query_id,tag\nval,1,{'x' * 1001}\n", "tags.csv: tags of more than 1,000 characters: xxx"),
        ("", "tags.csv: not a CSV file with split, query_id, tag"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(toy: Workspace, content: str | None, line: str) -> None:
    if content is not None:
        (toy.path / "tags.csv").write_text(content)
    toy.params(datasets__toy__tags="tags.csv")
    with pytest.raises(CvsiError) as error:
        index.build("toy", params.load())
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_rows_of_other_queries_are_counted(toy: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    (split, first), _ = keys(toy)
    write(toy.path / "tags.csv", [(split, first, "a"), ("other", "9", "a"), (split, "9", "a")])
    toy.params(datasets__toy__tags="tags.csv")
    index.build("toy", params.load())
    assert "tags.csv: 2 rows of 3 name queries that the dataset does not have" in capsys.readouterr().err


def benchmark(name: str, root: Path, **keys: Any) -> Dataset:
    content = project_params()["datasets"][name] | {"root": str(root)} | keys
    return Dataset.model_validate(content)


def test_circo_with_the_shared_concept(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "annotations/CIRCO/annotations", tmp_path / "annotations")
    images = {"images": [{"id": 1, "file_name": "1.jpg"}]}
    (tmp_path / "COCO2017_unlabeled/annotations").mkdir(parents=True)
    (tmp_path / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json").write_text(json.dumps(images))
    plain = formats.read(benchmark("circo", tmp_path), "circo").queries
    with_it = formats.read(benchmark("circo", tmp_path, shared_concept=True), "circo").queries
    rows = json.loads((tmp_path / "annotations/val.json").read_text())
    assert plain["instruction"][0] == rows[0]["relative_caption"]
    assert with_it["instruction"][0] == f"{rows[0]['relative_caption']}, and shows {rows[0]['shared_concept']}"
    assert plain.drop("instruction").equals(with_it.drop("instruction")) and with_it.height == 1020
    rows[3]["shared_concept"] = " "
    (tmp_path / "annotations/val.json").unlink()
    (tmp_path / "annotations/val.json").write_text(json.dumps(rows))
    with pytest.raises(CvsiError, match=f"no shared_concept for query {rows[3]['id']}; set shared_concept: false"):
        formats.read(benchmark("circo", tmp_path, shared_concept=True), "circo")


@pytest.mark.parametrize(("category", "images"), [("dress", 2628), ("toptee", 2902)])
def test_fashioniq_with_a_gallery_of_pairs(shared: Path, category: str, images: int) -> None:
    root, name = shared / "annotations/FASHIONIQ", f"fashioniq-{category}"
    split, pairs = (formats.read(benchmark(name, root, gallery=kind), name) for kind in ("split", "pairs"))
    assert pairs.images.height == images < split.images.height and pairs.queries.equals(split.queries)
    named = set(pairs.queries["reference_id"]) | set(pairs.queries["target_ids"].explode())
    assert set(pairs.images["image_id"]) == named
    order = [image for image in split.images["image_id"] if image in named]
    assert pairs.images["image_id"].to_list() == order


def test_a_variant_is_not_compared_with_other_figures() -> None:
    backbone = params.Backbone(model="ViT-B-32-quickgelu", pretrained="openai")
    metrics = {"mAP@5": 15.0, "mAP@10": 15.0}
    for variant, verdict in (("", "off"), ("shared_concept: true", "not comparable")):
        (_, comparison), *_ = published.compare("circo", "test", backbone, "edited", metrics, variant)
        assert comparison.verdict in (verdict, "near") if not variant else comparison.verdict == verdict
    rows = {row.method: row for row in published.load().rows if row.backbone == "vit-b-32"}
    assert rows["BGE-VL-Base"].shared_concept and not rows["CIReVL"].shared_concept
