"""Images to captions: the table `captions`, one row per image, each distinct image captioned once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from cvsi.core import parquet, tables
from cvsi.core.console import count, info
from cvsi.core.devices import device_kind, precision
from cvsi.core.params import Params
from cvsi.core.schema import CAPTIONS, STORED_CAPTIONS
from cvsi.models.captioner import CaptionerSettings
from cvsi.models.engines import captioner_engine, captioner_of
from cvsi.pipeline.image_loader import ImageLoader
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store


@dataclass(frozen=True)
class CaptionJob(RowJob):
    """The captions of a dataset's images, by the digest of the image's file."""

    kind: ClassVar[str] = "captions"
    words: ClassVar[Words] = Words("image", "to caption", "captioned")

    dataset: str
    root: Path
    settings: CaptionerSettings

    @property
    def schema(self) -> pa.Schema:
        """`key` and `captions`."""
        return STORED_CAPTIONS

    @property
    def block_rows(self) -> int:
        """Several batches of the captioner."""
        return self.compute.caption_batch * self.compute.block_batches

    @property
    def workers(self) -> int:
        """One, where the engine spreads over GPUs by itself."""
        return 1 if captioner_engine(self.settings).one_worker else self.compute.workers

    @property
    def memory_advice(self) -> str:
        """The batch size."""
        return f"compute.caption_batch (now {self.compute.caption_batch})"

    def recipe(self) -> dict[str, Any]:
        """The captioner's own recipe and the version of this code."""
        engine, on = captioner_engine(self.settings), device_kind(self.compute)
        facts = engine.recipe(self.settings, precision(self.settings.precision, on), self.store)
        return facts | {"code": CODE_VERSIONS[self.kind]}

    def wanted(self) -> pl.DataFrame:
        """Every image of the index: `key` (the file's digest) and `path`."""
        images = pl.DataFrame(tables.read("index", self.dataset, "images.parquet"))
        return images.select(key="digest", path="path")

    def load(self, worker: int) -> BlockWorker:
        """Load the captioner; a block is read as files, batch by batch."""
        captioner = captioner_engine(self.settings).load(self.settings, self.compute, worker)
        ahead = device_kind(self.compute) != "cpu"

        def prefetch(block: pl.DataFrame) -> ImageLoader[Any]:
            return ImageLoader(self.root, block, self.compute.caption_batch, captioner.prepare, ahead)

        def compute(images: ImageLoader[Any]) -> pa.Table:
            captions = [lines for batch in images.batches() for lines in captioner.captions(*batch)]
            return pa.table({"key": images.block["key"].to_list(), "captions": captions}, schema=STORED_CAPTIONS)

        return BlockWorker(compute, prefetch)


def caption_job(name: str, params: Params) -> CaptionJob:
    """The job of a dataset's captions; raises CvsiError for a captioner's block that is wrong."""
    dataset = params.dataset(name)
    settings = captioner_of(dataset, name)
    return CaptionJob(params.compute, Store(Path(params.store)), name, Path(dataset.root), settings)


def write(name: str, params: Params) -> None:
    """Write `cache/<name>/captions` from the dataset's images."""
    job = caption_job(name, params)
    rows = compute_missing(job)
    images, empty = pl.DataFrame(tables.read("index", name, "images.parquet")), 0
    with tables.output("captions", name, recipe=rows.recipe) as out:
        for part in images.iter_slices(parquet.SHARD_ROWS):
            captions = rows.get(part["digest"])["captions"]
            empty += part.height * job.settings.n - pc.sum(pc.list_value_length(captions)).as_py()
            out.shard(part.select("image_id", "digest").to_arrow().append_column("captions", captions), CAPTIONS)
    if empty:
        info(f"{count(empty, 'caption')} of {images.height * job.settings.n:,} stayed empty, and are left out")
