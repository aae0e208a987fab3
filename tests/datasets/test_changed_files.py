"""Files that change while size and date stay: read again by inode and time of change, or after a stage noticed."""

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from cvsi.commands import store as store_command
from cvsi.core import params
from cvsi.core.errors import ChangedFile, CvsiError
from cvsi.core.images import load
from cvsi.core.schema import STORED_CAPTIONS, STORED_FACTS
from cvsi.datasets import files, index
from cvsi.evaluation import scores
from cvsi.evaluation.report import build as report
from cvsi.evaluation.report.thumbnails import thumbnail
from cvsi.pipeline.image_loader import ImageLoader
from cvsi.store.changed import changes
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.missing import compute_missing
from cvsi.store.rows import RowStore, Store
from tests.conftest import Workspace
from tests.stage_inputs import write_captions, write_edits

TURNED = Path("photos/turned.jpg")


@dataclass(frozen=True)
class SizeJob(RowJob):
    """A job as captions are: it reads every image of the index by its digest."""

    kind: ClassVar[str] = "captions"
    words: ClassVar[Words] = Words("image", "to measure", "measured")

    @property
    def schema(self) -> pa.Schema:
        return STORED_CAPTIONS

    @property
    def block_rows(self) -> int:
        return 4

    def recipe(self) -> dict[str, Any]:
        return {"model": "sizes"}

    def wanted(self) -> pl.DataFrame:
        return images().select(key="digest", path="path")

    def load(self, worker: int) -> BlockWorker:
        return BlockWorker(self._sizes)

    def _sizes(self, block: pl.DataFrame) -> pa.Table:
        loader = ImageLoader(Path("photos"), block, 4, lambda image: str(image.size), ahead=False)
        sizes = [size for batch, _ in loader.batches() for size in batch]
        return pa.table({"key": block["key"].to_list(), "captions": [[size] for size in sizes]}, schema=STORED_CAPTIONS)


def images() -> pl.DataFrame:
    return pl.read_parquet("cache/toy/index/images.parquet")


def digest_of(name: str) -> str:
    return str(images().filter(pl.col("path") == name)["digest"][0])


def write_turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open("photos/red.png") as image:
        image.convert("RGB").save(path, exif=exif.tobytes())


