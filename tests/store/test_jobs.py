"""Computing missing rows: only those, in fixed blocks, with the right words, also after a stop in the middle."""

import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import polars as pl
import pyarrow as pa
import pytest
import torch

from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.store.executors import EXECUTORS, check_executor
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import RowStore, Store

SCHEMA = pa.schema({"key": pa.string(), "value": pa.string()})


def wanted(number: int) -> pl.DataFrame:
    return pl.DataFrame({"key": [f"k{index}" for index in range(number)]})


class Counting:
    """A computation that remembers its blocks and writes the whole block into each row, and may stop at one."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.loads, self.blocks, self.stop_at = 0, list[list[str]](), stop_at

    def load(self, worker: int) -> BlockWorker:
        self.loads += 1
        return BlockWorker(self)

    def __call__(self, block: pl.DataFrame) -> pa.Table:
        if len(self.blocks) == self.stop_at:
            raise KeyboardInterrupt
        keys = block["key"].to_list()
        self.blocks.append(keys)
        return pa.table({"key": keys, "value": ["+".join(keys)] * len(keys)}, schema=SCHEMA)


@dataclass(frozen=True)
class ToyJob(RowJob):
    """Rows of a toy kind; `loader` is called for each worker."""

    kind: ClassVar[str] = "things"
    words: ClassVar[Words] = Words("image", "to caption", "captioned")

    rows_wanted: pl.DataFrame
    loader: Callable[[int], BlockWorker]
    block: int = 3
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    @property
    def block_rows(self) -> int:
        return self.block

    @property
    def memory_advice(self) -> str:
        return "compute.caption_batch (now 32)"

    def recipe(self) -> dict[str, Any]:
        return self.facts

    def wanted(self) -> pl.DataFrame:
        return self.rows_wanted

    def load(self, worker: int) -> BlockWorker:
        return self.loader(worker)


def job(
    folder: Path, loader: Callable[[int], BlockWorker], rows: pl.DataFrame, block: int = 3, **compute: Any
) -> ToyJob:
    return ToyJob(Compute(**compute), Store(folder), rows, loader, block)


def run(folder: Path, work: Counting, number: int) -> RowStore:
    return compute_missing(job(folder, work.load, wanted(number)))


def test_blocks_are_fixed_runs_and_messages_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Counting()
    compute_missing(job(tmp_path, work.load, pl.concat([wanted(7), wanted(2)])))
    assert work.blocks == [["k0", "k1", "k2"], ["k3", "k4", "k5"], ["k6"]]
    out = capsys.readouterr().out
    assert "9 images (7 distinct): 0 in the store, 7 to caption" in out
    assert "7 images captioned in" in out and "a second" in out


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
def test_a_stopped_run_continues_with_the_same_blocks(tmp_path: Path, stop_at: int) -> None:
    complete = run(tmp_path / "complete", Counting(), 8)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Counting(stop_at), 8)
    rest = Counting()
    resumed = run(tmp_path / "stopped", rest, 8)
    assert len(rest.blocks) == 3 - stop_at
    keys = wanted(8)["key"]
    # Each value names its whole block, so equal values mean equal blocks.
    assert resumed.get(keys).equals(complete.get(keys))


def test_workers_share_the_blocks_and_the_rows_are_the_same(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", Counting(), 20)
    workers = [Counting(), Counting(), Counting()]
    threads: list[threading.Thread] = []
    gate = threading.Barrier(3)

    def load(number: int) -> BlockWorker:
        def compute(block: pl.DataFrame) -> pa.Table:
            if not workers[number].blocks:
                gate.wait(30)  # all three compute at once, or this ends in an error
            threads.append(threading.current_thread())
            return workers[number](block)

        return BlockWorker(compute)

    shared = compute_missing(job(tmp_path / "shared", load, wanted(20), workers=3))
    assert sum(len(worker.blocks) for worker in workers) == 7 and len(set(threads)) == 3
    assert shared.get(wanted(20)["key"]).equals(alone.get(wanted(20)["key"]))


def test_the_next_block_is_read_before_one_is_computed(tmp_path: Path) -> None:
    events: list[str] = []

    def prefetch(block: pl.DataFrame) -> pl.DataFrame:
        events.append(f"read {block['key'][0]}")
        return block

    def compute(block: pl.DataFrame) -> pa.Table:
        events.append(f"compute {block['key'][0]}")
        return pa.table({"key": block["key"].to_list(), "value": block["key"].to_list()}, schema=SCHEMA)

    rows = compute_missing(job(tmp_path, lambda worker: BlockWorker(compute, prefetch), wanted(7)))
    assert events == ["read k0", "read k3", "compute k0", "read k6", "compute k3", "compute k6"]
    assert rows.get(wanted(7)["key"])["value"].to_pylist() == wanted(7)["key"].to_list()


def test_an_error_while_storing_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, append, calls = Counting(), RowStore.append, 0

    def failing(rows: RowStore, table: pa.Table) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device", "things.parquet")
        append(rows, table)

    monkeypatch.setattr(RowStore, "append", failing)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, work, 20)
    # Earlier blocks are kept, and nothing is computed far beyond the block that could not be stored.
    stored = RowStore(tmp_path, "things", {}, SCHEMA)
    assert stored.missing(wanted(20)["key"]).len() == 17 and len(work.blocks) <= 3


def test_an_error_of_one_worker_stops_all(tmp_path: Path) -> None:
    failed = threading.Event()

    def load(number: int) -> BlockWorker:
        def compute(block: pl.DataFrame) -> pa.Table:
            if number:
                failed.set()
                raise CvsiError("photo.png: gone")
            assert failed.wait(30)
            return Counting()(block)

        return BlockWorker(compute)

    with pytest.raises(CvsiError, match=r"^photo\.png: gone$"):
        compute_missing(job(tmp_path, load, wanted(40), block=1, workers=2))


def test_running_out_of_gpu_memory_names_the_parameter_to_lower(tmp_path: Path) -> None:
    def fail(block: pl.DataFrame) -> pa.Table:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(
        CvsiError, match=r"^out of GPU memory; lower compute\.caption_batch \(now 32\) in params\.yaml$"
    ):
        compute_missing(job(tmp_path, lambda worker: BlockWorker(fail), wanted(4)))

    def load(worker: int) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CvsiError, match="out of GPU memory while the image model is loaded; choose a lower precision"):
        compute_missing(job(tmp_path, load, wanted(4)))


def test_an_unknown_executor_or_setting_is_one_line() -> None:
    with pytest.raises(CvsiError) as error:
        check_executor(Compute(executor="slurm"))
    assert str(error.value).startswith("params.yaml: compute.executor: unknown executor 'slurm'; there are: local")
    with pytest.raises(CvsiError, match=r"^params\.yaml: compute\.executor\.gpus: unknown key$"):
        check_executor(Compute(executor={"kind": "local", "gpus": 2}))
    assert check_executor(Compute())[0] is EXECUTORS.get("local", "")


def load_doubled(worker: int) -> BlockWorker:
    return BlockWorker(lambda block: pa.table({"key": block["key"], "value": block["key"] + block["key"]}))


def test_a_job_can_be_sent_to_another_process(tmp_path: Path) -> None:
    original = job(tmp_path, load_doubled, wanted(4))
    copy: ToyJob = pickle.loads(pickle.dumps(original))
    assert copy.load(0).compute(wanted(2)).equals(original.load(0).compute(wanted(2)))
    assert copy.rows().folder == original.rows().folder


def test_one_table_lists_the_version_of_every_kind() -> None:
    assert all(isinstance(version, int) and version >= 1 for version in CODE_VERSIONS.values())
