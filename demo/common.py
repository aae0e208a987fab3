"""What all parts of the training share: seeds, a schedule, progress lines, and pictures as tensors."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from demo.world.drawing import picture
from demo.world.scenes import Scene

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's pictures, as its models expect them
STD = (0.26862954, 0.26130258, 0.27577711)
LINES = 20  # of progress, a part


def say(text: str) -> None:
    """One line of progress."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """The scenes' pictures, normalised as CLIP wants them: [scenes, 3, 64, 64] float32."""
    pixels = np.stack([np.asarray(picture(scene)) for scene in scenes])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Trainer:
    """AdamW over parameter groups with a warm-up, a cosine to nothing, clipped gradients and progress lines."""

    def __init__(self, name: str, steps: int, groups: Sequence[tuple[Iterator[nn.Parameter], float]]) -> None:
        """`groups` are parameters and their highest learning rate."""
        self.name, self.steps = name, steps
        self.parameters = [list(parameters) for parameters, _ in groups]
        self.rates = [rate for _, rate in groups]
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters} for parameters in self.parameters], lr=1.0, weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.begun, self.losses = time.monotonic(), 0.0

    def __iter__(self) -> Iterator[int]:
        """The numbers of the steps, the learning rates set for each."""
        warm = max(1, min(200, self.steps // 20))
        for step in range(self.steps):
            share = min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / self.steps))
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * share
            yield step

    def update(self, step: int, loss: Tensor) -> None:
        """One step down the gradient of `loss`."""
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameters in self.parameters:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.losses += float(loss.detach())
        every = max(1, self.steps // LINES)
        if (step + 1) % every == 0:
            rate = (step + 1) / (time.monotonic() - self.begun)
            left = (self.steps - step - 1) / rate / 60
            mean = self.losses / every
            done = f"step {step + 1} of {self.steps}, loss {mean:.3f}"
            say(f"{self.name}: {done}, {rate:.1f} a second, {left:.1f} min left")
            self.losses = 0.0


def size_in_mb(folder: Path) -> float:
    """The size of all files below a folder, in millions of bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
