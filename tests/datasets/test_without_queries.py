"""The index of a folder without queries: an empty table with all columns; and what remains an error."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cvsi.core import params, paths, schema
from cvsi.core.errors import CvsiError
from cvsi.datasets import index
from tests.conftest import Workspace, write_queries

GONE = [{"reference": f"gone{n}.png", "instruction": "is green", "targets": ["red.png"][:n]} for n in range(3)]
EMPTY = {
    "absent": None,
    "no byte": b"",
    "blank lines": b"\n  \n\t\r\n\n",
    "byte order mark": b"\xef\xbb\xbf",
    "byte order mark and blank lines": b"\xef\xbb\xbf\n\n",
    "UTF-16": "\n".encode("utf-16"),
}


def put(toy: Workspace, content: bytes | None) -> Path:
    """`queries.jsonl` of the toy dataset with this content, or no such file."""
    file = toy.path / "photos" / "queries.jsonl"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    return file


def indexed(rows: int) -> None:
    """Check the index: all pictures, and so many queries, with all columns."""
    folder = paths.folder("index", "toy")
    queries = pq.read_table(folder / "queries.parquet")
    assert queries.schema.equals(schema.QUERIES) and queries.num_rows == rows
    assert pq.read_table(folder / "images.parquet").num_rows == 8


@pytest.mark.parametrize("content", EMPTY.values(), ids=EMPTY)
def test_no_file_or_an_empty_one_gives_an_empty_table(
    toy: Workspace, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    put(toy, content)
    index.build("toy", params.load())
    indexed(0)
    printed = "".join(capsys.readouterr())
    assert "8 images, 0 queries" in printed and "toy has no queries: " in printed
    assert ("photos/queries.jsonl: no such file" in printed) == (content is None)
    assert ("photos/queries.jsonl: no query in it" in printed) == (content is not None)


def test_all_queries_dropped_gives_an_empty_table_and_a_line_on_standard_error(
    toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    write_queries(toy.path / "photos", *GONE)
    toy.params(datasets__toy__missing_images="drop")
    index.build("toy", params.load())
    indexed(0)
    dropped = pq.read_table(paths.folder("index", "toy") / "dropped_queries.parquet")
    assert dropped.schema.equals(schema.DROPPED_QUERIES) and dropped.num_rows == 3
    assert "toy has no queries" in capsys.readouterr().err


def test_queries_of_another_split_give_an_empty_table(toy: Workspace) -> None:
    write_queries(toy.path / "photos", {"reference": "red.png", "instruction": "is green"})
    toy.params(datasets__toy__splits=["val"])
    index.build("toy", params.load())
    indexed(0)


def test_queries_that_are_added_and_removed_again(toy: Workspace) -> None:
    content = (toy.path / "photos" / "queries.jsonl").read_bytes()
    for now, rows in ((content, 3), (None, 0), (content, 3), (b"\n", 0)):
        (toy.path / "photos" / "queries.jsonl").touch()
        put(toy, now)
        index.build("toy", params.load())
        indexed(rows)


@pytest.mark.parametrize("name", ["query.jsonl", "Queries.json", "QUERIES.csv", "queries.jsonl.txt", "queries (1).txt"])
def test_a_file_that_may_have_been_meant_is_named(
    toy: Workspace, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put(toy, None)
    (toy.path / "photos" / name).write_text("{}")
    (toy.path / "photos" / "notes.txt").write_text("queries")
    index.build("toy", params.load())
    assert f"; {name} is not read: rename the file of queries to queries.jsonl" in capsys.readouterr().out


def test_no_file_is_blamed_where_none_was_meant(toy: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    put(toy, None)
    (toy.path / "photos" / "notes.txt").write_text("queries")
    index.build("toy", params.load())
    assert "rename" not in capsys.readouterr().out


def link_to_nothing(file: Path) -> None:
    file.symlink_to("queries-of-yesterday.jsonl")


def circle(file: Path) -> None:
    file.symlink_to(file.name)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (link_to_nothing, "no such file"),
        (circle, "symbolic links"),
        (Path.mkdir, "not a file"),
        (lambda file: file.write_text("{"), "queries.jsonl line 1"),
        (lambda file: file.write_text("[]\n"), "queries.jsonl line 1"),
        (lambda file: file.write_bytes(b"\0"), "queries.jsonl line 1"),
        (lambda file: file.write_bytes(b"\xff\xff"), "not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_an_error_as_before(toy: Workspace, make: object, reason: str) -> None:
    make(put(toy, None))  # type: ignore[operator]
    with pytest.raises(CvsiError, match=r"photos/queries\.jsonl") as error:
        index.build("toy", params.load())
    assert reason in str(error.value)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_benchmark_without_queries_is_an_error(toy: Workspace, dropped: bool) -> None:
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco", datasets__toy__missing_images="drop")
    base = toy.path / "coco"
    (base / "annotations").mkdir(parents=True)
    (base / "COCO2017_unlabeled" / "annotations").mkdir(parents=True)
    (base / "COCO2017_unlabeled" / "unlabeled2017").mkdir()
    picture = (toy.path / "photos" / "red.png").read_bytes()
    (base / "COCO2017_unlabeled" / "unlabeled2017" / "red.png").write_bytes(picture)
    listing = {"images": [{"id": 1, "file_name": "red.png"}]}
    path = base / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json"
    path.write_text(json.dumps(listing))
    query = {"id": 0, "reference_img_id": 7, "target_img_id": 1, "gt_img_ids": [1], "relative_caption": "is red",
             "shared_concept": "a disc", "semantic_aspects": []}  # fmt: skip
    (base / "annotations" / "val.json").write_text(json.dumps([query] if dropped else []))
    (base / "annotations" / "test.json").write_text("[]")
    with pytest.raises(CvsiError, match="coco: no queries to work on"):
        index.build("toy", params.load())
