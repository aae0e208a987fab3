"""Captions and instructions to edits: the table `edits`, one row a query, each distinct question asked once."""

from collections.abc import Callable
from itertools import islice

import polars as pl
import pyarrow as pa

from cvsi.core import tables
from cvsi.core.console import count, say
from cvsi.core.devices import device, precision
from cvsi.core.digest import digest
from cvsi.core.model_settings import Editor as EditorSettings
from cvsi.core.params import Compute as ComputeSettings
from cvsi.core.params import Params
from cvsi.core.schema import EDITS, STORED_EDITS
from cvsi.models import llm, recipes
from cvsi.models.model_id import require
from cvsi.pipeline import editor
from cvsi.store.jobs import Step, Work, fill
from cvsi.store.rows import Shelf

Load = Callable[[EditorSettings, ComputeSettings], llm.Engine]


def build(name: str, params: Params, load: Load = llm.load) -> None:
    """Write `cache/<name>/edits` from the dataset's queries and the captions of their references.

    `load` gives the engine, and is called only when an edit is missing.
    """
    dataset = params.dataset(name)
    asked = questions(name)
    prompts = editor.few_shots(dataset.prompts)
    used = precision(dataset.editor.precision, device(params.compute).type)
    recipe = recipes.edits(dataset.editor, prompts, used, params.store)
    shelf = Shelf(params.store, "edits", recipe, STORED_EDITS)
    # One worker: the engine spreads over GPUs by itself (compute.tensor_parallel).
    step = Step(
        "query", "to edit", "edited", params.compute.edit_batch,
        lambda worker: _work(_loaded(load, dataset.editor, params.compute), dataset.editor, prompts),
        lower="compute.gpu_memory or the editor's context",
    )  # fmt: skip
    fill(shelf, step, asked.unique("key", keep="first", maintain_order=True), asked.height)
    rows = shelf.take(asked["key"])
    with tables.output("edits", name, recipe=recipe) as out:
        for column in ("query_id", "split"):
            rows = rows.append_column(column, asked[column].to_arrow())
        for start in range(0, max(rows.num_rows, 1), tables.SHARD_ROWS):
            out.shard(rows.slice(start, tables.SHARD_ROWS), EDITS)
    fallbacks = int(asked.height - pl.Series(rows["status"]).eq("ok").sum())
    if fallbacks:
        say(f"{count(fallbacks, 'query')} of {asked.height:,} fell back to the captions themselves (see column status)")


def questions(name: str) -> pl.DataFrame:
    """The indexed queries with the captions of their references and the store's `key`, in order."""
    queries = pl.DataFrame(tables.read("index", name, "queries.parquet"))
    captions = pl.DataFrame(tables.whole("captions", name)).select(reference_id="image_id", captions="captions")
    return keyed(queries.join(captions, on="reference_id", how="left", maintain_order="left"))


def keyed(asked: pl.DataFrame) -> pl.DataFrame:
    """Rows of `captions` and `instruction`, with the store's `key` of each."""
    keys = [digest(lines, text) for lines, text in asked.select("captions", "instruction").iter_rows()]
    return asked.with_columns(key=pl.Series(keys, dtype=pl.String))


def _loaded(load: Load, settings: EditorSettings, compute: ComputeSettings) -> llm.Engine:
    if settings.engine != "server":
        require(settings.model)
    return load(settings, compute)


def _work(engine: llm.Engine, settings: EditorSettings, prompts: dict[str, str]) -> Work:
    def compute(block: pl.DataFrame) -> pa.Table:
        rows = list(block.select("captions", "instruction").iter_rows())
        asked = [editor.parts(settings.mode, captions) for captions, _ in rows]
        questions = [
            editor.prompt(prompts["edited"], lines, wish, editor.EDITED_CUE)
            for (_, wish), parts in zip(rows, asked, strict=True)
            for lines in parts
        ]
        questions += [editor.prompt(prompts["added"], captions, wish, editor.ADDED_CUE) for captions, wish in rows]
        answers = iter(engine.answers(questions))
        descriptions = [list(islice(answers, len(parts))) for parts in asked]
        both = zip(block["key"], asked, descriptions, answers, strict=True)
        edits = [editor.row(key, parts, texts, objects) for key, parts, texts, objects in both]
        return pa.Table.from_pylist(edits, STORED_EDITS)

    return Work(compute)
