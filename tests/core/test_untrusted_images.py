"""A thousand odd and broken images through the real stages: no crash, no hang, bounded memory, every file listed."""

import hashlib
import os
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from benchmarks.measure import process, script
from cvsi.core.images import MAX_FILE, SUFFIXES, MemoryBudget, Unreadable, contents, decode
from tests.conftest import Workspace, environment, write_queries
from tests.core import malformed_images
from tests.imports import ROOT

SECONDS = 300
MAX_MEMORY = 3 << 30


@pytest.fixture(scope="module")
def malformed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of malformed files, without those that take long to open."""
    folder = tmp_path_factory.mktemp("malformed") / "photos"
    malformed_images.make(folder)
    return folder


def measured(workspace: Workspace, stage: str, *arguments: str) -> str:
    """Run a stage to its end within time and memory; its output on both streams."""
    ended = process([*script(stage), *arguments], workspace.path, **environment(workspace.path))
    sys.stdout.write(f"{stage}: {ended.peak / 2**30:.2f} GiB, {ended.seconds:.0f} s\n")
    assert ended.peak < MAX_MEMORY, f"{stage}: {ended.peak:,} bytes"
    assert ended.seconds < SECONDS, f"{stage}: {ended.seconds:.0f} s"
    return ended.output


def shown(path: str) -> str:
    """A path of the disk as the tables write it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def listed(folder: Path) -> set[str]:
    """Every file of an image suffix below a folder, links included, as the tables name it."""
    paths = set()
    for parent, _, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        paths |= {shown(str(below / name)) for name in names if Path(name).suffix.lower() in SUFFIXES}
    return paths


