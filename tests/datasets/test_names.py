"""Names in annotations that other systems wrote: matched with the files where unique, else the difference is named."""

import codecs
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.datasets import index
from cvsi.datasets.base import load_json, load_lines
from tests.conftest import Workspace, write_queries
from tests.datasets.test_index import QUERY, circo_folder, fashioniq_folder

NFC, NFD = "gr\u00fcn.png", unicodedata.normalize("NFD", "gr\u00fcn.png")
LONG = "STRASSE.png"


def build() -> None:
    index.build("toy", params.load())


def queries() -> pl.DataFrame:
    return pl.read_parquet("cache/toy/index/queries.parquet")


def images() -> pl.DataFrame:
    return pl.read_parquet("cache/toy/index/images.parquet")


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        (NFD, NFC), (NFC, NFD), ("Green.PNG", "green.png"), ("green.png", "GREEN.PNG"), ("stra\u00dfe.png", LONG),
        ("sub/green.png", "sub\\green.png"), ("Sub/a b.png", ".\\sub\\A B.png"), ("green.png", " green.png "),
        ("green.png", "photos/../green.png"), ("green.png", "../photos/green.png"), ("green.png", "{root}/green.png"),
        (f"\u00fc/{NFD}", f"u\u0308/{NFC}"), ("green.png", "{root}/Green.png"), ("green.png", "//green.png"),
    ],
)  # fmt: skip
def test_a_name_in_another_form_is_matched(
    toy: Workspace, capsys: pytest.CaptureFixture[str], on_disk: str, written: str
) -> None:
    target = Path("photos", on_disk)
    target.parent.mkdir(exist_ok=True)
    shutil.move("photos/green.png", target)
    name = written.format(root=toy.path / "photos")
    write_queries(
        toy.path / "photos",
        {"reference": name, "instruction": "is red", "targets": ["red.png", name]},
        {"reference": "red.png", "instruction": "is red", "targets": [name, on_disk]},
    )
    if written.startswith("//"):
        with pytest.raises(CvsiError, match="leaves the dataset's folder"):
            build()
        return
    build()
    assert queries()["reference_id"].to_list() == [on_disk, "red.png"]
    assert queries()["target_ids"].to_list() == [["red.png", on_disk], [on_disk]]
    assert queries()["exclude_ids"].to_list() == [[on_disk], ["red.png"]]
    assert on_disk in images()["image_id"]
    assert "1 name matched in another case, Unicode form or way of writing" in capsys.readouterr().out


