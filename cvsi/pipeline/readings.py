"""References and instructions to readings: texts by role, as columns of the table `edits`.

Each distinct pair of reference (its image, or its captions) and instruction is answered once. The store keeps the raw
answers in a folder of their own, so a reader that is added later recomputes no edit; the texts are parsed from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import polars as pl
import pyarrow as pa

from cvsi.core import tables
from cvsi.core.console import count, info, warn
from cvsi.core.devices import device_kind, precision
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import PATH, Dataset, Params
from cvsi.core.schema import EDITS, RESERVED, STORED_READINGS, reading_columns
from cvsi.core.statuses import counts, fallbacks
from cvsi.models.editor import FAILED, Answer, Unfinished
from cvsi.models.engines import reader_engine, reader_of
from cvsi.models.reader import Reader, ReaderSettings, image_url
from cvsi.models.vllm_engine import release
from cvsi.pipeline import reading_prompts, role_answers
from cvsi.pipeline.answers import Query
from cvsi.pipeline.components import GALLERY_COMPONENTS, QUERY_COMPONENTS
from cvsi.pipeline.image_loader import ImageLoader, image_rows
from cvsi.pipeline.prompting import few_shot
from cvsi.pipeline.second_reference import FILE, second_references, with_second_captions, with_second_files
from cvsi.pipeline.stored_answers import LONGEST_FINISH, failed_once, storable
from cvsi.store.jobs import BlockWorker, Interrupted, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store

STATUS, ANSWER, FINISH = "reader_status", "reader_answer", "reader_finish"  # columns beside those of the roles


class Block(NamedTuple):
    """A block and its images as data URLs, which are being read; None where the reader gets captions."""

    rows: pl.DataFrame
    images: ImageLoader[str] | None

    def urls(self) -> list[tuple[str, str]]:
        """The data URLs of each row's image and second image, empty where captions do or there is none."""
        if self.images is None:
            return [("", "")] * self.rows.height
        urls = [url for batch, _ in self.images.batches() for url in batch]
        first, second = urls[: self.rows.height], iter(urls[self.rows.height :])
        both = self.rows["second_digest"] if "second_digest" in self.rows.columns else [None] * len(first)
        return [(url, "" if other is None else next(second)) for url, other in zip(first, both, strict=True)]


