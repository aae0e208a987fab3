"""Damaged files: a stored row is computed again, a damaged output is one line or read correctly, nothing else."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvsi.core import parquet
from cvsi.core.errors import CvsiError
from cvsi.core.params import Compute
from cvsi.core.schema import CAPTIONS, gallery_vectors, per_query
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store
from tests.conftest import Workspace, environment, repro
from tests.faults import killing
from tests.faults.damage import WAYS, damage, damage_file, flip
from tests.faults.stage_harness import StageHarness, correct_or_one_line
from tests.faults.workspace import CASES

SCHEMA = pa.schema({"key": pa.string(), "value": pa.string()})
WANTED = pl.DataFrame({"key": [f"key {number}" for number in range(40)]})
EVERY_BYTE = pytest.param(1, marks=pytest.mark.faults)
PUT_ASIDE = "damaged, put aside; its rows are computed again"


@dataclass(frozen=True)
class ToyJob(RowJob):
    """Two blocks of rows that need no model."""

    kind: ClassVar[str] = "things"
    words: ClassVar[Words] = Words("thing", "to do", "done")
    schema: ClassVar[pa.Schema] = SCHEMA
    block_rows: ClassVar[int] = 20

    def recipe(self) -> dict[str, Any]:
        return {"model": "toy"}

    def wanted(self) -> pl.DataFrame:
        return WANTED

    def load(self, worker: int) -> BlockWorker:
        return BlockWorker(triple)


def triple(block: pl.DataFrame) -> pa.Table:
    return pa.table({"key": block["key"].to_list(), "value": [key * 3 for key in block["key"]]}, schema=SCHEMA)


def filled(store: Path) -> pa.Table:
    """All rows of the job, from a store in which none is missing afterwards."""
    return compute_missing(ToyJob(Compute(), Store(store))).get(WANTED["key"])


def damages(data: bytes, step: int) -> list[bytes]:
    """A file's bytes with one bit flipped, at each `step`-th byte; cut at many lengths; and in each other way."""
    random = Random(1)
    bad = [flip(data, index, random.randrange(8)) for index in range(0, len(data), step)]
    return bad + [data[:length] for length in range(0, len(data), 200)] + list(damage(data, random).values())


