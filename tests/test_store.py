"""The store: rows by key and recipe, several writers, the first file by name, damage."""

import threading
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvsi.errors import CvsiError
from cvsi.store import Shelf, digest

SCHEMA = pa.schema({"key": pa.string(), "value": pa.string()})
RECIPE = {"model": "toy"}


def rows(**values: str) -> pa.Table:
    return pa.table({"key": list(values), "value": list(values.values())}, schema=SCHEMA)


def shelf(path: Path) -> Shelf:
    return Shelf(path, "things", RECIPE, SCHEMA)


def test_missing_then_added_then_taken_in_order(tmp_path: Path) -> None:
    first = shelf(tmp_path)
    wanted = pl.Series(["a", "b", "c"])
    assert first.missing(wanted).to_list() == ["a", "b", "c"]
    first.add(rows(b="2"))
    first.add(rows(c="3", a="1"))
    assert first.missing(wanted).is_empty()
    again = shelf(tmp_path)
    assert again.take(pl.Series(["c", "a", "b", "c"]))["value"].to_pylist() == ["3", "1", "2", "3"]
    assert again.take(pl.Series([], dtype=pl.String)).num_rows == 0


def test_a_row_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nowhere"):
        shelf(tmp_path).take(pl.Series(["nowhere"]))


def test_the_first_file_by_name_counts(tmp_path: Path) -> None:
    shelf(tmp_path).add(rows(a="first"))
    late = Shelf(tmp_path, "things", RECIPE, SCHEMA)
    late.add(rows(a="second", b="2"))
    for reader in (late, shelf(tmp_path)):
        assert reader.take(pl.Series(["a", "b"]))["value"].to_pylist() == ["first", "2"]


def test_recipes_do_not_mix(tmp_path: Path) -> None:
    shelf(tmp_path).add(rows(a="1"))
    other = Shelf(tmp_path, "things", {"model": "other"}, SCHEMA)
    assert other.missing(pl.Series(["a"])).to_list() == ["a"]


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    def write(name: str) -> None:
        mine = shelf(tmp_path)
        for number in range(10):
            mine.add(rows(**{f"{name}{number}": name}))

    threads = [threading.Thread(target=write, args=(name,)) for name in "pqrs"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = pl.Series([f"{name}{number}" for name in "pqrs" for number in range(10)])
    assert shelf(tmp_path).take(keys)["value"].to_pylist() == [key[0] for key in keys]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    mine = shelf(tmp_path)
    mine.add(rows(**{f"key{number}": "value" * 50 for number in range(200)}))
    file = next(mine.folder.glob("*.parquet"))
    data = bytearray(file.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        data[40] ^= 0xFF
    file.write_bytes(bytes(data))
    with pytest.raises(CvsiError, match="damaged store file"):
        shelf(tmp_path).take(pl.Series(["key7"]))


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