def in_place(path: Path) -> None:
    """Another EXIF orientation, as a tool that keeps the date writes it: one byte differs."""
    status = path.stat()
    write_turned(Path("other.jpg"), 6)
    other = Path("other.jpg").read_bytes()
    assert len(other) == status.st_size and other != path.read_bytes()
    with path.open("r+b") as file:
        file.write(other)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def renamed(path: Path) -> None:
    """Another file of the same size and date in its place."""
    status = path.stat()
    write_turned(Path("other.jpg"), 8)
    os.utime("other.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    Path("other.jpg").replace(path)


def linked(path: Path) -> None:
    """A link to another file of the same size and date."""
    status, other = path.stat(), path.with_name("third.png")
    write_turned(Path("other.jpg"), 3)
    Path("other.jpg").rename(other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.unlink()
    path.symlink_to(other.name)


def swapped(path: Path) -> None:
    """Two bytes of the comment at the end exchanged, by memory map say."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-20], data[-19] = data[-19] ^ 1, data[-20] ^ 2
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = [in_place, renamed, linked, swapped]


@pytest.fixture
def photos(toy: Workspace) -> Workspace:
    write_turned(TURNED, 1)
    toy.params(datasets__toy__bad_images="drop")
    return toy


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without inode and time of change."""
    monkeypatch.setattr(files, "_status", lambda status: (status.st_size, status.st_mtime_ns, 0, 0))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_with_size_and_date_kept_is_read_again(photos: Workspace, change: Callable[[Path], None]) -> None:
    printed = photos.run("index", "toy")
    assert "read again" not in printed
    before = digest_of("turned.jpg")
    change(TURNED)
    assert "1 file read again: the same size and date" in photos.run("index", "toy")
    assert digest_of("turned.jpg") != before
    assert "read again" not in photos.run("index", "toy")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_without_inode_and_time_of_change_the_stage_that_notices_makes_the_index_look_again(
    photos: Workspace, blind: None, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], workers: int
) -> None:
    photos.params(compute={"workers": workers, "device": "cpu"})
    content = params.load()
    job = SizeJob(content.compute, Store(Path(content.store)))
    index.build("toy", content)
    before = digest_of("turned.jpg")
    change(TURNED)
    index.build("toy", content)
    assert digest_of("turned.jpg") == before  # nothing shows the change
    with pytest.raises(ChangedFile, match=r"photos/turned\.jpg: .* the next dvc repro reads it again"):
        compute_missing(job)
    capsys.readouterr()
    index.build("toy", content)
    assert "1 file read again" in capsys.readouterr().out
    assert digest_of("turned.jpg") != before
    compute_missing(job)
    index.build("toy", content)
    assert "0 to read" in capsys.readouterr().out


def test_a_file_that_changes_back_and_forth_is_noticed_every_time(photos: Workspace, blind: None) -> None:
    content = params.load()
    index.build("toy", content)
    first = TURNED.read_bytes()
    for number in range(1, 4):
        now = digest_of("turned.jpg")
        status = TURNED.stat()
        in_place(TURNED) if TURNED.read_bytes() == first else TURNED.write_bytes(first)
        os.utime(TURNED, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(ChangedFile), files.changes_recorded(content):
            load(TURNED, now, lambda image: image)
        assert changes(Store(Path(content.store))).rows() == [("photos/turned.jpg", number)]
        index.build("toy", content)
        assert digest_of("turned.jpg") != now


def test_facts_of_the_version_before_are_read_once_more(photos: Workspace) -> None:
    status = TURNED.stat()
    key = f"{TURNED} {status.st_size} {status.st_mtime_ns}"
    wrong = {"key": key, "digest": "0" * 64, "width": 1, "height": 1, "reason": ""}
    Store(Path("cache/store")).rows("files", {"code": 2}, STORED_FACTS).append(pa.Table.from_pylist([wrong]))
    assert "1 file read again" in photos.run("index", "toy")
    assert digest_of("turned.jpg") != "0" * 64
    former, now = store_command.survey(Path("cache/store"))[-2:]
    assert {former.kind, now.kind} == {"files"}
    assert [part.by for part in (former, now)].count(()) == 1  # `cvsi store --unused-for` removes the former rows


def test_records_of_changed_files_are_never_removed(photos: Workspace) -> None:
    content = params.load()
    with pytest.raises(ChangedFile), files.changes_recorded(content):
        load(TURNED, "0" * 64, lambda image: image)
    (part,) = store_command.survey(Path(content.store))
    assert part.kind == "changed_files" and not part.unused(0)


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-9], lambda data: data[:99] + b"x" + data[100:]]
)
def test_a_damaged_record_stops_nothing(photos: Workspace, damage: Callable[[bytes], bytes]) -> None:
    content = params.load()
    with pytest.raises(ChangedFile), files.changes_recorded(content):
        load(TURNED, "0" * 64, lambda image: image)
    (file,) = Path(content.store, "changed_files").rglob("*.parquet")
    file.write_bytes(damage(file.read_bytes()))
    index.build("toy", content)
    assert changes(Store(Path(content.store))).height == 0


def test_a_store_that_cannot_be_written_gives_other_advice(photos: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: RowStore, table: pa.Table) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(RowStore, "append", fail)
    with pytest.raises(CvsiError, match=r"could not be recorded .*Read-only.* \(touch\)"):
        with files.changes_recorded(params.load()):
            load(TURNED, "0" * 64, lambda image: image)


def test_the_error_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(ChangedFile("photos/a.png")))
    assert error.path == "photos/a.png" and str(error).startswith("photos/a.png: the file changed")


def test_the_report_notices_a_changed_file_too(toy: Workspace) -> None:
    content = params.load()
    index.build("toy", content)
    write_captions()
    write_edits()
    vectors = np.random.default_rng(1).normal(size=(8, 128)).astype(np.float32)
    columns = ("edited", "pseudo", "reference", "source", "instruction")
    queries = pl.read_parquet("cache/toy/index/queries.parquet").select("query_id", "split")
    for name, table, parts in (
        ("gallery_vectors", images().select("image_id"), ("image", "caption")), ("query_vectors", queries, columns),
    ):  # fmt: skip
        folder = Path("cache/toy/tiny", name)
        folder.mkdir(parents=True)
        rows = pl.Series(vectors[: table.height], dtype=pl.Array(pl.Float32, 128))
        table.with_columns(rows.alias(part) for part in parts).write_parquet(folder / "part.parquet")
    scores.build("toy", "tiny", content)
    Path("photos/red.png").write_bytes(Path("photos/green.png").read_bytes())
    thumbnail.cache_clear()  # other tests of this process show a picture of the same name and content
    with pytest.raises(ChangedFile, match=r"photos/red\.png"):
        report.build("toy", "tiny", content)
    assert changes(Store(Path(content.store))).rows() == [("photos/red.png", 1)]
