"""Where the training of a phi stands, and its checkpoint: whole or absent, and read without running code."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from cvsi.core.atomic import atomic_file
from cvsi.core.errors import CvsiError

LOSSES = {"step": pl.Int64, "train": pl.Float64, "validation": pl.Float64}


@dataclass
class Progress:
    """Steps done, the losses so far, and the best phi by validation loss."""

    step: int = 0
    total: float = 0.0  # of the training losses since the last validation
    summed: int = 0
    losses: list[tuple[int, float, float]] = field(default_factory=list)  # step, training, validation
    best: dict[str, Tensor] = field(default_factory=dict)
    best_step: int = 0
    best_loss: float = math.inf
    waited: int = 0  # validations since the best one
    finished: bool = False

    def add(self, loss: float) -> None:
        """Count one step with its training loss."""
        self.step, self.total, self.summed = self.step + 1, self.total + loss, self.summed + 1

    def judge(self, loss: float, state: Mapping[str, Tensor]) -> None:
        """Count one validation; the phi of the lowest loss, the first of equal ones, is kept."""
        self.losses.append((self.step, self.total / self.summed, loss))
        self.total, self.summed, self.waited = 0.0, 0, self.waited + 1
        if loss < self.best_loss:
            self.best = {name: value.detach().cpu().clone() for name, value in state.items()}
            self.best_step, self.best_loss, self.waited = self.step, loss, 0

    def table(self) -> pl.DataFrame:
        """The losses: `step`, `train` (mean since the row before) and `validation`."""
        return pl.DataFrame(self.losses, LOSSES, orient="row")


def save(path: Path, progress: Progress, parts: Mapping[str, Any]) -> None:
    """Write a checkpoint: the progress, and the state dicts of whatever goes on from there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        torch.save({"progress": asdict(progress), "parts": dict(parts)}, partial)
    if progress.finished:
        for left in path.parent.glob(f".{path.name}-*.partial"):  # of runs killed while they wrote
            left.unlink(missing_ok=True)


def load(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Read a checkpoint, a fresh start where there is none; raises CvsiError for a damaged file."""
    if not path.exists():
        return Progress(), {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Progress(**content["progress"]), content["parts"]
    except Exception as error:  # torch raises many kinds on a broken file; none of it was run
        raise CvsiError(
            f"{path}: damaged checkpoint ({type(error).__name__}); delete it, training then starts anew"
        ) from None
