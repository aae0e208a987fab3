"""The stage captions with the demo's BLIP-2, compared with one image per call and `generate` on prepared full batches.

The plain loop captions the gallery one image per call with all its sequences, and then the reference of every query
again, as published code does; it captions a third of the images, and its time is multiplied by three. The floor is
transformers' own `generate` on full batches of pixels in memory. Loading is left out.
"""

import tempfile
from contextlib import chdir
from itertools import count
from pathlib import Path
from time import perf_counter

import polars as pl
import torch

from benchmarks import measure, worlds
from benchmarks.measure import FLOOR, OURS, PLAIN, Case
from cvsi.core import params, run_log, tables
from cvsi.core.images import decode
from cvsi.datasets.index import build
from cvsi.models.blip2 import Blip2Settings
from cvsi.models.blip2_model import Blip2
from cvsi.models.engines import captioner_of
from cvsi.pipeline import captions

IMAGES, QUERIES, BATCH = 256, 64, 32
PLAIN_SHARE = 3


class Bench:
    """An indexed workspace of drawn pictures, and a loaded captioner."""

    def __init__(self, folder: Path, images: int, queries: int, batch: int) -> None:
        """Draw, index, load."""
        demo = worlds.parameters(folder)["datasets"]["demo"] | {"root": "data"}
        compute = {"caption_batch": batch}
        worlds.parameters(folder, datasets={"bench": demo}, active=["bench"], runs={}, phis={}, compute=compute)
        worlds.circo(folder / "data", images, queries, 1)
        self.settings, self.batch, self.runs = params.load(), batch, count()
        build("bench", self.settings)
        captioner = captioner_of(self.settings.dataset("bench"), "bench")
        assert isinstance(captioner, Blip2Settings)
        self.captioner = captioner
        self.model = Blip2(self.captioner, self.settings.compute)
        index = pl.DataFrame(tables.read("index", "bench", "images.parquet"))
        queried = pl.DataFrame(tables.read("index", "bench", "queries.parquet"))
        paths = dict(index.select("image_id", "path").iter_rows())
        self.gallery = [folder / "data" / path for path in index["path"]]
        self.references = [folder / "data" / paths[image] for image in queried["reference_id"]]
        self.pixels = torch.stack([self.prepared(file) for file in self.gallery])

    def prepared(self, file: Path) -> torch.Tensor:
        """A file as the vision tower's input."""
        return self.model.prepare(decode(file.read_bytes()))

    def ours(self) -> float:
        """The stage's whole function on an empty store, less the time of loading the model."""
        settings = self.settings.model_copy(update={"store": f"store-{next(self.runs)}"})
        loaded, began = run_log.spent().get("load", 0.0), perf_counter()
        captions.write("bench", settings)
        return perf_counter() - began - (run_log.spent().get("load", 0.0) - loaded)

    def generated(self, pixels: torch.Tensor) -> list[str]:
        """All captions of some images by transformers' own `generate`."""
        settings = self.captioner
        tokens = self.model.model.generate(
            pixel_values=pixels, do_sample=True, top_p=settings.top_p, top_k=0, temperature=settings.temperature,
            num_return_sequences=settings.n, max_new_tokens=settings.max_tokens,
        )  # fmt: skip
        return self.model.tokenizer.batch_decode(tokens, skip_special_tokens=True)  # type: ignore[no-any-return]

    def plain(self) -> float:
        """One image per call; references again. A part of them in equal steps, its time scaled to all."""
        files = [*self.gallery, *self.references]
        part, began = files[::PLAIN_SHARE], perf_counter()
        with torch.inference_mode():
            for file in part:
                self.generated(self.prepared(file).unsqueeze(0))
        return (perf_counter() - began) * len(files) / len(part)

    def floor(self) -> None:
        """Full batches, ready in memory."""
        with torch.inference_mode():
            for start in range(0, len(self.pixels), self.batch):
                self.generated(self.pixels[start : start + self.batch])


def main() -> None:
    """Measure the demo's captioner."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        bench = Bench(Path(folder), IMAGES, QUERIES, BATCH)
        seconds = measure.in_turn({OURS: bench.ours, PLAIN: bench.plain, FLOOR: bench.floor})
        n = bench.captioner.n
    work = f"{IMAGES} images with {n} captions, {QUERIES + 1} queries, batches of {BATCH}; loading left out"
    case = Case("demo captioner", seconds, work, at_least={(PLAIN, OURS): 6}, at_most={(OURS, FLOOR): 1 / 0.9})
    measure.publish("captions", [case], threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
