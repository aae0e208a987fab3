"""A workspace with labelled queries and random vectors, in which sweeps are compared with the definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvsi.core import schema
from tests.conftest import Workspace

WIDTH, IMAGES, COPIES = 24, 700, 200
SPLITS = {"val": 37, "dev": 20, "hidden": 5}
Row = dict[str, Any]
World = Callable[[str], Workspace]


def units(random: np.random.Generator, rows: int) -> np.ndarray:
    matrix = random.normal(size=(rows, WIDTH))
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), dtype=np.float32)


def column(matrix: np.ndarray, kind: Any = np.float32) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(kind).reshape(-1)), matrix.shape[1])


def query_rows(random: np.random.Generator, ids: list[str], form: str) -> list[Row]:
    """Queries of which some have their main target excluded, and for CIRR's format a group."""
    rows = []
    for split, number in SPLITS.items():
        for query in range(number):
            chosen = [ids[index] for index in random.choice(len(ids), 9, replace=False)]
            targets = chosen[1:2] if form == "cirr" else chosen[1 : 2 + query % 4]
            plain = split == "hidden" or query % 7 != 3
            rows.append(
                {
                    "query_id": str(query), "split": split, "reference_id": chosen[0], "instruction": "is red",
                    "target_ids": [] if split == "hidden" else targets,
                    "exclude_ids": [chosen[0], *([] if plain else targets[:1])] if form == "cirr" or query % 2 else [],
                    "group_ids": chosen[:6] if form == "cirr" and (plain or query % 2) else [],
                    "aspects": [],
                }
            )  # fmt: skip
    return rows


@pytest.fixture
def world(toy: Workspace) -> World:
    """Writes an index with two labelled splits and a hidden one, and vectors in which many images are the same."""

    def make(form: str) -> Workspace:
        random = np.random.default_rng(11)
        toy.params(datasets__toy__format=form)
        ids = [f"{1000 + 3 * number}" for number in range(IMAGES)]
        cache = toy.path / "cache/toy"
        (cache / "index").mkdir(parents=True)
        columns = [ids, ids, ["0" * 64] * IMAGES, [4] * IMAGES, [4] * IMAGES, [True] * IMAGES]
        pq.write_table(pa.table(columns, schema=schema.IMAGES), cache / "index/images.parquet")
        rows = query_rows(random, ids, form)
        pq.write_table(pa.Table.from_pylist(rows, schema.QUERIES), cache / "index/queries.parquet")
        copied = np.arange(IMAGES)
        copied[random.permutation(IMAGES)[:COPIES]] = random.integers(IMAGES, size=COPIES)
        gallery = {part: units(random, IMAGES)[copied] for part in schema.GALLERY_PARTS}
        folder = cache / "tiny/gallery_vectors"
        folder.mkdir(parents=True)
        for number, start in enumerate(range(0, IMAGES, 300)):
            here = slice(start, start + 300)
            parts = {part: column(matrix[here], np.float16) for part, matrix in gallery.items()}
            pq.write_table(pa.table({"image_id": ids[here]} | parts), folder / f"part-{number}.parquet")
        folder = cache / "tiny/query_vectors"
        folder.mkdir(parents=True)
        keys = {name: [row[name] for row in rows] for name in ("query_id", "split")}
        aims = [ids.index((row["target_ids"] or ids[:1])[-1]) for row in rows]
        parts = {
            part: column(gallery["image"][aims] + (1 + number / 3) * units(random, len(rows)))
            for number, part in enumerate(schema.QUERY_PARTS)
        }
        pq.write_table(pa.table(keys | parts), folder / "all.parquet")
        return toy

    return make
