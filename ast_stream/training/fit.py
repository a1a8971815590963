"""The training loop: seeded, resumable to the same curve after a kill, with averaged weights.

Every step draws its windows and masks from generators seeded by (seed, step) alone, so the state
to save is the weights, their average and the optimizer: no generator state can be forgotten.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ast_stream.errors import AstStreamError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import Normalization
from ast_stream.model.fbank import Fbank, pad_frames
from ast_stream.training.augment import Augment, pad_after
from ast_stream.training.cpu_speed import attend_short, keep_freed_memory
from ast_stream.training.kept_rows import KeptRows
from ast_stream.training.learner import Adviser, Evaluate, Maker
from ast_stream.training.objective import forward_some_patches, loss_of, teacher_loss
from ast_stream.training.optimizers import optimizers_of, set_rate
from ast_stream.training.precision import autocast_type
from ast_stream.training.recipe import Recipe
from ast_stream.training.state import (
    Metrics,
    append_metrics,
    forget_metrics,
    keep_metrics,
    load_state,
    read_metrics,
    save_state,
)
from ast_stream.training.windows import Window


class Trainer:
    """Trains one model; `average` holds the weights to use.

    Args:
        model: where to start; trained in place, on `device`.
        folder: for the state and the metrics; a state that is there is resumed.
        identity: what else must be the same to resume, by name; see `state`.
        teacher: its scores of the same windows join the loss.
        kept_rows: classes whose rows of the classifier stay as they are.

    Raises:
        CheckpointError: the state in `folder` is of another training.
    """

    def __init__(
        self,
        model: AudioSpectrogramTransformer,
        maker: Maker,
        recipe: Recipe,
        folder: Path,
        normalization: Normalization,
        identity: Mapping[str, Any] | None = None,
        teacher: Adviser | None = None,
        device: torch.device | None = None,
        kept_rows: Sequence[int] = (),
    ) -> None:
        self._device = device or torch.device("cpu")
        self.model = model.to(self._device)
        self._kept = KeptRows(model, kept_rows)
        self.average = copy.deepcopy(self.model)
        self.average.eval().requires_grad_(False)
        if self._device.type == "cpu":
            model.use_attention(attend_short)
            keep_freed_memory()
        self.step = 0
        self._losses: list[float] = []  # since the last report
        self._maker = maker
        self._recipe = recipe
        self._folder = folder
        self._fbank = Fbank(self._device)
        self._augment = Augment(recipe.augmentation, normalization)
        self._optimizers = optimizers_of(model, recipe)
        self._teacher = teacher
        self._taught = (teacher.is_taught if teacher else torch.zeros(len(maker.labels))).to(
            self._device
        )
        self._examined = torch.tensor(maker.has_examples).float().to(self._device)
        self._autocast_type = autocast_type(recipe.precision, self._device)
        # half precision loses small gradients unless they are scaled up
        self._scaler = torch.amp.GradScaler(
            self._device.type, enabled=self._autocast_type == torch.float16
        )
        self._identity = {
            "recipe": asdict(recipe),
            "sizes": asdict(model.dims),
            "classes": maker.labels,
            **(identity or {}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(
        self, evaluate: Evaluate | None = None, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Metrics]:
        """Train to the last step; yield the metrics of every report, also appended to a file.

        Args:
            evaluate: called with the averaged model now and then; its metrics join the report.
            should_stop: asked before each step; if so the state is saved and the training ends
                before its last step.

        Raises:
            AstStreamError: state or metrics cannot be written, or the training has diverged; the
                state is the last one saved.
        """
        recipe = self._recipe
        while self.step < recipe.steps:
            if should_stop():
                self._save()
                return
            self._losses.append(self._train_step())
            self._refuse_divergence()
            self.step += 1
            is_last = self.step == recipe.steps
            if self.step % recipe.report_every == 0 or is_last:
                yield self._report(evaluate, is_last)
            if self.step % recipe.save_every == 0 or is_last:
                self._save()

    def _refuse_divergence(self) -> None:
        # half precision overflows now and then: its scale shrinks until it does not
        if math.isfinite(self._losses[-1]) or self._scaler.get_scale() > 1:
            return
        raise AstStreamError(
            f"step {self.step + 1}: expected a finite loss, got {self._losses[-1]}: the training "
            f"has diverged; begin again in another folder with a learning rate below "
            f"{self._recipe.learning_rate:g}"
        )

    def _report(self, evaluate: Evaluate | None, is_last: bool) -> Metrics:
        rate = self._recipe.rate(self.step)
        report = {"step": self.step, "loss": float(np.mean(self._losses)), "lr": rate}
        self._losses.clear()
        if evaluate and (self.step % self._recipe.evaluate_every == 0 or is_last):
            report |= evaluate(self.average)
        append_metrics(self._folder, report)
        return report

    def _train_step(self) -> float:
        recipe = self._recipe
        # one seed per step: masks and stochastic depth repeat exactly after a resume
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        windows = self._maker.draw_batch(recipe.seed, self.step, recipe.batch_size)
        fbank, n_real = self._features(windows)
        inputs = self._augment(fbank, n_real)
        set_rate(self._optimizers, recipe.rate(self.step))
        self.model.train()
        with torch.autocast(
            self._device.type,
            self._autocast_type or torch.bfloat16,
            enabled=self._autocast_type is not None,
        ):
            logits = forward_some_patches(self.model, inputs, recipe.patches_at(self.step))
        loss = self._loss(logits.float(), windows, pad_after(fbank, n_real))
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._update()
        return float(loss.detach())

    def _loss(self, logits: Tensor, windows: Sequence[Window], fbank: Tensor) -> Tensor:
        recipe = self._recipe
        targets = self._stacked([window.target for window in windows])  # (B, n_classes)
        weights = self._stacked([window.weight for window in windows])  # (B, n_classes)
        hard = loss_of(
            recipe.loss, logits, targets * (1 - recipe.label_smoothing), weights * self._examined
        )
        if self._teacher is None:
            return hard
        opinions = self._teacher.scores(fbank)  # (B, n_classes)
        soft = teacher_loss(logits, opinions, self._taught)
        return (1 - recipe.teacher_weight) * hard + recipe.teacher_weight * soft

    def _update(self) -> None:
        """Take a step along the gradients, and let the average follow."""
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        if self._recipe.gradient_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._recipe.gradient_clip)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        self.model.zero_grad()
        self._kept.restore()
        averages: list[Tensor] = list(self.average.parameters())
        share = self._recipe.average_share(self.step)
        with torch.no_grad():
            torch._foreach_lerp_(averages, list[Tensor](self.model.parameters()), share)

    def _features(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Return log-mel frames (B, max_frames, n_mels) and how many of each are real (B,)."""
        waveforms = self._stacked([window.waveform for window in windows])
        n_real = torch.tensor([window.n_real_frames for window in windows]).to(self._device)
        return pad_frames(self._fbank.frames(waveforms), self.model.dims.max_frames), n_real

    def _stacked(self, arrays: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self._device)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "losses": self._losses,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "scaler": self._scaler.state_dict(),
            "identity": json.dumps(self._identity),
        }
        save_state(self._folder, state)

    def _resume(self) -> None:
        state = load_state(self._folder, self._identity)
        if state is None:
            forget_metrics(self._folder)
            return
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._scaler.load_state_dict(state["scaler"])
        self.step, self._losses = state["step"], list(state["losses"])
        reports = read_metrics(self._folder)
        keep_metrics(self._folder, [one for one in reports if one["step"] <= self.step])
