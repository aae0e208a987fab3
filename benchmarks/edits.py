"""Edits by vLLM: the stage, compared with single calls to the same engine, and with that engine alone.

The queries are CIRR test1's real instructions with captions made from a seed; the demo's editor answers the demo's
prompts. "This project" is the stage with an empty store: prompts, answers, store and output. The plain loop calls the
engine twice per query, one call after the other, as the published code calls its server. The floor is a single call
with all prompts prepared as tokens. All share one loaded engine, whose prefix cache is emptied before each turn.
"""

import contextlib
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Annotated, Any

import polars as pl
import typer

from benchmarks import measure, worlds
from benchmarks.measure import FLOOR, OURS, PLAIN
from cvsi.core import params, tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import CAPTIONS, QUERIES
from cvsi.datasets import cirr
from cvsi.models.engines import EDITORS, editor_of
from cvsi.models.llm_vllm import ENGINE, VllmEditor, VllmEditorSettings
from cvsi.pipeline import edits, prompting

NAME, SPLIT = "cirr-test1", "test1"
FILE = Path("cirr") / "captions" / "cap.rc2.test1.json"
CAPTIONS_EACH, SEED = 5, 1


def annotation(folder: Path | None) -> Path | None:
    """CIRR test1's caption file: below the folder given, or where the dataset or shared material would have it."""
    if folder is None:
        shared = worlds.ROOT.parent / "shared" / "annotations" / "CIRR"
        return next((root / FILE for root in (worlds.ROOT / "data" / "CIRR", shared) if (root / FILE).exists()), None)
    files = sorted(folder.rglob(FILE.name))
    if not files:
        raise CvsiError(f"{folder}: no {FILE.name} below it; leave --annotations out to use invented instructions")
    return files[0]


def instructions(file: Path | None, number: int) -> list[str]:
    """Instructions drawn from the annotation file, or invented ones such as the demo's."""
    if file is not None:
        real = cirr.queries(file, SPLIT)["instruction"]
        return real.sample(min(number, len(real)), seed=SEED).to_list()
    random = Random(SEED)
    return [worlds.instruction(scene, random) for scene in worlds.scenes(number, SEED)]


def write(texts: list[str]) -> None:
    """An index with a query for each instruction, and captions of their references, in the working directory."""
    ids = pl.Series([f"image-{number}" for number in range(len(texts))])
    queries = pl.DataFrame({"query_id": ids, "reference_id": ids, "instruction": texts})
    nothing = [pl.lit([], dtype=pl.List(pl.String)).alias(name) for name in QUERIES.names if name.endswith("_ids")]
    queries = queries.with_columns(*nothing, split=pl.lit(SPLIT), aspects=pl.lit([], dtype=pl.List(pl.String)))
    lines = [worlds.sentences(scene, CAPTIONS_EACH, SEED) for scene in worlds.scenes(len(texts), SEED)]
    with tables.output("index", NAME) as out:
        out.table("queries.parquet", queries.to_arrow(), QUERIES)
    with tables.output("captions", NAME) as out:
        out.shard(pl.DataFrame({"image_id": ids, "digest": ids, "captions": lines}).to_arrow(), CAPTIONS)


class Variants:
    """The ways to compute the edits of the written queries, timed; each begins with the engine's caches empty."""

    def __init__(self, settings: params.Params, plain: int) -> None:
        """Load the engine and prepare the prompts; the plain loop edits `plain` of the queries."""
        self.settings, dataset = settings, settings.dataset(NAME)
        editor = editor_of(dataset, NAME)
        assert isinstance(editor, VllmEditorSettings)
        self.engine = VllmEditor(editor, settings.compute)
        shots = prompting.load_prompts(dataset.prompts)
        rows = list(edits.queries_with_captions(NAME).select("captions", "instruction").iter_rows())
        self.pairs = [
            (
                prompting.prompt(shots["edited"], captions, instruction, prompting.EDITED_CUE),
                prompting.prompt(shots["added"], captions, instruction, prompting.ADDED_CUE),
            )
            for captions, instruction in rows
        ]
        every = max(len(rows) // plain, 1)
        self.few = self.pairs[::every][:plain]
        texts = [edited for edited, _ in self.pairs] + [added for _, added in self.pairs]
        self.tokens = [{"prompt_token_ids": tokens} for tokens in self.engine.tokens(texts)]

    def ours(self) -> float:
        """The stage's own code on an empty store, all but loading."""
        shutil.rmtree(self.settings.store, ignore_errors=True)
        with EDITORS.using("vllm", replace(ENGINE, load=lambda settings, compute, worker: self.engine)):
            return self._timed(lambda: edits.write(NAME, self.settings))

    def plain(self) -> float:
        """Two calls per query, one after the other, for some of the queries; scaled to all of them."""

        def loop() -> None:
            for pair in self.few:
                for text in pair:
                    self._generate(text)

        return self._timed(loop) * len(self.pairs) / len(self.few)

    def floor(self) -> float:
        """One call with every prompt as tokens."""
        return self._timed(lambda: self._generate(self.tokens))

    def _generate(self, prompts: Any) -> list[Any]:
        outputs: list[Any] = self.engine.engine.generate(prompts, self.engine.sampling, use_tqdm=False)
        return outputs

    def _timed(self, work: Any) -> float:
        self.engine.engine.reset_prefix_cache()
        began = time.perf_counter()
        work()
        return time.perf_counter() - began


def main(
    annotations: Annotated[Path | None, typer.Option(help=f"A folder that contains {FILE.name}.")] = None,
    queries: Annotated[int, typer.Option(min=2, help="How many instructions to edit.")] = 1200,
    plain: Annotated[int, typer.Option(min=1, help="How many of them the plain loop edits.")] = 40,
    repeats: Annotated[int, typer.Option(min=1, help="How many turns count.")] = measure.REPEATS,
) -> None:
    """Edit captions by instructions: the stage, call by call, and the engine alone."""
    file = annotation(annotations)
    texts = instructions(file, queries)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        content = worlds.parameters(Path(folder))
        demo = content["datasets"]["demo"] | {"format": "cirr"}
        content = worlds.parameters(Path(folder), datasets=content["datasets"] | {NAME: demo})
        write(texts)
        variants = Variants(params.load(), plain)
        seconds = measure.in_turn({PLAIN: variants.plain, OURS: variants.ours, FLOOR: variants.floor}, repeats)
    plain_queries = len(variants.few)
    source = "CIRR test1's own instructions" if file else f"invented instructions (there is no {FILE.name})"
    work = (
        f"{len(texts):,} queries, {source}, {CAPTIONS_EACH} captions made from a seed; the demo's editor and prompts; "
        f"the plain loop edited {plain_queries:,} of them, its seconds times {len(texts) / plain_queries:g}"
    )
    case = measure.Case("edits, vLLM", seconds, work, at_least={(PLAIN, OURS): 10, (FLOOR, OURS): 0.95})
    measure.publish("edits", [case])


if __name__ == "__main__":
    measure.run(main)
