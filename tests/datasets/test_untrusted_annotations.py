"""Annotation files as an attacker or an accident would write them: a listing, or one line that names the file."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.params import Dataset
from cvsi.datasets import formats
from cvsi.datasets.base import LONGEST_INSTRUCTION, annotation_path, check_listing, load_json, load_lines, relative_path
from cvsi.datasets.files import stat_files
from cvsi.datasets.names import match_names, refuse_unlisted, unlisted_images
from cvsi.datasets.roots import Roots
from tests.conftest import Workspace, write_queries
from tests.imports import ROOT

SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
NASTY = st.sampled_from(
    ["../../etc/passwd", "/etc/passwd", "a\0b", "..\\..\\x", "", ".", "a/../b", "x\ny", "<b>", "\U0001f600", "//a//b/"]
)  # fmt: skip
TEXTS = st.text(max_size=8) | NASTY
NUMBERS = st.integers() | st.sampled_from([0, 1, 2, 10**400, -1]) | st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


def near(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects of these fields, each now and then missing or of any other kind."""
    return st.fixed_dictionaries({}, optional={name: values | VALUES for name, values in fields.items()})


SMALL = st.integers(0, 3)
CIRCO = near(id=SMALL, reference_img_id=SMALL, relative_caption=TEXTS, target_img_id=SMALL, gt_img_ids=st.lists(SMALL))
COCO = near(images=st.lists(near(id=SMALL, file_name=TEXTS), max_size=4))
CIRR = near(pairid=SMALL, reference=TEXTS, caption=TEXTS, img_set=near(members=st.lists(TEXTS)), target_hard=TEXTS)
SPLIT = st.dictionaries(TEXTS, TEXTS | VALUES, max_size=4)
FASHION = near(candidate=TEXTS, target=TEXTS, captions=st.lists(TEXTS, max_size=3))
COCO_IMAGE = near(val_image_id=SMALL)
BOX = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 50), min_size=4, max_size=4)
PART = near(image_id=SMALL, instance_bbox=BOX)
OBJECTS = near(reference=COCO_IMAGE, target=COCO_IMAGE, gallery=st.lists(COCO_IMAGE, max_size=3), condition=TEXTS)
PARTS = near(reference=PART, target=PART, gallery=st.lists(PART, max_size=3), condition=TEXTS)
SIGNATURES = st.none() | TEXTS | st.sampled_from(["a", "b", "None", "nan"])
CANDIDATES = st.none() | st.lists(SIGNATURES, max_size=4)
PINPOINT = st.fixed_dictionaries(
    {
        "query_id": SIGNATURES, "query_image_signature": SIGNATURES, "query_image_signature2": SIGNATURES,
        "instruction": SIGNATURES, "positive_candidates": CANDIDATES, "negative_candidates": CANDIDATES,
    }
)  # fmt: skip
TEXT_COLUMNS = ("query_id", "query_image_signature", "query_image_signature2", "instruction")
PINPOINT_COLUMNS: dict[str, Any] = dict.fromkeys(TEXT_COLUMNS, pl.String) | dict.fromkeys(
    ("positive_candidates", "negative_candidates"), pl.List(pl.String)
)
FOLDER = near(reference=TEXTS, instruction=TEXTS, targets=st.lists(TEXTS, max_size=3))


def dataset(format: str, root: Path, **changes: object) -> Dataset:
    known = params.load(ROOT / "params.yaml").dataset("demo").model_dump(exclude_defaults=True)
    return Dataset.model_validate(known | {"format": format, "root": str(root)} | changes)


def write(root: Path, name: str, content: Any) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def read(format: str, root: Path, **changes: object) -> None:
    """Read and check a dataset; nothing but a CvsiError of one line may come of it."""
    try:
        listing = match_names(formats.read(dataset(format, root, **changes), "toy"), Roots(root))
        check_listing(listing, root)
        refuse_unlisted(unlisted_images(listing), listing, Roots(root), stop=True)
        stat_files(Roots(root), listing.images["path"])
    except CvsiError as error:
        assert len(str(error)) < 20_000
        return
    for path in listing.images["path"]:
        assert (root / os.path.normpath(path)).is_relative_to(root) and "\0" not in path


@SLOW
@given(images=COCO | VALUES, queries=st.lists(CIRCO, max_size=4) | VALUES)
def test_any_circo(tmp_path: Path, images: Any, queries: Any) -> None:
    write(tmp_path, "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", images)
    write(tmp_path, "annotations/val.json", queries)
    read("circo", tmp_path, splits=("val",))