@dataclass(frozen=True)
class ReadingJob(RowJob):
    """The readings of a dataset's queries, by the reference (digest of its file, or its captions) and the instruction.

    `prompt` is the text that the conversation follows.
    """

    kind: ClassVar[str] = "readings"
    words: ClassVar[Words] = Words("query", "to read", "read")

    dataset: str
    root: Path
    settings: ReaderSettings
    prompt: str = ""

    @property
    def schema(self) -> pa.Schema:
        """`key`, and the raw answer with its finish reason."""
        return STORED_READINGS

    @property
    def block_rows(self) -> int:
        """As many queries as the engine gets at once: images take more memory than texts."""
        if self.settings.sees == "captions":
            return self.compute.edit_batch
        return self.compute.caption_batch * self.compute.block_batches

    @property
    def workers(self) -> int:
        """One, where the engine spreads over GPUs by itself."""
        return 1 if reader_engine(self.settings).one_worker else self.compute.workers

    @property
    def memory_advice(self) -> str:
        """The parameters of vLLM's memory."""
        return "compute.gpu_memory or the reader's context"

    @property
    def roles(self) -> list[str]:
        """The columns that its readings become."""
        return list(self.settings.roles)

    def recipe(self) -> dict[str, Any]:
        """The reader's own recipe, the prompt, the form of a conversation and the version of this code."""
        engine, on = reader_engine(self.settings), device_kind(self.compute)
        facts = engine.recipe(self.settings, precision(self.settings.precision, on), self.store)
        return facts | {
            "turns": reading_prompts.TURNS, "prompts": {"prompt": self.prompt}, "code": CODE_VERSIONS[self.kind]
        }  # fmt: skip

    def wanted(self) -> pl.DataFrame:
        """Every query of the index: `key`, `path` and `digest` of its reference image, `captions`, `instruction`.

        Of a second reference image: `second_path`, `second_digest`, null without one.
        """
        queries = references(self.dataset, captions=self.settings.sees == "captions")
        optional = ("crop", *(f"second_{name}" for name in FILE))
        names = [name for name in optional if name in queries.columns]
        return self.with_keys(queries).select("key", "path", "digest", "captions", "instruction", *names)

    def with_keys(self, queries: pl.DataFrame) -> pl.DataFrame:
        """Rows of `digest`, `captions` and `instruction`, with the store's `key` of each.

        `second_digest` is optional, and part of a key where there is one.
        """
        seen = "digest" if self.settings.sees == "image" else "captions"
        two = seen == "digest" and "second_digest" in queries.columns
        second = queries["second_digest"] if two else [None] * queries.height
        keys = [
            digest(reference, text) if other is None else digest(reference, other, text)
            for (reference, text), other in zip(queries.select(seen, "instruction").iter_rows(), second, strict=True)
        ]
        return queries.with_columns(key=pl.Series(keys, dtype=pl.String))

    def permanent(self, rows: pa.Table) -> pa.Table:
        """The rows without a failure that may pass."""
        return rows.filter((~failed_once(rows)).to_arrow())

    def load(self, worker: int) -> BlockWorker:
        """Load the model; the images of a block are read by threads."""
        self.check_prompt()
        reader = reader_engine(self.settings).load(self.settings, self.compute, worker)
        return BlockWorker(lambda block: self.read(reader, block.rows, block.urls()), self._ahead)

    def check_prompt(self) -> None:
        """Raise CvsiError for a prompt whose example blocks are wrong."""
        reading_prompts.examples(self.settings, self.prompt)

    def read(self, reader: Reader, rows: pl.DataFrame, images: Sequence[tuple[str, str]]) -> pa.Table:
        """The rows of a block; raises Interrupted with the complete ones where the reader stops early."""
        readings = [
            reading_prompts.reading_of(self.settings, self.prompt, instruction, image, captions or [], second)
            for (captions, instruction), (image, second) in zip(
                rows.select("captions", "instruction").iter_rows(), images, strict=True
            )
        ]
        keys = rows["key"].to_list()
        try:
            return _stored(keys, reader.answers(readings))
        except Unfinished as end:
            raise Interrupted(_stored(keys, end.answers)) from end.__cause__

    def parsed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a query from `captions`, `instruction` and the stored `answers` and `finish`."""
        if len(row["answers"]) != 1 or len(row["finish"]) != 1:  # of a pack; a stage stores complete rows
            empty = {role: list[str]() for role in self.roles}
            return empty | {STATUS: f"no answer: the store has {len(row['answers'])}", ANSWER: "", FINISH: ""}
        answer = Answer(row["answers"][0], row["finish"][0])
        query = Query(row["captions"] or [], row["instruction"], self._examples)
        read = role_answers.parse(answer, self.settings.roles, query, self.settings.output == "lines")
        return {**read.texts, STATUS: read.status, ANSWER: answer.text, FINISH: answer.finish}

    def columns(self, queries: pl.DataFrame, rows: pa.Table) -> pl.DataFrame:
        """The columns of queries (with `captions` and `instruction`) from their stored rows, in order."""
        raw = pl.DataFrame(rows).select("answers", "finish")
        both = pl.concat([queries.select("captions", "instruction"), raw], how="horizontal")
        texts = [self.parsed(row) for row in both.iter_rows(named=True)]
        return pl.DataFrame(pa.Table.from_pylist(texts, reading_columns(self.roles)))

    @cached_property
    def _examples(self) -> list[str]:
        return reading_prompts.example_texts(self.prompt)

    def _ahead(self, rows: pl.DataFrame) -> Block:
        """A block whose images are read from now on."""
        if self.settings.sees == "captions":
            return Block(rows, None)
        files = pl.concat([image_rows(rows), image_rows(second_references(rows))])
        prepare = partial(image_url, settings=self.settings)
        return Block(rows, ImageLoader(self.root, files, self.compute.caption_batch, prepare, ahead=True))


def reading_job(name: str, params: Params) -> ReadingJob | None:
    """The job of a dataset's readings, None without a reader; raises CvsiError for a reader that is wrong."""
    dataset = params.dataset(name)
    settings = reader_of(dataset, name)
    if settings is None:
        return None
    check_roles(settings, f"datasets.{name}.reader")
    return ReadingJob(
        params.compute, Store(Path(params.store)), name, Path(dataset.root), settings, few_shot(settings.prompt)
    )


