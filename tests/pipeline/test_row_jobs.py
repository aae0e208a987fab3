"""Every job of the stages can be sent to another process: a pickled one has the same recipe and the same rows."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from cvsi.core import params
from cvsi.core.params import Params, WordList
from cvsi.models.engines import CAPTIONERS, EDITORS
from cvsi.pipeline.captions import caption_job
from cvsi.pipeline.edits import edit_job
from cvsi.pipeline.embeddings import ImageVectorJob, PseudoTokenJob, TextVectorJob
from cvsi.pipeline.vectors import gallery_jobs, query_jobs
from cvsi.store.jobs import RowJob
from cvsi.store.missing import compute_missing
from cvsi.store.rows import Store
from cvsi.training.keywords import KeywordJob
from tests import toy_engines
from tests.conftest import Workspace
from tests.imports import ROOT
from tests.stage_inputs import write_captions, write_edits, write_index

KEYWORDS = str(ROOT / "demo" / "keywords.txt")
JOBS: dict[str, Callable[[Params], RowJob]] = {
    "captions": lambda settings: caption_job("toy", settings),
    "edits": lambda settings: edit_job("toy", settings),
    "gallery images": lambda settings: gallery_jobs("toy", "tiny", settings)[0],
    "gallery texts": lambda settings: gallery_jobs("toy", "tiny", settings)[1],
    "query images": lambda settings: query_jobs("toy", "tiny", settings)[0],
    "query texts": lambda settings: query_jobs("toy", "tiny", settings)[1],
    "pseudo tokens": lambda settings: query_jobs("toy", "tiny", settings)[2],
    "keywords": lambda settings: KeywordJob(
        settings.compute, Store(Path(settings.store)), WordList(words=KEYWORDS), ("a red ring", "of it", "a red ring")
    ),
}


@pytest.fixture
def settings(toy: Workspace) -> Iterator[Params]:
    """The toy dataset with the tables of all stages before the vectors, its engines the toy ones, in small blocks."""
    toy.params(
        datasets__toy__captioner={"engine": "colour"}, datasets__toy__editor={"engine": "rule", "ending": "now"},
        compute={
            "device": "cpu", "caption_batch": 2, "image_batch": 2, "text_batch": 2, "edit_batch": 2, "block_batches": 1,
        },
    )  # fmt: skip
    write_index()
    write_captions()
    write_edits()
    with CAPTIONERS.using("colour", toy_engines.CAPTIONER), EDITORS.using("rule", toy_engines.EDITOR):
        yield params.load()


def compute(job: RowJob, blocks: int = 2) -> pa.Table:
    """The rows of a job's first blocks, without the store."""
    worker = job.load(0)
    wanted = job.wanted().unique("key", keep="first", maintain_order=True)
    parts = list(wanted.iter_slices(job.block_rows))[:blocks]
    return pa.concat_tables(worker.compute(worker.prefetch(job.complete(part))).cast(job.schema) for part in parts)


@pytest.mark.parametrize("name", JOBS)
def test_a_pickled_job_computes_the_same_rows(name: str, settings: Params) -> None:
    job = JOBS[name](settings)
    if isinstance(job, PseudoTokenJob):
        compute_missing(query_jobs("toy", "tiny", settings)[0])  # the images that phi reads
    copy = pickle.loads(pickle.dumps(job))
    assert copy == job and copy is not job
    assert copy.recipe() == job.recipe() and copy.schema.equals(job.schema)
    assert copy.wanted().equals(job.wanted()) and "key" in job.wanted().columns
    rows = compute(copy)
    assert rows.num_rows and rows.equals(compute(job))
    stored = compute_missing(job)
    assert stored.kind == job.kind and stored.recipe == copy.recipe()
    assert stored.get(job.wanted()["key"]).num_rows == job.wanted().height
    assert stored.get(keys_of(rows)).equals(rows)
    assert not copy.rows().missing(copy.wanted()["key"]).len()


def keys_of(rows: pa.Table) -> pl.Series:
    return pl.Series("key", rows["key"])


def test_the_jobs_of_a_stage_are_one_per_kind_of_rows(settings: Params) -> None:
    assert [type(job) for job in gallery_jobs("toy", "tiny", settings)] == [ImageVectorJob, TextVectorJob]
    assert [type(job) for job in query_jobs("toy", "tiny", settings)] == [ImageVectorJob, TextVectorJob, PseudoTokenJob]
