"""Images to captions: the table `captions`, one row an image, each distinct image captioned once."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from cvsi.core import tables
from cvsi.core.console import count, say
from cvsi.core.devices import device, precision
from cvsi.core.params import Compute, Dataset, Params
from cvsi.core.schema import CAPTIONS, STORED_CAPTIONS
from cvsi.models import recipes
from cvsi.models.batching import Pictures, full
from cvsi.models.blip2 import Blip2
from cvsi.models.blip2_vllm import VllmBlip2
from cvsi.models.model_id import require
from cvsi.store.jobs import Step, Work, fill
from cvsi.store.rows import Shelf

T = TypeVar("T")


def build(name: str, params: Params) -> None:
    """Write `cache/<name>/captions` from the dataset's images."""
    dataset = params.dataset(name)
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    used = precision(dataset.captioner.precision, device(params.compute).type)
    recipe = recipes.captions(dataset.captioner, used, params.store)
    shelf = Shelf(params.store, "captions", recipe, STORED_CAPTIONS)
    size = params.compute.caption_batch
    # One vLLM takes all GPUs that compute.tensor_parallel says; a process has no room for two.
    workers = 1 if dataset.captioner.engine == "vllm" else params.compute.workers
    step = Step(
        "image", "to caption", "captioned", size * params.compute.block_batches,
        lambda worker: _load(dataset, params, worker), workers, f"compute.caption_batch (now {size})",
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


def _load(dataset: Dataset, params: Params, worker: int) -> Work:
    settings, size = dataset.captioner, params.compute.caption_batch
    require(settings.model)
    if settings.engine == "vllm":
        vllm = VllmBlip2(settings, params.compute)
        # Batches are vLLM's own affair, so the copies that fill up a short one are left out.
        return _work(dataset, params.compute, vllm.prepare, lambda seen, keys: vllm.captions(seen[: len(keys)], keys))
    blip2 = Blip2(settings, params.compute, worker)
    return _work(
        dataset,
        params.compute,
        blip2.prepare,
        lambda pixels, keys: blip2.captions(torch.stack(pixels), full(keys, size)),
    )


def _work(
    dataset: Dataset,
    settings: Compute,
    prepare: Callable[[Image.Image], T],
    describe: Callable[[list[T], list[str]], list[list[str]]],
) -> Work:
    """Captions of a block's pictures; `describe` gets a filled-up batch and the digests of its true rows."""
    root, ahead = Path(dataset.root), device(settings).type != "cpu"

    def compute(pictures: Pictures[T]) -> pa.Table:
        lines: list[list[str]] = []
        for ready, digests in pictures.batches():
            lines += describe(ready, digests)[: len(digests)]
        return pa.table({"key": pictures.block["key"].to_list(), "captions": lines}, schema=STORED_CAPTIONS)

    return Work(compute, lambda block: Pictures(root, block, settings.caption_batch, prepare, ahead))
