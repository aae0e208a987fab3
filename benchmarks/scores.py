"""The stage scores: ranking in memory at CIRR's and FashionIQ's sizes, CIRCO's from disk to disk, ten million images.

The plain loop sorts the whole score matrix, indexes an array of names by it and compares strings, as published code for
these benchmarks does. The floor is one matrix product with a top-k, or a bare script that does just that from disk.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
import typer

from benchmarks import measure, random_vectors
from benchmarks.measure import FLOOR, OURS, PLAIN, Case
from cvsi.evaluation.queries import NamedImages
from cvsi.evaluation.ranking import KEPT, group_ranks, rank
from cvsi.evaluation.vectors import fuse

SIZES = {
    "CIRR val": (4181, 2297), "CIRR test1": (4148, 2315),
    "FashionIQ dress": (2017, 3817), "FashionIQ shirt": (2038, 6346), "FashionIQ toptee": (1961, 5373),
}  # fmt: skip
WIDTH = 768
IMPORTS = "interpreter with the same imports"
KS, SUBSET_KS, GROUP = (1, 5, 10, 50), (1, 2, 3), 6


@dataclass
class Queries:
    """Queries at a benchmark's size with vectors in memory: parts of both sides, and who is the answer to what."""

    query_parts: pa.Table
    gallery_parts: pa.Table
    names: np.ndarray
    references: np.ndarray
    targets: np.ndarray
    groups: np.ndarray

    def fused(self) -> tuple[np.ndarray, np.ndarray]:
        """One vector a query and one an image."""
        query, gallery = random_vectors.FUSION["query"], random_vectors.FUSION["gallery"]
        return fuse(self.query_parts, query, "queries"), fuse(self.gallery_parts, gallery, "gallery")


