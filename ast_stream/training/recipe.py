"""How to train: a recipe's numbers, and what they say about a single step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ast_stream.training.augment import SpectrogramAugmentation

TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Decay:
    """Learning rate in stairs: times `factor` after so many epochs, and again every so many."""

    from_epoch: int
    every_epochs: int
    factor: float


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults suit a small model from scratch on a few hundred clips.

    Attributes:
        epochs: passes over the clips; sets `steps` once their number is known. None: `steps` do.
        epoch_steps: steps of one pass, set together with `steps`; 0: there are no epochs.
        optimizer: muon (with AdamW for all but the blocks' matrices), or adam.
        head_rate: learning rate of the classifier, in multiples of `learning_rate`.
        warmup_every: steps between changes of the rate while warming up.
        decay: None: half a cosine to zero.
        average_from_epoch: the weights at the end of this epoch and of all later ones are averaged;
            None: an exponential moving average with `ema_decay`.
        loss: detection (see `objective`), bce, or ce for clips with one label.
        teacher_weight: share of a teacher's opinion in the loss, if there is one.
    """

    steps: int = 4000
    batch_size: int = 48
    learning_rate: float = 8e-4
    warmup_steps: int = 150
    weight_decay: float = 0.1
    ema_decay: float = 0.998
    drop_path: float = 0.1
    label_smoothing: float = 0.05  # of positive targets
    gradient_clip: float = 1.0  # 0: none
    patch_share: float = 0.5  # of the patches are seen in a step; the others are left out,
    all_patches_share: float = 0.2  # but not in this last part of the training
    augmentation: SpectrogramAugmentation = field(default_factory=SpectrogramAugmentation)
    report_every: int = 100  # steps
    save_every: int = 200
    evaluate_every: int = 500
    seed: int = 0
    precision: TrainingPrecision = "auto"
    epochs: int | None = None
    epoch_steps: int = 0
    optimizer: Literal["muon", "adam"] = "muon"
    adam_betas: tuple[float, float] = (0.9, 0.999)
    head_rate: float = 1.0
    warmup_every: int = 1
    decay: Decay | None = None
    average_from_epoch: int | None = None
    loss: Literal["detection", "bce", "ce"] = "detection"
    teacher_weight: float = 0.5

    def rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            warm = step + 1 if self.warmup_every == 1 else step - step % self.warmup_every
            return self.learning_rate * warm / self.warmup_steps
        if self.decay is not None:
            late = step // max(1, self.epoch_steps) - self.decay.from_epoch
            return self.learning_rate * self.decay.factor ** max(
                0, late // self.decay.every_epochs + 1
            )
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def patches_at(self, step: int) -> float:
        """Return the share of the patches that the model sees in a step: all of them at last."""
        is_last_part = step >= self.steps * (1 - self.all_patches_share)
        return 1.0 if is_last_part else self.patch_share

    def average_share(self, step: int) -> float:
        """Return the share of the weights after step `step` in the average of all so far."""
        if self.average_from_epoch is None:
            # a short memory at first, else the random start would stay in the average for long
            return 1 - min(self.ema_decay, (1 + step) / (10 + step))
        epoch, steps_into = divmod(step + 1, max(1, self.epoch_steps))
        if epoch < self.average_from_epoch:
            return 1.0
        return 1 / (epoch - self.average_from_epoch + 1) if steps_into == 0 else 0.0
