"""Labels change one line of a folder's file of queries, and nothing where the file changed meanwhile."""

import json
from pathlib import Path

import pytest

from cvsi.core.errors import CvsiError
from cvsi.datasets import labels
from cvsi.datasets.labels import Mark

LINES = [
    '{"instruction":"is asleep","reference":"a.jpg"}',
    "",
    '{"reference": "b.jpg", "instruction": "on grass \\u2028 é", "targets": ["c.jpg"], "negatives": ["d.jpg"]}  ',
    '{"reference": "c.jpg", "instruction": "at night"}',
]


def write(folder: Path, text: str) -> Path:
    file = folder / "queries.jsonl"
    file.write_bytes(text.encode("utf-8"))
    return file


@pytest.mark.parametrize("before", ["\n".join(LINES), "\n".join(LINES) + "\n", "", "\ufeff" + LINES[0]])
def test_a_query_is_added_at_the_end_and_the_rest_stays(tmp_path: Path, before: str) -> None:
    file = write(tmp_path, before)
    seen = labels.append(file, "sub/é.jpg", 'is "bigger"\nand red', labels.digest(file))
    after = file.read_bytes().decode("utf-8")
    assert after.startswith(before) and seen == labels.digest(file)
    added = after[len(before) :].strip("\n")
    assert json.loads(added) == {"reference": "sub/é.jpg", "instruction": 'is "bigger"\nand red'}
    assert "\n" not in added and after.endswith("\n")


def test_a_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    labels.append(file, "a.jpg", "is red", labels.digest(file))
    assert json.loads(file.read_text()) == {"reference": "a.jpg", "instruction": "is red"}


@pytest.mark.parametrize(
    ("number", "image", "as_what", "targets", "negatives"),
    [
        (0, "x.jpg", "right", ["x.jpg"], None),
        (0, "x.jpg", "wrong", None, ["x.jpg"]),
        (0, "x.jpg", "none", None, None),
        (1, "x.jpg", "right", ["c.jpg", "x.jpg"], ["d.jpg"]),
        (1, "d.jpg", "right", ["c.jpg", "d.jpg"], []),
        (1, "c.jpg", "wrong", [], ["d.jpg", "c.jpg"]),
        (1, "c.jpg", "right", ["c.jpg"], ["d.jpg"]),
        (1, "c.jpg", "none", [], ["d.jpg"]),
    ],
)
def test_a_mark_changes_one_line(
    tmp_path: Path, number: int, image: str, as_what: Mark, targets: list[str] | None, negatives: list[str] | None
) -> None:
    file = write(tmp_path, "\n".join(LINES))
    labels.mark(file, number, image, as_what, labels.digest(file))
    after = file.read_bytes().decode("utf-8").split("\n")
    row = [0, 2, 3][number]
    assert [line for place, line in enumerate(after) if place != row] == [
        line for place, line in enumerate(LINES) if place != row
    ]
    query, before = json.loads(after[row]), json.loads(LINES[row])
    assert (query.get("targets"), query.get("negatives")) == (targets, negatives)
    assert (query["reference"], query["instruction"]) == (before["reference"], before["instruction"])


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path, "\n".join(LINES))
    seen = labels.digest(file)
    file.write_bytes(file.read_bytes() + b'\n{"reference": "n.jpg", "instruction": "new"}')
    content = file.read_bytes()
    for old in (seen, ""):
        with pytest.raises(CvsiError, match=r"queries\.jsonl: changed meanwhile, so nothing was written"):
            labels.append(file, "a.jpg", "is red", old)
        with pytest.raises(CvsiError, match="changed meanwhile"):
            labels.mark(file, 0, "b.jpg", "right", old)
    assert file.read_bytes() == content
    file.unlink()
    with pytest.raises(CvsiError, match="changed meanwhile"):
        labels.append(file, "a.jpg", "is red", seen)
    assert not file.exists()


@pytest.mark.parametrize("number", [-1, 3, 10**9])
def test_a_number_without_a_query_is_refused(tmp_path: Path, number: int) -> None:
    file = write(tmp_path, "\n".join(LINES))
    with pytest.raises(CvsiError, match=f"3 queries, no number {number}"):
        labels.mark(file, number, "b.jpg", "right", labels.digest(file))
