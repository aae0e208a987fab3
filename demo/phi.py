"""The mapping network phi of the tiny CLIP: the stage `train_phi` on captions drawn here, and held-out figures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from cvsi.core import params
from cvsi.core.model_settings import Backbone
from cvsi.core.params import Compute
from cvsi.models.clip import Encoder, template
from cvsi.models.phi import Phi, load
from cvsi.training.train import fit
from demo import phi_captions
from demo.common import pictures
from demo.texts import added, compose, describe

COMPUTE = Compute(device="cpu")


@torch.no_grad()
def quality(encoder: Encoder, phi: Phi) -> dict[str, float]:
    """Held-out figures in percent: the right picture of 500 found first, as phi reads the source's text or picture."""
    random = Random("held out phi")
    examples = [compose(random, hard=0.0) for _ in range(500)]
    masks = encoder.tokens([template(one.clause, added(one)) for one in examples])
    targets = functional.normalize(encoder.images(pictures([one.target for one in examples])), dim=-1)
    texts = encoder.embed(encoder.tokens([describe(one.source, random, sure=True) for one in examples]))
    images = encoder.images(pictures([one.source for one in examples]))

    def found_first(read: Tensor) -> float:
        found = (encoder.embed(masks, phi(read)) @ targets.T).argmax(-1) == torch.arange(len(examples))
        return 100 * float(found.float().mean())

    return {
        "picture of 500 found first, phi's word from text": found_first(texts),
        "picture of 500 found first, phi's word from a picture": found_first(images),
    }


def train(folder: Path, path: Path, seed: int, steps: int) -> dict[str, float]:
    """Train and write phi for the CLIP in a folder, as `phis.tiny` says; returns its held-out figures."""
    backbone = Backbone(model=f"local-dir:{folder}", phi=str(path), precision="fp32")
    with tempfile.TemporaryDirectory() as scratch:
        captions = Path(scratch) / "captions.parquet"
        settings = params.load().phi("tiny")
        changes = {"captions": str(captions), "seed": seed, "steps": steps}
        settings = settings.model_copy(update=changes | {"warmup": max(1, min(settings.warmup, steps // 20))})
        phi_captions.draw(captions, seed, settings.steps * settings.batch + 2 * settings.held_out)
        progress, _ = fit(settings, backbone, COMPUTE, scratch)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save({name: value.half() for name, value in progress.best.items()}))
    encoder = Encoder(backbone, COMPUTE)
    return quality(encoder, load(str(path), encoder.width, encoder.token_width))
