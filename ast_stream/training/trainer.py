"""The training loop: seeded, resumable to the same curve after a kill, with averaged weights.

Every step draws its windows and masks from generators seeded by (seed, step) alone, so the state
to save is the weights, their average and the optimizers: no generator state can be forgotten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ast_stream.errors import AstStreamError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.dims import Normalization
from ast_stream.model.fbank import Fbank, pad_frames
from ast_stream.training.augment import Augment, pad_after
from ast_stream.training.compute import attend_short, autocast, autocast_type, keep_freed_memory
from ast_stream.training.config import Optimization
from ast_stream.training.losses import (
    distillation_loss,
    frame_loss,
    label_loss,
    teacher_loss,
)
from ast_stream.training.state import (
    Metrics,
    append_metrics,
    forget_metrics,
    keep_metrics,
    load_state,
    read_metrics,
    save_state,
)
from ast_stream.training.student import Student, StudentOutputs, teacher_segments, teacher_starts
from ast_stream.training.teacher import Teacher, WaveformTeacher
from ast_stream.training.windows import Sampler, Window
from ast_stream.units import FRAME_SHIFT

Evaluate = Callable[[AudioSpectrogramTransformer], Metrics]
RATE_SCALE = "rate_scale"  # key of a parameter group: its rate in multiples of the common one


class Trainer:
    """Trains one model; `average` holds the weights to use.

    Args:
        model: where to start; trained in place, on `device`. Its frame head, if it has one, learns
            the classes of each time patch.
        sampler: draws the windows of each step.
        folder: for the state and the metrics; a state that is there is resumed.
        identity: what else must be the same to resume, by name; see `state`.
        teacher: its scores of the same windows join the loss.
        waveform_teacher: a second head learns its scores of the same waveforms.
        frozen_classes: classes whose rows of the classifier, with the norm before it, stay as they
            are. A class without examples meets windows without it alone, so that training could
            only lower its scores, whatever a teacher says of them.

    Raises:
        CheckpointError: the state in `folder` is of another training.
    """

    def __init__(
        self,
        model: AudioSpectrogramTransformer,
        sampler: Sampler,
        optimization: Optimization,
        folder: Path,
        normalization: Normalization,
        *,
        identity: Mapping[str, Any] | None = None,
        teacher: Teacher | None = None,
        waveform_teacher: WaveformTeacher | None = None,
        device: torch.device | None = None,
        frozen_classes: Sequence[int] = (),
    ) -> None:
        self._device = device or torch.device("cpu")
        self.model = model
        self._waveform_teacher = waveform_teacher
        self._starts: list[int] = []
        n_teacher_classes, segments = 0, None
        if waveform_teacher is not None:
            n_teacher_classes = waveform_teacher.n_classes
            n_samples = model.dims.max_frames * FRAME_SHIFT
            self._starts = teacher_starts(n_samples, waveform_teacher.n_samples)
            segments = teacher_segments(model.dims, self._starts, waveform_teacher.n_samples)
        torch.manual_seed(optimization.seed)
        self.student = Student(model, n_teacher_classes, segments).to(self._device)
        self._frozen = FrozenRows(model, frozen_classes)
        self._averaged = averaged_model(self.student, optimization)
        if self._device.type == "cpu":
            model.use_attention(attend_short)
            keep_freed_memory()
        self.step = 0
        self._losses: list[float] = []  # since the last report
        self._sampler = sampler
        self._optimization = optimization
        self._folder = folder
        self._fbank = Fbank(self._device)
        self._augment = Augment(optimization.augmentation, normalization)
        self._optimizers = make_optimizers(self.student, optimization)
        self._teacher = teacher
        is_taught = teacher.is_taught if teacher else torch.zeros(len(sampler.labels))
        self._is_taught = is_taught.to(self._device)
        self._has_examples = torch.tensor(sampler.has_examples).float().to(self._device)
        self._autocast_type = autocast_type(optimization.precision, self._device)
        # half precision loses small gradients unless they are scaled up
        self._scaler = torch.amp.GradScaler(
            self._device.type, enabled=self._autocast_type == torch.float16
        )
        self._identity = {
            "optimization": asdict(optimization),
            "sizes": asdict(model.dims),
            "classes": sampler.labels,
            **(identity or {}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def average(self) -> AudioSpectrogramTransformer:
        """The model with averaged weights."""
        return self.average_student.model

    @property
    def average_student(self) -> Student:
        """The model with averaged weights, with its heads."""
        assert isinstance(self._averaged.module, Student)
        return self._averaged.module

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
        optimization = self._optimization
        while self.step < optimization.steps:
            if should_stop():
                self._save()
                return
            self._losses.append(self._train_step())
            self._refuse_divergence()
            self.step += 1
            is_last = self.step == optimization.steps
            if self.step % optimization.report_every == 0 or is_last:
                yield self._report(evaluate, is_last)
            if self.step % optimization.save_every == 0 or is_last:
                self._save()

    def _refuse_divergence(self) -> None:
        # half precision overflows now and then: its scale shrinks until it does not
        if math.isfinite(self._losses[-1]) or self._scaler.get_scale() > 1:
            return
        raise AstStreamError(
            f"step {self.step + 1}: expected a finite loss, got {self._losses[-1]}: the training "
            f"has diverged; begin again in another folder with a learning rate below "
            f"{self._optimization.learning_rate:g}"
        )

    def _report(self, evaluate: Evaluate | None, is_last: bool) -> Metrics:
        rate = self._optimization.rate(self.step)
        report = {"step": self.step, "loss": float(np.mean(self._losses)), "lr": rate}
        self._losses.clear()
        if evaluate and (self.step % self._optimization.evaluate_every == 0 or is_last):
            report |= evaluate(self.average)
        append_metrics(self._folder, report)
        return report

    def _train_step(self) -> float:
        optimization = self._optimization
        # one seed per step: masks and stochastic depth repeat exactly after a resume
        torch.manual_seed(optimization.seed * 1_000_003 + self.step)
        windows = self._sampler.draw_batch(optimization.seed, self.step, optimization.batch_size)
        fbank, n_real = self._features(windows)
        inputs = self._augment(fbank, n_real)
        _set_rate(self._optimizers, optimization.rate(self.step))
        self.student.train()
        with autocast(self._device, self._autocast_type):
            outputs = self.student(inputs, optimization.patch_ratio_at(self.step))
        loss = self._loss(outputs, windows, pad_after(fbank, n_real))
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._update()
        return float(loss.detach())

    def _loss(self, outputs: StudentOutputs, windows: Sequence[Window], fbank: Tensor) -> Tensor:
        optimization = self._optimization
        logits = outputs.clip.float()
        targets = self._stacked([window.target for window in windows])  # (B, n_classes)
        weights = self._stacked([window.weight for window in windows])  # (B, n_classes)
        certain = 1 - optimization.label_smoothing
        loss = label_loss(
            optimization.loss, logits, targets * certain, weights * self._has_examples
        )
        if outputs.frames is not None:
            # (B, n_time_patches, n_classes)
            targets = self._stacked([window.frame_target for window in windows])
            weights = self._stacked([window.frame_weight for window in windows])
            loss = loss + optimization.frame_weight * frame_loss(
                outputs.frames.float(),
                targets * certain,
                weights * self._has_examples,
                outputs.is_seen,
            )
        if self._teacher is not None:
            soft = teacher_loss(logits, self._teacher.scores(fbank), self._is_taught)
            weight = optimization.teacher_weight
            loss = (1 - weight) * loss + weight * soft
        if outputs.teacher is not None:
            loss = loss + optimization.distillation_weight * self._distillation(
                outputs.teacher.float(), windows
            )
        return loss

    def _distillation(self, logits: Tensor, windows: Sequence[Window]) -> Tensor:
        """Return the loss against the teacher of waveforms, of a part of the windows."""
        teacher = self._waveform_teacher
        assert teacher is not None
        n_taught = max(1, round(self._optimization.distilled_ratio * len(windows)))
        pieces = [
            window.waveform[start : start + teacher.n_samples]
            for window in windows[:n_taught]
            for start in self._starts
        ]
        scores = torch.from_numpy(teacher.scores(np.stack(pieces))).to(self._device)
        scores = scores.view(n_taught, len(self._starts), -1)
        return distillation_loss(logits[:n_taught], scores)

    def _update(self) -> None:
        """Step along the gradients, and let the average follow."""
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        # clipping by a norm that overflowed makes NaN of gradients that were finite, and the scaler
        # looks at those of one optimizer at a time: a step is taken by all of them or by none
        limit = self._optimization.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), limit)
        if self._scaler.is_enabled() and not norm.isfinite():
            self._scaler.update(self._scaler.get_scale() * self._scaler.get_backoff_factor())
        else:
            for optimizer in self._optimizers:
                self._scaler.step(optimizer)
            self._scaler.update()
        self.student.zero_grad()
        self._frozen.restore()
        update_average(self._averaged, self.student, self._optimization, self.step)

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
            "student": self.student.state_dict(),
            "average": self._averaged.state_dict(),
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
        self.student.load_state_dict(state["student"])
        self._averaged.load_state_dict(state["average"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._scaler.load_state_dict(state["scaler"])
        self.step, self._losses = state["step"], list(state["losses"])
        reports = read_metrics(self._folder)
        keep_metrics(self._folder, [report for report in reports if report["step"] <= self.step])


def averaged_model(model: nn.Module, optimization: Optimization) -> AveragedModel:
    """Return the average of the weights so far: those of `model`; see `update_average`."""

    def ema(averages: Any, currents: Any, n_averaged: Tensor | int) -> None:
        # a short memory at first, else the random start would stay in the average for long
        decay = min(optimization.ema_decay, int(n_averaged) / (int(n_averaged) + 9))
        torch._foreach_lerp_(averages, currents, 1 - decay)

    is_ema = optimization.average_from_epoch is None
    averaged = AveragedModel(model, multi_avg_fn=ema if is_ema else None)
    averaged.n_averaged.fill_(int(is_ema))  # the start is the first model in the moving average
    averaged.eval().requires_grad_(False)
    return averaged


def update_average(
    averaged: AveragedModel, model: nn.Module, optimization: Optimization, step: int
) -> None:
    """Let the average follow the weights after step `step`.

    That is an exponential moving average, or with `average_from_epoch` the mean of the weights at
    the ends of epochs; before the first of these the weights as they are.
    """
    if optimization.average_from_epoch is not None:
        n_steps, epoch_steps = step + 1, max(1, optimization.epoch_steps)
        if n_steps <= optimization.average_from_epoch * epoch_steps:
            averaged.n_averaged.zero_()
        elif n_steps % epoch_steps:
            return
    averaged.update_parameters(model)


def make_optimizers(student: Student, optimization: Optimization) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together train all parameters of `student`."""
    if optimization.optimizer == "adam":
        return [_adam(student, optimization)]
    return _muon(student, optimization)