def check_roles(settings: ReaderSettings, where: str) -> None:
    """Raise CvsiError for a role that has the name of a component or of a column."""
    taken = {*RESERVED, *QUERY_COMPONENTS.names(), *GALLERY_COMPONENTS.names()}
    for role in settings.roles:
        if role in taken:
            raise CvsiError(f"{PATH}: {where}.roles.{role}: the name of a component or column; choose another name")


def roles_of(dataset: Dataset, name: str) -> list[str]:
    """The roles of a dataset's reader; none without one."""
    settings = reader_of(dataset, name)
    return [] if settings is None else list(settings.roles)


def _crop(images: pl.DataFrame) -> list[str]:
    """The column `crop`, where images are parts of files."""
    return [name for name in ("crop",) if name in images.columns]


def references(name: str, captions: bool = True) -> pl.DataFrame:
    """The indexed queries with `digest`, `path` and `captions` of their reference images, in order, and second files.

    Without `captions`, that column is null and the table is not read.
    """
    queries = pl.DataFrame(tables.read("index", name, "queries.parquet"))
    images = pl.DataFrame(tables.read("index", name, "images.parquet"))
    files = images.select("digest", "path", *_crop(images), reference_id="image_id")
    joined = queries.join(files, on="reference_id", how="left", maintain_order="left")
    joined = with_second_files(joined, images)
    if not captions:
        return joined.with_columns(captions=pl.lit(None, dtype=pl.List(pl.String)))
    known = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    of_first = known.rename({"image_id": "reference_id"})
    return with_second_captions(joined.join(of_first, on="reference_id", how="left", maintain_order="left"), known)


def table_schema(job: ReadingJob | None) -> pa.Schema:
    """The columns of the table `edits`: with a reader, also those of its roles."""
    return EDITS if job is None else pa.schema([*EDITS, *reading_columns(job.roles)])


def compute(job: ReadingJob) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The columns of a dataset's readings, in the index's order, and their recipe; missing rows are computed.

    Raises CvsiError where no query has a reading that is usable.
    """
    release()  # the editor's memory
    stored, queries = compute_missing(job), job.with_keys(references(job.dataset))
    table = job.columns(queries, stored.get(queries["key"]))
    summary = fallbacks(table, STATUS)
    if summary.number == table.height:
        raise CvsiError(
            f"datasets.{job.dataset}.reader: none of {table.height:,} readings is usable; most frequent: "
            f"{summary.reason} ({summary.of_reason:,}); see docs/readers.md"
        )
    return table, stored.recipe


def print_summary(name: str, table: pl.DataFrame, limit: float) -> None:
    """Print how the readings ended, and what to do where some failed."""
    info("readings: " + ", ".join(f"{number:,} {status}" for status, number in counts(table[STATUS]).items()))
    if again := table.filter(pl.col(FINISH).str.starts_with(FAILED)).height:
        warn(
            f"{count(again, 'query')} got no reading because of failures that may pass; to send them again: "
            f"dvc repro --force --single-item edits@{name}"
        )
    summary = fallbacks(table, STATUS)
    if summary.share > limit:
        warn(
            f"{summary.number:,} of {summary.queries:,} queries ({100 * summary.share:.0f}%) have no text of any role, "
            f"above {100 * limit:g}%; most frequent: {summary.reason} ({summary.of_reason:,})",
            red=True,
        )


def _stored(keys: Sequence[str], answers: Sequence[Answer | None]) -> pa.Table:
    """The rows of the queries whose answers are there."""
    rows = [
        {"key": key, "answers": [storable(answer.text)], "finish": [storable(answer.finish)[:LONGEST_FINISH]]}
        for key, answer in zip(keys, answers, strict=True)
        if answer is not None
    ]
    return pa.Table.from_pylist(rows, STORED_READINGS)