@SLOW
@given(images=SPLIT | VALUES, queries=st.lists(CIRR, max_size=4) | VALUES)
def test_any_cirr(tmp_path: Path, images: Any, queries: Any) -> None:
    write(tmp_path, "cirr/image_splits/split.rc2.val.json", images)
    write(tmp_path, "cirr/captions/cap.rc2.val.json", queries)
    read("cirr", tmp_path, splits=("val",))


@SLOW
@given(names=st.lists(TEXTS, max_size=4) | VALUES, queries=st.lists(FASHION, max_size=4) | VALUES)
def test_any_fashioniq(tmp_path: Path, names: Any, queries: Any) -> None:
    write(tmp_path, "image_splits/split.dress.val.json", names)
    write(tmp_path, "captions/cap.dress.val.json", queries)
    (tmp_path / "images").mkdir(exist_ok=True)
    read("fashioniq", tmp_path, category="dress")


@SLOW
@given(task=st.sampled_from(["object", "attribute"]), queries=st.lists(OBJECTS | PARTS, max_size=4) | VALUES)
def test_any_genecis(tmp_path: Path, task: str, queries: Any) -> None:
    write(tmp_path, f"focus_{task}.json", queries)
    read("genecis", tmp_path, task=f"focus_{task}")


@SLOW
@given(rows=st.lists(PINPOINT, max_size=4), names=st.lists(TEXTS, max_size=4), missing=st.none() | st.integers(0, 5))
def test_any_pinpoint(tmp_path: Path, rows: list[dict[str, Any]], names: list[str], missing: int | None) -> None:
    table = pl.DataFrame(rows, schema=PINPOINT_COLUMNS)
    columns = [name for number, name in enumerate(table.columns) if number != missing]
    table.select(columns).write_parquet(tmp_path / "pinpoint_licensed.parquet")
    write(tmp_path, "index_signatures.txt", "a\nb\n" + "\n".join(names))
    read("pinpoint", tmp_path)


@SLOW
@given(place=st.integers(0, 5000), byte=st.integers(0, 255), cut=st.booleans())
def test_any_damage_to_a_parquet_file(tmp_path: Path, place: int, byte: int, cut: bool) -> None:
    row = {"query_id": "q", "query_image_signature": "a", "query_image_signature2": "b", "instruction": "is green"}
    table = pl.DataFrame([row | {"positive_candidates": ["a"], "negative_candidates": ["b"]}], PINPOINT_COLUMNS)
    table.write_parquet(tmp_path / "pinpoint_licensed.parquet")
    data = bytearray((tmp_path / "pinpoint_licensed.parquet").read_bytes())
    place %= len(data)
    data[place] = byte
    (tmp_path / "pinpoint_licensed.parquet").write_bytes(data[:place] if cut else data)
    write(tmp_path, "index_signatures.txt", "a\nb\n")
    read("pinpoint", tmp_path)


@SLOW
@given(lines=st.lists(FOLDER | VALUES, max_size=4), tail=st.text(max_size=5).filter(lambda text: text.isascii()))
def test_any_folder(tmp_path: Path, lines: list[Any], tail: str) -> None:
    write(tmp_path, "queries.jsonl", "\n".join(map(json.dumps, lines)) + tail)
    (tmp_path / "a.png").touch()
    read("folder", tmp_path)


@SLOW
@given(data=st.binary(max_size=40))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "queries.jsonl").write_bytes(data)
    read("folder", tmp_path)


@SLOW
@given(path=st.text(alphabet="./a\0", max_size=8))
def test_a_relative_path_is_that_of_pathlib_or_refused(path: str) -> None:
    pure = PurePosixPath(path)
    try:
        assert relative_path(path, "file") == str(pure)
    except CvsiError as error:
        assert str(error) == f"file: path {path!r} leaves the dataset's folder; give one below it"
        assert pure.is_absolute() or ".." in pure.parts or "\0" in path or str(pure) == "."
    else:
        assert not pure.is_absolute() and ".." not in pure.parts and "\0" not in path and str(pure) != "."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000, "recursion"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
        ('{"a": "\\ud800"}', "broken JSON"),
        ("", "broken JSON"),
        ("nul", "broken JSON"),
    ],
)
def test_json_that_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    write(tmp_path, "a.json", text)
    with pytest.raises(CvsiError, match=rf"a\.json: .*{reason}") as error:
        load_json(tmp_path / "a.json", dict[str, Any])
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_duplicate_key_among_many_is_refused_quickly(tmp_path: Path) -> None:
    pairs = ", ".join(f'"k{number}": 1' for number in [*range(100_000), 99_999])
    write(tmp_path, "a.json", f"{{{pairs}}}")
    began = time.process_time()
    with pytest.raises(CvsiError, match="duplicate key 'k99999'"):
        load_json(tmp_path / "a.json", dict[str, Any])
    assert time.process_time() - began < 5


