"""A gallery read shard by shard: positions of named images, ids of positions, and vectors held against the index."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvsi.core import parquet, schema, tables
from cvsi.core.errors import CvsiError
from cvsi.evaluation.gallery import Gallery

IDS = [f"image {number}" for number in range(23)]
RANKED = [number % 5 != 3 for number in range(23)]
INSIDE = [name for name, ranked in zip(IDS, RANKED, strict=True) if ranked]


def write_index(names: list[str], ranked: list[bool]) -> None:
    rows = len(names)
    columns = [names, [f"{name}.png" for name in names], ["0" * 64] * rows, [4] * rows, [4] * rows, ranked]
    with tables.output("index", "toy") as out:
        out.table("images.parquet", pa.table(columns, schema=schema.IMAGES), schema.IMAGES)


def write_vectors(parts: list[list[str]]) -> None:
    with tables.output("gallery_vectors", "toy", "tiny") as out:
        for names in parts:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * len(names), dtype=np.float16)), 2)
            table = pa.table({"image_id": names, "image": lists, "caption": lists})
            out.shard(table, schema.gallery_vectors(2, ("image", "caption")))


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_index(IDS, RANKED)
    return tmp_path


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    named=st.lists(st.sampled_from([*IDS, "nobody"])),
    positions=st.lists(st.integers(0, len(INSIDE) - 1)),
    size=st.integers(1, 30),
)
def test_names_and_positions_at_any_size_of_part(named: list[str], positions: list[int], size: int) -> None:
    real = parquet.parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "parts", lambda path, columns: real(path, columns, size))
        gallery = Gallery("toy", pl.Series(named, dtype=pl.String))
        assert gallery.size == len(INSIDE)
        expected = {name: INSIDE.index(name) for name in named if name in INSIDE}
        assert dict(gallery.named.select("image_id", "position").iter_rows()) == expected
        names = gallery.ids(np.array(positions, dtype=np.int64))
        assert names.to_list() == [INSIDE[position] for position in positions]


def test_a_duplicate_id_is_named_when_it_is_needed() -> None:
    write_index(["a", "b", "a", "c"], [True] * 4)
    with pytest.raises(CvsiError, match=r"images\.parquet: duplicate image_id 'a'"):
        Gallery("toy", pl.Series(["c", "a"]))
    gallery = Gallery("toy", pl.Series(["c"]))
    with pytest.raises(CvsiError, match="duplicate image_id 'a'"):
        gallery.ids(np.array([0, 1, 2]))


@pytest.mark.parametrize("cuts", [[19], [1, 18], [5, 0, 14], [9, 10]])
def test_vectors_in_any_files_are_held_against_the_index(cuts: list[int]) -> None:
    starts = np.cumsum([0, *cuts])
    write_vectors([INSIDE[start : start + cut] for start, cut in zip(starts, cuts, strict=False)])
    names = [
        name for shard in Gallery("toy", pl.Series(["x"])).shards("tiny") for name in shard["image_id"].to_pylist()
    ]
    assert names == INSIDE


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (INSIDE[:-1], "18 rows, the index has 19 gallery images"),
        ([*INSIDE, "more"], "not in the order of the index"),
        ([*INSIDE[1:], INSIDE[0]], "not in the order of the index"),
    ],
)
def test_other_vectors_are_refused(names: list[str], line: str) -> None:
    write_vectors([names])
    with pytest.raises(CvsiError, match=line):
        list(Gallery("toy", pl.Series(["x"])).shards("tiny"))
