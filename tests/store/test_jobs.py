"""Filling the store: only what is missing, in fixed blocks, with the right words, also after a stop in the middle."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import polars as pl
import pyarrow as pa
import pytest
import torch

from cvsi.core.errors import CvsiError
from cvsi.store.jobs import Step, Work, fill
from cvsi.store.rows import Shelf

SCHEMA = pa.schema({"key": pa.string(), "value": pa.string()})


class Counting:
    """A computation that remembers its blocks and writes the whole block into each row, and may stop at one."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.loads, self.blocks, self.stop_at = 0, list[list[str]](), stop_at

    def load(self, worker: int) -> Work:
        self.loads += 1
        return Work(self)

    def __call__(self, block: pl.DataFrame) -> pa.Table:
        if len(self.blocks) == self.stop_at:
            raise KeyboardInterrupt
        keys = block["key"].to_list()
        self.blocks.append(keys)
        return pa.table({"key": keys, "value": ["+".join(keys)] * len(keys)}, schema=SCHEMA)


def wanted(number: int) -> pl.DataFrame:
    return pl.DataFrame({"key": [f"k{place}" for place in range(number)]})


def run(folder: Path, work: Counting, number: int, rows: int | None = None) -> Shelf:
    shelf = Shelf(folder, "things", {}, SCHEMA)
    fill(shelf, Step("image", "to caption", "captioned", 3, work.load), wanted(number), rows)
    return shelf


def test_blocks_are_fixed_runs_and_words_say_what_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Counting()
    run(tmp_path, work, 7, rows=9)
    assert work.blocks == [["k0", "k1", "k2"], ["k3", "k4", "k5"], ["k6"]]
    out = capsys.readouterr().out
    assert "9 images (7 distinct): 0 in the store, 7 to caption" in out
    assert "7 images captioned in" in out and "a second" in out


def test_rows_that_wait_come_with_a_later_block_or_at_the_end(tmp_path: Path) -> None:
    class Pairs:
        """Two rows at a time; one that is left over waits."""

        def __init__(self) -> None:
            self.waiting, self.sizes = list[str](), list[int]()

        def compute(self, block: pl.DataFrame) -> pa.Table:
            self.waiting += block["key"].to_list()
            return self.out(len(self.waiting) // 2 * 2)

        def rest(self) -> pa.Table:
            return self.out(len(self.waiting))

        def out(self, number: int) -> pa.Table:
            keys, self.waiting = self.waiting[:number], self.waiting[number:]
            self.sizes.append(number)
            return pa.table({"key": keys, "value": keys}, schema=SCHEMA)

    pairs = Pairs()
    shelf = Shelf(tmp_path, "things", {}, SCHEMA)
    step = Step("text", "to embed", "embedded", 3, lambda worker: Work(pairs.compute, rest=pairs.rest))
    fill(shelf, step, wanted(7))
    assert pairs.sizes == [2, 4, 0, 1]
    assert (
        Shelf(tmp_path, "things", {}, SCHEMA).take(wanted(7)["key"])["value"].to_pylist() == wanted(7)["key"].to_list()
    )
    assert len(list(shelf.folder.glob("*.parquet"))) == 3  # nothing is stored for a block whose rows all wait


def test_nothing_missing_loads_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, Counting(), 7)
    again = Counting()
    run(tmp_path, again, 7)
    assert again.loads == 0 and again.blocks == []
    assert "7 images: 7 in the store, 0 to caption" in capsys.readouterr().out


def test_new_rows_alone_are_computed(tmp_path: Path) -> None:
    run(tmp_path, Counting(), 7)
    more = Counting()
    run(tmp_path, more, 10)
    assert more.blocks == [["k7", "k8"], ["k9"]]


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_stopped_run_goes_on_with_the_same_blocks(tmp_path: Path, stop_at: int) -> None:
    whole = run(tmp_path / "whole", Counting(), 8)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Counting(stop_at), 8)
    rest = Counting()
    resumed = run(tmp_path / "stopped", rest, 8)
    assert len(rest.blocks) == 3 - stop_at
    keys = wanted(8)["key"]
    # Each value names its whole block, so equal values mean equal blocks.
    assert resumed.take(keys).equals(whole.take(keys))


