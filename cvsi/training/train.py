"""Captions to phi: trained on text alone, as in LinCIR (arXiv 2312.01998), for one backbone's frozen text tower.

phi reads the text embedding of a subject or a caption with noise added; its word replaces `$` in the masked caption.
Training minimises the distance between the embeddings of the masked caption and of the caption. Random numbers are
seeded by the step, and checkpoints are atomic, so a run that was killed and continues gives the same bytes.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from cvsi.core.atomic import atomic_dir
from cvsi.core.console import Meter, info, redirect_output
from cvsi.core.devices import dtype, precision
from cvsi.core.digest import digest
from cvsi.core.errors import CvsiError
from cvsi.core.params import Backbone, Compute, Params, PhiTraining
from cvsi.core.paths import libraries_log, phi_checkpoint, phi_folder
from cvsi.core.tables import Output
from cvsi.models.batching import length_batches
from cvsi.models.clip_checkpoint import identity
from cvsi.models.clip_encoder import Encoder
from cvsi.models.model_id import content_digest
from cvsi.models.phi import Phi
from cvsi.store.kinds import CODE_VERSIONS
from cvsi.store.rows import Store
from cvsi.training import captions, checkpoint, keywords
from cvsi.training.plots import losses_picture


def train(name: str, params: Params) -> None:
    """Train phi `name` and write `models/<name>`: the weights, the losses as table and picture, and the recipe."""
    settings = params.phi(name)
    progress, facts = fit(settings, params.backbone(settings.backbone), params.compute, Store(Path(params.store)))
    with atomic_dir(phi_folder(name)) as folder:
        (folder / "phi.safetensors").write_bytes(save(progress.best))
        progress.table().write_csv(folder / "losses.csv")
        (folder / "losses.svg").write_text(losses_picture(name, progress.table()), encoding="utf-8")
        Output(folder).recipe(facts)
    info(f"{phi_folder(name)}: phi of step {progress.best_step:,}, validation loss {progress.best_loss:.4g}")


def fit(
    settings: PhiTraining, backbone: Backbone, compute: Compute, store: Store
) -> tuple[checkpoint.Progress, dict[str, Any]]:
    """Train a phi, or find it in the store where that was done before; its progress at the end, and its recipe."""
    # The tower's weights stay in float32; autocast computes in the precision of the training.
    encoder = Encoder(backbone.model_copy(update={"precision": "fp32"}), compute)
    facts = recipe(settings, encoder)
    path = phi_checkpoint(store.path, digest(facts))
    progress, parts = checkpoint.load(path)
    if progress.finished:
        info(f"trained before: {progress.step:,} steps in the store")
        return progress, facts
    table = captions.read(settings, store, compute)
    with redirect_output(libraries_log()):
        _ = encoder.model
    Training(settings, encoder, table, progress, parts).run(path)
    return progress, facts


def recipe(settings: PhiTraining, encoder: Encoder) -> dict[str, Any]:
    """What decides phi's weights; raises CvsiError where the captions or what finds their spans is not there."""
    path = Path(settings.captions)
    if not path.is_file():
        raise CvsiError(f"{path}: no such file; check the phi's captions in params.yaml")
    facts = settings.model_dump(exclude={"backbone", "checkpoint_every"})
    facts |= {"captions": content_digest(path), "spans": keywords.identify(settings.spans)}
    facts["precision"] = precision(settings.precision, encoder.device.type)
    return {"code": CODE_VERSIONS["phi"], "backbone": identity(encoder.backbone)} | facts


@dataclass(frozen=True)
class Tokens:
    """Examples as token ids [n, context]: captions, masked captions, phi's texts; `given` [n] marks subjects."""

    captions: Tensor
    masked: Tensor
    read: Tensor
    given: Tensor


