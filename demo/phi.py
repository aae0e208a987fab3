"""The mapping network phi of the tiny CLIP, trained on text alone, as LinCIR trains it.

A sentence's embedding with noise goes through phi, and the word that comes out takes the place of the sentence's
keyword spans, or of the whole description in it; the sentence's embedding shall not change by that.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from open_clip import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from cvsi.phi import Phi
from cvsi.world.scenes import draw_scene
from demo.clip import WIDTH, Words, encode_text, load
from demo.common import Trainer, say
from demo.texts import describe

BATCH = 256
CHUNKS = 4  # of a batch, by length, which saves padding
# Words between keyword spans: a span is a run of nouns, adjectives and numbers.
LINKS = frozenset("a an and of on the with photo picture background is".split())


def masked(description: str, random: Random) -> tuple[str, str]:
    """A sentence, and the same with `$` in place of its keyword spans, or of the whole description."""
    opening = random.choice(("a photo of ", ""))
    if opening and random.random() < 0.7:
        return opening + description, f"{opening}$"
    words: list[str] = []
    for word in (opening + description).replace(",", " ,").split():
        if word in LINKS or word == ",":
            words.append(word)
        elif not words or words[-1] != "$":
            words.append("$")
    return opening + description, " ".join(words)


def _embed(clip: CLIP, phi: Phi, words: Words, sentences: Tensor, masks: list[str]) -> Tensor:
    """Embeddings of the masked sentences, phi's words for `sentences` (embeddings, not normalised) in place."""
    tokens = words(masks)
    embedded = clip.token_embedding(tokens)
    found = (tokens == words.placeholder).unsqueeze(-1)
    return encode_text(clip, tokens, torch.where(found, phi(sentences).unsqueeze(1), embedded))


def _loss(clip: CLIP, phi: Phi, words: Words, pairs: list[tuple[str, str]]) -> Tensor:
    """Mean squared change of sentences' embeddings when phi's words stand in them."""
    with torch.no_grad():
        goal = encode_text(clip, words([plain for plain, _ in pairs]))
        noisy = goal + torch.rand(len(goal), 1) * torch.randn_like(goal)
    return functional.mse_loss(_embed(clip, phi, words, noisy, [mask for _, mask in pairs]), goal)


def train(folder: Path, path: Path, seed: int, steps: int) -> dict[str, float]:
    """Train and write phi for the CLIP in a folder; returns its held-out figure."""
    torch.manual_seed(seed)
    random = Random(f"phi {seed}")
    words = Words()
    clip = load(folder, words)
    phi = Phi(WIDTH, WIDTH)
    say(f"phi: {sum(p.numel() for p in phi.parameters()):,} parameters")
    trainer = Trainer("phi", steps, [(phi.parameters(), 2e-3)])
    phi.train()
    for step in trainer:
        pairs = [masked(describe(draw_scene(random, "training"), random), random) for _ in range(BATCH)]
        pairs.sort(key=lambda pair: len(pair[0]))
        size = BATCH // CHUNKS
        losses = [_loss(clip, phi, words, pairs[at : at + size]) for at in range(0, BATCH, size)]
        trainer.update(step, torch.stack(losses).mean())
    phi.eval()
    with torch.no_grad():
        held = Random("held out phi")
        pairs = [masked(describe(draw_scene(held, "training"), held), held) for _ in range(500)]
        goal = encode_text(clip, words([plain for plain, _ in pairs]))
        kept = functional.cosine_similarity(_embed(clip, phi, words, goal, [mask for _, mask in pairs]), goal).mean()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in phi.state_dict().items()}, path)
    return {"cosine of sentences with and without phi's word": float(kept)}
