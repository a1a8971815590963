"""The training loop: seeded, resumable to the same curve after a kill, with averaged weights.

Every step draws its windows and masks from generators seeded by (seed, step) alone, so the state
to save is the weights, their average and the optimizer: no generator state can be forgotten.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ast_stream.errors import CheckpointError
from ast_stream.model.ast import AstDims, AudioSpectrogramTransformer
from ast_stream.model.fbank import Fbank, Normalization, pad_frames
from ast_stream.training.augment import Augment, SpectrogramAugmentation
from ast_stream.training.cpu_speed import attend_short, cpu_has_bf16, keep_freed_memory
from ast_stream.training.initialize import initialize
from ast_stream.training.mixing import WindowMaker
from ast_stream.training.objective import detection_loss, forward_some_patches

STATE_FILE = "state.pt"
METRICS_FILE = "metrics.jsonl"
NORMALIZATION_WINDOWS = 400

Metrics = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults suit a small model from scratch on a few hundred clips."""

    steps: int = 4000
    batch_size: int = 48
    learning_rate: float = 8e-4
    warmup_steps: int = 150
    weight_decay: float = 0.1
    ema_decay: float = 0.998
    drop_path: float = 0.1
    label_smoothing: float = 0.05  # of positive targets
    gradient_clip: float = 1.0
    patch_share: float = 0.5  # of the patches are seen in a step; the others are left out,
    all_patches_share: float = 0.2  # but not in this last part of the training
    augmentation: SpectrogramAugmentation = field(default_factory=SpectrogramAugmentation)
    report_every: int = 100  # steps
    save_every: int = 200
    evaluate_every: int = 500
    seed: int = 0
    precision: str = "auto"  # auto, fp32, bf16


