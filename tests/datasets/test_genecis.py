"""GeneCIS: its reader on the real file and on faulty ones, its metrics, and parts of images from file to vectors."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from cvsi.commands.changes import Changes, since_index
from cvsi.commands.requirements import collect
from cvsi.core import params
from cvsi.core.digest import digest
from cvsi.core.errors import ChangedFile, CvsiError
from cvsi.core.images import cropped, image_digest, load
from cvsi.core.params import Dataset
from cvsi.datasets import formats, index
from cvsi.datasets.base import Listing, check_listing
from cvsi.datasets.genecis import FORMAT, Part
from cvsi.evaluation.queries import NamedImages, QueryTable
from cvsi.evaluation.ranking import rank
from cvsi.evaluation.scores import evaluate
from cvsi.explorer import page
from cvsi.explorer.engine import Engine
from cvsi.explorer.requests import request
from tests.conftest import Workspace, project_params

OBJECT = {"reference": {"val_image_id": 7}, "target": {"val_image_id": 30}, "gallery": [{"val_image_id": 4}]}


def read(root: Path, task: str = "change_object", **keys: Any) -> Listing:
    content = project_params()["datasets"]["circo"] | {"format": "genecis", "root": str(root), "task": task} | keys
    content.pop("benchmark")
    return formats.read(Dataset.model_validate(content | {"sizes": {}}), "genecis")


def part(image: int, *box: float) -> dict[str, Any]:
    return {"image_id": image, "instance_bbox": list(box)}


def test_the_real_file(shared: Path) -> None:
    root = shared / "annotations/GENECIS"
    listing, raw = read(root), json.loads((root / "change_object.json").read_bytes())
    check_listing(listing, root)
    assert listing.queries.height == 1960 and listing.queries["split"].unique().to_list() == ["val"]
    paths = dict(listing.images.select("image_id", "path").rows())
    for row, query in zip(listing.queries.iter_rows(named=True), raw, strict=True):
        ranked = [str(image["val_image_id"]) for image in (query["target"], *query["gallery"])]
        assert (
            row["reference_id"] == str(query["reference"]["val_image_id"]) and row["instruction"] == query["condition"]
        )
        assert row["target_ids"] == ranked[:1] and row["group_ids"] == list(dict.fromkeys(ranked))
    assert paths["189213"] == "val2017/000000189213.jpg"
    ranked_ids = set(listing.queries["group_ids"].explode())
    in_gallery = listing.images.filter("in_gallery")["image_id"]
    assert set(in_gallery) == ranked_ids and "crop" not in listing.images.columns
    assert set(listing.images["image_id"]) == ranked_ids | set(listing.queries["reference_id"])


def test_metrics_equal_the_definition_on_random_rankings_of_the_real_file(shared: Path) -> None:
    listing = read(shared / "annotations/GENECIS")
    ids, queries = listing.images.filter("in_gallery")["image_id"], listing.queries
    random, position = np.random.default_rng(3), {image: number for number, image in enumerate(ids)}
    left = random.normal(size=(queries.height, 8)).astype(np.float32)
    right = random.normal(size=(ids.len(), 8)).astype(np.float32)
    right[::9] = right[4]  # equal images
    lists = [[position[image] for image in images] for images in queries["group_ids"]]
    groups = np.full((len(lists), max(map(len, lists))), -1)
    for row, places in enumerate(lists):
        groups[row, : len(places)] = places
    named = NamedImages(np.empty((0, 2), np.int64), groups, groups[:, :1].copy())
    ranking = rank([left], [[right]], named)
    table = QueryTable(queries, named, ("val",))
    metrics = evaluate(FORMAT.protocol, table, ranking.target_ranks, ranking.group_scores).metrics["val"]
    found = dict.fromkeys((1, 2, 3), 0)
    for row, places in enumerate(lists):
        scores = ranking.group_scores[row, : len(places)].tolist()
        ordered = sorted(zip(scores, places, strict=True), key=lambda pair: (-pair[0], pair[1]))
        place = [image for _, image in ordered].index(places[0]) + 1
        found = {k: number + (place <= k) for k, number in found.items()}
    for k, number in found.items():
        assert metrics[f"Recall_subset@{k}"] == pytest.approx(100 * number / len(lists))
    assert 5 < metrics["Recall_subset@1"] < metrics["Recall_subset@2"] < metrics["Recall_subset@3"] < 25


@pytest.mark.parametrize("folder", ["", "genecis"])
def test_the_file_of_the_task_is_found_in_both_places(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "focus_object.json").write_text(json.dumps([OBJECT | {"condition": "wall"}]))
    listing = read(tmp_path, "focus_object")
    assert listing.images.rows() == [
        ("30", "val2017/000000000030.jpg", True), ("4", "val2017/000000000004.jpg", True),
        ("7", "val2017/000000000007.jpg", False),
    ]  # fmt: skip
    assert listing.queries["group_ids"].to_list() == [["30", "4"]]


@pytest.mark.parametrize("folder", ["val2017", "images", "."])
def test_images_are_found_where_a_user_has_them(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "000000000004.JPG").write_bytes(b"x")
    (tmp_path / "change_object.json").write_text(json.dumps([OBJECT | {"condition": "wall"}]))
    paths = dict(read(tmp_path).images.select("image_id", "path").rows())
    assert Path(paths["4"]) == Path(folder, "000000000004.JPG") and paths["7"] == "val2017/000000000007.jpg"


@pytest.mark.parametrize(
    ("task", "query", "line"),
    [
        ("change_object", {"reference": {"image_id": 4}}, "reference.val_image_id"),
        ("change_object", {"target": {"val_image_id": -4}}, "target.val_image_id"),
        ("change_object", {"target": None}, "target"),
        ("change_object", {"gallery": [{"val_image_id": "../../x"}]}, "gallery.0.val_image_id"),
        ("change_object", {"condition": 3}, "condition"),
        ("focus_attribute", {}, "reference.image_id"),
        ("focus_attribute", {"reference": part(1, 0, 0, 0, 5)}, "reference.instance_bbox.2"),
        ("focus_attribute", {"reference": part(1, 0, 0, 5, -5)}, "reference.instance_bbox.3"),
        ("focus_attribute", {"reference": part(1, 0, 0, 5)}, "reference.instance_bbox"),
        ("focus_attribute", {"reference": part(1, 0, 10**9, 5, 5)}, "reference.instance_bbox.1"),
    ],
)
def test_a_faulty_query_is_one_line(tmp_path: Path, task: str, query: dict[str, Any], line: str) -> None:
    (tmp_path / f"{task}.json").write_text(json.dumps([OBJECT | {"condition": "wall"} | query]))
    with pytest.raises(CvsiError, match=rf"{task}\.json: 0\.{line}") as error:
        read(tmp_path, task)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CvsiError, match=r"change_attribute\.json: no such file; check the dataset's root"):
        read(tmp_path, "change_attribute")


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 100, 10, 20), [93, 86, 17, 34]),
        ((2, 3, 10, 20), [0, 0, 17, 34]),  # cut at the left and above, as in the published evaluation
        ((5, 50, 10, 10), [0, 43, 17, 17]),
        ((0.5, 0, 1, 1), [0, 0, 2, 2]),
    ],
)
def test_a_box_is_dilated(box: tuple[float, float, float, float], expected: list[int]) -> None:
    assert Part(image_id=1, instance_bbox=box).crop == expected


def picture() -> Image.Image:
    """Each pixel differs."""
    rows, columns = np.mgrid[0:30, 0:40]
    return Image.fromarray(np.stack([rows, columns, rows + columns], axis=2).astype(np.uint8))


@pytest.mark.parametrize(
    ("crop", "size", "corner"),
    [
        ((10, 5, 8, 8), 8, (5, 10)),
        ((10, 5, 8, 4), 8, (0, 0)),  # black above and below
        ((30, 20, 20, 20), 10, (20, 30)),  # cut at the right and below
        ((-5, 0, 15, 10), 10, (0, 0)),
    ],
)
def test_a_part_is_cut_at_the_edges_and_becomes_a_square(
    crop: tuple[float, ...], size: int, corner: tuple[int, int]
) -> None:
    part = cropped(picture(), crop)
    assert part.size == (size, size) and part.getpixel((0, 0))[:2] == corner  # type: ignore[index]
    if crop[3] == 4:
        assert part.crop((0, 0, 8, 2)).getextrema() == ((0, 0),) * 3
        assert part.getpixel((0, 2)) == (5, 10, 15) and part.getpixel((7, 5)) == (8, 17, 25)


def test_a_part_is_checked_by_content_and_box(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    content = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    box = [10.0, 5.0, 8.0, 8.0]
    assert image_digest(content, None) == content and image_digest(content, box) == digest(content, box)
    assert load(tmp_path / "a.png", digest(content, box), lambda image: image.size, box) == (8, 8)
    for other, crop in ((digest(content, box), None), (content, box), (digest(content, box), [10, 5, 8, 9.0])):
        with pytest.raises(ChangedFile):
            load(tmp_path / "a.png", other, lambda image: image.size, crop)


@pytest.fixture
def parts(toy: Workspace) -> Workspace:
    """A workspace whose dataset is an attribute task over three files."""
    root = toy.path / "genecis"
    (root / "VG_100K").mkdir(parents=True)
    for number in (1, 2, 3):
        shutil.copy(toy.path / "photos" / f"{('red', 'green', 'blue')[number - 1]}.png", root / f"VG_100K/{number}.png")
    queries = [
        {"reference": part(1, 10, 10, 20, 20), "target": part(2, 10, 10, 20, 20), "condition": "colour",
         "gallery": [part(3, 10, 10, 20, 20), part(2, 0, 0, 8, 4), part(1, 0, 0, 5, 5)]},
        {"reference": part(2, 0, 0, 8, 4), "target": part(3, 10, 10, 20, 20), "condition": "shape",
         "gallery": [part(1, 10, 10, 20, 20), part(1, 0, 0, 5, 5)]},
    ]  # fmt: skip
    (root / "focus_attribute.json").write_text(json.dumps(queries))
    captioner = project_params()["captioners"]["tiny"] | {"n": 2, "max_tokens": 8}
    toy.params(
        datasets__toy__format="genecis", datasets__toy__root="genecis", datasets__toy__task="focus_attribute",
        datasets__toy__sizes={"images": 5, "val": 2}, datasets__toy__captioner=captioner,
    )  # fmt: skip
    return toy


def test_the_index_has_a_row_per_part_and_reads_a_file_once(
    parts: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    index.build("toy", params.load())
    images = pl.read_parquet("cache/toy/index/images.parquet")
    assert "3 files: 0 in the store, 3 to read" in capsys.readouterr().out
    assert images["image_id"].to_list() == [
        "1 0,0,5,5", "1 10,10,20,20", "2 0,0,8,4", "2 10,10,20,20", "3 10,10,20,20",
    ]  # fmt: skip
    assert images.schema["crop"] == pl.Array(pl.Float32, 4)
    assert images["crop"].to_list()[:3] == [[0, 0, 8, 8], [0, 0, 34, 34], [0, 0, 14, 7]]
    assert images["digest"].n_unique() == 5 and images["in_gallery"].all()
    content = hashlib.sha256((parts.path / "genecis/VG_100K/1.png").read_bytes()).hexdigest()
    assert images["digest"][1] == digest(content, [0.0, 0.0, 34.0, 34.0])


@pytest.mark.parametrize(
    ("box", "rule", "outcome"),
    [
        ((500, 10, 20, 20), "stop", "the part that is used is outside of the image"),
        ((10, 500, 20, 20), "stop", "the part that is used is outside of the image"),
        ((0, 0, 0.1, 0.1), "stop", "the part that is used is outside of the image"),
        ((500, 10, 20, 20), "drop", ""),
    ],
)
def test_a_part_outside_of_its_image(
    parts: Workspace, box: tuple[float, ...], rule: str, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = parts.path / "genecis/focus_attribute.json"
    queries = json.loads(file.read_bytes())
    queries[1]["gallery"][0] = part(1, *box)
    file.write_text(json.dumps(queries))
    parts.params(datasets__toy__bad_images=rule)
    if outcome:
        with pytest.raises(CvsiError, match=outcome):
            index.build("toy", params.load())
        return
    index.build("toy", params.load())
    queries_table = pl.read_parquet("cache/toy/index/queries.parquet")
    assert queries_table["group_ids"].list.len().to_list() == [4, 2]
    dropped = pl.read_parquet("cache/toy/index/dropped.parquet")
    assert dropped.rows() == [("VG_100K/1.png", "the part that is used is outside of the image")]


def test_a_missing_file_of_several_parts_is_named_once(parts: Workspace) -> None:
    (parts.path / "genecis/VG_100K/1.png").unlink()
    with pytest.raises(CvsiError, match=r"1 missing image: VG_100K/1\.jpg \(no such file\)"):
        index.build("toy", params.load())


def test_parts_from_file_to_report(parts: Workspace) -> None:
    parts.run_all("toy", "tiny")
    metrics = json.loads(Path("cache/toy/tiny/scores/metrics.json").read_bytes())["val"]
    assert {f"Recall_subset@{k}" for k in (1, 2, 3)} <= set(metrics) and metrics["queries"] == 2
    vectors = pl.read_parquet("cache/toy/tiny/gallery_vectors/*.parquet")
    images = pl.read_parquet("cache/toy/index/images.parquet")
    assert vectors["image_id"].equals(images["image_id"])
    of_image = vectors["image"].to_numpy().astype(np.float32)
    assert not np.allclose(of_image[0], of_image[1], atol=1e-2)  # two parts of one file
    queries = pl.read_parquet("cache/toy/tiny/query_vectors/*.parquet")
    assert np.allclose(queries["reference"].to_numpy()[0], of_image[1], atol=2e-3)
    expected = whole_picture_vector(parts, (0, 0, 34, 34))
    assert np.allclose(of_image[1], expected, atol=2e-3)
    assert "data:image" in Path("cache/toy/tiny/report/index.html").read_text()
    like = request(kind="like", image_id="1 10,10,20,20", k=2)
    answer = Engine("toy-tiny", params.load()).answer(like)
    assert answer.results[0].image_id == "1 10,10,20,20" and answer.results[0].score == pytest.approx(1, abs=1e-2)
    page.write(Path("found.html"), "toy-tiny", "toy", parts.path / "genecis", like, answer)
    assert Path("found.html").read_text().count("data:image") == 3  # the query and two results
    assert since_index("toy", params.load(), collect(params.load())) == Changes()
    shutil.copy(parts.path / "photos/black.png", parts.path / "genecis/VG_100K/1.png")
    changed = since_index("toy", params.load(), collect(params.load()))
    assert (changed.new, changed.changed + changed.unread, changed.removed) == (0, 1, 0)


def whole_picture_vector(parts: Workspace, crop: tuple[int, ...]) -> np.ndarray:
    """The unit vector of the part as an image of its own."""
    from cvsi.models.clip_encoder import Encoder

    settings = params.load()
    encoder = Encoder(settings.backbone("tiny"), settings.compute, 0)
    with Image.open(parts.path / "genecis/VG_100K/1.png") as image:
        prepared = encoder.prepare(image.convert("RGB").crop((crop[0], crop[1], crop[0] + crop[2], crop[1] + crop[3])))
    vector = np.asarray(encoder.image_embeddings([prepared]))[0]
    return vector / np.linalg.norm(vector)  # type: ignore[no-any-return]
