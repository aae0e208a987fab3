"""The stage index: its tables on real annotations and own folders, and one clear line for each bad input."""

import json
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from cvsi.core import params, schema
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.datasets import fashioniq, formats, index
from cvsi.datasets.base import Listing
from tests.conftest import Workspace, draw_pictures, write_queries
from tests.imports import ROOT


def table(workspace: Workspace, name: str) -> pl.DataFrame:
    return pl.read_parquet(workspace.path / "cache" / "toy" / "index" / f"{name}.parquet")


def read(format: str, root: Path, **changes: object) -> Listing:
    known = params.load(ROOT / "params.yaml").dataset("demo").model_dump(exclude_defaults=True)
    return formats.read(Dataset.model_validate(known | {"format": format, "root": str(root)} | changes), "toy")


def test_a_folder_becomes_images_and_queries(toy: Workspace) -> None:
    (toy.path / "photos" / "notes.txt").write_text("not an image", encoding="utf-8")
    printed = toy.run("index", "toy")
    assert "8 images, 3 queries, 3 of 3 references among the gallery" in printed
    assert "1 file not read: 1 .txt (notes.txt)" in printed
    images, queries = table(toy, "images"), table(toy, "queries")
    assert images["image_id"].to_list() == sorted(f"{name}.png" for name in
        ("red", "green", "blue", "yellow", "orange", "purple", "black", "white"))  # fmt: skip
    assert images.filter(pl.col("image_id") == "red.png").row(0)[3:] == (64, 48, True)
    assert queries.to_dicts()[0] == {
        "query_id": "0", "split": "val", "reference_id": "red.png", "instruction": "is green",
        "target_ids": ["green.png", "blue.png"], "exclude_ids": ["red.png"], "group_ids": [], "aspects": [],
    }  # fmt: skip
    assert queries["split"].to_list() == ["val", "val", "test"]


def test_digests_are_those_of_the_bytes(toy: Workspace) -> None:
    import hashlib

    toy.run("index", "toy")
    for path, digest in table(toy, "images").select("path", "digest").iter_rows():
        assert digest == hashlib.sha256((toy.path / "photos" / path).read_bytes()).hexdigest()


def test_a_second_scan_opens_no_file_and_a_changed_file_is_seen(toy: Workspace) -> None:
    toy.run("index", "toy")
    before = toy.bytes_below("toy/index")
    assert "8 in the store, 0 to read" in toy.run("index", "toy")
    assert toy.bytes_below("toy/index") == before
    Image.new("RGB", (9, 9), "pink").save(toy.path / "photos" / "red.png")
    assert "7 in the store, 1 to read" in toy.run("index", "toy")
    assert toy.bytes_below("toy/index") != before


def test_rows_of_known_files_keep_their_recipe_and_their_keys(toy: Workspace) -> None:
    toy.run("index", "toy")
    ((folder,), files) = (toy.path / "cache/store/files").iterdir(), sorted((toy.path / "photos").glob("*.png"))
    assert folder.name == "1f857f2f97f025a8281f786bdddddb8e8a2069a33eca6fd75a094c11b11ec004"
    facts = [(file.name, file.stat()) for file in files]
    keys = [f"photos/{name} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino} 0" for name, s in facts]
    assert pl.read_parquet(folder / "*.parquet")["key"].to_list() == keys