class Trainer:
    """Trains one model; `average` holds the weights to use, an exponential moving average.

    Args:
        model: where to start; trained in place.
        folder: for the state and the metrics; a state that is there is resumed.
    """

    def __init__(
        self,
        model: AudioSpectrogramTransformer,
        maker: WindowMaker,
        recipe: Recipe,
        folder: Path,
        normalization: Normalization,
    ) -> None:
        self.model = model
        self.average = AudioSpectrogramTransformer(model.dims)
        self.average.load_state_dict(model.state_dict())
        self.average.eval().requires_grad_(False)
        model.use_attention(attend_short)
        keep_freed_memory()
        self.step = 0
        self._maker = maker
        self._recipe = recipe
        self._folder = folder
        self._fbank = Fbank()
        self._augment = Augment(recipe.augmentation, normalization)
        self._optimizers = _optimizers(model, recipe)
        self._use_bf16 = recipe.precision == "bf16" or (
            recipe.precision == "auto" and cpu_has_bf16()
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(
        self, evaluate: Callable[[AudioSpectrogramTransformer], Metrics] | None = None
    ) -> Iterator[Metrics]:
        """Train to the last step; yield the metrics of every report, also appended to a file.

        Args:
            evaluate: called with the averaged model now and then; its metrics join the report.
        """
        recipe = self._recipe
        losses: list[float] = []
        while self.step < recipe.steps:
            losses.append(self._train_step())
            self.step += 1
            is_last = self.step == recipe.steps
            if self.step % recipe.report_every == 0 or is_last:
                report = {"step": self.step, "loss": float(np.mean(losses)), "lr": self._rate()}
                losses.clear()
                if evaluate and (self.step % recipe.evaluate_every == 0 or is_last):
                    report |= evaluate(self.average)
                self._append(report)
                yield report
            if self.step % recipe.save_every == 0 or is_last:
                self._save()

    def _train_step(self) -> float:
        recipe = self._recipe
        # one seed per step: masks and stochastic depth repeat exactly after a resume
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        inputs, targets, weights = self._batch()
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate()
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._use_bf16):
            logits = forward_some_patches(self.model, inputs, self._patch_share())
        loss = detection_loss(logits.float(), targets * (1 - recipe.label_smoothing), weights)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_clip)
        for optimizer in self._optimizers:
            optimizer.step()
        self.model.zero_grad()
        self._update_average()
        return float(loss.detach())

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs (B, n_frames, n_mels), targets (B, n_classes), weights (B, n_classes)."""
        rng = np.random.default_rng((self._recipe.seed, self.step))
        windows = [self._maker.draw(rng) for _ in range(self._recipe.batch_size)]
        waveforms = torch.from_numpy(np.stack([window.waveform for window in windows]))
        n_real = torch.tensor([window.n_real_frames for window in windows])
        fbank = pad_frames(self._fbank.frames(waveforms), self.model.dims.max_frames)
        return (
            self._augment(fbank, n_real),
            torch.from_numpy(np.stack([window.target for window in windows])),
            torch.from_numpy(np.stack([window.weight for window in windows])),
        )

    def _patch_share(self) -> float:
        """Share of the patches that the model sees in the current step: all of them at last."""
        is_last_part = self.step >= self._recipe.steps * (1 - self._recipe.all_patches_share)
        return 1.0 if is_last_part else self._recipe.patch_share

    def _rate(self) -> float:
        """Learning rate of the current step: linear warm-up, then half a cosine to zero."""
        recipe = self._recipe
        if self.step < recipe.warmup_steps:
            return recipe.learning_rate * (self.step + 1) / recipe.warmup_steps
        done = (self.step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    @torch.no_grad()
    def _update_average(self) -> None:
        # a short memory at first, else the random start would stay in the average for long
        decay = min(self._recipe.ema_decay, (1 + self.step) / (10 + self.step))
        averages: list[Tensor] = list(self.average.parameters())
        torch._foreach_lerp_(averages, list[Tensor](self.model.parameters()), 1 - decay)

    def _append(self, report: Metrics) -> None:
        with (self._folder / METRICS_FILE).open("a") as metrics:
            metrics.write(json.dumps(report) + "\n")

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "identity": self._identity(),
        }
        partial = self._folder / (STATE_FILE + ".partial")
        torch.save(state, partial)
        os.replace(partial, self._folder / STATE_FILE)

    def _resume(self) -> None:
        path = self._folder / STATE_FILE
        if not path.is_file():
            with suppress(FileNotFoundError):
                (self._folder / METRICS_FILE).unlink()
            return
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["identity"] != self._identity():
            raise CheckpointError(
                f"{path}: expected a state of the same recipe, model and classes, got another; "
                "choose another folder or delete this one"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        reports = [report for report in read_metrics(self._folder) if report["step"] <= self.step]
        text = "".join(json.dumps(report) + "\n" for report in reports)
        (self._folder / METRICS_FILE).write_text(text)

    def _identity(self) -> str:
        """What must not change between a start and its resumption."""
        facts = {"recipe": asdict(self._recipe), "dims": asdict(self.model.dims)}
        return json.dumps(facts | {"labels": self._maker.labels}, sort_keys=True)


def new_model(dims: AstDims, recipe: Recipe) -> AudioSpectrogramTransformer:
    """Return a model initialised for small data, the same for the same recipe seed."""
    torch.manual_seed(recipe.seed)
    model = AudioSpectrogramTransformer(dims, drop_path=recipe.drop_path)
    initialize(model)
    return model


def measure_normalization(maker: WindowMaker, seed: int) -> Normalization:
    """Return mean and standard deviation of the log-mel energies of some training windows.

    Padding is left out: unlike in the AST repository's statistics, nothing but sound counts.
    """
    fbank = Fbank()
    frames = []
    for number in range(NORMALIZATION_WINDOWS):
        window = maker.draw(np.random.default_rng((seed, 0, number)))
        one = fbank.frames(torch.from_numpy(window.waveform))
        frames.append(one[: window.n_real_frames])
    energies = torch.cat(frames)
    return Normalization(round(float(energies.mean()), 4), round(float(energies.std()), 4))


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the reports written so far, oldest first; a line cut by a kill is left out."""
    path = folder / METRICS_FILE
    reports: list[Metrics] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with suppress(json.JSONDecodeError):
            reports.append(json.loads(line))
    return reports


def _optimizers(model: AudioSpectrogramTransformer, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for everything else.

    Muon's steps are scaled to the size of AdamW's, so that both share one learning rate. Only the
    matrices decay: not biases, norms, tokens and position embeddings.
    """
    in_blocks = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
    others = [p for p in model.parameters() if id(p) not in in_blocks]
    is_decayed = {id(model.patch_embed.proj.weight), id(model.head.weight)}
    groups = [
        {"params": [p for p in others if (id(p) in is_decayed) == decays], "weight_decay": decay}
        for decays, decay in ((True, recipe.weight_decay), (False, 0.0))
    ]
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True),
    ]
