"""The tables of earlier stages, written directly: a test of one stage scans no folder and loads no other model.

Paths are relative to the working directory, as in the stages.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image

from cvsi.core import tables
from cvsi.core.schema import CAPTIONS, EDITS, GALLERY_PARTS, IMAGES, QUERIES
from cvsi.core.vector_columns import column
from tests.conftest import COLOURS

# What the demo's captioner writes about the toy dataset's pictures, more or less.
DISC_CAPTIONS = {
    f"{colour}.png": [
        f"a {colour} circle on a grey background", f"a {colour} circle", f"one {colour} circle on grey",
        f"a picture of a {colour} circle", f"a {colour} circle on a plain grey background",
    ]
    for colour in COLOURS
}  # fmt: skip


def write_index(name: str = "toy", root: str = "photos") -> None:
    """The index of a dataset of format `folder`: every PNG file, and the queries of `queries.jsonl`."""
    files = sorted(Path(root).glob("*.png"))
    images = [
        {"image_id": file.name, "path": file.name, "digest": hashlib.sha256(file.read_bytes()).hexdigest()}
        | dict(zip(("width", "height"), Image.open(file).size, strict=True))
        | {"in_gallery": True}
        for file in files
    ]
    lines = (Path(root) / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    queries = [
        {
            "query_id": str(number), "split": "val" if "targets" in query else "test",
            "reference_id": query["reference"], "instruction": query["instruction"],
            "target_ids": query.get("targets", []), "exclude_ids": [query["reference"]], "group_ids": [], "aspects": [],
        }
        for number, query in enumerate(map(json.loads, lines))
    ]  # fmt: skip
    with tables.output("index", name) as out:
        out.table("images.parquet", pl.DataFrame(images).to_arrow(), IMAGES)
        out.table("queries.parquet", pa.Table.from_pylist(queries, QUERIES), QUERIES)


def write_captions(captions: Mapping[str, Sequence[str]] = DISC_CAPTIONS, name: str = "toy") -> None:
    """The captions of an indexed dataset's images, by id."""
    images = pl.DataFrame(tables.read("index", name, "images.parquet")).select("image_id", "digest")
    lists = pl.Series([list(captions[image]) for image in images["image_id"]], dtype=pl.List(pl.String))
    with tables.output("captions", name) as out:
        out.shards(images.with_columns(captions=lists).to_arrow(), CAPTIONS)


def write_vectors(parts: Sequence[str], name: str = "toy", backbone: str = "tiny", width: int = 8) -> None:
    """Both vector tables of a run as another program may write them: random vectors, of queries those of `parts`."""
    random = np.random.default_rng(3)
    images = tables.read("index", name, "images.parquet").select(["image_id"])
    queries = tables.read("index", name, "queries.parquet").select(["query_id", "split"])
    for stage, table, columns in (("gallery_vectors", images, GALLERY_PARTS), ("query_vectors", queries, parts)):
        for part in columns:
            numbers = random.standard_normal((table.num_rows, width)).astype(np.float32)
            table = table.append_column(part, column(numbers))
        with tables.output(stage, name, backbone) as out:
            out.shards(table, table.schema)


def write_edits(name: str = "toy") -> None:
    """The edits of an indexed dataset's queries: the instruction as description, always the same object added."""
    queries = pl.DataFrame(tables.read("index", name, "queries.parquet"))
    rows = queries.select("query_id", "split", edited=pl.concat_list("instruction"), added=pl.lit("a red ring"))
    both = {"answer_status": pl.lit(["ok", "ok"]), "finish": pl.lit(["stop", "stop"])}
    rows = rows.with_columns(
        status=pl.lit("ok"), answers=pl.concat_list(pl.col("edited").list.first(), "added"), **both
    )
    with tables.output("edits", name) as out:
        out.shards(rows.to_arrow(), EDITS)