def test_real_circo_annotations(shared: Path, tmp_path: Path) -> None:
    annotations = shared / "annotations" / "CIRCO" / "annotations"
    (tmp_path / "annotations").mkdir()
    named: set[int] = set()
    for split in ("val", "test"):
        content = (annotations / f"{split}.json").read_text(encoding="utf-8")
        (tmp_path / "annotations" / f"{split}.json").write_text(content, encoding="utf-8")
        for query in json.loads(content):
            named |= {query["reference_img_id"], *query.get("gt_img_ids", [])}
    info = tmp_path / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json"
    info.parent.mkdir(parents=True)
    info.write_text(json.dumps({"images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in sorted(named)]}))
    listing = read("circo", tmp_path)
    counts = dict(listing.queries["split"].value_counts().iter_rows())
    assert counts == {"val": 220, "test": 800}
    first = listing.queries.row(0, named=True)
    assert first["target_ids"] == ["355099", "528417", "534704"] and first["reference_id"] == "271520"
    assert first["instruction"] == "shows two people and has a more colorful background"
    assert "cardinality" in first["aspects"]
    hidden = listing.queries.filter(pl.col("split") == "test")
    assert hidden["target_ids"].list.len().max() == 0


def test_real_cirr_annotations(shared: Path) -> None:
    listing = read("cirr", shared / "annotations" / "CIRR", splits=("test1",))
    assert (listing.images.height, listing.queries.height) == (2315, 4148)
    assert listing.images.row(0) == ("test1-147-1-img1", "test1/test1-147-1-img1.png", True)
    first = listing.queries.row(0, named=True)
    assert (first["query_id"], first["split"], first["target_ids"]) == ("12063", "test1", [])
    assert first["exclude_ids"] == [first["reference_id"]] == ["test1-147-1-img1"]
    assert len(first["group_ids"]) == 6 and first["reference_id"] in first["group_ids"]


@pytest.mark.parametrize(("category", "images", "queries"), [("dress", 3817, 2017), ("toptee", 5373, 1961)])
def test_real_fashioniq_annotations(shared: Path, category: str, images: int, queries: int) -> None:
    listing = read("fashioniq", shared / "annotations" / "FASHIONIQ", category=category)
    assert (listing.images.height, listing.queries.height) == (images, queries)
    if category == "dress":
        first = listing.queries.row(0, named=True)
        assert first["instruction"] == "is shiny and silver with shorter sleeves and fit and flare"
        assert (first["reference_id"], first["target_ids"], first["query_id"]) == ("B005X4PL1G", ["B0084Y8XIU"], "0")


def test_fashioniq_captions_are_stripped_at_their_ends() -> None:
    assert fashioniq.instruction([" is red.", "has no sleeves?, "]) == "is red and has no sleeves"


def test_fashioniq_images_may_be_png_or_jpg(tmp_path: Path) -> None:
    for folder, content in (("image_splits/split", ["a", "b", "c"]), ("captions/cap", [])):
        (tmp_path / folder).parent.mkdir()
        (tmp_path / f"{folder}.shirt.val.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.png", "b.jpg"):
        (tmp_path / "images" / name).touch()
    paths = read("fashioniq", tmp_path, category="shirt").images["path"]
    assert paths.to_list() == ["images/a.jpg", "images/b.png", "images/c.png"]
    with pytest.raises(CvsiError, match=r"datasets\.toy\.category: key is missing"):
        read("fashioniq", tmp_path)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"a.png": b"x", "a.jpg": b"x"}, "a.png"),
        ({"a.png": b"", "a.jpg": b"x"}, "a.jpg"),
        ({"a.png": b"x", "a.jpg": b""}, "a.png"),
        ({"a.png": None, "a.jpg": b"x"}, "a.jpg"),
        ({"a.jpg": b""}, "a.jpg"),
        ({}, "a.png"),
    ],
)
def test_the_file_that_holds_something_is_taken(tmp_path: Path, files: dict[str, bytes | None], wanted: str) -> None:
    fashioniq_folder(tmp_path, ["a"], [])
    for name, content in files.items():
        if content is None:
            (tmp_path / "images" / name).symlink_to(tmp_path / "nowhere")
        else:
            (tmp_path / "images" / name).write_bytes(content)
    images = read("fashioniq", tmp_path, category="dress").images
    assert images["path"].to_list() == [f"images/{wanted}"]


def fashioniq_folder(root: Path, names: list[str], queries: list[tuple[str, str]]) -> None:
    rows = [{"candidate": a, "target": b, "captions": ["is red", ""]} for a, b in queries]
    for folder, content in (("image_splits/split", names), ("captions/cap", rows)):
        (root / folder).parent.mkdir(parents=True)
        (root / f"{folder}.dress.val.json").write_text(json.dumps(content), encoding="utf-8")
    (root / "images").mkdir()