def drawn(queries: int, images: int, grouped: bool) -> Queries:
    """Random vectors, names as long as the benchmark's, and targets; where grouped, sets of six with reference."""
    random = np.random.default_rng(0)
    form = "dev-{:04d}-1-img0" if grouped else "B00{:07d}"
    first = random.permuted(np.tile(np.arange(images), (queries, 1))[:, : images // 2], axis=1)[:, :GROUP]
    return Queries(
        random_vectors.query_table(random, queries, WIDTH), random_vectors.gallery_table(random, images, WIDTH),
        np.array([form.format(number) for number in range(images)]), first[:, 0], first[:, 1],
        first if grouped else np.full((queries, 1), -1),
    )  # fmt: skip


def ours(data: Queries, grouped: bool) -> list[float]:
    """Recalls by this project's ranking: ranks of the targets, without a comparison of names."""
    left, right = data.fused()
    rows = np.arange(len(left))
    excluded = np.stack([rows, data.references], axis=1) if grouped else np.empty((0, 2), dtype=np.int64)
    ranking = rank([left], [[right]], NamedImages(excluded, data.groups, data.targets[:, None]))
    ranks = ranking.target_ranks[:, 0]
    recalls = [((ranks > 0) & (ranks <= k)).mean() for k in KS]
    if grouped:
        in_group = group_ranks(ranking.group_scores, data.groups, data.targets)
        recalls += [(in_group <= k).mean() for k in SUBSET_KS]
    return recalls


def plain(data: Queries, grouped: bool) -> list[float]:
    """The same recalls by sorting everything, then looking for names."""
    left, right = data.fused()
    distances = 1 - torch.from_numpy(left) @ torch.from_numpy(right).T
    ordered = data.names[torch.argsort(distances, dim=1).numpy()]
    if grouped:
        others = ordered != np.repeat(data.names[data.references], ordered.shape[1]).reshape(ordered.shape)
        ordered = ordered[others].reshape(len(ordered), -1)
    hits = ordered == np.repeat(data.names[data.targets], ordered.shape[1]).reshape(ordered.shape)
    recalls = [hits[:, :k].any(axis=1).mean() for k in KS]
    if grouped:
        members = data.names[data.groups]
        inside = (ordered[..., None] == members[:, None, :]).any(axis=-1)
        within = hits[inside].reshape(len(hits), -1)
        recalls += [within[:, :k].any(axis=1).mean() for k in SUBSET_KS]
    return recalls


def in_memory(name: str, queries: int, images: int) -> Case:
    """The computing part: fused, multiplied, ranked, held against the targets; vectors lie in memory."""
    grouped = name.startswith("CIRR")
    data = drawn(queries, images, grouped)
    assert ours(data, grouped) == plain(data, grouped), "the plain loop ranks otherwise"
    left, right = (torch.from_numpy(matrix) for matrix in data.fused())
    seconds = measure.in_turn(
        {
            OURS: lambda: _done(ours(data, grouped)),
            PLAIN: lambda: _done(plain(data, grouped)),
            FLOOR: lambda: _done(torch.topk(left @ right.T, KEPT, dim=1)),
        }
    )
    work = f"{queries:,} queries, {images:,} images, d = {WIDTH}; fusing and judging included, but not in the floor"
    return Case(name, seconds, work, at_least={(PLAIN, OURS): 8}, at_most={(OURS, FLOOR): 1.3})


def _done(_: object) -> None:
    """Let go of a result, so that the clock is read around the work."""


def from_disk(queries: int, images: int, width: int) -> Case:
    """Processes from start to end, from shards to rankings: the stage against the bare script, and peak memory."""
    peak: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_vectors.write(folder, images, queries, width)
        bare = [sys.executable, str(Path(__file__).parent / "bare_scores.py"), name]
        empty = [sys.executable, "-c", "import cvsi.evaluation.scores, cvsi.core.stage_runner"]
        commands = {OURS: [*measure.script("scores"), "big", "tiny"], FLOOR: bare, IMPORTS: empty}

        def run(variant: str) -> float:
            ended = measure.process(commands[variant], folder)
            peak[variant] = max(ended.peak, peak.get(variant, 0))
            return ended.seconds

        variants = {variant: (lambda variant=variant: run(variant)) for variant in commands}
        seconds = measure.in_turn(variants)
    return Case(
        f"CIRCO, {width} wide, disk to disk", seconds, f"{queries:,} queries, {images:,} images, whole processes",
        peak, at_most={(OURS, FLOOR): 1.5}, at_most_mb={(OURS, IMPORTS): 1200},
    )  # fmt: skip


def growing(sizes: list[int], queries: int = 200, width: int = 64) -> Case:
    """The stage on galleries of growing size: time in proportion, memory as before."""
    seconds, peak = {}, {}
    for images in sizes:
        with tempfile.TemporaryDirectory() as name:
            random_vectors.write(Path(name), images, queries, width, excluded=True)
            command = [*measure.script("scores"), "big", "tiny"]
            runs = [measure.process(command, Path(name)) for _ in range(measure.REPEATS)]
        seconds[f"{images:,} images"] = [run.seconds for run in runs]
        peak[f"{images:,} images"] = max(run.peak for run in runs)
    small, large = (f"{size:,} images" for size in (sizes[0], sizes[-1]))
    return Case(
        "growing galleries", seconds, f"{queries} queries, d = {width}, whole processes", peak,
        at_most={(large, small): sizes[-1] / sizes[0]}, at_most_mb={(large, small): 100},
    )  # fmt: skip


def main(
    quick: Annotated[bool, typer.Option("--quick", help="The cases in memory alone.")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="Galleries of up to ten million images alone.")] = False,
) -> None:
    """Measure the stage in memory and from disk to disk."""
    if growth:
        measure.publish("scores_growth", [growing([100_000, 1_000_000, 10_000_000])])
        return
    cases = [in_memory(name, *size) for name, size in SIZES.items()]
    cases += [] if quick else [from_disk(1020, 123_403, 1280)]
    measure.publish("scores", cases, threads=torch.get_num_threads())


if __name__ == "__main__":
    measure.run(main)
