"""Images to captions: the table `captions`, one row an image, each distinct image captioned once."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from cvsi import captioner, recipes, tables
from cvsi.batches import full, pixel_batches
from cvsi.console import count, say
from cvsi.devices import device, precision
from cvsi.params import Dataset, Params
from cvsi.schema import CAPTIONS, STORED_CAPTIONS
from cvsi.steps import Compute, Step, fill
from cvsi.store import Shelf


def build(name: str, params: Params) -> None:
    """Write `cache/<name>/captions` from the dataset's images."""
    dataset = params.dataset(name)
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    used = precision(dataset.captioner.precision, device(params.compute).type)
    shelf = Shelf(params.store, "captions", recipes.captions(dataset.captioner, used), STORED_CAPTIONS)
    size = params.compute.caption_batch
    step = Step(
        "image", "to caption", "captioned", size * params.compute.block_batches,
        lambda worker: _load(dataset, params, worker), params.compute.workers, f"compute.caption_batch (now {size})",
    )  # fmt: skip
    distinct = images.unique("digest", keep="first", maintain_order=True).select(key="digest", path="path")
    fill(shelf, step, distinct, images.height)
    short = 0
    with tables.output("captions", name, recipe=shelf.recipe) as out:
        for rows in images.iter_slices(tables.SHARD_ROWS):
            captions = shelf.take(rows["digest"])["captions"]
            short += rows.height * dataset.captioner.n - pc.sum(pc.list_value_length(captions)).as_py()
            out.shard(rows.select("image_id", "digest").to_arrow().append_column("captions", captions), CAPTIONS)
    if short:
        say(f"{count(short, 'caption')} of {images.height * dataset.captioner.n:,} stayed empty, and are left out")


def _load(dataset: Dataset, params: Params, worker: int) -> Compute:
    model, size = captioner.Blip2(dataset.captioner, params.compute, worker), params.compute.caption_batch

    def compute(block: pl.DataFrame) -> pa.Table:
        lines: list[list[str]] = []
        for pixels, digests in pixel_batches(Path(dataset.root), block, size, model.prepare):
            lines += model.captions(pixels, full(digests, size))[: len(digests)]
        return pa.table({"key": block["key"].to_list(), "captions": lines}, schema=STORED_CAPTIONS)

    return compute