def test_missing_dead_empty_and_damaged_images_take_their_queries_with_them(toy: Workspace) -> None:
    names = ["red", "green", "blue", "gone", "dead", "empty", "damaged"]
    pairs = [("red", name) for name in names[1:]] + [(name, "red") for name in names[3:]] + [("red", "green")]
    fashioniq_folder(toy.path / "fiq", names, pairs)
    images = toy.path / "fiq" / "images"
    draw_pictures(images)
    (images / "dead.png").symlink_to(images / "nowhere.png")
    (images / "empty.jpg").write_bytes(b"")
    (images / "damaged.png").write_bytes((images / "red.png").read_bytes()[:60])
    toy.params(datasets__toy__format="fashioniq", datasets__toy__root="fiq", datasets__toy__category="dress")
    assert "2 missing images: images/gone.png (no such file), images/dead.png (no such" in toy.error("index", "toy")
    toy.params(datasets__toy__missing_images="drop")
    assert "2 unreadable images: images/empty.jpg (empty file), images/damaged.png" in toy.error("index", "toy")
    toy.params(datasets__toy__bad_images="drop")
    assert (
        "3 images, 3 queries, 1 of 1 reference among the gallery; dropped 4 images, and 8 queries with them"
        in toy.run("index", "toy")
    )
    assert table(toy, "queries")["query_id"].to_list() == ["0", "1", "10"]
    assert table(toy, "queries")["instruction"].to_list() == ["is red and "] * 3
    reasons = table(toy, "dropped_queries")["reason"].value_counts(sort=True).rows()
    assert sorted(reasons) == [("its main target was dropped", 4), ("its reference was dropped", 4)]


def test_sizes_that_differ_are_warned_of_each_time_and_stop_nothing(toy: Workspace) -> None:
    sizes = {"images": 10, "val": 2, "test": 3, "train": 7}
    toy.params(datasets__toy__sizes=sizes)
    lines = ["the annotations of toy list 8 images, expected 10 (2 too few)"]
    lines.append("the annotations of toy list 1 query of split test, expected 3 (2 too few)")
    for known in ("0 in the store", "8 in the store"):
        process = toy.start("index", "toy")
        out, err = process.communicate()
        assert process.returncode == 0 and known in out
        warnings = err.strip().splitlines()
        assert all(line in warning for line, warning in zip(lines, warnings, strict=True)), err
    toy.params(datasets__toy__splits=["val"], datasets__toy__sizes=sizes | {"images": 7, "val": 1})
    process = toy.start("index", "toy")
    _, err = process.communicate()
    assert "8 images, expected 7 (1 too many)" in err and "2 queries of split val, expected 1 (1 too many)" in err
    assert len(err.splitlines()) == 2


def test_the_known_sizes_of_the_benchmarks_are_filled_in() -> None:
    sizes = {name: known.sizes for name, known in params.load(ROOT / "params.yaml").datasets.items()}
    assert sizes == {
        "demo": {},
        "circo": {"images": 123403, "val": 220, "test": 800},
        "cirr-val": {"images": 2297, "val": 4181},
        "cirr-test1": {"images": 2315, "test1": 4148},
        "fashioniq-dress": {"images": 3817, "val": 2017},
        "fashioniq-shirt": {"images": 6346, "val": 2038},
        "fashioniq-toptee": {"images": 5373, "val": 1961},
    }


@pytest.mark.parametrize("name", ["cirr-test1", "fashioniq-dress", "fashioniq-toptee"])
def test_real_annotations_have_the_known_sizes(shared: Path, name: str) -> None:
    known = params.load(ROOT / "params.yaml").dataset(name)
    root = shared / "annotations" / known.root.removeprefix("data/")
    moved = known.model_copy(update={"root": str(root)})
    listing = formats.read(moved, name)
    assert known.sizes and index.compare_sizes(name, moved, listing) == []
    named = pl.concat([listing.queries["reference_id"], *(listing.queries[c].explode() for c in
        ("target_ids", "exclude_ids", "group_ids"))]).drop_nulls()  # fmt: skip
    assert named.is_in(listing.images["image_id"].implode()).all()
    assert not listing.queries.select("split", "query_id").is_duplicated().any()


