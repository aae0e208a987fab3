"""An index and random unit vectors of any size, written as the stages write them: what scores reads."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cvsi.core import parquet, schema

FUSION = {"query": {"edited": 0.6, "pseudo": 0.4}, "gallery": {"image": 0.8, "caption": 0.2}}
PARTS = ("edited", "pseudo")


def unit(random: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Random unit vectors [rows, width] float32."""
    matrix = random.standard_normal((rows, width), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix


def column(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix as an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def query_table(random: np.random.Generator, queries: int, width: int, parts: Sequence[str] = PARTS) -> pa.Table:
    """The query parts that the fusion uses, or others, float32."""
    return pa.table({part: column(unit(random, queries, width)) for part in parts})


def gallery_table(random: np.random.Generator, images: int, width: int) -> pa.Table:
    """Both gallery parts, float16."""
    return pa.table({part: column(unit(random, images, width).astype(np.float16)) for part in ("image", "caption")})


def write(
    folder: Path, images: int, queries: int, width: int, form: str = "circo", excluded: bool = False,
    parts: Sequence[str] = PARTS, first: int = 0,
) -> None:  # fmt: skip
    """A workspace with dataset `big`, backbone `tiny`: params.yaml, index, vectors; all queries are labelled.

    The split is `val`; the `first` queries are of split `first`.

    The gallery's vectors repeat after 65,536 images, their numbers moved by one position each time, so that ten
    million are drawn in seconds and equal ones stay few.
    """
    random = np.random.default_rng(0)
    _params(folder, form)
    cache = folder / "cache" / "big"
    (cache / "index").mkdir(parents=True)
    _images(cache / "index" / "images.parquet", images)
    targets = random.integers(images, size=queries)
    references = (targets + 1 + random.integers(images - 1, size=queries)) % images
    lists: dict[str, list[list[str]]] = dict.fromkeys(("group_ids", "aspects"), [[]] * queries)
    lists |= {"target_ids": [[str(number)] for number in targets]}
    lists["exclude_ids"] = [[str(number)] for number in references] if excluded else [[]] * queries
    columns = {
        "query_id": [str(number) for number in range(queries)],
        "split": ["first"] * first + ["val"] * (queries - first),
    }
    columns |= {"reference_id": [str(number) for number in references], "instruction": ["is red"] * queries}
    parquet.write_parquet(pa.table(columns | lists, schema=schema.QUERIES), cache / "index" / "queries.parquet")
    shards = cache / "tiny" / "gallery_vectors"
    shards.mkdir(parents=True)
    block = gallery_table(random, min(images, 1 << 16), width)
    for number, start in enumerate(range(0, images, parquet.SHARD_ROWS)):
        rows = min(parquet.SHARD_ROWS, images - start)
        part = _turned(block.slice(start % len(block), rows), start // len(block))
        shard = part.add_column(0, "image_id", pa.array(_names(start, start + rows)))
        parquet.write_parquet(shard, shards / f"part-{number:05d}.parquet")
    shards = cache / "tiny" / "query_vectors"
    shards.mkdir(parents=True)
    keys = pa.table({name: columns[name] for name in ("query_id", "split")})
    vectors = query_table(random, queries, width, parts)
    for name in vectors.column_names:
        keys = keys.append_column(name, vectors[name])
    parquet.write_parquet(keys, shards / "part-00000.parquet")


def _turned(part: pa.Table, positions: int) -> pa.Table:
    """The vectors with their numbers moved by so many positions."""
    width = part.schema.field(0).type.list_size
    matrices = [part[name].combine_chunks().flatten().to_numpy().reshape(-1, width) for name in part.column_names]
    return pa.table([column(np.roll(matrix, positions, axis=1)) for matrix in matrices], names=part.column_names)


def _params(folder: Path, form: str) -> None:
    """The repository's params.yaml with one more dataset."""
    content = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8"))
    content["datasets"]["big"] = content["datasets"]["demo"] | {"format": form, "fusion": FUSION}
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")


def _names(start: int, end: int) -> list[str]:
    return [str(number) for number in range(start, end)]


def _images(path: Path, images: int) -> None:
    def parts() -> Iterator[pa.Table]:
        for start in range(0, images, parquet.SHARD_ROWS):
            names = _names(start, min(start + parquet.SHARD_ROWS, images))
            rows = len(names)
            columns = [names, [f"{name}.png" for name in names], ["0" * 64] * rows, [4] * rows, [4] * rows]
            yield pa.table([*columns, [True] * rows], schema=schema.IMAGES)

    with pq.ParquetWriter(path, schema.IMAGES, compression="zstd") as writer:
        for part in parts():
            writer.write_table(part)
