"""Submission files: what a server would refuse is refused before it is written, and listed by `check-submission`."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvsi.core import schema
from cvsi.core.errors import CvsiError
from cvsi.datasets import circo, cirr
from cvsi.datasets.formats import FORMATS
from cvsi.datasets.submissions import Submission, SubmissionReference, inspect, kind_of
from cvsi.evaluation.submissions import build
from tests.conftest import environment

(CIRCO,) = circo.FORMAT.submissions
RECALL, RECALL_SUBSET = cirr.FORMAT.submissions
KINDS = [kind for name in ("circo", "cirr", "fashioniq", "folder") for kind in FORMATS.get(name, "test").submissions]
GALLERY = pl.Series([str(100 + number) for number in range(1, 201)])
HEAD = {"version": "rc2", "metric": "recall_subset"}


def questions(ids: tuple[str, ...] = ("10", "2"), split: str = "test", group: int = 6) -> pl.DataFrame:
    """Queries about images 101, 102 and so on, each with a group of the images from its reference on."""
    rows = [
        {
            "query_id": query, "split": split, "reference_id": str(101 + number), "instruction": "is red",
            "target_ids": [] if split == "test" else ["150"], "exclude_ids": [str(101 + number)],
            "group_ids": [str(101 + number + more) for more in range(group)], "aspects": [],
        }
        for number, query in enumerate(ids)
    ]  # fmt: skip
    return pl.DataFrame(pa.Table.from_pylist(rows, schema.QUERIES))


def rankings(images: int, queries: tuple[str, ...] = ("10", "2")) -> pl.DataFrame:
    rows = [(query, rank, str(100 + rank)) for query in queries for rank in range(1, images + 1)]
    return pl.DataFrame(rows, schema=["query_id", "rank", "image_id"], orient="row")


def test_all_queries_with_fifty_integers_in_order() -> None:
    content = json.loads(build(CIRCO, questions(), rankings(100).reverse()))
    assert content == {"10": list(range(101, 151)), "2": list(range(101, 151))}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(CvsiError, match="query 10: 49 images, the server expects 50"):
        build(CIRCO, questions(), rankings(49))


def test_a_query_without_images_is_refused() -> None:
    with pytest.raises(CvsiError, match="query 2: 0 images"):
        build(CIRCO, questions(), rankings(100, ("10",)))


def test_a_duplicate_image_is_refused() -> None:
    duplicate = rankings(100).with_columns(pl.col("image_id").replace("102", "101"))
    with pytest.raises(CvsiError, match="1 duplicate image id"):
        build(CIRCO, questions(), duplicate)


def test_ids_that_are_no_integers_are_refused() -> None:
    named = rankings(100).with_columns(image_id="cat" + pl.col("image_id"))
    with pytest.raises(CvsiError, match="ids that are not integers"):
        build(CIRCO, questions(), named)


def test_a_reference_among_cirrs_names_is_refused() -> None:
    with pytest.raises(CvsiError, match="query 10: names '101', its own reference image"):
        build(RECALL, questions(), rankings(100))


def good(kind: str) -> dict[str, Any]:
    """A file without a fault for `questions()` and `GALLERY`."""
    if kind == "circo":
        return {"10": list(range(101, 151)), "2": list(range(110, 160))}
    if kind == "recall":
        return {"version": "rc2", "metric": "recall"} | {q: [str(i) for i in range(105, 155)] for q in ("10", "2")}
    return HEAD | {"10": ["102", "106", "103"], "2": ["107", "103", "104"]}


def faults(content: dict[str, Any] | str, reference: SubmissionReference | None = None) -> list[str]:
    text = content if isinstance(content, str) else json.dumps(content)
    return inspect(text, KINDS, reference or SubmissionReference(questions(), GALLERY), "file.json")[2]


@pytest.mark.parametrize(("kind", "wanted"), [("circo", CIRCO), ("recall", RECALL), ("recall_subset", RECALL_SUBSET)])
def test_a_good_file_has_no_faults(kind: str, wanted: Submission) -> None:
    assert inspect(json.dumps(good(kind)), KINDS, SubmissionReference(questions(), GALLERY), "x") == (wanted, 2, [])


def test_a_kind_is_recognised_by_its_header_and_without_one_by_the_lengths_of_its_lists() -> None:
    short = Submission("TOY", "precision", images=5, hidden_queries=9)
    other = Submission("TOY", "recall", images=50, hidden_queries=9, header={"task": "toy"})
    for kinds in ([*KINDS, short, other], [short, other, *KINDS]):
        assert kind_of(good("circo"), kinds) == CIRCO
        assert kind_of({"10": [1, 2, 3, 4, 5]}, kinds) == short
        assert kind_of(good("recall_subset"), kinds) == RECALL_SUBSET
        assert kind_of(good("circo") | {"task": "other"}, kinds) == other
        assert kind_of(good("recall") | {"version": "rc1"}, kinds) == RECALL
    assert inspect(json.dumps(good("circo") | {"task": 1}), [other], SubmissionReference(), "x")[2][0] == (
        "task is 1, the server expects 'toy'"
    )


def test_queries_without_numbers_are_taken_where_the_kind_says_so() -> None:
    kind = Submission("TOY", "recall", images=1, hidden_queries=1, numbered_queries=False)
    assert inspect('{"a b": ["x"]}', [kind], SubmissionReference(), "x") == (kind, 1, [])


BROKEN: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]], list[str]]] = [
    ("circo", lambda c: {"10": c["10"]}, ["query 2 is missing"]),
    ("circo", lambda c: c | {"3": c["2"]}, ["query '3' is not one of the split's"]),
    ("circo", lambda c: c | {"2": c["2"][:49]}, ["query 2: 49 images, the server expects 50"]),
    (
        "circo",
        lambda c: c | {"2": [*c["2"][:49], 110]},
        ["query 2: 1 duplicate image id"],
    ),
    ("circo", lambda c: c | {"2": [*c["2"][:49], 999]}, ["query 2: names '999', which is not in the gallery"]),
    ("circo", lambda c: c | {"2": ["110", *c["2"][1:]]}, ["query 2: image 1 is '110', the server expects an integer"]),
    ("circo", lambda c: c | {"2": [*c["2"][:49], 5.0]}, ["query 2: image 50 is 5.0, the server expects an integer"]),
    ("circo", lambda c: c | {"2": [True, *c["2"][1:]]}, ["query 2: image 1 is True, the server expects an integer"]),
    ("circo", lambda c: c | {"2": None}, ["query 2: its value is None, the server expects a list"]),
    ("recall", lambda c: c | {"version": "rc1"}, ["version is 'rc1', the server expects 'rc2'"]),
    ("recall", lambda c: {k: v for k, v in c.items() if k != "version"}, ["version is None, the server expects 'rc2'"]),
    ("recall", lambda c: c | {"metric": ["x"]}, ["metric is ['x'], the server expects 'recall' or 'recall_subset'"]),
    ("recall", lambda c: c | {"10": ["101", *c["10"][1:]]}, ["query 10: names '101', its own reference image"]),
    ("recall", lambda c: c | {"10": [7, *c["10"][1:]]}, ["query 10: image 1 is 7, the server expects a string"]),
    (
        "recall_subset",
        lambda c: c | {"10": ["102", "103", "150"]},
        ["query 10: names '150', which is not in its group"],
    ),
    ("recall_subset", lambda c: c | {"10": ["102", "103"]}, ["query 10: 2 images, the server expects 3"]),
    (
        "recall_subset",
        lambda c: c | {"10": ["102", "102", "stranger"], "77": []},
        [
            "query '77' is not one of the split's",
            "query 77: 0 images, the server expects 3",
            "query 10: 1 duplicate image id",
            "query 10: names 'stranger', which is not in the gallery",
            "query 10: names 'stranger', which is not in its group",
        ],
    ),
]


@pytest.mark.parametrize(("kind", "change", "wanted"), BROKEN)
def test_every_fault_is_listed(kind: str, change: Callable[[Any], Any], wanted: list[str]) -> None:
    assert faults(change(good(kind))) == wanted


def test_many_faults_of_a_sort_are_counted() -> None:
    ids = tuple(str(number) for number in range(30))
    listed = faults({"0": list(range(101, 151))}, SubmissionReference(questions(ids), GALLERY))
    assert len(listed) == 11 and listed[-1] == "and 19 more like the last"


def test_a_file_that_is_too_large() -> None:
    padded = json.dumps(good("circo")).replace(" ", " " * 60_000)
    assert faults(padded) == [f"{len(padded):,} bytes, the server takes 5,000,000 at most"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"1": [1], "1": [2]}', "duplicate key '1'"),
        ('{"1": [NaN]}', "NaN is not JSON"),
        ('{"1": [1,', "broken JSON"),
        ("[]", "valid dictionary"),
        ('{"1": ' + "[" * 100_000, "broken JSON"),
    ],
)
def test_text_that_is_no_submission(text: str, wanted: str) -> None:
    with pytest.raises(CvsiError, match=wanted) as error:
        faults(text)
    assert str(error.value).startswith("file.json: ") and len(str(error.value).splitlines()) == 1


def test_without_an_index_the_number_of_queries_is_checked() -> None:
    full = {str(number): list(range(50)) for number in range(800)}
    assert faults(full, SubmissionReference()) == []
    assert faults({q: v for q, v in full.items() if q != "5"}, SubmissionReference()) == [
        "799 queries, CIRCO's hidden split has 800"
    ]
    odd = {q.zfill(3): v for q, v in full.items()}
    assert faults(odd, SubmissionReference())[0] == "query '000' is not a number as the benchmark writes it"
    assert faults({"9" * 5000: [1] * 50} | full, SubmissionReference())[-2:] == [
        "801 queries, CIRCO's hidden split has 800",
        f"query {'9' * 80}: 49 duplicate image ids",
    ]
    names = {str(number): [f"test1-{i}" for i in range(3)] for number in range(4148)}
    assert faults(HEAD | names, SubmissionReference()) == []


def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["cvsi", "check-submission", *arguments], cwd=folder, env=environment(folder), text=True, capture_output=True
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_with_and_without_an_index(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "toy" / "index"
    folder.mkdir(parents=True)
    both = pl.concat([questions(("10", "4"), "val"), questions()])
    pq.write_table(both.to_arrow(), folder / "queries.parquet")
    images = pl.DataFrame({"image_id": GALLERY, "in_gallery": [True] * len(GALLERY)})
    pq.write_table(images.to_arrow(), folder / "images.parquet")
    (tmp_path / "a.json").write_text(json.dumps(good("recall_subset")))
    code, out, err = command(tmp_path, "a.json", "--queries", "toy")
    assert (code, err) == (0, "next: cvsi summary\n")
    assert out == "cvsi: a.json: CIRR, metric recall_subset: 2 queries of 3 images, no fault\n"
    (tmp_path / "a.json").write_text(json.dumps(good("recall_subset") | {"10": ["101", "102", "999"]}))
    for queries in ("toy", "cache/toy/index/queries.parquet"):
        code, out, err = command(tmp_path, "a.json", "--queries", queries)
        assert (code, out) == (1, "") and err.splitlines() == [
            "cvsi: a.json: query 10: names '999', which is not in the gallery",
            "cvsi: a.json: query 10: names '101', its own reference image",
            "cvsi: a.json: query 10: names '999', which is not in its group",
        ]
    code, _, err = command(tmp_path, "a.json")
    assert code == 1 and err == "cvsi: a.json: 2 queries, CIRR's hidden split has 4,148\n"
    dropped = pl.DataFrame({"query_id": ["5"], "split": ["test"], "reason": ["its reference was dropped"]})
    pq.write_table(dropped.to_arrow(), folder / "dropped_queries.parquet")
    (tmp_path / "a.json").write_text(json.dumps(good("recall")))
    assert command(tmp_path, "a.json", "--queries", "toy")[2] == "cvsi: a.json: query 5 is missing\n"


def test_the_command_with_what_is_not_there(tmp_path: Path) -> None:
    for arguments, wanted in ((["none.json"], "none.json: No such file"), ([str(tmp_path)], "Is a directory")):
        code, _, err = command(tmp_path, *arguments)
        assert code == 1 and wanted in err and len(err.splitlines()) == 1
    (tmp_path / "a.json").write_text(json.dumps(good("circo")))
    for queries, wanted in (("toy", "queries.parquet: no such file"), ("b.json", "b.json: no such file")):
        code, _, err = command(tmp_path, "a.json", "--queries", queries)
        assert code == 1 and wanted in err and len(err.splitlines()) == 1
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    assert "a.json: not UTF-8 text" in command(tmp_path, "a.json")[2]


def test_the_command_with_the_real_annotations(shared: Path, tmp_path: Path) -> None:
    source = shared / "annotations/CIRR/cirr/captions/cap.rc2.test1.json"
    rows = json.loads(source.read_text(encoding="utf-8"))
    lists = {str(r["pairid"]): [n for n in r["img_set"]["members"] if n != r["reference"]][:3] for r in rows}
    (tmp_path / "subset.json").write_text(json.dumps(HEAD | lists))
    code, out, err = command(tmp_path, "subset.json", "--queries", str(source))
    assert code == 0 and "4,148 queries of 3 images, no fault" in out, err
    first = str(rows[0]["pairid"])
    (tmp_path / "subset.json").write_text(json.dumps(HEAD | lists | {first: [rows[0]["reference"], *lists[first][:2]]}))
    code, _, err = command(tmp_path, "subset.json", "--queries", str(source))
    assert code == 1 and "its own reference image" in err and len(err.splitlines()) == 1
