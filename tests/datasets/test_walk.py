"""Which files of a photo folder are read; every other one is counted by kind and named."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from cvsi.core.images import SIGNATURE_BYTES, is_image_start
from cvsi.datasets.roots import Roots
from cvsi.datasets.walk import Walk, skipped_lines
from tests.conftest import Workspace
from tests.core.malformed_images import KINDS

IGNORE = ("@eaDir", "._*", ".thumbnails")


def walk(root: Path, *further: Path, ignore: tuple[str, ...] = IGNORE) -> Walk:
    return Walk(Roots(root, further), ignore, ["queries.jsonl"])


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.JPEG", "a.jfif", "a.JPE", "a.heic", "a.HEIC", "a.heif", "a.avif", "b c/d.webp", "a.b.tiff"]
)
def test_known_suffixes(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    assert walk(tmp_path).images == [name] and not walk(tmp_path).skipped


def test_files_that_are_not_read_are_counted_by_suffix_and_named(tmp_path: Path) -> None:
    touch(
        tmp_path, "queries.jsonl", "a.jpg", *(f"{name}.mov" for name in "abcdefghij"), "x.txt", "sub/y.TXT", "raw.dng"
    )
    (tmp_path / "README").write_text("text")
    (tmp_path / "empty").touch()
    seen = walk(tmp_path)
    assert seen.images == ["a.jpg"]
    assert skipped_lines(seen.skipped) == [
        "15 files not read: 10 .mov (a.mov, b.mov, c.mov, ...), 2 .txt (x.txt, sub/y.TXT), "
        "2 without a suffix (README, empty), 1 .dng (raw.dng)"
    ]


def test_hidden_and_ignored_names_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", ".git/b.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB.jpg", "x/@eaDir/b.jpg")
    assert walk(tmp_path).images == ["a.jpg"]
    assert skipped_lines(walk(tmp_path).skipped) == [
        "2 files not read: 1 hidden (.DS_Store), 1 ignored as ._* (._a.jpg)",
        "3 folders not read: 2 ignored as @eaDir (@eaDir, x/@eaDir), 1 hidden (.git)",
    ]
    assert "x/@eaDir/b.jpg" in walk(tmp_path, ignore=()).images


@pytest.mark.parametrize(
    ("pattern", "ignored"),
    [
        ("*_edited.jpg", "a_edited.jpg"), ("private", "private/a.jpg"), ("private/", "x/private/a.jpg"),
        ("trip/*.png", "trip/a.png"), ("caf\u00e9", "cafe\u0301/a.jpg"), ("[0-9]*", "2020/a.jpg"),
    ],
)  # fmt: skip
def test_a_pattern_matches_any_part_of_a_path(tmp_path: Path, pattern: str, ignored: str) -> None:
    touch(tmp_path, "a.jpg", ignored)
    seen = walk(tmp_path, ignore=(pattern,))
    assert seen.images == ["a.jpg"] and f"1 ignored as {pattern}" in skipped_lines(seen.skipped)[0]


def test_ignore_of_a_dataset(toy: Workspace) -> None:
    toy.params(datasets__toy__ignore=["white*"])
    assert "1 file not read: 1 ignored as white* (white.png)" in toy.run("index", "toy")
    toy.params(datasets__toy__ignore="white*")
    assert "datasets.toy.ignore" in toy.error("index", "toy")


def test_links_to_folders_are_followed_within_the_roots_and_named_elsewhere(tmp_path: Path) -> None:
    root, further, out = tmp_path / "root", tmp_path / "further", tmp_path / "out"
    touch(root, "a.jpg", "2020/b.jpg")
    touch(further, "c.jpg", "deep/d.jpg")
    touch(out, "e.jpg")
    (root / "inside").symlink_to("2020")
    (root / "linked").symlink_to(further)
    (root / "away").symlink_to(out)
    (further / "deeper").symlink_to(out)
    seen = walk(root, further)
    assert seen.images == ["2020/b.jpg", "a.jpg", "inside/b.jpg", "linked/c.jpg", "linked/deep/d.jpg"]
    (line,) = skipped_lines(seen.skipped)
    assert line.startswith("2 folders not read: 2 a link that leaves the dataset's folder (away -> ")
    assert str(out) in line and "add the folder it leads to to the dataset's roots" in line
    assert "linked/c.jpg" not in walk(root).images


def test_circles_of_links_end_and_are_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "a/x.jpg", "b/y.jpg")
    (root / "a/self").symlink_to(".")
    (root / "a/up").symlink_to("..")
    (root / "a/b").symlink_to("../b")
    (root / "b/a").symlink_to("../a")
    (root / "circle").symlink_to("circle")
    seen = walk(root)
    assert {"a/x.jpg", "b/y.jpg", "a/b/y.jpg"} <= set(seen.images) and len(seen.images) < 6
    assert any("a link to a folder that contains it" in line for line in skipped_lines(seen.skipped))
    assert ("file", "no regular file") in seen.skipped


def test_many_links_to_each_other_give_few_paths(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for level in range(30):
        touch(root, f"d{level}/x.jpg")
        for link in range(3):
            (root / f"d{level}/l{link}").symlink_to(f"../d{level + 1}")
    assert len(walk(root).images) < 30 * 31
    assert any("a second link to the same folder" in line for line in skipped_lines(walk(root).skipped))


@pytest.mark.parametrize("kind", [*KINDS, "AVIF"])
def test_a_file_without_a_suffix_is_recognised_by_its_content(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sub.d").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "sub.d" / "photo", kind)
    seen = walk(tmp_path)
    assert seen.images == ["sub.d/photo"] and not seen.skipped


def test_heic_without_a_suffix(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "core/data/turned.heic", tmp_path / "IMG_0001")
    assert walk(tmp_path).images == ["IMG_0001"]


@pytest.mark.parametrize(
    "data",
    [b"", b"BM", b"BMW drives well, and this text has more letters than sixty-four", b"II",
     b"RIFF\0\0\0\0WAVEfmt ", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", b"%PDF-1.7", b"\xff\xfeh\0i\0", b"GIF"],
)  # fmt: skip
def test_other_files_without_a_suffix_are_counted(tmp_path: Path, data: bytes) -> None:
    assert not is_image_start(data[:SIGNATURE_BYTES])
    (tmp_path / "file").write_bytes(data)
    assert walk(tmp_path).skipped == {("file", "without a suffix"): ["file"]}


def test_pipes_dead_links_and_links_away_without_a_suffix_are_not_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.mkfifo(root / "pipe")
    (root / "dead").symlink_to("nowhere")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret", "PNG")
    (root / "away").symlink_to(tmp_path / "secret")
    seen = walk(root)
    assert seen.images == []
    assert seen.skipped == {("file", "a link that leaves the dataset's folder"): ["away"],
                            ("file", "no regular file"): ["dead", "pipe"]}  # fmt: skip


def test_names_of_skipped_files_cannot_control_a_terminal(toy: Workspace) -> None:
    for name in (b"photos/\x1b[31m.mov", b"photos/\xff.mov", "photos/\u2028.mov".encode()):
        Path(os.fsdecode(name)).touch()
    printed = toy.run("index", "toy")
    assert "3 .mov" in printed and "\x1b" not in printed and len(printed.splitlines()) == 4


def test_photos_of_a_phone_are_indexed_with_the_size_they_are_shown_in(toy: Workspace) -> None:
    data = Path(__file__).parents[1] / "core/data"
    for name in ("IMG_1.HEIC", "IMG_2.heif", "IMG_3.jpg", "IMG_4"):  # by content, whatever the suffix
        shutil.copy(data / "turned.heic", toy.path / "photos" / name)
    Image.new("RGB", (30, 20)).save("photos/a.avif")
    toy.run("index", "toy")
    sizes = pl.read_parquet("cache/toy/index/images.parquet").select("path", "width", "height").rows()
    assert [row for row in sizes if row[0][0] in "Ia"] == [
        ("IMG_1.HEIC", 64, 96), ("IMG_2.heif", 64, 96), ("IMG_3.jpg", 64, 96), ("IMG_4", 64, 96), ("a.avif", 30, 20),
    ]  # fmt: skip


def test_check_names_what_is_not_read(toy: Workspace) -> None:
    from typer.testing import CliRunner

    from cvsi.commands.main import app

    Path("photos/a.mov").touch()
    printed = " ".join(CliRunner().invoke(app, ["check"]).output.split())
    assert "toy: 1 file not read: 1 .mov (a.mov)" in printed