@pytest.mark.parametrize("step", [pytest.param(8, marks=pytest.mark.faults), 37])
def test_a_store_file_damaged_anywhere_is_computed_again(
    step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = filled(tmp_path)
    first, _ = sorted(tmp_path.glob("things/*/*.parquet"))
    data, folder = first.read_bytes(), first.parent
    kept = {file.name: file.read_bytes() for file in folder.glob("*.parquet")}
    contents, aside = damages(data, step), 0
    for bad in contents:
        first.write_bytes(bad)
        assert filled(tmp_path).equals(right)
        aside += (folder / "damaged" / first.name).exists()
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in kept.items():
            (folder / name).write_bytes(content)
    # A damaged file may seem to contain other rows than the wanted ones; then it is left where it is.
    assert aside >= 0.95 * len(contents)
    assert PUT_ASIDE in capsys.readouterr().err


def test_a_store_file_with_a_damaged_version_is_computed_again(tmp_path: Path) -> None:
    right = filled(tmp_path)
    first, _ = sorted(tmp_path.glob("things/*/*.parquet"))
    data = first.read_bytes()
    flips = (flip(data, index) for index in range(len(data)))
    first.write_bytes(next(bad for bad in flips if version(bad) not in (None, b"1")))
    assert filled(tmp_path).equals(right)


def version(data: bytes) -> bytes | None:
    """The version that a file's schema names; None where it cannot be read."""
    try:
        return dict(pq.read_schema(pa.BufferReader(data)).metadata).get(b"cvsi.schema")
    except (pa.ArrowException, OSError, TypeError):
        return None


def captions() -> tuple[pa.Table, pa.Schema]:
    lines = [[f"a red circle and {number} squares", "a blue square"] for number in range(60)]
    ids = [str(number) for number in range(60)]
    return pa.table({"image_id": ids, "digest": [f"{n:064d}" for n in range(60)], "captions": lines}), CAPTIONS


def vectors() -> tuple[pa.Table, pa.Schema]:
    random, schema = Random(2), gallery_vectors(8, ["image", "caption"])
    rows = [[random.gauss(0, 1) for _ in range(8)] for _ in range(60)]
    halves = pa.array(rows, pa.list_(pa.float32(), 8)).cast(schema.field("image").type)
    return pa.table({"image_id": [str(number) for number in range(60)], "image": halves, "caption": halves}), schema


def query_values() -> tuple[pa.Table, pa.Schema]:
    ids, ranks = [str(number) for number in range(60)], [[number, number + 7] for number in range(60)]
    values = {"query_id": ids, "split": ["val"] * 60, "target_ranks": ranks, "group_rank": list(range(60))}
    return pa.table(values | {"mAP@10": [100 / (number + 1) for number in range(60)]}), per_query(["mAP@10"])


@pytest.mark.parametrize("step", [EVERY_BYTE, 13])
@pytest.mark.parametrize("make", [captions, vectors, query_values])
def test_an_output_damaged_anywhere_never_gives_other_values(
    make: Callable[[], tuple[pa.Table, pa.Schema]], step: int, tmp_path: Path
) -> None:
    table, schema = make()
    file = tmp_path / "part-00000.parquet"
    parquet.write_parquet(table.select(schema.names).cast(schema), file)
    right, lines = parquet.read_file(file), 0
    contents = damages(file.read_bytes(), step)
    for bad in contents:
        file.write_bytes(bad)
        for read in (parquet.read_file, read_in_parts):
            try:
                result = read(file)
            except CvsiError as error:
                assert str(error).startswith(str(file))
                lines += 1
                continue
            # A footer has no checksum: damaged, it may name other columns or rows, which no stage takes for these.
            alike = result.schema == right.schema and result.num_rows == right.num_rows
            assert not alike or result.equals(right)
    assert lines > len(contents)


def read_in_parts(file: Path) -> pa.Table:
    parts = list(parquet.parts(file))
    return pa.concat_tables(parts) if parts else pa.table({})


READS = {  # the stage, and the outputs of others that it reads
    "captions": ["cache/demo/index/images.parquet"],
    "edits": ["cache/demo/index/queries.parquet", "cache/demo/captions"],
    "gallery_vectors": ["cache/demo/index/images.parquet", "cache/demo/captions"],
    "query_vectors": ["cache/demo/index/queries.parquet", "cache/demo/edits"],
    "scores": ["cache/demo/tiny/gallery_vectors", "cache/demo/tiny/query_vectors"],
    "report": ["cache/demo/captions", "cache/demo/tiny/gallery_vectors", "cache/demo/tiny/scores/per_query.parquet"],
}


def parquet_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.parquet"))


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", READS)
def test_a_stage_reads_a_damaged_output(harness_of: Callable[[str], StageHarness], stage: str) -> None:
    harness, seed = harness_of(stage), killing.seed()
    harness.expected_rows = harness.stored_rows()
    files = [file for path in READS[stage] for file in parquet_files(harness.workspace.path / path)]
    originals = {file: file.read_bytes() for file in files}
    random = Random(seed)
    for way in WAYS:
        file = random.choice(files)
        shutil.rmtree(harness.output)
        correct_or_one_line(harness, f"seed {seed}: {damage_file(file, way, random)}")
        file.write_bytes(originals[file])
        harness.rerun()
        assert harness.differences() == []


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [case.stage for case in CASES.values() if case.kinds])
def test_a_stage_reads_a_damaged_store_file(harness_of: Callable[[str], StageHarness], stage: str) -> None:
    harness, seed = harness_of(stage), killing.seed()
    harness.keep_own_rows()
    random = Random(seed)
    for way in WAYS:
        kinds = [harness.store / kind for kind in harness.case.kinds]
        file = random.choice([file for kind in kinds for file in kind.glob("*/*.parquet")])
        fault = f"seed {seed}: {damage_file(file, way, random)}"
        shutil.rmtree(harness.output)
        process = harness.start()
        _, err = process.communicate()
        assert process.returncode == 0, f"{fault}: {err}"
        assert err.count(PUT_ASIDE) == len(err.splitlines()), f"{fault}: {err}"
        assert harness.differences() == [], fault


@pytest.mark.faults
@pytest.mark.xdist_group("project")
def test_dvc_notices_a_damaged_output_and_makes_it_again(project: Workspace) -> None:
    before = project.bytes_below("demo")
    file = project.path / "cache" / "demo" / "captions" / "part-00000.parquet"
    data = file.read_bytes()
    file.write_bytes(flip(data, len(data) // 2))
    status = subprocess.run(
        ["dvc", "status"], cwd=project.path, env=environment(project.path), text=True, capture_output=True
    )
    assert "captions" in status.stdout
    ran, printed = repro(project)
    assert project.bytes_below("demo") == before, printed
    assert ran in ([], ["captions"])