def test_cirr_paths_lose_their_dot_and_soft_targets_are_not_read(tmp_path: Path) -> None:
    for place in ("captions", "image_splits"):
        (tmp_path / "cirr" / place).mkdir(parents=True)
    paths = {"dev-0-0-img0": "./dev/dev-0-0-img0.png", "dev-0-0-img1": "dev//dev-0-0-img1.png"}
    (tmp_path / "cirr/image_splits/split.rc2.val.json").write_text(json.dumps(paths), encoding="utf-8")
    query = {
        "pairid": 7, "reference": "dev-0-0-img0", "target_hard": "dev-0-0-img1", "caption": "3/4 \u00be view",
        "target_soft": {"dev-0-0-img1": 1.0, "dev-0-0-img0": -1.0},
        "img_set": {"id": 4, "members": list(paths), "reference_rank": 3, "target_rank": 0},
    }  # fmt: skip
    (tmp_path / "cirr/captions/cap.rc2.val.json").write_text(json.dumps([query]), encoding="utf-8")
    listing = read("cirr", tmp_path, splits=("val",))
    assert listing.images["path"].to_list() == ["dev/dev-0-0-img0.png", "dev/dev-0-0-img1.png"]
    assert listing.queries.to_dicts()[0] == {
        "query_id": "7", "split": "val", "reference_id": "dev-0-0-img0", "instruction": "3/4 \u00be view",
        "target_ids": ["dev-0-0-img1"], "exclude_ids": ["dev-0-0-img0"], "group_ids": list(paths), "aspects": [],
    }  # fmt: skip


def test_circo_puts_the_main_target_first_whatever_the_order_of_the_right_answers(toy: Workspace) -> None:
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    other = {"gt_img_ids": [5, 3, 2, 3], "shared_concept": "a disc", "rank": 4}
    circo_folder(toy.path / "coco", [], [QUERY | other])
    toy.run("index", "toy")
    assert table(toy, "queries")["target_ids"].to_list() == [["2", "5", "3"]]


def test_a_dropped_target_that_is_not_the_main_one_is_counted(toy: Workspace) -> None:
    (toy.path / "photos" / "blue.png").unlink()
    draw_more = {"reference": "red.png", "instruction": "is green", "targets": ["green.png", "blue.png"]}
    write_queries(toy.path / "photos", draw_more)
    (toy.path / "photos" / "blue.png").write_bytes(b"")
    toy.params(datasets__toy__bad_images="drop")
    printed = toy.run("index", "toy")
    assert "dropped 1 image, and 0 queries with them; dropped 1 further target of other queries" in printed


def test_a_missing_folder(toy: Workspace) -> None:
    toy.params(datasets__toy__root="nowhere")
    assert "nowhere: no such folder; put the dataset there or change its root" in toy.error("index", "toy")


def test_broken_json_names_file_line_and_column(toy: Workspace) -> None:
    (toy.path / "photos" / "queries.jsonl").write_text('{"reference": "red.png", }\n', encoding="utf-8")
    assert "photos/queries.jsonl line 1: broken JSON" in toy.error("index", "toy")


def test_an_unknown_key_in_a_query(toy: Workspace) -> None:
    write_queries(toy.path / "photos", {"reference": "red.png", "instruction": "x", "target": ["green.png"]})
    assert "queries.jsonl line 1: target: unknown key" in toy.error("index", "toy")


def test_an_unknown_image_in_a_query(toy: Workspace) -> None:
    write_queries(toy.path / "photos", {"reference": "grey.png", "instruction": "is green"})
    line = toy.error("index", "toy")
    assert "photos/queries.jsonl: reference_id not among the images: query 0 names 'grey.png'" in line


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd"])
def test_a_path_that_leaves_the_folder(toy: Workspace, path: str) -> None:
    write_queries(toy.path / "photos", {"reference": path, "instruction": "is green"})
    assert "leaves the dataset's folder" in toy.error("index", "toy")


def test_a_link_that_leaves_the_folder(toy: Workspace) -> None:
    Image.new("RGB", (4, 4)).save(toy.path / "outside.png")
    (toy.path / "photos" / "link.png").symlink_to(toy.path / "outside.png")
    assert "link.png (a link that leaves the dataset's folder)" in toy.error("index", "toy")


def test_unreadable_images_are_all_listed_at_once(toy: Workspace) -> None:
    (toy.path / "photos" / "empty.png").write_bytes(b"")
    (toy.path / "photos" / "text.jpg").write_text("hello", encoding="utf-8")
    line = toy.error("index", "toy")
    assert "2 unreadable images: empty.png (empty file), text.jpg (not an image)" in line
    assert "bad_images: drop" in line


