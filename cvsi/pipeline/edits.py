"""Captions and instructions to edits: the table `edits`, one row per query, each distinct prompt answered once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa

from cvsi.core import tables
from cvsi.core.console import count, info
from cvsi.core.devices import device_kind, precision
from cvsi.core.digest import digest
from cvsi.core.params import Params
from cvsi.core.schema import EDITS, STORED_EDITS
from cvsi.models.editor import Editor, EditorSettings
from cvsi.models.engines import editor_engine, editor_of
from cvsi.pipeline import prompting
from cvsi.store.jobs import BlockWorker, RowJob, Words
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store


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
        """The editor's own recipe, the few-shot texts and the version of this code."""
        engine, on = editor_engine(self.settings), device_kind(self.compute)
        facts = engine.recipe(self.settings, precision(self.settings.precision, on), self.store)
        return facts | {"prompts": dict(self.prompts), "code": CODE_VERSIONS[self.kind]}

    def wanted(self) -> pl.DataFrame:
        """Every query of the index: `key`, `captions` of its reference image, and `instruction`."""
        return queries_with_captions(self.dataset).select("key", "captions", "instruction")

    def load(self, worker: int) -> BlockWorker:
        """Load the language model."""
        editor = editor_engine(self.settings).load(self.settings, self.compute, worker)
        return BlockWorker(lambda block: self._edit(editor, block))

    def _edit(self, editor: Editor, block: pl.DataFrame) -> pa.Table:
        rows = list(block.select("captions", "instruction").iter_rows())
        groups = [prompting.caption_groups(self.settings.mode, captions) for captions, _ in rows]
        prompts = [
            prompting.prompt(self.prompts["edited"], lines, instruction, prompting.EDITED_CUE)
            for (_, instruction), of_query in zip(rows, groups, strict=True)
            for lines in of_query
        ]
        prompts += [
            prompting.prompt(self.prompts["added"], captions, instruction, prompting.ADDED_CUE)
            for captions, instruction in rows
        ]
        answers = iter(editor.answers(prompts))
        descriptions = [list(islice(answers, len(of_query))) for of_query in groups]
        columns = zip(block["key"], groups, descriptions, answers, strict=True)
        return pa.Table.from_pylist([prompting.parse_answers(*row) for row in columns], STORED_EDITS)


def edit_job(name: str, params: Params) -> EditJob:
    """The job of a dataset's edits; raises CvsiError for an editor's block or a prompt that is wrong."""
    dataset = params.dataset(name)
    prompts = prompting.load_prompts(dataset.prompts)
    return EditJob(params.compute, Store(Path(params.store)), name, editor_of(dataset, name), prompts)


def write(name: str, params: Params) -> None:
    """Write `cache/<name>/edits` from the dataset's queries and the captions of their reference images."""
    job = edit_job(name, params)
    stored = compute_missing(job)
    queries = queries_with_captions(name)
    rows = stored.get(queries["key"])
    with tables.output("edits", name, recipe=stored.recipe) as out:
        for column in ("query_id", "split"):
            rows = rows.append_column(column, queries[column].to_arrow())
        out.shards(rows, EDITS)
    fallbacks = int(queries.height - pl.Series(rows["status"]).eq("ok").sum())
    if fallbacks:
        info(f"{count(fallbacks, 'query')} of {queries.height:,} fell back to the captions (see column status)")


def queries_with_captions(name: str) -> pl.DataFrame:
    """The indexed queries with the captions of their reference images and the store's `key`, in order."""
    queries = pl.DataFrame(tables.read("index", name, "queries.parquet"))
    captions = pl.DataFrame(tables.whole("captions", name)).select(reference_id="image_id", captions="captions")
    return with_keys(queries.join(captions, on="reference_id", how="left", maintain_order="left"))


def with_keys(queries: pl.DataFrame) -> pl.DataFrame:
    """Rows of `captions` and `instruction`, with the store's `key` of each."""
    keys = [digest(lines, text) for lines, text in queries.select("captions", "instruction").iter_rows()]
    return queries.with_columns(key=pl.Series(keys, dtype=pl.String))
