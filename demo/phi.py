"""The mapping network phi of the tiny CLIP: runs the training of stage `train_phi` on captions drawn here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from cvsi.core import params
from cvsi.core.params import Backbone, Compute
from cvsi.models.clip import template
from cvsi.models.clip_encoder import Encoder
from cvsi.models.phi import Phi, load
from cvsi.store.rows import Store
from cvsi.training.train import fit
from demo import phi_captions
from demo.common import pictures
from demo.texts import added, compose, describe
from demo.world.scenes import Scene

COMPUTE = Compute(device="cpu")


def embeddings(encoder: Encoder, scenes: list[Scene]) -> Tensor:
    """The image embeddings of drawn scenes, batch by batch."""
    batches = torch.split(pictures(scenes), encoder.compute.image_batch)
    return torch.cat([encoder.image_embeddings(list(batch)) for batch in batches])


@torch.no_grad()
def quality(encoder: Encoder, phi: Phi) -> dict[str, float]:
    """Held-out figures in percent: recall@1 among 500 pictures when phi gets the source's text or its picture."""
    random = Random("held out phi")
    examples = [compose(random, hard=0.0) for _ in range(500)]
    prompts = encoder.tokens([template(one.clause, added(one)) for one in examples])
    targets = functional.normalize(embeddings(encoder, [one.target for one in examples]), dim=-1)
    texts = encoder.embed(encoder.tokens([describe(one.source, random, complete=True) for one in examples]))
    images = embeddings(encoder, [one.source for one in examples])

    def recall_at_1(phi_input: Tensor) -> float:
        correct = (encoder.embed(prompts, phi(phi_input)) @ targets.T).argmax(-1) == torch.arange(len(examples))
        return 100 * float(correct.float().mean())

    return {
        "picture of 500 ranked first, phi's word from text": recall_at_1(texts),
        "picture of 500 ranked first, phi's word from a picture": recall_at_1(images),
    }


def train(folder: Path, path: Path, seed: int, steps: int) -> dict[str, float]:
    """Train phi for the CLIP in a folder with the settings `phis.tiny` and write it; returns its held-out figures."""
    backbone = Backbone(model=f"local-dir:{folder}", phi=str(path), precision="fp32")
    with tempfile.TemporaryDirectory() as scratch:
        captions = Path(scratch) / "captions.parquet"
        settings = params.load().phi("tiny")
        changes = {"captions": str(captions), "seed": seed, "steps": steps}
        settings = settings.model_copy(update=changes | {"warmup": max(1, min(settings.warmup, steps // 20))})
        phi_captions.draw(captions, seed, settings.steps * settings.batch + 2 * settings.held_out)
        progress, _ = fit(settings, backbone, COMPUTE, Store(Path(scratch)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save({name: value.half() for name, value in progress.best.items()}))
    encoder = Encoder(backbone, COMPUTE)
    return quality(encoder, load(str(path), encoder.width, encoder.token_width))