def test_dropped_images_take_their_queries_with_them(toy: Workspace) -> None:
    (toy.path / "photos" / "yellow.png").write_bytes(b"")
    (toy.path / "photos" / "blue.png").write_text("hello", encoding="utf-8")
    toy.params(datasets__toy__bad_images="drop")
    assert "dropped 2 images, and 1 query with them" in toy.run("index", "toy")
    assert table(toy, "dropped").rows() == [("blue.png", "not an image"), ("yellow.png", "empty file")]
    assert table(toy, "queries")["query_id"].to_list() == ["0", "2"]
    assert table(toy, "queries")["target_ids"][0].to_list() == ["green.png"]
    assert table(toy, "dropped_queries").rows() == [("1", "val", "its reference was dropped")]


def circo_folder(root: Path, images: list[dict[str, object]], val: list[dict[str, object]]) -> None:
    names = draw_pictures(root / "COCO2017_unlabeled" / "unlabeled2017")
    place = root / "COCO2017_unlabeled" / "annotations"
    place.mkdir(parents=True)
    listed = [{"id": number, "file_name": name} for number, name in enumerate(names)] + images
    (place / "image_info_unlabeled2017.json").write_text(json.dumps({"images": listed}), encoding="utf-8")
    (root / "annotations").mkdir()
    (root / "annotations" / "val.json").write_text(json.dumps(val), encoding="utf-8")
    (root / "annotations" / "test.json").write_text("[]", encoding="utf-8")


QUERY: dict[str, object] = {
    "id": 0, "reference_img_id": 1, "relative_caption": "is red", "target_img_id": 2, "gt_img_ids": [2, 3],
    "semantic_aspects": ["addition"],
}  # fmt: skip


def test_a_duplicated_id(toy: Workspace) -> None:
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    circo_folder(toy.path / "coco", [{"id": 3, "file_name": "red.png"}], [])
    assert "coco: duplicate image_id: 3" in toy.error("index", "toy")


def test_a_duplicated_query(toy: Workspace) -> None:
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    circo_folder(toy.path / "coco", [], [QUERY, QUERY])
    assert "coco: duplicate query_id: val 0" in toy.error("index", "toy")


def test_a_missing_image_stops_or_is_dropped(toy: Workspace) -> None:
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    circo_folder(toy.path / "coco", [{"id": 99, "file_name": "gone.png"}], [QUERY])
    assert "1 missing image: COCO2017_unlabeled/unlabeled2017/gone.png (no such file)" in toy.error("index", "toy")
    toy.params(datasets__toy__missing_images="drop")
    assert "dropped 1 image" in toy.run("index", "toy")
    assert table(toy, "queries")["target_ids"][0].to_list() == ["2", "3"]


def test_a_wrong_type_in_an_annotation(toy: Workspace) -> None:
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    circo_folder(toy.path / "coco", [], [QUERY | {"reference_img_id": "many"}])
    assert "coco/annotations/val.json: 0.reference_img_id" in toy.error("index", "toy")


def test_names_and_texts_that_are_no_text(toy: Workspace) -> None:
    write_queries(toy.path / "photos", {"reference": "red.png", "instruction": "is \ud800"})
    assert "queries.jsonl line 1: broken JSON" in toy.error("index", "toy")
    write_queries(toy.path / "photos", {"reference": "red.png", "instruction": "is \U0001f600 and grün"})
    toy.run("index", "toy")
    (toy.path / "photos" / "new\nline.png").write_bytes(b"")
    assert "the file name 'new\\nline.png' is not plain text" in toy.error("index", "toy")


def test_an_unknown_split(toy: Workspace) -> None:
    toy.params(datasets__toy__splits=["train"])
    assert "no split 'train' in photos; there are: val, test" in toy.error("index", "toy")


def test_the_files_are_those_of_the_contract(toy: Workspace) -> None:
    import pyarrow.parquet as pq

    toy.run("index", "toy")
    folder = toy.path / "cache" / "toy" / "index"
    for name, wanted in (("images", schema.IMAGES), ("queries", schema.QUERIES), ("dropped", schema.DROPPED)):
        file = pq.ParquetFile(folder / f"{name}.parquet")
        assert file.schema_arrow.equals(wanted)
        assert file.schema_arrow.metadata == {b"cvsi.schema": b"1"}
    assert not folder.with_name(".index.partial").exists()


def test_an_unreadable_workspace_is_one_line(toy: Workspace) -> None:
    with pytest.raises(CvsiError):
        read("circo", toy.path / "photos")
