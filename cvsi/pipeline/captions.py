"""Images to captions: the table `captions`, one row per image, each distinct image captioned once.

Of a captioner that answers like a language model, the store keeps the raw answers, from which the table is parsed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import polars as pl
import pyarrow as pa

from cvsi.core import parquet, tables
from cvsi.core.console import count, info, warn
from cvsi.core.devices import device_kind, precision
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.schema import ANSWERED_CAPTIONS, CAPTIONS, STORED_ANSWERED_CAPTIONS, STORED_CAPTIONS
from cvsi.core.statuses import counts, worst
from cvsi.models.captioner import AnsweringCaptioner, Captioner, CaptionerSettings
from cvsi.models.editor import Answer, Unfinished
from cvsi.models.engines import captioner_engine, captioner_of
from cvsi.pipeline import caption_answers
from cvsi.pipeline.image_loader import ImageLoader, image_rows
from cvsi.pipeline.stored_answers import LONGEST_FINISH, failed_once, storable
from cvsi.store.jobs import BlockWorker, Interrupted, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store

NAMED = 3  # images without a caption that a message names
SUMMARY = pl.Schema({"image_id": pl.String, "captions": pl.Int64, "status": pl.String, "again": pl.Boolean})


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
        """`key` and `captions`, and the raw answers where the captioner gives them."""
        return STORED_ANSWERED_CAPTIONS if self.answers else STORED_CAPTIONS

    @property
    def table_schema(self) -> pa.Schema:
        """The columns of the table `captions`."""
        return ANSWERED_CAPTIONS if self.answers else CAPTIONS

    @property
    def answers(self) -> bool:
        """Whether the captioner gives raw answers, each with a status."""
        return captioner_engine(self.settings).answers

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
        """Every image of the index, as `image_rows`."""
        images = pl.DataFrame(tables.read("index", self.dataset, "images.parquet"))
        return image_rows(images)

    def permanent(self, rows: pa.Table) -> pa.Table:
        """The rows without a failure that may pass."""
        return rows.filter((~failed_once(rows)).to_arrow()) if self.answers else rows

    def load(self, worker: int) -> BlockWorker:
        """Load the captioner; a block is read as files, batch by batch."""
        captioner = captioner_engine(self.settings).load(self.settings, self.compute, worker)
        ahead = self.answers or device_kind(self.compute) != "cpu"  # a server does not compute on these cores

        def prefetch(block: pl.DataFrame) -> ImageLoader[Any]:
            return ImageLoader(self.root, block, self.compute.caption_batch, captioner.prepare, ahead)

        def compute(images: ImageLoader[Any]) -> pa.Table:
            digests = images.block["key"].to_list()
            if not self.answers:
                captions = [lines for batch in images.batches() for lines in captioner.captions(*batch)]
                return pa.table({"key": digests, "captions": captions}, schema=STORED_CAPTIONS)
            prepared = [image for batch, _ in images.batches() for image in batch]
            return self.rows_of(captioner, prepared, digests)  # no pause between batches

        return BlockWorker(compute, prefetch)

    def rows_of(self, captioner: Captioner[Any], images: Sequence[Any], digests: Sequence[str]) -> pa.Table:
        """The rows of prepared images; raises Interrupted with the complete ones where the captioner stops early."""
        if not self.answers:
            return pa.table({"key": digests, "captions": captioner.captions(images, digests)}, schema=STORED_CAPTIONS)
        try:
            given = cast(AnsweringCaptioner[Any], captioner).answers(images, digests)
            return self._answered_rows(digests, given)
        except Unfinished as end:
            raise Interrupted(self._answered_rows(digests, end.answers)) from end.__cause__

    def columns(self, rows: pa.Table) -> dict[str, pa.Array]:
        """The columns of the table that stored rows have: `captions` and, where there are answers, their statuses."""
        if not self.answers:
            return {"captions": rows["captions"]}
        parsed = [parsed_captions(row) for row in rows.select(["captions", "raw", "finish"]).to_pylist()]
        names = ("captions", "status", "answer_status")
        return {
            name: pa.array([row[name] for row in parsed], type=ANSWERED_CAPTIONS.field(name).type) for name in names
        }

    def _answered_rows(self, digests: Sequence[str], given: Sequence[Answer | None]) -> pa.Table:
        """The rows of the images all of whose answers are there."""
        n, rows = self.settings.n, []
        for number, digest in enumerate(digests):
            complete = [answer for answer in given[number * n : (number + 1) * n] if answer is not None]
            if len(complete) < n:
                continue
            stored = {
                "raw": [storable(answer.text) for answer in complete],
                "finish": [storable(answer.finish)[:LONGEST_FINISH] for answer in complete],
            }
            captions = parsed_captions(stored | {"captions": []})["captions"]
            rows.append({"key": digest, "captions": captions} | stored)
        return pa.Table.from_pylist(rows, STORED_ANSWERED_CAPTIONS)


def caption_job(name: str, params: Params) -> CaptionJob:
    """The job of a dataset's captions; raises CvsiError for a captioner's block that is wrong."""
    dataset = params.dataset(name)
    settings = captioner_of(dataset, name)
    return CaptionJob(params.compute, Store(Path(params.store)), name, Path(dataset.root), settings)


def parsed_captions(row: Mapping[str, Any]) -> dict[str, Any]:
    """`captions`, `status` and `answer_status` from a stored row's `raw` answers and `finish` reasons.

    A row of a pack has no answers: its `captions` are used as they are.
    """
    raw, finish = row["raw"], row["finish"]
    if not raw or len(raw) != len(finish):
        status = "ok" if row["captions"] else "no answer: the store has none"
        return {"captions": row["captions"], "status": status, "answer_status": []}
    answers = [caption_answers.parse(Answer(*pair)) for pair in zip(raw, finish, strict=True)]
    statuses = [answer.status for answer in answers]
    captions = [answer.text for answer in answers if answer.text]
    return {"captions": captions, "status": worst(statuses), "answer_status": statuses}


def write(name: str, params: Params) -> None:
    """Write `cache/<name>/captions` from the dataset's images; raises CvsiError where no image has a caption."""
    job = caption_job(name, params)
    rows = compute_missing(job)
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    summaries: list[pl.DataFrame] = []
    with tables.output("captions", name, recipe=rows.recipe) as out:
        for part in images.iter_slices(parquet.SHARD_ROWS):
            table, stored = part.select("image_id", "digest").to_arrow(), rows.get(part["digest"])
            for column, values in job.columns(stored).items():
                table = table.append_column(column, values)
            out.shard(table, job.table_schema)
            summaries.append(_summary(table, stored))
        summary = pl.concat(summaries) if summaries else pl.DataFrame(schema=SUMMARY)
        _print(name, job, summary, params.dataset(name).fallback_limit)