class FrozenRows:
    """Rows of the classifiers, and the norm before one, that a step must not change."""

    def __init__(self, model: AudioSpectrogramTransformer, rows: Sequence[int]) -> None:
        self._rows = list(rows)
        head, norm = model.head, model.head_norm
        by_class = [head.weight, head.bias]
        if model.frame_head is not None:
            by_class += [model.frame_head.weight, model.frame_head.bias]
        self._by_class = [(parameter, parameter.detach().clone()) for parameter in by_class]
        self._whole = [
            (parameter, parameter.detach().clone()) for parameter in (norm.weight, norm.bias)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what a step did to them."""
        if not self._rows:
            return
        for parameter, kept in self._by_class:
            parameter[self._rows] = kept[self._rows]
        for parameter, kept in self._whole:
            parameter.copy_(kept)


def _set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get(RATE_SCALE, 1.0)


def _adam(student: Student, optimization: Optimization) -> torch.optim.Optimizer:
    """Return Adam as the AST repository uses it: the decay is part of the gradient."""
    in_model = student.model
    in_head = set(student.parameters()) - set(in_model.parameters())
    in_head |= set(in_model.head_norm.parameters()) | set(in_model.head.parameters())
    body = [parameter for parameter in student.parameters() if parameter not in in_head]
    head = [parameter for parameter in student.parameters() if parameter in in_head]
    groups: list[dict[str, Any]] = [
        {"params": body},
        {"params": head, RATE_SCALE: optimization.head_rate},
    ]
    return torch.optim.Adam(
        groups,
        lr=optimization.learning_rate,
        betas=optimization.adam_betas,
        weight_decay=optimization.weight_decay,
    )


def _muon(student: Student, optimization: Optimization) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for everything else.

    Muon's steps are scaled to the size of AdamW's, so that both share one learning rate. Only the
    matrices decay: not biases, norms, tokens and position embeddings.
    """
    model = student.model
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    in_blocks = set(matrices)
    others = [parameter for parameter in student.parameters() if parameter not in in_blocks]
    is_decayed = {model.patch_embed.proj.weight, model.head.weight}
    heads = (model.frame_head, student.teacher_head)
    is_decayed |= {head.weight for head in heads if head is not None}
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in others if (parameter in is_decayed) == decays],
            "weight_decay": weight_decay,
        }
        for decays, weight_decay in ((True, optimization.weight_decay), (False, 0.0))
    ]
    return [
        torch.optim.Muon(
            matrices,
            lr=optimization.learning_rate,
            weight_decay=optimization.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(groups, lr=optimization.learning_rate, fused=True),
    ]
