"""How each stage's time and memory grow, over data sets like the demo of growing size: `--plot` draws it.

Every stage's script is run once per size, as a process with the demo's models and an empty store. Index, captions,
gallery vectors, scores and report work on more and more images with 100 queries; edits and query vectors on more and
more queries over 300 images. The inputs that other stages would take long to compute are written here from invented
sentences; the largest galleries of scores hold random vectors.
"""

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from benchmarks import measure, random_vectors, worlds
from benchmarks.drawing import draw
from cvsi.core import parquet, tables
from cvsi.core.errors import CvsiError
from cvsi.core.schema import CAPTIONS, EDITS
from demo.world.scenes import Scene

SIZES = (30, 300, 3_000, 30_000)  # and ten times the last one for scores
MOST_QUERIES = 3_000  # ten times as many would take the editor minutes, at some 7 ms each
QUERIES, GALLERY = 100, 300  # while the other one grows
CAPTIONS_EACH, WIDTH = 5, 128  # as many as the demo's captioner and CLIP make
STAGES = ("index", "captions", "edits", "gallery_vectors", "query_vectors", "scores", "report")


@dataclass
class Grown:
    """Time and memory of the stages, by stage and size."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    peak: dict[str, dict[int, int]] = field(default_factory=dict)

    def run(self, stage: str, size: int, folder: Path, *arguments: str) -> None:
        """Run a stage's script on an empty store of its own, and keep its time and memory."""
        worlds.parameters(folder, store=f"cache/store-{stage}")
        self.keep(stage, size, measure.process([*measure.script(stage), *arguments], folder))

    def keep(self, stage: str, size: int, ended: measure.Ended) -> None:
        """Keep and print the time and memory of a stage's process."""
        self.seconds.setdefault(stage, {})[size] = ended.seconds
        self.peak.setdefault(stage, {})[size] = ended.peak
        measure.say(f"{stage:16} {size:>9,} {ended.seconds:8.1f} s {ended.peak / measure.MB:8,.0f} MB")

    def cases(self) -> list[measure.Case]:
        """One case per stage; from its last size but one to its last, time must grow no faster than the size."""
        return [self._case(stage) for stage in STAGES if stage in self.seconds]

    def _case(self, stage: str) -> measure.Case:
        noun = "queries" if stage in ("edits", "query_vectors") else "images"
        names = {size: f"{size:,} {noun}" for size in sorted(self.seconds[stage])}
        seconds = {name: [self.seconds[stage][size]] for size, name in names.items()}
        peak = {name: self.peak[stage][size] for size, name in names.items()}
        most = {}
        if len(names) > 1:
            *_, small, large = names
            most = {(names[large], names[small]): large / small}
        return measure.Case(
            stage, seconds, f"a whole process on an empty store, more and more {noun}", peak, at_most=most
        )


def captions(scenes: list[Scene]) -> None:
    """Captions of an indexed data set of these scenes, as if the stage had run."""
    lines = [worlds.sentences(scene, CAPTIONS_EACH, 1) for scene in scenes]
    images = pl.DataFrame(tables.read("index", "demo", "images.parquet")).select("image_id", "digest")
    with tables.output("captions", "demo") as out:
        for rows in images.with_columns(captions=pl.Series(lines)).iter_slices(parquet.SHARD_ROWS):
            out.shard(rows.to_arrow(), CAPTIONS)


def edits() -> None:
    """Edits of the indexed queries, as if the stage had run: each its instruction."""
    queries = pl.DataFrame(tables.read("index", "demo", "queries.parquet"))
    rows = queries.select("query_id", "split", edited=pl.concat_list("instruction"), added=pl.lit("a red ring"))
    rows = rows.with_columns(status=pl.lit("ok"), answers=pl.col("edited"))
    with tables.output("edits", "demo") as out:
        out.shard(rows.to_arrow(), EDITS)


def images_grow(grown: Grown, size: int, folder: Path) -> None:
    """The stages whose cost depends on the gallery."""
    worlds.circo(folder / "data" / "demo", size, QUERIES, 0)  # no hidden ones: servers require 50 images per query
    grown.run("index", size, folder, "demo")
    grown.run("captions", size, folder, "demo")
    grown.run("gallery_vectors", size, folder, "demo", "tiny")
    edits()
    measure.process([*measure.script("query_vectors"), "demo", "tiny"], folder)
    grown.run("scores", size, folder, "demo", "tiny")
    grown.run("report", size, folder, "demo", "tiny")


def queries_grow(grown: Grown, size: int, folder: Path) -> None:
    """The stages whose cost depends on the queries."""
    scenes = worlds.circo(folder / "data" / "demo", GALLERY, size, 0)
    measure.process([*measure.script("index"), "demo"], folder)
    captions(scenes)
    grown.run("edits", size, folder, "demo")
    grown.run("query_vectors", size, folder, "demo", "tiny")


def ranking_grows(grown: Grown, size: int, folder: Path) -> None:
    """Scores on random vectors."""
    random_vectors.write(folder, size, QUERIES, WIDTH)
    grown.keep("scores", size, measure.process([*measure.script("scores"), "big", "tiny"], folder))


def measured(sizes: list[int]) -> Grown:
    """Run everything at these sizes, each in a folder of its own."""
    grown = Grown()
    works: list[tuple[Callable[[Grown, int, Path], None], list[int]]] = [
        (images_grow, sizes), (queries_grow, [size for size in sizes if size <= MOST_QUERIES]),
        (ranking_grows, [10 * sizes[-1]]),
    ]  # fmt: skip
    for work, numbers in works:
        for size in numbers:
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                worlds.parameters(Path(folder))
                work(grown, size, Path(folder))
    return grown


def main(
    plot: Annotated[Path | None, typer.Option(help="Draw time and memory into this PNG file.")] = None,
    largest: Annotated[int, typer.Option(min=30, help="Leave out sizes above this one.")] = SIZES[-1],
    measured_before: Annotated[bool, typer.Option(help="Draw what was measured before instead of measuring.")] = False,
) -> None:
    """Measure how the stages' time and memory grow with images and queries."""
    if measured_before and plot is None:
        raise CvsiError("--measured-before draws what was measured: give --plot FILE, too")
    if not measured_before:
        sizes = [size for size in SIZES if size <= largest]
        measure.publish("growth", measured(sizes).cases(), queries=QUERIES, gallery=GALLERY)
    if plot is not None:
        draw(measure.read("growth"), plot)
        measure.say(f"drawn: {plot}")


if __name__ == "__main__":
    measure.run(main)
