"""The Parquet writer, and outputs that are complete or absent."""

import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvsi.core import tables
from cvsi.core.errors import CvsiError

SCHEMA = pa.schema({"name": pa.string(), "list": pa.list_(pa.string())})
ROWS = st.lists(st.tuples(st.text(max_size=5), st.lists(st.text(max_size=3), max_size=3)), max_size=20)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@given(rows=ROWS, cut=st.integers(0, 20))
def test_equal_rows_give_equal_bytes_from_any_table(
    tmp_path: Path, rows: list[tuple[str, list[str]]], cut: int
) -> None:
    names, lists = [name for name, _ in rows], [values for _, values in rows]
    plain = pa.table({"name": names, "list": lists}, schema=SCHEMA)
    pieces = pa.concat_tables([plain.slice(0, cut), plain.slice(cut)]).replace_schema_metadata({"from": "elsewhere"})
    frame = pl.DataFrame({"list": lists, "name": names}, schema={"list": pl.List(pl.String), "name": pl.String})
    written = []
    for number, table in enumerate((plain, pieces, frame.to_arrow())):
        with tables.output("stage", f"set{number}") as out:
            out.shard(table, SCHEMA)
        written.append(next(Path(f"cache/set{number}/stage").glob("*.parquet")).read_bytes())
    assert written[0] == written[1] == written[2]
    assert pq.read_table(pa.BufferReader(written[0])).equals(plain)


def test_an_output_is_absent_until_it_is_complete() -> None:
    with tables.output("stage", "toy", recipe={"model": "m"}) as out:
        out.json("a.json", {"b": 1})
        assert not Path("cache/toy/stage").exists()
    assert sorted(path.name for path in Path("cache/toy/stage").iterdir()) == ["a.json", "provenance.json"]


def test_a_failure_keeps_the_old_output_and_leaves_nothing_incomplete() -> None:
    with tables.output("stage", "toy") as out:
        out.json("a.json", 1)
    with pytest.raises(RuntimeError), tables.output("stage", "toy") as out:
        out.json("a.json", 2)
        raise RuntimeError
    assert Path("cache/toy/stage/a.json").read_text() == "1\n"
    assert [path.name for path in Path("cache/toy").iterdir()] == ["stage"]


def test_shards_sort_in_row_order_and_a_missing_stage_is_named() -> None:
    with tables.output("stage", "toy", "tiny") as out:
        for number in range(12):
            out.shard(pa.table({"name": [str(number)], "list": [[]]}, schema=SCHEMA), SCHEMA)
    assert tables.whole("stage", "toy", "tiny")["name"].to_pylist() == [str(number) for number in range(12)]
    with pytest.raises(CvsiError, match="run the stage captions first"):
        tables.whole("captions", "toy")


def test_a_damaged_table_is_one_line() -> None:
    with tables.output("index", "toy") as out:
        out.table("images.parquet", pa.table({"name": ["a"], "list": [[]]}, schema=SCHEMA), SCHEMA)
    file = Path("cache/toy/index/images.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CvsiError, match=r"images\.parquet: not a readable Parquet file"):
        tables.read("index", "toy", "images.parquet")


@pytest.mark.parametrize("version", ["2", "x", "-1"])
def test_a_table_of_a_later_schema_is_one_line(version: str) -> None:
    with tables.output("captions", "toy") as out:
        out.shard(pa.table({"name": ["a"], "list": [[]]}, schema=SCHEMA), SCHEMA)
    file = Path("cache/toy/captions/part-00000.parquet")
    pq.write_table(pq.read_table(file).replace_schema_metadata({"cvsi.schema": version}), file)
    words = rf"part-00000.parquet: schema version {version}, .* update cvsi"
    with pytest.raises(CvsiError, match=words):
        tables.read("captions", "toy", file.name)
    with pytest.raises(CvsiError, match=words):
        tables.whole("captions", "toy")
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    assert tables.whole("captions", "toy")["name"].to_pylist() == ["a"]


def test_an_output_carries_its_recipe_and_version() -> None:
    with tables.output("scores", "toy", recipe={"fusion": {"query": 1}}):
        pass
    folder = Path("cache/toy/scores")
    file = folder / "provenance.json"
    assert json.loads(file.read_text()) == {"schema": 1, "fusion": {"query": 1}}
    assert tables.provenance(folder) == {"fusion": {"query": 1}}
    for text, words in (('{"schema": 2}', "schema version 2"), ("[]", "not a JSON object"), ("{", "not readable JSON")):
        file.write_text(text)
        with pytest.raises(CvsiError, match=words):
            tables.provenance(folder)
    file.unlink()
    assert tables.provenance(folder) == {}


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"), tables.output("stage", "toy") as out:
        out.json("a.json", float("nan"))
    assert not Path("cache/toy/stage").exists()
