"""Captions and instructions to edits: the table `edits`, one row per query.

Each distinct pair of captions and instruction is answered once. The store keeps the raw answers; the table is parsed
from them. Where the dataset names a reader, the table also has its texts by role, see `readings`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from cvsi.core import tables
from cvsi.core.console import count, info, warn
from cvsi.core.devices import device_kind, precision
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Params
from cvsi.core.schema import EDITS, STORED_EDITS
from cvsi.core.statuses import counts, fallbacks, worst
from cvsi.models.editor import TOO_LONG, Answer, Editor, EditorSettings, Prompt, Unfinished
from cvsi.models.engines import editor_engine, editor_of
from cvsi.pipeline import answers, prompting, readings
from cvsi.pipeline.second_reference import with_second_captions
from cvsi.pipeline.stored_answers import FAILED_ONCE, LONGEST_FINISH, failed_once, storable
from cvsi.store.jobs import BlockWorker, Interrupted, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store

EARLIER_TOO_LONG = "prompt too long"  # the status of rows without finish reasons


@dataclass(frozen=True)
class EditJob(RowJob):
    """The edits of a dataset's queries, by the digest of the reference's captions and the instruction.

    `prompts` are the few-shot texts by task.
    """

    kind: ClassVar[str] = "edits"
    words: ClassVar[Words] = Words("query", "to edit", "edited")

    dataset: str
    settings: EditorSettings
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        """`key`, `edited`, `added`, `status` and the raw `answers`."""
        return STORED_EDITS

    @property
    def block_rows(self) -> int:
        """As many queries as the engine gets at once."""
        return self.compute.edit_batch

    @property
    def workers(self) -> int:
        """One, where the engine spreads over GPUs by itself."""
        return 1 if editor_engine(self.settings).one_worker else self.compute.workers

    @property
    def memory_advice(self) -> str:
        """The parameters of vLLM's memory."""
        return "compute.gpu_memory or the editor's context"

    def recipe(self) -> dict[str, Any]:
        """The editor's own recipe, the few-shot texts, the form of a conversation and the version of this code."""
        engine, on = editor_engine(self.settings), device_kind(self.compute)
        facts = engine.recipe(self.settings, precision(self.settings.precision, on), self.store)
        form = {"turns": prompting.TURNS} if self.settings.style == "chat" else {}
        return facts | form | {"prompts": dict(self.prompts), "code": CODE_VERSIONS[self.kind]}

    def wanted(self) -> pl.DataFrame:
        """Every query of the index: `key`, `captions` of its reference image, and `instruction`."""
        return queries_with_captions(self.dataset).select("key", "captions", "instruction")

    def permanent(self, rows: pa.Table) -> pa.Table:
        """The rows without a failure that may pass."""
        return rows.filter((~failed_once(rows)).to_arrow())

    def load(self, worker: int) -> BlockWorker:
        """Load the language model."""
        prompting.check_prompts(self.settings, self.prompts)
        editor = editor_engine(self.settings).load(self.settings, self.compute, worker)
        return BlockWorker(lambda block: self._edit(editor, block))

    def parsed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the table `edits` from `captions`, `instruction` and the stored `answers`, `finish` and `status`.

        Edited descriptions that cannot be used become the captions, or the instruction where the image has none;
        objects that cannot be used become nothing.
        """
        captions, joint = row["captions"], self.settings.mode == "joint"
        groups = [captions] if joint else [[one] for one in prompting.distinct(captions, self.settings.captions)]
        raw = stored_answers(row["answers"], row["finish"], row["status"])
        query = answers.Query(captions, row["instruction"], self._examples)
        *edited, added = self._texts(raw, len(groups), query)
        lines = [[one.text] if one.text else group for one, group in zip(edited, groups, strict=True)]
        statuses = [one.status for one in (*edited, added)]
        return {
            "edited": [text for texts in lines for text in texts] or [row["instruction"]],
            "added": added.text or "",
            "status": worst(statuses),
            "answer_status": statuses,
        }

    def _texts(self, raw: Sequence[Answer], number: int, query: answers.Query) -> list[answers.Parsed]:
        """The parsed answers: `number` edited descriptions, then the objects."""
        both = self.settings.output == "json"
        if len(raw) != (1 if both else number + 1):  # of a pack; a stage stores complete rows
            return [answers.Parsed(None, f"no answer: the store has {len(raw)}")] * (number + 1)
        if both:
            return list(answers.parse_both(raw[0], query))
        tasks = ["edited"] * number + ["added"]
        return [answers.parse(answer, task, query) for answer, task in zip(raw, tasks, strict=True)]

    @cached_property
    def _examples(self) -> list[str]:
        return [line for text in self.prompts.values() for line in prompting.example_texts(text)]

    def _edit(self, editor: Editor, block: pl.DataFrame) -> pa.Table:
        """The rows of a block; raises Interrupted with the complete ones where the editor stops early."""
        queries = list(block.select("key", "captions", "instruction").iter_rows())
        prompts = [prompting.prompts_of(self.settings, self.prompts, lines, text) for _, lines, text in queries]
        try:
            given = editor.answers([prompt for of_query in prompts for prompt in of_query])
            return self._rows(queries, _split(given, prompts))
        except Unfinished as end:
            raise Interrupted(self._rows(queries, _split(end.answers, prompts))) from end.__cause__

    def _rows(self, queries: Sequence[Any], given: Sequence[Sequence[Answer | None]]) -> pa.Table:
        """The rows of the queries all of whose answers are there."""
        rows = []
        for (key, captions, instruction), raw in zip(queries, given, strict=True):
            complete = [answer for answer in raw if answer is not None]
            if len(complete) < len(raw):
                continue
            stored = {
                "answers": [storable(answer.text) for answer in complete],
                "finish": [storable(answer.finish)[:LONGEST_FINISH] for answer in complete],
            }
            texts = self.parsed(stored | {"captions": captions, "instruction": instruction, "status": ""})
            rows.append({"key": key} | texts | stored)
        return pa.Table.from_pylist(rows, STORED_EDITS)


def edit_job(name: str, params: Params) -> EditJob:
    """The job of a dataset's edits; raises CvsiError for an editor's block or a prompt that is wrong."""
    dataset = params.dataset(name)
    prompts = prompting.load_prompts(dataset.prompts)
    return EditJob(params.compute, Store(Path(params.store)), name, editor_of(dataset, name), prompts)


def write(name: str, params: Params) -> None:
    """Write `cache/<name>/edits` from the dataset's queries and the captions of their reference images.

    With a reader, also from the reference images. Without queries the table is empty and no model is identified or
    loaded. Raises CvsiError where every query fell back.
    """
    job, queries, reading = edit_job(name, params), queries_with_captions(name), readings.reading_job(name, params)
    schema = readings.table_schema(reading)
    if not queries.height:
        info("no queries to edit")
        with tables.output("edits", name, recipe={"queries": 0}) as out:
            out.shards(schema.empty_table(), schema)
        return
    if reading is not None:
        reading.check_prompt()  # before any long work
    stored = compute_missing(job)
    edits = table(job, queries, stored.get(queries["key"]))
    summary = fallbacks(edits)
    if edits.height and summary.number == edits.height:
        raise CvsiError(
            f"datasets.{name}.editor: all {edits.height:,} edits fell back to the captions; most frequent: "
            f"{summary.reason} ({summary.of_reason:,}); see docs/editors.md"
        )
    recipe, read = stored.recipe, None
    if reading is not None:
        read, of_reader = readings.compute(reading)
        recipe = recipe | {"reader": of_reader}
    whole = edits if read is None else pl.concat([edits, read], how="horizontal")
    with tables.output("edits", name, recipe=recipe) as out:
        out.shards(whole.to_arrow(), schema)
    _print(name, edits, params.dataset(name).fallback_limit)
    if read is not None:
        readings.print_summary(name, read, params.dataset(name).fallback_limit)


def _print(name: str, edits: pl.DataFrame, limit: float) -> None:
    """Print how the edits ended, and what to do where some failed."""
    info("edits: " + ", ".join(f"{number:,} {status}" for status, number in counts(edits["status"]).items()))
    if again := edits.filter(FAILED_ONCE).height:
        warn(
            f"{count(again, 'query')} got no answer because of failures that may pass; to send them again: "
            f"dvc repro --force --single-item edits@{name}"
        )
    if warning := fallbacks(edits).warning(limit):
        warn(warning, red=True)


def table(job: EditJob, queries: pl.DataFrame, rows: pa.Table) -> pl.DataFrame:
    """The table `edits` of queries (with `captions` and `instruction`) from their stored rows, in order."""
    raw = pl.DataFrame(rows).select("answers", "finish", "status")
    texts = [job.parsed(row) for row in pl.concat([queries, raw], how="horizontal").iter_rows(named=True)]
    columns = {name: EDITS.field(name).type for name in ("edited", "added", "status", "answer_status")}
    parsed = pl.DataFrame(pa.Table.from_pylist(texts, pa.schema(columns)))
    return pl.concat([queries.select("query_id", "split"), parsed, raw.drop("status")], how="horizontal").select(
        EDITS.names
    )


def _split(answers: Sequence[Answer | None], prompts: Sequence[Sequence[Prompt]]) -> list[list[Answer | None]]:
    """The answers of each query, which has as many as prompts."""
    following = iter(answers)
    return [list(islice(following, len(of_query))) for of_query in prompts]


def stored_answers(texts: Sequence[str], finish: Sequence[str], status: str) -> list[Answer]:
    """A stored row's answers; rows of earlier versions have no finish reasons."""
    if len(finish) == len(texts):
        return [Answer(text, reason) for text, reason in zip(texts, finish, strict=True)]
    too_long = TOO_LONG if status.startswith(EARLIER_TOO_LONG) else ""
    return [Answer(text, "" if text else too_long) for text in texts]


def queries_with_captions(name: str) -> pl.DataFrame:
    """The indexed queries with the captions of their reference images and the store's `key`, in order."""
    queries = pl.DataFrame(tables.read("index", name, "queries.parquet"))
    captions = pl.DataFrame(tables.whole("captions", name)).select("image_id", "captions")
    of_reference = captions.rename({"image_id": "reference_id"})
    queries = queries.join(of_reference, on="reference_id", how="left", maintain_order="left")
    return with_keys(with_second_captions(queries, captions))


def with_keys(queries: pl.DataFrame) -> pl.DataFrame:
    """Rows of `captions` and `instruction`, with the store's `key` of each."""
    keys = [digest(lines, text) for lines, text in queries.select("captions", "instruction").iter_rows()]
    return queries.with_columns(key=pl.Series(keys, dtype=pl.String))