def test_workers_share_the_blocks_and_the_rows_are_the_same(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", Counting(), 20)
    workers = [Counting(), Counting(), Counting()]
    seen: list[threading.Thread] = []
    gate = threading.Barrier(3)

    def load(number: int) -> Work:
        def compute(block: pl.DataFrame) -> pa.Table:
            if not workers[number].blocks:
                gate.wait(30)  # all three are at work at once, or this ends in an error
            seen.append(threading.current_thread())
            return workers[number](block)

        return Work(compute)

    shelf = Shelf(tmp_path / "shared", "things", {}, SCHEMA)
    fill(shelf, Step("image", "to caption", "captioned", 3, load, workers=3), wanted(20))
    assert sum(len(worker.blocks) for worker in workers) == 7 and len(set(seen)) == 3
    assert shelf.take(wanted(20)["key"]).equals(alone.take(wanted(20)["key"]))


def test_the_next_block_is_read_before_one_is_computed(tmp_path: Path) -> None:
    seen: list[str] = []

    def ahead(block: pl.DataFrame) -> pl.DataFrame:
        seen.append(f"read {block['key'][0]}")
        return block

    def compute(block: pl.DataFrame) -> pa.Table:
        seen.append(f"compute {block['key'][0]}")
        return pa.table({"key": block["key"].to_list(), "value": block["key"].to_list()}, schema=SCHEMA)

    shelf = Shelf(tmp_path, "things", {}, SCHEMA)
    fill(shelf, Step("image", "to caption", "captioned", 3, lambda worker: Work(compute, ahead)), wanted(7))
    assert seen == ["read k0", "read k3", "compute k0", "read k6", "compute k3", "compute k6"]
    assert shelf.take(wanted(7)["key"])["value"].to_pylist() == wanted(7)["key"].to_list()


def test_what_goes_wrong_while_storing_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, work = Shelf(tmp_path, "things", {}, SCHEMA), Counting()
    stored = shelf.add
    calls = 0

    def add(rows: pa.Table) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device", "things.parquet")
        stored(rows)

    monkeypatch.setattr(shelf, "add", add)
    with pytest.raises(OSError, match="No space left"):
        fill(shelf, Step("image", "to caption", "captioned", 3, work.load), wanted(20))
    # What was stored before is kept, and nothing is computed far beyond what could not be stored.
    assert shelf.missing(wanted(20)["key"]).len() == 17 and len(work.blocks) <= 3


def test_an_error_of_one_worker_stops_all(tmp_path: Path) -> None:
    failed = threading.Event()

    def load(number: int) -> Work:
        def compute(block: pl.DataFrame) -> pa.Table:
            if number:
                failed.set()
                raise CvsiError("photo.png: gone")
            assert failed.wait(30)
            return Counting()(block)

        return Work(compute)

    with pytest.raises(CvsiError, match=r"^photo\.png: gone$"):
        fill(
            Shelf(tmp_path, "things", {}, SCHEMA),
            Step("image", "to caption", "captioned", 1, load, workers=2),
            wanted(40),
        )


def test_running_out_of_gpu_memory_names_the_parameter_to_lower(tmp_path: Path) -> None:
    def fail(block: pl.DataFrame) -> pa.Table:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    step = Step(
        "image", "to caption", "captioned", 3, lambda worker: Work(fail), lower="compute.caption_batch (now 32)"
    )
    with pytest.raises(
        CvsiError, match=r"^out of GPU memory; lower compute\.caption_batch \(now 32\) in params\.yaml$"
    ):
        fill(Shelf(tmp_path, "things", {}, SCHEMA), step, wanted(4))

    def load(worker: int) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CvsiError, match="out of GPU memory while the image model is loaded; choose a lower precision"):
        fill(Shelf(tmp_path, "things", {}, SCHEMA), replace(step, load=load), wanted(4))
