"""Damaged files: a store's row is computed again, an output is one line or read right, never anything else."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvsi.core import tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import CAPTIONS, gallery_vectors
from cvsi.store.jobs import Step, Work, fill
from cvsi.store.rows import Shelf
from tests.conftest import Workspace, environment, repro
from tests.faults import killing
from tests.faults.damage import WAYS, flipped, harm, ways
from tests.faults.stage_harness import Stand, right_or_a_line
from tests.faults.workspace import CASES

SCHEMA = pa.schema({"key": pa.string(), "value": pa.string()})
WANTED = pl.DataFrame({"key": [f"key {number}" for number in range(40)]})


def work(block: pl.DataFrame) -> pa.Table:
    return pa.table({"key": block["key"].to_list(), "value": [key * 3 for key in block["key"]]}, schema=SCHEMA)


def filled(store: Path) -> pa.Table:
    """The wanted rows, from a store that lacks none afterwards."""
    shelf = Shelf(store, "things", {"model": "toy"}, SCHEMA)
    fill(shelf, Step("thing", "to do", "done", 20, lambda worker: Work(work)), WANTED)
    return shelf.take(WANTED["key"])


def harms(data: bytes, step: int) -> list[bytes]:
    """A file's bytes with one bit turned over, at each `step`-th byte; cut at many lengths; and in each other way."""
    random = Random(1)
    bad = [flipped(data, at, random.randrange(8)) for at in range(0, len(data), step)]
    return bad + [data[:length] for length in range(0, len(data), 200)] + list(ways(data, random).values())


def test_a_store_file_damaged_anywhere_is_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = filled(tmp_path)
    first, _ = sorted(tmp_path.glob("things/*/*.parquet"))
    data, shelf = first.read_bytes(), first.parent
    kept = {file.name: file.read_bytes() for file in shelf.glob("*.parquet")}
    bads, aside = harms(data, 8), 0
    for bad in bads:
        first.write_bytes(bad)
        assert filled(tmp_path).equals(right)
        aside += (shelf / "damaged" / first.name).exists()
        shutil.rmtree(shelf)
        shelf.mkdir()
        for name, content in kept.items():
            (shelf / name).write_bytes(content)
    # A file may seem to hold other rows than anybody wants; then it is left where it is.
    assert aside >= 0.95 * len(bads)
    assert "damaged, put aside; its rows are computed again" in capsys.readouterr().err


def test_a_store_file_with_a_damaged_version_is_computed_again(tmp_path: Path) -> None:
    right = filled(tmp_path)
    first, _ = sorted(tmp_path.glob("things/*/*.parquet"))
    data = first.read_bytes()
    later = next(bad for bad in (flipped(data, at, 0) for at in range(len(data))) if version(bad) not in (None, b"1"))
    first.write_bytes(later)
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
    random, schema = Random(2), gallery_vectors(8)
    rows = [[random.gauss(0, 1) for _ in range(8)] for _ in range(60)]
    halves = pa.array(rows, pa.list_(pa.float32(), 8)).cast(schema.field("image").type)
    return pa.table({"image_id": [str(number) for number in range(60)], "image": halves, "caption": halves}), schema


@pytest.mark.parametrize("make", [captions, vectors])
def test_an_output_damaged_anywhere_never_gives_other_values(
    make: Callable[[], tuple[pa.Table, pa.Schema]], tmp_path: Path
) -> None:
    table, schema = make()
    file = tmp_path / "part-00000.parquet"
    tables.write_parquet(table.select(schema.names).cast(schema), file)
    right, data, lines = tables.read_file(file), file.read_bytes(), 0
    bads = harms(data, 1)
    for bad in bads:
        file.write_bytes(bad)
        for read in (tables.read_file, in_parts):
            try:
                found = read(file)
            except CvsiError as error:
                assert str(error).startswith(str(file))
                lines += 1
                continue
            # A footer has no checksum: damaged, it may name other columns or rows, which no reader takes for these.
            described = found.schema == right.schema and found.num_rows == right.num_rows
            assert not described or found.equals(right)
    assert lines > len(bads)


def in_parts(file: Path) -> pa.Table:
    found = list(tables.parts(file))
    return pa.concat_tables(found) if found else pa.table({})


READS = {  # the stage, and the outputs of others that it reads
    "captions": ["cache/demo/index/images.parquet"],
    "edits": ["cache/demo/index/queries.parquet", "cache/demo/captions"],
    "gallery_vectors": ["cache/demo/index/images.parquet", "cache/demo/captions"],
    "query_vectors": ["cache/demo/index/queries.parquet", "cache/demo/edits"],
    "scores": ["cache/demo/tiny/gallery_vectors", "cache/demo/tiny/query_vectors"],
    "report": ["cache/demo/captions", "cache/demo/tiny/gallery_vectors"],
}


def parquet(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.glob("*.parquet"))


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", READS)
def test_a_stage_reads_a_damaged_output(stand: Callable[[str], Stand], stage: str) -> None:
    put, seed = stand(stage), killing.seed()
    put.rows = put.stored()
    files = [file for place in READS[stage] for file in parquet(put.workspace.path / place)]
    whole = {file: file.read_bytes() for file in files}
    random = Random(seed)
    for way in WAYS:
        file = random.choice(files)
        shutil.rmtree(put.output)
        right_or_a_line(put, f"seed {seed}: {harm(file, way, random)}")
        file.write_bytes(whole[file])
        put.again()
        assert put.differences() == []


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", [case.stage for case in CASES.values() if case.kinds])
def test_a_stage_finds_a_damaged_store_file(stand: Callable[[str], Stand], stage: str) -> None:
    put, seed = stand(stage), killing.seed()
    put.alone()
    random = Random(seed)
    for way in WAYS:
        file = random.choice([file for kind in put.case.kinds for file in (put.store / kind).glob("*/*.parquet")])
        done = f"seed {seed}: {harm(file, way, random)}"
        shutil.rmtree(put.output)
        shutil.rmtree(put.memos, ignore_errors=True)  # index alone makes one
        process = put.start()
        _, err = process.communicate()
        assert process.returncode == 0, f"{done}: {err}"
        assert err.count("damaged, put aside; its rows are computed again") == len(err.splitlines()), f"{done}: {err}"
        assert put.differences() == [], done


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_a_damaged_memo_of_the_index(stand: Callable[[str], Stand]) -> None:
    put, seed = stand("index"), killing.seed()
    put.again()
    memo = max(put.memos.iterdir(), key=lambda place: place.stat().st_mtime)
    files = sorted(file for file in memo.rglob("*") if file.is_file())
    whole = {file: file.read_bytes() for file in files}
    random = Random(seed)
    for way in WAYS * 2:
        shutil.rmtree(put.output)
        right_or_a_line(put, f"seed {seed}: {harm(random.choice(files), way, random)}")
        for name, content in whole.items():
            name.write_bytes(content)


@pytest.mark.faults
@pytest.mark.xdist_group("project")
def test_dvc_notices_a_damaged_output_and_makes_it_again(project: Workspace) -> None:
    before = project.bytes_below("demo")
    file = project.path / "cache" / "demo" / "captions" / "part-00000.parquet"
    data = file.read_bytes()
    file.write_bytes(flipped(data, len(data) // 2))
    status = subprocess.run(
        ["dvc", "status"], cwd=project.path, env=environment(project.path), text=True, capture_output=True
    )
    assert "captions" in status.stdout
    ran, said = repro(project)
    assert project.bytes_below("demo") == before, said
    assert ran in ([], ["captions"])
