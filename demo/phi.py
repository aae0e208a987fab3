"""The mapping network phi of the tiny CLIP, trained on text alone, as LinCIR trains it.

The embedding of a description, with noise, goes through phi, and the word that comes out takes the description's place:
of its keyword spans, or of all of it, alone or in the sentence that the search completes. The sentence's embedding
shall not change by that.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from demo.common import Trainer, pictures, say
from demo.texts import added, compose, describe

BATCH = 256
CHUNKS = 4  # of a batch, by length, which saves padding
# Words between keyword spans: a span is a run of nouns, adjectives and numbers.
LINKS = frozenset("a an and of on the with photo picture background is".split())


@dataclass(frozen=True)
class Lesson:
    """A description, a sentence that holds it, and the sentence with `$` in the description's place."""

    description: str
    plain: str
    masked: str


def draw_lesson(random: Random) -> Lesson:
    """One lesson from the training part: in three of ten, only a description; else, a composed sentence."""
    if random.random() < 0.3:
        description = describe(draw_scene(random, "training"), random)
        if random.random() < 0.5:
            return Lesson(description, f"a photo of {description}", "a photo of $")
        return Lesson(description, description, mask_spans(description))
    example = compose(random)
    description = describe(example.source, random, sure=True)
    rest = f" that {example.clause}"
    if random.random() < 0.7:
        rest += f". And the photo should have {added(example)}."
    return Lesson(description, f"a photo of {description}{rest}", f"a photo of ${rest}")


def mask_spans(description: str) -> str:
    """The description with `$` in place of each keyword span."""
    words: list[str] = []
    for word in description.replace(",", " ,").split():
        if word in LINKS or word == ",":
            words.append(word)
        elif not words or words[-1] != "$":
            words.append("$")
    return " ".join(words)


def _embed(clip: CLIP, phi: Phi, words: Words, read: Tensor, masks: list[str]) -> Tensor:
    """Embeddings of the masked sentences, phi's words for `read` (embeddings, not normalised) in place."""
    tokens = words(masks)
    embedded = clip.token_embedding(tokens)
    found = (tokens == words.placeholder).unsqueeze(-1)
    return encode_text(clip, tokens, torch.where(found, phi(read).unsqueeze(1), embedded))


def _loss(clip: CLIP, phi: Phi, words: Words, lessons: list[Lesson]) -> Tensor:
    """Mean squared change of the sentences' embeddings when phi's words stand in them."""
    with torch.no_grad():
        read = encode_text(clip, words([lesson.description for lesson in lessons]))
        goal = encode_text(clip, words([lesson.plain for lesson in lessons]))
        noisy = read + torch.rand(len(read), 1) * torch.randn_like(read)
    return functional.mse_loss(_embed(clip, phi, words, noisy, [lesson.masked for lesson in lessons]), goal)


@torch.no_grad()
def quality(clip: CLIP, phi: Phi, words: Words) -> dict[str, float]:
    """Held-out figures in percent: the right picture of 500 found first, as phi reads the source's text or picture."""
    random = Random("held out phi")
    examples = [compose(random, hard=0.0) for _ in range(500)]
    masks = [f"a photo of $ that {one.clause}. And the photo should have {added(one)}." for one in examples]
    targets = functional.normalize(clip.visual(pictures([one.target for one in examples])), dim=-1)
    texts = encode_text(clip, words([describe(one.source, random, sure=True) for one in examples]))
    images = clip.visual(pictures([one.source for one in examples]))
    figures = {}
    for name, read in (("from text", texts), ("from a picture", images)):
        found = (_embed(clip, phi, words, read, masks) @ targets.T).argmax(-1) == torch.arange(len(examples))
        figures[f"picture of 500 found first, phi's word {name}"] = 100 * float(found.float().mean())
    return figures


def train(folder: Path, path: Path, seed: int, steps: int) -> dict[str, float]:
    """Train and write phi for the CLIP in a folder; returns its held-out figures."""
    torch.manual_seed(seed)
    random = Random(f"phi {seed}")
    words = Words()
    clip = load(folder, words)
    phi = Phi(WIDTH, WIDTH)
    say(f"phi: {sum(p.numel() for p in phi.parameters()):,} parameters")
    trainer = Trainer("phi", steps, [(phi.parameters(), 2e-3)])
    phi.train()
    for step in trainer:
        lessons = sorted((draw_lesson(random) for _ in range(BATCH)), key=lambda lesson: len(lesson.plain))
        size = BATCH // CHUNKS
        losses = [_loss(clip, phi, words, lessons[at : at + size]) for at in range(0, BATCH, size)]
        trainer.update(step, torch.stack(losses).mean())
    phi.eval()
    figures = quality(clip, phi, words)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in phi.state_dict().items()}, path)
    return figures
