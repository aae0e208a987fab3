"""Shared by all training parts: the optimiser with its schedule, progress lines, and pictures as tensors."""

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

MEAN = (
    0.48145466,
    0.4578275,
    0.40821073,
)  # of the pixels that CLIP was trained on; its models expect input normalised with them
STD = (0.26862954, 0.26130258, 0.27577711)
PROGRESS_LINES = 20  # progress lines per part


def log(text: str) -> None:
    """Print one progress line with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """The scenes' pictures, normalised for CLIP: [scenes, 3, 64, 64] float32."""
    return normalised(np.stack([np.asarray(picture(scene)) for scene in scenes]))


def normalised(pixels: np.ndarray) -> Tensor:
    """Pictures [pictures, 64, 64, 3] of bytes, normalised for CLIP: [pictures, 3, 64, 64] float32."""
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Trainer:
    """AdamW over parameter groups with a warm-up, a cosine decay to zero, clipped gradients and progress lines."""

    def __init__(self, name: str, steps: int, groups: Sequence[tuple[Iterator[nn.Parameter], float]]) -> None:
        """Each of `groups` is parameters with their highest learning rate."""
        self.name, self.steps = name, steps
        self.parameters = [list(parameters) for parameters, _ in groups]
        self.rates = [rate for _, rate in groups]
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters} for parameters in self.parameters], lr=1.0, weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.started, self.loss_sum = time.monotonic(), 0.0

    def __iter__(self) -> Iterator[int]:
        """Iterate over the step numbers; sets the learning rates before each."""
        warm = max(1, min(200, self.steps // 20))
        for step in range(self.steps):
            factor = min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / self.steps))
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            yield step

    def update(self, step: int, loss: Tensor) -> None:
        """Apply one optimiser step for `loss`."""
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameters in self.parameters:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.loss_sum += float(loss.detach())
        every = max(1, self.steps // PROGRESS_LINES)
        if (step + 1) % every == 0:
            rate = (step + 1) / (time.monotonic() - self.started)
            minutes_left = (self.steps - step - 1) / rate / 60
            mean = self.loss_sum / every
            progress = f"step {step + 1} of {self.steps}, loss {mean:.3f}"
            log(f"{self.name}: {progress}, {rate:.1f} per second, {minutes_left:.1f} min left")
            self.loss_sum = 0.0


def size_in_mb(folder: Path) -> float:
    """The total size of all files in a folder and its subfolders, in millions of bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
