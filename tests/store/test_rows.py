"""The store: rows by key and recipe, several writers, the first file by name, damage."""

import threading
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.store.rows import RowStore

SCHEMA = pa.schema({"key": pa.string(), "value": pa.string()})
RECIPE = {"model": "toy"}


def rows(**values: str) -> pa.Table:
    return pa.table({"key": list(values), "value": list(values.values())}, schema=SCHEMA)


def store(path: Path) -> RowStore:
    return RowStore(path, "things", RECIPE, SCHEMA)


def test_missing_then_added_then_taken_in_order(tmp_path: Path) -> None:
    first = store(tmp_path)
    wanted = pl.Series(["a", "b", "c"])
    assert first.missing(wanted).to_list() == ["a", "b", "c"]
    first.append(rows(b="2"))
    first.append(rows(c="3", a="1"))
    assert first.missing(wanted).is_empty()
    again = store(tmp_path)
    assert again.get(pl.Series(["c", "a", "b", "c"]))["value"].to_pylist() == ["3", "1", "2", "3"]
    assert again.get(pl.Series([], dtype=pl.String)).num_rows == 0


def test_a_row_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        store(tmp_path).get(pl.Series(["nowhere"]))


def test_the_first_file_by_name_counts(tmp_path: Path) -> None:
    store(tmp_path).append(rows(a="first"))
    late = RowStore(tmp_path, "things", RECIPE, SCHEMA)
    late.append(rows(a="second", b="2"))
    for reader in (late, store(tmp_path)):
        assert reader.get(pl.Series(["a", "b"]))["value"].to_pylist() == ["first", "2"]


def test_recipes_do_not_mix(tmp_path: Path) -> None:
    store(tmp_path).append(rows(a="1"))
    other = RowStore(tmp_path, "things", {"model": "other"}, SCHEMA)
    assert other.missing(pl.Series(["a"])).to_list() == ["a"]


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    def write(name: str) -> None:
        mine = store(tmp_path)
        for number in range(10):
            mine.append(rows(**{f"{name}{number}": name}))

    threads = [threading.Thread(target=write, args=(name,)) for name in "pqrs"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = pl.Series([f"{name}{number}" for name in "pqrs" for number in range(10)])
    assert store(tmp_path).get(keys)["value"].to_pylist() == [key[0] for key in keys]
    assert not list(tmp_path.rglob("*.partial"))


def damage(file: Path, kind: str) -> None:
    data = bytearray(file.read_bytes())
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "empty":
        data = bytearray()
    else:
        data[{"flipped": 40, "footer": -60, "end": -1}[kind]] ^= 0xFF
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped", "footer", "end"])
def test_a_damaged_file_is_put_aside_and_its_rows_are_missing(tmp_path: Path, kind: str) -> None:
    mine, keys = store(tmp_path), pl.Series([f"key{number}" for number in range(200)])
    mine.append(rows(**dict.fromkeys(keys, "value" * 50)))
    mine.append(rows(other="sound"))
    (file,) = [file for file in mine.folder.glob("*.parquet") if file.stat().st_size > 1000]
    damage(file, kind)
    late = store(tmp_path)
    (line,) = late.quarantine_corrupt(pl.concat([keys, pl.Series(["other"])]))
    assert line.startswith(f"{mine.folder / 'damaged' / file.name}: damaged, put aside")
    assert late.missing(keys).to_list() == keys.to_list() and late.missing(pl.Series(["other"])).is_empty()
    late.append(rows(**dict.fromkeys(keys, "anew")))
    for reader in (late, store(tmp_path)):
        assert reader.quarantine_corrupt(keys) == [] and reader.get(keys)["value"].to_pylist() == ["anew"] * 200


def test_a_row_of_a_damaged_file_is_found_in_another_one(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path)
    first.append(rows(a="1", b="2"))
    second.append(rows(a="1"))
    damage(min(first.folder.glob("*.parquet")), "flipped")
    late = store(tmp_path)
    assert len(late.quarantine_corrupt(pl.Series(["a", "b"]))) == 1
    assert late.missing(pl.Series(["a", "b"])).to_list() == ["b"]


def test_a_file_that_is_damaged_after_it_was_looked_at_is_one_line(tmp_path: Path) -> None:
    mine = store(tmp_path)
    mine.append(rows(a="1"))
    next(mine.folder.glob("*.parquet")).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(CvsiError, match=r"damaged store file .* run it again"):
        mine.get(pl.Series(["a"]))


def test_files_of_before_are_read_and_checked_by_their_pages(tmp_path: Path) -> None:
    mine = store(tmp_path)
    mine.append(rows(a="1" * 500))
    (file,) = mine.folder.glob("*.parquet")
    old = file.rename(file.with_name(f"{file.name[:20]}-0123456789ab.parquet"))
    late = store(tmp_path)
    assert late.quarantine_corrupt(pl.Series(["a"])) == [] and late.get(pl.Series(["a"]))["value"].to_pylist() == [
        "1" * 500
    ]
    damage(old, "flipped")
    assert len(store(tmp_path).quarantine_corrupt(pl.Series(["a"]))) == 1


def test_a_newer_file_is_one_line_and_one_without_a_version_is_the_first(tmp_path: Path) -> None:
    mine = store(tmp_path)
    mine.append(rows(a="1"))
    (file,) = mine.folder.glob("*.parquet")
    table = pq.read_table(file)
    old = file.with_name(f"{file.name[:20]}-0123456789ab.parquet")
    file.unlink()
    pq.write_table(table.replace_schema_metadata(None), old)
    assert store(tmp_path).get(pl.Series(["a"])).num_rows == 1
    pq.write_table(table.replace_schema_metadata({"cvsi.schema": "2"}), old)
    with pytest.raises(CvsiError, match="schema version 2, this cvsi reads up to 1; update cvsi"):
        store(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_digests_tell_values_apart(left: object, right: object) -> None:
    assert (digest(left) == digest(right)) == (repr_of(left) == repr_of(right))


def repr_of(value: object) -> str:
    """A value's meaning as text, key order aside, told apart from JSON's own: True is not 1."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_of(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_of, value)) + "]"
    return repr(value)