def test_a_line_ends_where_json_lines_says(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"one\u2028line\x85here"\r\n"two"\n', encoding="utf-8")
    assert load_lines(tmp_path / "a.jsonl", str) == ["one\u2028line\x85here", "two"]


@pytest.mark.parametrize("make", [lambda file: file.mkdir(), os.mkfifo], ids=["folder", "pipe"])
def test_an_annotation_that_is_no_file_is_one_line_and_no_wait(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.json")
    with pytest.raises(CvsiError, match=r"a\.json: not a file"):
        load_json(tmp_path / "a.json", list[str])


def test_links_that_leave_the_dataset_are_not_followed(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"x")
    root.mkdir()
    (root / "images").symlink_to(out)
    (root / "a.png").symlink_to(out / "a.png")
    (root / "b.png").symlink_to("images/../c.png")
    (root / "c.png").write_bytes(b"x")
    (root / "queries.jsonl").symlink_to(out / "a.png")
    (root / "circle.json").symlink_to("circle.json")
    status = stat_files(
        Roots(root), pl.Series(["images/a.png", "a.png", "c.png", "x" * 5000 + "/y.png", "circle.json"])
    )
    refused = dict(status.select("path", "refused").rows())
    assert refused == {"images/a.png": str(out / "a.png"), "a.png": str(out / "a.png"), "c.png": ""}
    with pytest.raises(CvsiError, match=r"queries\.jsonl: a link that leaves the dataset's folder"):
        annotation_path(root, "queries.jsonl")
    assert annotation_path(root, "circle.json") == root / "circle.json"
    linked = tmp_path / "linked"  # the root itself may be a link
    linked.symlink_to(root)
    assert dict(stat_files(Roots(linked), pl.Series(["c.png"])).select("path", "refused").rows()) == {"c.png": ""}


def test_a_word_that_a_tokenizer_would_not_end_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "red.png").touch()
    write_queries(tmp_path, {"reference": "red.png", "instruction": "is " + "qzjx" * 300})
    with pytest.raises(CvsiError, match=r"queries\.jsonl: a word of more than 1,000 characters .* query 0"):
        check_listing(formats.read(dataset("folder", tmp_path), "toy"), tmp_path)


def test_an_instruction_of_ten_megabytes_is_one_line(toy: Workspace) -> None:
    write_queries(toy.path / "photos", {"reference": "red.png", "instruction": "is green " * 1_200_000})
    line = toy.error("index", "toy")
    assert "queries.jsonl: instructions of more than 50,000 characters: query 0; shorten them" in line
    assert len(line) < 300


def test_ids_and_texts_within_the_bounds_are_kept_as_they_are(toy: Workspace) -> None:
    odd = 'it\'s "<b>gr\u00fcn<b>" & \U0001f600.png'
    (toy.path / "photos" / "red.png").rename(toy.path / "photos" / odd)
    texts = [
        "w\u00f6rd" * 5,
        "a\tb\nc",
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "word " * (LONGEST_INSTRUCTION // 5),
        "\x1b[31m",
        "",
    ]
    write_queries(toy.path / "photos", *[{"reference": odd, "instruction": text} for text in texts])
    printed = toy.run("index", "toy")
    queries = pl.read_parquet("cache/toy/index/queries.parquet")
    assert queries["instruction"].to_list() == texts and set(queries["reference_id"]) == {odd}
    assert "\x1b" not in printed
    toy.run("captions", "toy")
    folder = toy.path / "cache/toy/edits"  # the longest texts allowed go through tokenizer, phi and page unharmed
    folder.mkdir()
    edits = {"query_id": [str(n) for n in range(len(texts))], "split": ["test"] * len(texts), "added": texts}
    pl.DataFrame(edits | {"edited": [[text] for text in texts], "status": texts}).write_parquet(folder / "a.parquet")
    for stage in ("gallery_vectors", "query_vectors", "scores", "report"):
        toy.run(stage, "toy", "tiny")
    assert (toy.path / "cache/toy/tiny/report/index.html").exists()