def test_an_absolute_path_through_a_link_and_one_into_roots_are_matched(
    toy: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = tmp_path_factory.mktemp("disk")
    shutil.move("photos/green.png", disk / "g.png")
    shutil.copy("photos/red.png", "photos/g.png")
    Path("photos/green.png").symlink_to(disk / "g.png")
    Path("linked").symlink_to("photos")
    names = [str(toy.path / "linked/red.png"), str(disk / "g.png")]
    write_queries(toy.path / "photos", *({"reference": name, "instruction": "x"} for name in names))
    toy.params(datasets__toy__roots=[str(disk)])
    build()
    assert queries()["reference_id"].to_list() == ["red.png", "green.png"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("RED.png", r"\(did you mean 'Red.png' or 'red.png'\?\)"), ("white.jpg", r"\(did you mean 'white.png'\?\)"),
        ("holiday/black.png", r"\(did you mean 'black.png'\?\)"), ("C:\\photos\\black.png", "mean 'black.png'"),
        ("my%20cat.png", "did you mean 'my cat.png'"), ("orang.png", "did you mean 'orange.png'"),
        ("zebra.png", "query 0 names 'zebra.png'; correct the annotation, or set missing_images: drop"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_unique_or_not_there_names_the_difference(toy: Workspace, written: str, meant: str) -> None:
    shutil.copy("photos/blue.png", "photos/Red.png")
    shutil.copy("photos/blue.png", "photos/my cat.png")
    write_queries(toy.path / "photos", {"reference": written, "instruction": "x"})
    with pytest.raises(CvsiError, match=meant) as error:
        build()
    assert str(error.value).startswith("photos/queries.jsonl: reference_id not among the images") and "\n" not in str(
        error.value
    )


def test_an_exact_name_goes_before_one_in_another_form(toy: Workspace) -> None:
    shutil.copy("photos/blue.png", "photos/Red.png")
    shutil.copy("photos/blue.png", f"photos/{NFC}")
    shutil.copy("photos/blue.png", f"photos/{NFD}")
    names = ["red.png", "Red.png", NFC, NFD]
    write_queries(toy.path / "photos", *({"reference": name, "instruction": "x"} for name in names))
    build()
    assert queries()["reference_id"].to_list() == names


@pytest.mark.parametrize("path", ["/etc/passwd", "../out.png", "a/../../out.png", "", ".", "photos/../.."])
@pytest.mark.parametrize("rule", ["stop", "drop"])
def test_a_path_outside_is_refused_whatever_is_dropped(toy: Workspace, path: str, rule: str) -> None:
    shutil.copy("photos/red.png", "out.png")
    toy.params(datasets__toy__missing_images=rule)
    write_queries(toy.path / "photos", {"reference": path, "instruction": "x"})
    with pytest.raises(CvsiError, match=r"queries\.jsonl: path .* leaves the dataset's folder"):
        build()


def test_queries_of_files_that_are_gone_are_dropped_and_counted(
    toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.params(datasets__toy__missing_images="drop")
    Path("photos/blue.png").unlink()
    build()
    assert "dropped 1 image, and 1 query with them; dropped 1 further target" in capsys.readouterr().out
    dropped = pl.read_parquet("cache/toy/index/dropped.parquet").rows()
    assert dropped == [("blue.png", "no such file, but named by 2 queries")]


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16-le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "joined": lambda text: "".join(f"\ufeff{line}\r\n" for line in text.splitlines()).encode(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_byte_order_mark_is_no_content(toy: Workspace, encoding: str) -> None:
    build()
    before, file = queries(), Path("photos/queries.jsonl")
    file.write_bytes(ENCODINGS[encoding](file.read_text(encoding="utf-8")))
    build()
    assert queries().equals(before)


def test_a_byte_order_mark_in_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}')
    assert load_json(tmp_path / "a.json", dict[str, int]) == {"a": 1}
    (tmp_path / "b.jsonl").write_bytes(codecs.BOM_UTF8 + b"\n1\n\n2\n")
    assert load_lines(tmp_path / "b.jsonl", int) == [1, 2]
    (tmp_path / "c.json").write_bytes("{}".encode("utf-16-le"))
    with pytest.raises(CvsiError, match=r"c\.json: "):
        load_json(tmp_path / "c.json", dict[str, int])


def rename(change: Callable[[str], str]) -> Callable[[], None]:
    def renamed() -> None:
        for file in Path("coco/COCO2017_unlabeled/unlabeled2017").iterdir():
            file.rename(file.with_name(change(file.name)))

    return renamed


def in_list(change: Callable[[str], str]) -> Callable[[], None]:
    def changed() -> None:
        file = Path("coco/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json")
        content = json.loads(file.read_text(encoding="utf-8"))
        for image in content["images"]:
            image["file_name"] = change(image["file_name"])
        file.write_text(json.dumps(content), encoding="utf-8")

    return changed


@pytest.mark.parametrize(
    "change",
    [
        rename(str.upper), rename(lambda name: name.replace(".png", ".PNG")), in_list(str.title),
        in_list(lambda name: str(Path("coco/COCO2017_unlabeled/unlabeled2017", name).absolute())),
        in_list(lambda name: f".\\{name}"),
    ],
)  # fmt: skip
def test_image_lists_in_another_form_are_matched_with_the_files(toy: Workspace, change: Callable[[], None]) -> None:
    circo_folder(toy.path / "coco", [], [QUERY])
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    build()
    before = images()
    change()
    build()
    assert images().drop("path").equals(before.drop("path"))
    for path in images()["path"]:
        assert Path("coco", path).is_file()


def test_a_file_answers_to_one_listed_name_only(toy: Workspace) -> None:
    circo_folder(toy.path / "coco", [{"id": 70, "file_name": "RED.png"}], [QUERY])
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    with pytest.raises(CvsiError, match=r"1 missing image: COCO2017_unlabeled/unlabeled2017/RED\.png"):
        build()


def fashioniq(toy: Workspace, names: list[str], pairs: list[tuple[str, str]], **changes: object) -> None:
    fashioniq_folder(toy.path / "fiq", names, pairs)
    rules = {f"datasets__toy__{key}": value for key, value in changes.items()}
    toy.params(datasets__toy__format="fashioniq", datasets__toy__root="fiq", datasets__toy__category="dress", **rules)


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("images/a.jpeg", None), ("images/a.JPG", None), ("images/a.JPEG", None), ("images/a.PNG", None),
        ("images/A.jpg", None), ("images/a.webp", None), ("resized_images/a.jpg", None),
        ("resized_images/a.PNG", None), ("resized_images/A.Jpeg", None),
        ("images/a.png resized_images/a.png", "images/a.png"), ("images/a.jpeg images/a.jpg", "images/a.jpg"),
        ("images/a.JPG images/a.jpg", "images/a.jpg"), ("images/A.png images/a.jpg", "images/a.jpg"),
    ],
)  # fmt: skip
def test_fashioniq_images_of_any_suffix_in_either_folder(toy: Workspace, file: str, wanted: str | None) -> None:
    fashioniq(toy, ["a", "b"], [("a", "b")])
    Path("fiq/resized_images").mkdir()
    shutil.copy("photos/blue.png", "fiq/images/b.png")
    for name in file.split():
        shutil.copy("photos/red.png", f"fiq/{name}")
    build()
    assert images()["path"].to_list() == [wanted or file, "images/b.png"]


def test_fashioniq_names_taken_out_of_a_split_are_dropped_and_counted(
    toy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    fashioniq(toy, ["a", "b"], [("a", "b"), ("gone", "a"), ("a", "lost"), ("b", "a"), ("gone", "lost")])
    for name in "ab":
        shutil.copy("photos/red.png", f"fiq/images/{name}.png")
    with pytest.raises(CvsiError, match=r"reference_id not among the images: query 1 names 'gone', query 4 .*drop"):
        build()
    toy.params(datasets__toy__missing_images="drop")
    build()
    assert "dropped 2 images, and 3 queries with them" in capsys.readouterr().out
    assert pl.read_parquet("cache/toy/index/dropped.parquet").rows() == [
        ("gone", "not in the list of images, but named by 2 queries"),
        ("lost", "not in the list of images, but named by 2 queries"),
    ]
    assert queries()["query_id"].to_list() == ["0", "3"]


@pytest.mark.parametrize("column", ["reference", "target_hard", "members"])
def test_cirr_names_that_are_not_listed_follow_the_same_rule(toy: Workspace, column: str) -> None:
    shutil.move("photos", "cirr/dev")
    paths = {name: f"./dev/{name}.png" for name in ("red", "green", "blue")}
    row: dict[str, object] = {
        "pairid": 1,
        "reference": "red",
        "target_hard": "green",
        "caption": "x",
        "img_set": {"members": ["red"]},
    }
    gone: dict[str, object] = {column: "gone"} if column != "members" else {"img_set": {"members": ["gone"]}}
    other = row | {"pairid": 2} | gone
    for name, content in (("image_splits/split.rc2.val", paths), ("captions/cap.rc2.val", [row, other])):
        file = Path(f"cirr/cirr/{name}.json")
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    toy.params(datasets__toy__format="cirr", datasets__toy__root="cirr", datasets__toy__splits=["val"])
    with pytest.raises(CvsiError, match="query 2 names 'gone'"):
        build()
    toy.params(datasets__toy__missing_images="drop")
    build()
    assert queries()["query_id"].to_list() == (["1"] if column != "members" else ["1", "2"])
    assert queries()["group_ids"].to_list()[-1] == ([] if column == "members" else ["red"])