@pytest.mark.timeout(3 * SECONDS + 300)
def test_a_thousand_malformed_files_are_embedded_or_listed_with_a_reason(
    toy: Workspace, malformed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    for file in malformed.iterdir():
        os.link(file, folder / file.name)
    malformed_images.large(folder)
    malformed_images.beside(folder, tmp_path / "out")
    commands = tmp_path / "commands"  # a Ghostscript that leaves a trace
    commands.mkdir()
    for name in ("gs", "magick", "convert"):
        (commands / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    write_queries(folder, {"reference": "red.png", "instruction": "is green", "targets": ["green.png"]})
    captioner = toy.params()["datasets"]["toy"]["captioner"] | {"n": 1, "max_tokens": 3}
    toy.params(
        datasets__toy__bad_images="drop", datasets__toy__missing_images="drop", datasets__toy__captioner=captioner,
        compute={"workers": 1, "caption_batch": 32, "image_batch": 32, "block_batches": 16},
    )  # fmt: skip
    printed = measured(toy, "index", "toy")
    assert "1 .txt (notes.txt)" in printed and "\x1b" not in printed
    images, dropped = (pl.read_parquet(f"cache/toy/index/{name}.parquet") for name in ("images", "dropped"))
    everything = listed(folder)
    assert len(everything) > 1000
    assert sorted([*images["path"], *dropped["path"]]) == sorted(everything)
    assert images.height > 350 and dropped.height > 200
    assert (dropped["reason"].str.len_chars() > 3).all()
    reasons = dict(dropped.rows())
    assert reasons["bomb-50000.png"] == reasons["bomb-canvas.gif"] == "more than 120,000,000 pixels"
    assert reasons["away.png"] == "a link that leaves the dataset's folder"
    assert reasons["dead.png"] == "no such file"
    assert "is not plain text" in reasons["new\nline.png"] and "is not plain text" in reasons[r"\xff\xfe.png"]
    assert reasons["RGB-EPS." + next(p for p in reasons if p.startswith("RGB-EPS")).split(".")[1]] == "not an image"
    for name in (
        "large-flat.jpg",
        "large-wide.gif",
        "large-canvas.webp",
        "large-coded.avif",
        "narrow\u202fspace.png",
        "frames-1000.gif",
    ):
        assert name in set(images["path"]), reasons.get(name)
    measured(toy, "captions", "toy")
    captions = pl.read_parquet("cache/toy/captions/*.parquet")
    assert captions["image_id"].equals(images["image_id"])
    measured(toy, "gallery_vectors", "toy", "tiny")
    vectors = pl.read_parquet("cache/toy/tiny/gallery_vectors/*.parquet")
    assert vectors["image_id"].equals(images["image_id"])
    lengths = np.linalg.norm(vectors["image"].to_numpy().astype(np.float32), axis=1)
    assert np.allclose(lengths, 1, atol=1e-2)
    assert not (tmp_path / "ran").exists()


def test_the_same_seed_makes_the_same_files(malformed: Path, tmp_path: Path) -> None:
    malformed_images.make(tmp_path / "again")
    digests = [
        {file.name: hashlib.sha256(file.read_bytes()).digest() for file in sorted(folder.iterdir())}
        for folder in (malformed, tmp_path / "again")
    ]
    assert digests[0] == digests[1] and len(digests[0]) > 1000


MANY_CORES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import ImageOps
from cvsi.core.images import contents, use
def padded(image):
    side = max(image.size)  # a square is more than any preprocessing makes
    return ImageOps.expand(image, ((side - image.width) // 2, (side - image.height) // 2))
def size(path):
    with contents(path) as data:
        return use(data, lambda image: padded(image).size)
with ThreadPoolExecutor(64) as pool:
    print(len(list(pool.map(size, sorted(Path(sys.argv[1]).iterdir())))))
"""


def test_many_threads_take_no_more_memory_than_the_largest_image(tmp_path: Path) -> None:
    malformed_images.large(tmp_path)
    ended = process([sys.executable, "-c", MANY_CORES, str(tmp_path)], ROOT)
    assert int(ended.output) == 7 and ended.peak < 1_900_000_000 and ended.seconds < SECONDS


def test_a_reservation_waits_for_free_memory_and_one_larger_than_the_budget_runs_alone() -> None:
    budget, reserved, most = MemoryBudget(10), [0], [0]
    lock = threading.Lock()

    def work(amount: int) -> None:
        with budget.reserve(amount):
            with lock:
                reserved[0] += min(amount, 10)
                most[0] = max(most[0], reserved[0])
            threading.Event().wait(0.001)
            with lock:
                reserved[0] -= min(amount, 10)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, [3, 4, 99, 1, 10, 7] * 20))
    assert 7 <= most[0] <= 10


def test_a_reservation_ends_with_an_error() -> None:
    budget = MemoryBudget(10)
    for _ in range(3):
        with pytest.raises(KeyError), budget.reserve(8):
            raise KeyError
    with budget.reserve(10):
        pass


@pytest.mark.parametrize(
    "name",
    ["bomb-scans.jpg", "bomb-comment.gif", "bomb-tile.tif", "bomb-text.png", "1x10000.png", "bomb-size.heic",
     "bomb-size.avif", "bomb-coded.avif", "large-size.heic", "small-size.heic"],
)  # fmt: skip
def test_a_bomb_is_refused_within_a_second(malformed: Path, name: str) -> None:
    data = (malformed / name).read_bytes()
    before = resource.getrusage(resource.RUSAGE_THREAD)
    with pytest.raises(Unreadable):
        decode(data)
    after = resource.getrusage(resource.RUSAGE_THREAD)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_file_too_large_to_read_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(Unreadable, match="a file of more than 256 MiB"), contents(tmp_path / "sparse.png"):
        pass


def test_an_image_with_broken_exif_data_stays_as_it_was_stored(malformed: Path) -> None:
    for file in malformed.glob("torn-exif-*.jpg"):
        assert sorted(decode(file.read_bytes()).size) == sorted(malformed_images.SIZE)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientations_are_pillows(malformed: Path, kind: str, turn: int) -> None:
    from PIL import ImageOps

    file = malformed / f"turned-{turn}.{kind}"
    with Image.open(file) as image:
        wanted = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.asarray(decode(file.read_bytes())), np.asarray(wanted))
