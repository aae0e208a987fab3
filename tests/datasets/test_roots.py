"""Links of a dataset: into DVC's cache and into `roots` they are read, elsewhere they are one line with advice."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from cvsi.commands.main import app
from cvsi.core import params
from cvsi.core.errors import CvsiError
from cvsi.core.images import load
from cvsi.datasets import index
from cvsi.datasets.base import OUTSIDE_ROOT
from cvsi.datasets.roots import Roots, dvc_cache_files
from tests.conftest import Workspace, draw_pictures, environment
from tests.datasets.test_index import QUERY, circo_folder


def build() -> None:
    index.build("toy", params.load())


def images() -> pl.DataFrame:
    return pl.read_parquet("cache/toy/index/images.parquet")


def move_and_link(folder: Path, target: Path) -> int:
    """Move the files of a folder elsewhere and leave links, as git-annex and DVC do; how many."""
    target.mkdir(parents=True)
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    for file in files:
        shutil.move(file, target / file.name)
        file.symlink_to((target / file.name).absolute())
    return len(files)


def many_links(toy: Workspace, target: Path) -> None:
    """Ninety links to pictures elsewhere; the annotation stays."""
    queries = (toy.path / "photos/queries.jsonl").read_bytes()
    for number in range(82):
        shutil.copy("photos/red.png", f"photos/copy{number:02}.png")
    move_and_link(toy.path / "photos", target)
    (toy.path / "photos/queries.jsonl").unlink()
    (toy.path / "photos/queries.jsonl").write_bytes(queries)


@pytest.fixture
def plain(toy: Workspace) -> pl.DataFrame:
    """The index of the toy dataset without links."""
    build()
    return images()


def test_data_that_dvc_itself_links_is_read(toy: Workspace, plain: pl.DataFrame) -> None:
    commands = ("init --no-scm -q", "config core.analytics false", "config cache.type symlink", "add -q photos")
    for command in commands:
        subprocess.run(["dvc", *command.split()], check=True, env=environment(toy.path), capture_output=True)
    assert Path("photos/red.png").is_symlink() and Path("photos/queries.jsonl").is_symlink()
    build()
    assert images().equals(plain)


def in_config(cache: Path) -> None:
    Path(".dvc/config").write_text(f"[core]\n    analytics = false\n[cache]\n    type = symlink\n    dir = {cache}\n")


def relative(cache: Path) -> None:
    Path(".dvc/config").write_text(
        f"['remote \"team\"']\n    url = s3://b/%x\n[cache]\n    dir = {os.path.relpath(cache, '.dvc')}\n"
    )


def local(cache: Path) -> None:
    Path(".dvc/config.local").write_text(f'[cache]\n    dir = "{cache}"\n')


def of_the_user(cache: Path) -> None:
    folder = Path(os.environ["DVC_GLOBAL_CONFIG_DIR"])
    folder.mkdir()
    (folder / "config").write_text(f"[cache]\ndir={cache}\n")


def above(cache: Path) -> None:
    shutil.rmtree(".dvc")
    Path("../.dvc").mkdir()
    Path("../.dvc/config").write_text(f"[cache]\n    dir = {cache}\n")


@pytest.mark.parametrize("configure", [in_config, relative, local, of_the_user, above])
def test_the_cache_folder_that_dvc_is_set_to_is_read(
    toy: Workspace, plain: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    configure: Callable[[Path], None],
) -> None:  # fmt: skip
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(toy.path / "settings"))
    inner = toy.path / "project"
    inner.mkdir()
    for name in ("photos", "params.yaml"):
        shutil.move(name, inner / name)
    monkeypatch.chdir(inner)
    Path(".dvc").mkdir()
    cache = tmp_path_factory.mktemp("cache")
    move_and_link(Path("photos"), cache / "files/md5/ab")
    with pytest.raises(CvsiError, match="a link that leaves the dataset's folder"):
        build()
    configure(cache)
    build()
    assert images().equals(plain)


@pytest.mark.parametrize(
    "place", [".dvc/tmp/x", ".dvc/cache/runs/x", ".dvc/cache/files/sha/x", "photos2/.dvc/cache/files/md5/x"]
)
def test_other_folders_of_dvc_are_not_read(toy: Workspace, place: str) -> None:
    Path(".dvc/cache/files/md5").mkdir(parents=True)
    many_links(toy, toy.path / place)
    assert "90 unreadable images" in toy.error("index", "toy")


def test_a_dataset_cannot_name_a_cache_of_its_own(toy: Workspace) -> None:
    shutil.copytree("photos", "elsewhere/files/md5")
    Path("photos/.dvc").mkdir()
    Path("photos/.dvc/config").write_text(f"[cache]\n    dir = {toy.path / 'elsewhere'}\n")
    Path("photos/stolen.png").symlink_to(toy.path / "elsewhere/files/md5/red.png")
    assert "stolen.png (a link that leaves the dataset's folder)" in toy.error("index", "toy")
    assert dvc_cache_files() == []


def test_ninety_links_are_one_line_with_a_count_and_roots_reads_them(
    toy: Workspace, plain: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = tmp_path_factory.mktemp("disk") / "photos"
    many_links(toy, disk)
    line = toy.error("index", "toy")
    assert "90 unreadable images: black.png, blue.png, copy00.png and 87 more (a link that leaves" in line
    assert f"add {disk}, to which they lead, to roots of datasets.toy in params.yaml or set bad_images: drop" in line
    assert len(line) < 400
    toy.params(datasets__toy__roots=[str(disk)])
    build()
    assert images().height == 90 and set(plain["digest"]) == set(images()["digest"])


def test_check_and_index_agree_on_links(toy: Workspace, tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = tmp_path_factory.mktemp("disk") / "photos"
    many_links(toy, disk)
    printed = " ".join(CliRunner().invoke(app, ["check"]).output.split())
    assert "90 unreadable images: black.png" in printed and "roots of datasets.toy" in printed
    toy.params(datasets__toy__roots=[str(disk)])
    printed = " ".join(CliRunner().invoke(app, ["check"]).output.split())
    assert "unreadable" not in printed and "roots" not in printed
    toy.params(datasets__toy__roots=["/nowhere"])
    printed = " ".join(CliRunner().invoke(app, ["check"]).output.split())
    assert "datasets.toy.roots: /nowhere: no such folder" in printed


def test_dropping_every_link_ends_with_the_reason_and_the_remedy(
    toy: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = tmp_path_factory.mktemp("disk") / "photos"
    many_links(toy, disk)
    toy.params(datasets__toy__bad_images="drop")
    line = toy.error("index", "toy")
    assert "no images to work on: 90 dropped images: black.png, blue.png, copy00.png and 87 more (a link that" in line
    assert f"add {disk}, to which they lead, to roots of datasets.toy" in line


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda: [file.write_bytes(b"") for file in Path("photos").glob("*.png")], "(empty file); repair them"),
        (lambda: [file.write_text("x") for file in Path("photos").glob("*.png")], "(not an image); repair them"),
        (lambda: [file.rename(f"{file}\n.png") for file in Path("photos").glob("*.png")], "is not plain text"),
        (lambda: [file.rename(file.with_suffix(".mov")) for file in Path("photos").glob("*.png")], "8 .mov (black.mov"),
    ],
)
def test_a_dataset_without_a_usable_image_ends_with_the_first_reason(
    toy: Workspace, spoil: Callable[[], object], reason: str
) -> None:
    toy.params(datasets__toy__bad_images="drop", datasets__toy__missing_images="drop")
    spoil()
    line = toy.error("index", "toy")
    assert "photos: no images to work on" in line and reason in line


@pytest.mark.parametrize("roots", [["/nowhere"], ["photos", "gone/below"], ["params.yaml"]])
def test_a_further_root_that_does_not_exist_is_one_line(toy: Workspace, roots: list[str]) -> None:
    toy.params(datasets__toy__roots=roots)
    assert f"datasets.toy.roots: {roots[-1]}: no such folder" in toy.error("index", "toy")


@pytest.mark.parametrize("roots", ["disk", [""], [3]])
def test_roots_of_another_type_are_one_line(toy: Workspace, roots: object) -> None:
    toy.params(datasets__toy__roots=roots)
    assert "datasets.toy.roots" in toy.error("index", "toy")


@pytest.mark.parametrize("linked_root", [False, True])
def test_files_may_be_in_a_further_root(
    toy: Workspace, tmp_path_factory: pytest.TempPathFactory, linked_root: bool
) -> None:
    circo_folder(toy.path / "coco", [], [QUERY])
    disk = tmp_path_factory.mktemp("disk")
    (disk / "COCO2017_unlabeled").mkdir()
    shutil.move("coco/COCO2017_unlabeled/unlabeled2017", disk / "COCO2017_unlabeled/unlabeled2017")
    if linked_root:
        shutil.move("coco", disk / "real")
        Path("coco").symlink_to(disk / "real")
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    assert "8 missing images" in toy.error("index", "toy")
    toy.params(datasets__toy__roots=[str(disk)])
    build()
    assert images().height == 8 and images()["path"].str.starts_with("../").all()
    for path, digest in images().select("path", "digest").iter_rows():
        load(Path("coco") / path, digest, lambda image: image)  # as every later stage opens it
    annotations = disk / "annotations"
    shutil.move("coco/annotations", annotations)
    build()


def test_a_link_of_a_whole_benchmark_is_one_folder_to_add(
    toy: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = tmp_path_factory.mktemp("disk") / "coco"
    circo_folder(toy.path / "coco", [], [QUERY])
    toy.params(datasets__toy__format="circo", datasets__toy__root="coco")
    build()
    before = images()
    shutil.move("coco/COCO2017_unlabeled", disk)
    Path("coco/COCO2017_unlabeled").symlink_to(disk)
    assert f"or add {disk} to the dataset's roots" in toy.error("index", "toy")
    shutil.copytree(disk / "annotations", "list/annotations")
    Path("coco/COCO2017_unlabeled").unlink()
    Path("list/unlabeled2017").symlink_to(disk / "unlabeled2017")
    shutil.move("list", "coco/COCO2017_unlabeled")
    line = toy.error("index", "toy")
    assert "8 unreadable images" in line and f"add {disk}/unlabeled2017, to which they lead, to roots" in line
    toy.params(datasets__toy__roots=[str(disk)])
    build()
    assert images().equals(before)


def test_git_annex(toy: Workspace, plain: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> None:
    annex = tmp_path_factory.mktemp("repository")
    shutil.move("photos", annex / "photos")
    for number, file in enumerate(sorted((annex / "photos").glob("*.png"))):
        place = annex / f".git/annex/objects/{number:02}/Xx/SHA256E-{number}.png/SHA256E-{number}.png"
        place.parent.mkdir(parents=True)
        shutil.move(file, place)
        file.symlink_to(os.path.relpath(place, file.parent))
    toy.params(datasets__toy__root=str(annex / "photos"))
    line = toy.error("index", "toy")
    assert f"8 unreadable images: black.png, blue.png, green.png and 5 more ({OUTSIDE_ROOT}); add {annex}/.git" in line
    toy.params(datasets__toy__roots=[str(annex / ".git/annex/objects")])
    build()
    assert images().equals(plain)


def test_a_chain_of_links_counts_where_it_ends(tmp_path: Path) -> None:
    for name in ("root", "further", "out"):
        draw_pictures(tmp_path / name)
    root, further, out = tmp_path / "root", tmp_path / "further", tmp_path / "out"
    (further / "away.png").symlink_to(out / "red.png")
    (further / "back.png").symlink_to(root / "red.png")
    (root / "a.png").symlink_to(further / "red.png")
    (root / "b.png").symlink_to(further / "away.png")
    (root / "c.png").symlink_to(further / "back.png")
    (root / "d.png").symlink_to("../root/../further/red.png")
    (root / "e.png").symlink_to("../further-not/red.png")
    (root / "circle.png").symlink_to("circle.png")
    (root / "up").symlink_to("..")
    roots = Roots(root, [further])
    inside = {name: not roots.outside(root / name) for name in ("a.png", "b.png", "c.png", "d.png", "e.png")}
    assert inside == {"a.png": True, "b.png": False, "c.png": True, "d.png": True, "e.png": False}
    assert roots.outside(root / "up/out/red.png") == str(out / "red.png")
    assert not roots.outside(root / "up/further/red.png")
    for name in ("a.png", "b.png", "c.png", "d.png", "up/out/red.png"):
        assert roots.real(root / name) == os.path.realpath(root / name)
    with pytest.raises(OSError, match="circle"):
        roots.real(root / "circle.png")


def test_annotations_behind_a_link_name_the_folder_to_add(toy: Workspace) -> None:
    shutil.move("photos/queries.jsonl", "queries.jsonl")
    Path("photos/queries.jsonl").symlink_to(toy.path / "queries.jsonl")
    line = toy.error("index", "toy")
    assert "photos/queries.jsonl: a link that leaves the dataset's folder; copy the file into it, or add" in line
    toy.params(datasets__toy__roots=["."])
    build()