def _summary(table: pa.Table, stored: pa.Table) -> pl.DataFrame:
    """What is printed of a part of the table: `image_id`, `captions` (how many), `status`, `again`."""
    frame = pl.DataFrame(table).with_columns(pl.col("captions").list.len())
    status = frame["status"] if "status" in frame.columns else pl.lit("")
    again = failed_once(stored) if "finish" in stored.column_names else pl.lit(False)
    return frame.select("image_id", "captions").with_columns(status=status, again=again).cast(SUMMARY)


def _print(name: str, job: CaptionJob, summary: pl.DataFrame, limit: float) -> None:
    """Print how many captions and images are missing, and why; raises CvsiError where no image has a caption."""
    without = summary.filter(pl.col("captions") == 0)
    reasons = without["status"].value_counts(name="n").sort("n", "status", descending=[True, False])
    reason = f"; most frequent: {reasons['status'][0]} ({reasons['n'][0]:,})" if without.height and job.answers else ""
    if without.height == summary.height and summary.height and job.answers:
        raise CvsiError(
            f"datasets.{name}.captioner: none of {count(summary.height, 'image')} got a caption{reason}; "
            "see docs/captioners.md"
        )
    if job.answers:
        info("captions: " + ", ".join(f"{number:,} {kind}" for kind, number in counts(summary["status"]).items()))
    elif empty := summary.height * job.settings.n - int(summary["captions"].sum()):
        info(f"{count(empty, 'caption')} of {summary.height * job.settings.n:,} stayed empty, and are left out")
    if again := summary.filter("again").height:
        warn(
            f"{count(again, 'image')} got too few captions because of failures that may pass; to send them again: "
            f"dvc repro --force --single-item captions@{name}"
        )
    if without.height:
        names = ", ".join([*without["image_id"].head(NAMED), *(["..."] if without.height > NAMED else [])])
        warn(
            f"{count(without.height, 'image')} of {summary.height:,} without a caption ({names}){reason}",
            red=without.height > limit * summary.height,
        )
