"""The score forms in memory against plain products, and the table of all methods against `scores`, at CIRCO's size.

The floor of a form is as many matrix products as it has linear scores, and one top-k. The table ranks by every method
in one pass, from disk to the values per query; both are whole processes.
"""

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks import measure, random_vectors
from benchmarks.measure import FLOOR, OURS, Case
from cvsi.core import params
from cvsi.core.schema import QUERY_PARTS, ROLES
from cvsi.evaluation import methods
from cvsi.evaluation.fusion import Fusion
from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.ranking import BLOCK, KEPT, rank
from cvsi.evaluation.vectors import fuse, fuse_queries

QUERIES, IMAGES, WIDTH = 220, 123_403, 768
FORMS = {"gate": "adast", "soft": "soft", "slope": "seize", "product": "product", "sum": "edited"}
TABLE = """
import sys
from cvsi.core import params
from cvsi.datasets.formats import format_of
from cvsi.evaluation import queries, scores
from cvsi.evaluation.report import method_table
settings = params.load()
protocol = format_of(settings.dataset("big"), "big").protocol
table, gallery = queries.read("big")
own = scores.read_values("big", "tiny", protocol)
evaluations = method_table.evaluate_all("big", "tiny", settings, protocol, table, gallery, own).evaluations
assert len(evaluations) == 14, list(evaluations)
"""


def in_memory(kind: str, name: str) -> Case:
    """One form over a gallery in memory: ranking with it, and its floor."""
    random = np.random.default_rng(0)
    fusion = methods.methods(params.load(Path(__file__).parent.parent / "params.yaml"))[name].fusion("circo")
    queries = fuse_queries(
        random_vectors.query_table(random, QUERIES, WIDTH, (*QUERY_PARTS, *ROLES)), fusion, "queries"
    )
    gallery = random_vectors.gallery_table(random, IMAGES, WIDTH)
    right = [fuse(gallery, form.gallery, "gallery", form.unit) for form in list(fusion.forms.values())[:1]]
    named = NamedImages(np.empty((0, 2), dtype=np.int64), np.full((QUERIES, 1), -1), np.full((QUERIES, 1), -1))
    seconds = measure.in_turn(
        {
            OURS: lambda: _done(rank(queries, _shards(fusion, right[0]), named, KEPT, fusion.scorer)),
            FLOOR: lambda: _done(floor(queries, right[0])),
        }
    )
    work = f"{QUERIES} queries, {IMAGES:,} images, d = {WIDTH}, {len(fusion.forms)} linear scores"
    return Case(f"form {kind} ({name})", seconds, work, at_most={(OURS, FLOOR): 1.3})


def floor(queries: list[np.ndarray], gallery: np.ndarray) -> torch.Tensor:
    """As many products as there are linear scores, and one top-k, in blocks."""
    best = torch.full((QUERIES, KEPT), -torch.inf)
    for start in range(0, len(gallery), BLOCK):
        block = torch.from_numpy(gallery[start : start + BLOCK])
        products = [torch.from_numpy(matrix) @ block.T for matrix in queries]
        best = torch.topk(torch.cat([best, products[0]], dim=1), KEPT, dim=1).values
    return best


def _shards(fusion: Fusion, gallery: np.ndarray) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(gallery), BLOCK):
        yield [gallery[start : start + BLOCK]] * len(fusion.forms)


def _done(_: object) -> None:
    """Let go of a result, so that the clock is read around the work."""


def table() -> Case:
    """All methods from disk, in one pass, against the stage `scores` with CVSI's fusion."""
    every, one = "table of 14 methods", "scores"
    peak: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_vectors.write(folder, IMAGES, QUERIES, WIDTH, parts=(*QUERY_PARTS, *ROLES))
        commands = {one: [*measure.script("scores"), "big", "tiny"], every: [sys.executable, "-c", TABLE]}

        def run(variant: str) -> float:
            ended = measure.process(commands[variant], folder)
            peak[variant] = max(ended.peak, peak.get(variant, 0))
            return ended.seconds

        run(one)  # the values per query that the table begins with
        seconds = measure.in_turn({variant: partial(run, variant) for variant in commands})
    work = f"{QUERIES} queries, {IMAGES:,} images, d = {WIDTH}, whole processes"
    return Case("methods, disk to disk", seconds, work, peak, at_most={(every, one): 2.5})


def main(
    quick: Annotated[bool, typer.Option("--quick", help="The forms in memory alone.")] = False,
) -> None:
    """Measure the forms in memory and the table from disk."""
    cases = [in_memory(kind, name) for kind, name in FORMS.items()]
    cases += [] if quick else [table()]
    measure.publish("methods", cases, threads=torch.get_num_threads())


if __name__ == "__main__":
    measure.run(main)
