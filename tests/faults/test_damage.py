"""Damaged files: a store's row is computed again, an output is one line or read right, never anything else."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import polars as pl
import pyarrow as pa
import pytest

from cvsi import tables
from cvsi.errors import CvsiError
from cvsi.schema import CAPTIONS, gallery_vectors
from cvsi.steps import Step, Work, fill
from cvsi.store import Shelf
from tests.conftest import Workspace, environment, repro
from tests.faults import killing
from tests.faults.chain import CASES
from tests.faults.damage import WAYS, flipped, harm, ways
from tests.faults.stand import Stand, right_or_a_line

SCHEMA = pa.schema({"key": pa.string(), "value": pa.string()})
WANTED = pl.DataFrame({"key": [f"key {number}" for number in range(40)]})


def work(block: pl.DataFrame) -> pa.Table:
    return pa.table({"key": block["key"].to_list(), "value": [key * 3 for key in block["key"]]}, schema=SCHEMA)


def filled(store: Path) -> pa.Table:
    """The wanted rows, from a store that lacks none afterwards."""
    shelf = Shelf(store, "things", {"model": "toy"}, SCHEMA)
    fill(shelf, Step("thing", "to do", "done", 20, lambda worker: Work(work)), WANTED)
    return shelf.take(WANTED["key"])


def test_every_byte_of_a_store_file_flipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = filled(tmp_path)
    first, _ = sorted(tmp_path.glob("things/*/*.parquet"))
    data, shelf = first.read_bytes(), first.parent
    kept = {file.name: file.read_bytes() for file in shelf.glob("*.parquet")}
    random = Random(1)
    harms = [flipped(data, at, random.randrange(8)) for at in range(len(data))]
    harms += [data[:length] for length in range(0, len(data), 40)] + list(ways(data, random).values())
    for bad in harms:
        first.write_bytes(bad)
        capsys.readouterr()
        assert filled(tmp_path).equals(right)
        if bad != data:
            assert "damaged, put aside" in capsys.readouterr().err
            assert (shelf / "damaged" / first.name).read_bytes() == bad
        shutil.rmtree(shelf)
        shelf.mkdir()
        for name, content in kept.items():
            (shelf / name).write_bytes(content)


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
def test_every_byte_of_an_output_flipped(make: Callable[[], tuple[pa.Table, pa.Schema]], tmp_path: Path) -> None:
    table, schema = make()
    file = tmp_path / "part-00000.parquet"
    tables.write_parquet(table.select(schema.names).cast(schema), file)
    right, data, random = tables.read_file(file), file.read_bytes(), Random(3)
    harms = [flipped(data, at, random.randrange(8)) for at in range(len(data))]
    harms += [data[:length] for length in range(0, len(data), 40)] + list(ways(data, random).values())
    lines = 0
    for bad in harms:
        file.write_bytes(bad)
        for read in (tables.read_file, in_parts):
            try:
                # What only describes a value, a column's statistics say, is not read: the table is the same then.
                assert read(file).equals(right)
            except CvsiError as error:
                assert str(error).startswith(str(file))
                lines += 1
    assert lines > len(harms)


def in_parts(file: Path) -> pa.Table:
    return pa.concat_tables(tables.parts(file))


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
    put.clear()
    put.again()
    put.rows, random = put.stored(), Random(seed)
    for way in WAYS:
        file = random.choice([file for kind in put.case.kinds for file in (put.store / kind).glob("*/*.parquet")])
        done = f"seed {seed}: {harm(file, way, random)}"
        shutil.rmtree(put.output)
        shutil.rmtree(put.memos)
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
