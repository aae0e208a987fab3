"""The stage gallery_vectors with the demo's CLIP and a random ViT-B/32, compared with a plain loop and forward passes.

The plain loop decodes in the same thread and makes one text call per image, with its captions at CLIP's full context,
as published code does; it embeds a sixth of the images, and its time is multiplied by six. The floor is the forward
passes alone, texts already cut to their batch's longest; for the demo's CLIP, whose passes cost no more than decoding,
it is decoding by all cores and then the passes. Loading is left out.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import open_clip
import polars as pl
import torch
import typer
from PIL import Image

from benchmarks import measure, worlds
from benchmarks.measure import FLOOR, OURS, PLAIN, Case
from cvsi.core import params, run_log, schema, tables
from cvsi.core.images import decode
from cvsi.datasets.index import build
from cvsi.models.batching import length_batches
from cvsi.models.clip_encoder import Encoder
from cvsi.pipeline import vectors

PHOTO, PHOTOS = (640, 480), 96
CAPTIONS = 5
PLAIN_BATCH, PLAIN_SHARE = 32, 6


@dataclass
class Bench:
    """A workspace with an index and captions, and the same pictures and texts by themselves."""

    folder: Path
    encoder: Encoder
    files: list[Path]
    captions: list[list[str]]
    runs: "count[int]"

    def ours(self) -> float:
        """The stage's whole function on an empty store, less the time of loading the model."""
        settings = params.load().model_copy(update={"store": f"store-{next(self.runs)}"})
        loaded, began = run_log.spent().get("load", 0.0), perf_counter()
        vectors.write_gallery("bench", "bench", settings)
        return perf_counter() - began - (run_log.spent().get("load", 0.0) - loaded)

    def plain(self) -> float:
        """Decode and embed in one thread, a call per image for its captions; a part of the images, scaled to all."""
        images, texts, number, began = [], [], -(-len(self.files) // PLAIN_SHARE), perf_counter()
        for start in range(0, number, PLAIN_BATCH):
            batch = [self.pixels(file) for file in self.files[start : min(start + PLAIN_BATCH, number)]]
            with torch.inference_mode():
                images.append(self.encoder.model.encode_image(torch.stack(batch)).float())
        with torch.inference_mode():
            for lines in self.captions[:number]:
                encoded = self.encoder.model.encode_text(self.encoder.tokens(lines), normalize=True)
                texts.append(encoded.mean(dim=0))
        np.savez(self.folder / "plain.npz", torch.cat(images).numpy(), torch.stack(texts).numpy())
        return (perf_counter() - began) * len(self.files) / number

    def pixels(self, file: Path) -> torch.Tensor:
        """A file as the model's input."""
        return self.encoder.prepare(decode(file.read_bytes()))


def floor(bench: Bench, decoding: bool) -> Callable[[], None]:
    """Bare forward passes over pixels and tokens in memory; with `decoding`, by all cores, before them."""
    compute, encoder = bench.encoder.compute, bench.encoder
    texts = list(dict.fromkeys(line for lines in bench.captions for line in lines))
    tokens = encoder.tokens(texts)
    batches = [tokens[positions] for positions in length_batches(encoder.lengths(tokens), compute.text_batch)]
    ready = None if decoding else torch.stack([bench.pixels(file) for file in bench.files])

    @torch.inference_mode()
    def passes() -> None:
        pixels = ready
        if pixels is None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                pixels = torch.stack(list(pool.map(bench.pixels, bench.files)))
        for start in range(0, len(pixels), compute.image_batch):
            encoder.model.encode_image(pixels[start : start + compute.image_batch])
        for batch in batches:
            encoder.embed(batch)

    return passes


def bench(folder: Path, images: int, photos: bool, backbone: dict[str, str], batches: dict[str, int]) -> Bench:
    """Draw pictures, index them, and write captions for them as the stage captions would."""
    content = worlds.parameters(folder)
    demo = content["datasets"]["demo"] | {"root": "data"}
    content = worlds.parameters(
        folder, datasets={"bench": demo}, backbones={"bench": backbone}, active=["bench"], runs={}, phis={},
        compute={"device": "cpu"} | batches,
    )  # fmt: skip
    scenes = worlds.circo(folder / "data", images, 4, 4)
    pictures = folder / "data" / worlds.PICTURES
    if photos:
        _photographs(pictures)
    build("bench", params.load())
    captions = [worlds.sentences(scene, CAPTIONS, 1) for scene in scenes]
    index = pl.DataFrame(tables.read("index", "bench", "images.parquet"))
    rows = index.select("image_id", "digest").with_columns(captions=pl.Series(captions))
    with tables.output("captions", "bench") as out:
        out.shard(rows.to_arrow(), schema.CAPTIONS)
    settings = params.load()
    encoder = Encoder(settings.backbone("bench"), settings.compute)
    files = [folder / "data" / path for path in index["path"]]
    return Bench(folder, encoder, files, captions, count())


def _photographs(folder: Path) -> None:
    """Scale the drawn pictures to a photograph's size and add noise, so that decoding costs as much as for one."""
    random = np.random.default_rng(0)
    for file in sorted(folder.iterdir()):
        with Image.open(file) as drawn:
            pixels = np.asarray(drawn.convert("RGB").resize(PHOTO, Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(pixels + random.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file, format="JPEG", quality=90)  # the format is known by content, not by suffix


def measured(name: str, images: int, photos: bool, backbone: dict[str, str], batches: dict[str, int]) -> Case:
    """One backbone in its own workspace."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        drawn = bench(Path(folder), images, photos, backbone, batches)
        passes = floor(drawn, decoding=not photos)
        seconds = measure.in_turn({OURS: drawn.ours, PLAIN: drawn.plain, FLOOR: passes})
    distinct = len({line for lines in drawn.captions for line in lines})
    work = f"{images:,} images, {CAPTIONS} captions each, {distinct:,} distinct; {batches}; loading left out"
    return Case(name, seconds, work, at_least={(PLAIN, OURS): 3}, at_most={(OURS, FLOOR): 1 / 0.9})


def main(
    photos: Annotated[int, typer.Option(min=16, help="How many photographs ViT-B/32 gets.")] = PHOTOS,
) -> None:
    """Measure both backbones."""
    demo = {"model": f"local-dir:{worlds.ROOT / 'demo' / 'weights' / 'clip'}", "phi": "none", "precision": "fp32"}
    cases = [measured("demo CLIP", 1024, False, demo, {"image_batch": 64, "text_batch": 64})]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model("ViT-B-32-quickgelu").state_dict(), file)
        large = {"model": "ViT-B-32-quickgelu", "pretrained": str(file), "phi": "none", "precision": "fp32"}
        cases.append(measured("ViT-B/32, random", photos, True, large, {"image_batch": 32, "text_batch": 16}))
    measure.publish("gallery_vectors", cases, threads=torch.get_num_threads())


if __name__ == "__main__":
    measure.run(main)
