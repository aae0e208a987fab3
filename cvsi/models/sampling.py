"""Logits to tokens: nucleus sampling and beam-sample, seeded per image.

Nucleus sampling inverts the cumulative distribution with one uniform number per token. Beam-sample, the published
setting, keeps several beams per image and draws their continuations without replacement: the largest of score plus
Gumbel noise. An image's captions do not depend on the batch, the order, or which images are new.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEVER = -torch.inf


def uniforms(seed: int, digest: str, n: int, steps: int, draw: int = 0) -> np.ndarray:
    """One uniform float32 number per sequence and token, [n, steps], from seed, image digest and number of the draw."""
    generator = np.random.Generator(np.random.Philox(key=int(digest[:32], 16) ^ seed, counter=draw << 128))
    return generator.random((n, steps), dtype=np.float32)


def sample_top_p(logits: Tensor, top_p: float, uniform: Tensor) -> Tensor:
    """One token per row from the smallest set of most likely tokens with mass of at least `top_p`.

    Logits [m, vocabulary] float32 and uniform numbers [m] in [0, 1) to token ids [m]; equal logits rank by token id.
    """
    ordered, tokens = torch.sort(logits, dim=-1, descending=True, stable=True)
    mass = torch.softmax(ordered, dim=-1).cumsum(dim=-1)
    kept = (mass < top_p).sum(dim=-1, keepdim=True).clamp(max=mass.shape[1] - 1)
    target = uniform.unsqueeze(1) * mass.gather(1, kept)
    index = torch.minimum((mass <= target).sum(dim=-1, keepdim=True), kept)
    return tokens.gather(1, index).squeeze(1)


def outside_top_p(logits: Tensor, top_p: float, least: int) -> Tensor:
    """Which tokens [m, vocabulary] are left out by `top_p`; the `least` most likely of a row always stay in."""
    ordered, tokens = torch.sort(logits, dim=-1, descending=True, stable=True)
    mass = torch.softmax(ordered, dim=-1)
    out = mass.cumsum(dim=-1) - mass >= top_p  # the mass before a token is enough already
    out[:, :least] = False
    return torch.zeros_like(out).scatter(1, tokens, out)


class Noise:
    """Gumbel noise for each image of a batch, from its own generator."""

    def __init__(self, seed: int, digests: Sequence[str], draw: int, device: torch.device) -> None:
        """Seed one generator per image; the numbers differ between kinds of device."""
        self.generators = [
            torch.Generator(device).manual_seed((int(digest[:14], 16) ^ seed) + (draw << 56)) for digest in digests
        ]
        self.device = device

    def gumbel(self, size: int) -> Tensor:
        """The next numbers of each image, [images, size] float32."""
        rows = [torch.rand(size, generator=generator, device=self.device) for generator in self.generators]
        return -torch.log(-torch.log(torch.stack(rows).clamp(1e-12, 1 - 1e-7)))


class Step(NamedTuple):
    """The result of one step of beams: the source of each running beam, and its token; both [images * beams]."""

    sources: Tensor
    tokens: Tensor


@dataclass
class Beams:
    """The running and the finished beams of a batch of images.

    Running beams start equal with score 0; a finished one scores its sum of log-probabilities over its length
    (transformers 4.33, which the published captions were made with). An image is done, and changes no more, when no
    running beam can beat its worst finished one.
    """

    tokens: Tensor  # [images, beams, steps] int64, filled up with the end token
    scores: Tensor  # [images, beams] float32
    ended_tokens: Tensor
    ended_scores: Tensor
    done: Tensor  # [images] bool
    ends: Tensor

    @classmethod
    def start(cls, images: int, beams: int, steps: int, ends: Tensor) -> "Beams":
        """Beams before the first token; `ends` are the ids that end a sequence."""
        empty = torch.full((images, beams, steps), int(ends[0]), device=ends.device)
        scores = torch.zeros(images, beams, device=ends.device)
        done = torch.zeros(images, dtype=torch.bool, device=ends.device)
        return cls(empty, scores, empty.clone(), torch.full_like(scores, NEVER), done, ends)

    def step(self, step: int, log_probs: Tensor, noise: Tensor) -> Step:
        """Draw each image's continuations from log-probabilities [images * beams, vocabulary].

        `noise` is Gumbel noise [images, beams * vocabulary]. More sequences are drawn than there are beams, so that
        enough unfinished ones remain however many end.
        """
        images, beams = self.scores.shape
        vocabulary = log_probs.shape[1]
        total = (self.scores.unsqueeze(2) + log_probs.view(images, beams, vocabulary)).flatten(1)
        drawn = (total + noise).topk((1 + len(self.ends)) * beams, dim=1).indices
        scores, order = total.gather(1, drawn).sort(dim=1, descending=True, stable=True)
        drawn = drawn.gather(1, order)
        sources, tokens = drawn // vocabulary, drawn % vocabulary
        grown = self.tokens.gather(1, sources.unsqueeze(2).expand(-1, -1, self.tokens.shape[2])).clone()
        grown[:, :, step] = tokens
        ended = torch.isin(tokens, self.ends)
        first = torch.arange(ended.shape[1], device=ended.device) < beams
        self._finish(grown, torch.where(ended & first, scores / (step + 1), NEVER))
        kept = torch.where(ended, NEVER, scores).topk(beams, dim=1).indices
        self.tokens = grown.gather(1, kept.unsqueeze(2).expand(-1, -1, grown.shape[2]))
        self.scores = torch.where(ended, NEVER, scores).gather(1, kept)
        worst, best = self.ended_scores.min(dim=1).values, self.scores.max(dim=1).values / (step + 1)
        self.done |= worst >= best
        offset = torch.arange(images, device=kept.device).unsqueeze(1) * beams
        return Step((sources.gather(1, kept) + offset).flatten(), tokens.gather(1, kept).flatten())

    def best(self, n: int) -> Tensor:
        """The n best sequences of each image, [images * n, steps]; running ones count as they are."""
        self._finish(self.tokens, self.scores / self.tokens.shape[2])
        return self.ended_tokens[:, :n].flatten(0, 1)

    def _finish(self, tokens: Tensor, scores: Tensor) -> None:
        """Take sequences [images, m, steps] among the finished ones of images that are not done, best first."""
        beams = self.scores.shape[1]
        merged = torch.cat([self.ended_scores, torch.where(self.done.unsqueeze(1), NEVER, scores)], dim=1)
        best, order = merged.sort(dim=1, descending=True, stable=True)
        both = torch.cat([self.ended_tokens, tokens], dim=1)
        kept = order[:, :beams].unsqueeze(2).expand(-1, -1, both.shape[2])
        self.ended_tokens, self.ended_scores = both.gather(1, kept), best[:, :beams]