class Training:
    """One phi, its optimiser and its examples, from the step that the progress has reached."""

    def __init__(
        self,
        settings: PhiTraining,
        encoder: Encoder,
        table: pl.DataFrame,
        progress: checkpoint.Progress,
        parts: dict[str, Any],
    ) -> None:
        """Set up phi, fresh from its seed or as `parts` of a checkpoint left it."""
        self.settings, self.encoder, self.progress = settings, encoder, progress
        self.device, self.precision = encoder.device, precision(settings.precision, encoder.device.type)
        self.learn, held_out = captions.split(table, settings)
        self.held_out = self.tokens(held_out)
        torch.manual_seed(self._seed("start"))
        self.phi = Phi(encoder.width, encoder.token_width).to(self.device)
        self.optimiser = torch.optim.AdamW(
            self.phi.parameters(), settings.learning_rate, (0.9, settings.beta2), weight_decay=settings.weight_decay
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.parts: dict[str, Any] = {"phi": self.phi, "optimiser": self.optimiser, "scaler": self.scaler}
        for name, state in parts.items():
            self.parts[name].load_state_dict(state)
        if self.device.type == "cuda":  # same bits in a resumed run
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)

    def run(self, path: Path) -> None:
        """Train to the last step, or until `patience` validations in a row brought nothing; keep a checkpoint."""
        settings, progress = self.settings, self.progress
        after = f", after {progress.step:,} in the checkpoint" if progress.step else ""
        sizes = f"{self.learn.height:,} captions, {len(self.held_out.given):,} more held out"
        info(f"{sizes}: {settings.steps - progress.step:,} steps to train{after}, in {self.precision} on {self.device}")
        with Meter(settings.steps - progress.step, "steps") as meter, ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.batch, progress.step)  # a thread tokenises while the step before is computed
            while not progress.finished:
                tokens, ahead = ahead.result(), pool.submit(self.batch, progress.step + 1)
                progress.add(self.step(progress.step, tokens))
                if progress.step % settings.validate_every == 0 or progress.step == settings.steps:
                    self._judge()
                if progress.step % settings.checkpoint_every == 0 or progress.finished:
                    parts = {} if progress.finished else {name: part.state_dict() for name, part in self.parts.items()}
                    checkpoint.save(path, progress, parts)
                meter.advance(1)

    def batch(self, step: int) -> Tokens:
        """The examples of a step (from 0)."""
        return self.tokens(self.learn[captions.batch(step, self.learn.height, self.settings)])

    def tokens(self, table: pl.DataFrame) -> Tokens:
        """Examples as token ids; without a subject, phi reads the caption."""
        captions, masked = (self.encoder.tokens(table[name].to_list()) for name in ("caption", "masked"))
        read, given = captions.clone(), torch.from_numpy(table["subject"].is_not_null().to_numpy().copy())
        if bool(given.any()):
            read[given] = self.encoder.tokens(table["subject"].drop_nulls().to_list())
        return Tokens(captions, masked, read, given)

    def step(self, number: int, tokens: Tokens) -> float:
        """One step (from 0) down the gradient; the loss before it. Raises CvsiError for one that is not finite."""
        torch.manual_seed(self._seed("step", number))
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * self._lr_factor(number)
        self.optimiser.zero_grad()
        self.phi.train()
        total = torch.zeros((), device=self.device)
        try:
            for part in self.losses(tokens, _noise(len(tokens.given), self.encoder.width, torch.default_generator)):
                self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
                total += part.detach()
        except torch.OutOfMemoryError:
            raise CvsiError("out of GPU memory; lower compute.text_batch in params.yaml") from None
        if not math.isfinite(loss := float(total)):
            raise CvsiError(f"the loss of step {number + 1:,} is {loss}; lower learning_rate, or set clip or precision")
        self.scaler.unscale_(self.optimiser)
        if self.settings.clip:
            clip_grad_norm_(self.phi.parameters(), self.settings.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return loss

    @torch.no_grad()
    def validate(self) -> float:
        """The loss on the held-out captions, with the same noise every time and no dropout."""
        self.phi.eval()
        generator = torch.Generator().manual_seed(self._seed("held out"))
        noise = _noise(len(self.held_out.given), self.encoder.width, generator)
        return float(torch.stack(list(self.losses(self.held_out, noise))).sum())

    def losses(self, tokens: Tokens, noise: Tensor) -> Iterator[Tensor]:
        """Parts, by length, of the mean squared distance between the embeddings of changed and unchanged captions."""
        lengths = (tokens.captions.argmax(dim=1) + 1).tolist()
        for positions in length_batches(lengths, self.encoder.compute.text_batch):
            rows = torch.tensor(positions)
            with torch.autocast(self.device.type, dtype(self.precision), enabled=self.precision != "fp32"):
                changed, goal = self._embed(tokens, noise, rows)
            yield mse_loss(changed, goal) * len(positions) / len(lengths)

    def _embed(self, tokens: Tokens, noise: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            goal = self.encoder.embed(tokens.captions[rows])
            read, given = goal.clone(), tokens.given[rows]
            if bool(given.any()):
                read[given.to(self.device)] = self.encoder.embed(tokens.read[rows[given]])
        words = self.phi(read + noise[rows].to(self.device))
        return self.encoder.embed(tokens.masked[rows], words), goal

    def _judge(self) -> None:
        """Validate, keep the best phi, and see whether to end."""
        progress, settings = self.progress, self.settings
        progress.judge(self.validate(), self.phi.state_dict())
        step, training, validation = progress.losses[-1]
        best = (
            "the best so far"
            if progress.best_step == step
            else f"best {progress.best_loss:.4g} at {progress.best_step:,}"
        )
        info(f"step {step:,} of {settings.steps:,}: loss {training:.4g}, on held-out captions {validation:.4g}, {best}")
        out_of_patience = settings.patience is not None and progress.waited >= settings.patience
        progress.finished = step == settings.steps or out_of_patience
        if out_of_patience and step < settings.steps:
            info(f"no better phi in {progress.waited} validations: training ends here (patience)")

    def _lr_factor(self, step: int) -> float:
        """The share of the learning rate that a step (from 0) takes: warm-up, then constant or a cosine to nothing."""
        factor = min((step + 1) / self.settings.warmup, 1.0) if self.settings.warmup else 1.0
        if self.settings.schedule == "cosine":
            factor = min(factor, 0.5 + 0.5 * math.cos(math.pi * step / self.settings.steps))
        return factor

    def _seed(self, *what: str | int) -> int:
        return int(digest("phi", self.settings.seed, *what)[:15], 16)


def _noise(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """LinCIR's noise, [rows, width] on the CPU: a normal vector times a uniform number of its row."""
    return torch.rand(rows, 1, generator=generator) * torch.randn(rows, width, generator=generator)
