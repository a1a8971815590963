"""The configuration of a training run: presets, and overrides by name.

The presets are the recipes of the AST paper, one for small models, and one for fine-tuning.
Source: YuanGongND/ast, egs/*/run*.sh, src/run.py, src/traintest.py; its models start from ImageNet
where they do not start from AudioSet, ours from nothing where no start is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from ast_stream.dataset.tables import Columns
from ast_stream.errors import UsageError
from ast_stream.model.checkpoint import load_checkpoint
from ast_stream.model.dims import AstDims
from ast_stream.training.augment import SpectrogramAugmentation
from ast_stream.training.windows import ClipMixing, WindowMixing

TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]
PresetName = Literal["small", "esc50", "speechcommands", "audioset", "audioset-balanced"]
Loss = Literal["detection", "bce", "ce"]

FINE_TUNING_RATE = 5e-5  # of the published models, 768 wide; narrower ones bear more
HEAD_FINE_TUNING_RATE = 10 * FINE_TUNING_RATE
PUBLISHED_WIDTH = 768
HEAD_DIM = 64


@dataclass(frozen=True)
class StepDecay:
    """Stepwise learning rate: multiplied by `factor` at an epoch, and again every few epochs."""

    from_epoch: int
    every_epochs: int
    factor: float


@dataclass(frozen=True)
class Optimization:
    """The trainer's section; the defaults suit a small model from scratch on a few hundred clips.

    Attributes:
        epochs: passes over the clips; sets `steps` once their number is known. None: `steps` do.
        epoch_steps: steps of one pass, set together with `steps`; 0: there are no epochs.
        optimizer: muon (with AdamW for all but the blocks' matrices), or adam.
        head_rate: learning rate of the classifier, in multiples of `learning_rate`.
        warmup_every: steps between changes of the rate while warming up.
        decay: None: half a cosine to zero.
        ema_decay: of the exponential moving average of the weights; 0: the last weights.
        average_from_epoch: the weights at the end of this epoch and of all later ones are averaged
            instead.
        patch_ratio: part of the patches that a step sees (patchout).
        all_patches_ratio: last part of the training, in which steps see all patches.
        loss: detection (see `losses`), bce, or ce for clips with one label.
        teacher_weight: of a teacher's scores in the loss, if there is one, 0 to 1.
        frame_weight: of the time patches' loss, added to that of the windows.
        distillation_weight: of the loss against a teacher with classes of its own.
        distilled_ratio: part of the windows that this teacher scores.
    """

    steps: int = 4000
    batch_size: int = 48
    learning_rate: float = 1e-3
    warmup_steps: int = 150
    weight_decay: float = 0.1
    ema_decay: float = 0.999
    drop_path: float = 0.1
    label_smoothing: float = 0.05  # of positive targets
    gradient_clip: float = 1.0  # 0: none
    patch_ratio: float = 0.5
    all_patches_ratio: float = 0.2
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
    decay: StepDecay | None = None
    average_from_epoch: int | None = None
    loss: Loss = "detection"
    teacher_weight: float = 0.5
    frame_weight: float = 1.0
    distillation_weight: float = 0.3
    distilled_ratio: float = 0.35

    def rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            warm = step + 1 if self.warmup_every == 1 else step - step % self.warmup_every
            return self.learning_rate * warm / self.warmup_steps
        if self.decay is not None:
            late = step // max(1, self.epoch_steps) - self.decay.from_epoch
            n_decays = max(0, late // self.decay.every_epochs + 1)
            return self.learning_rate * self.decay.factor**n_decays
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def patch_ratio_at(self, step: int) -> float:
        """Return the part of the patches that the model sees in a step: all of them at last."""
        is_last_part = step >= self.steps * (1 - self.all_patches_ratio)
        return 1.0 if is_last_part else self.patch_ratio


@dataclass(frozen=True)
class TrainingConfig:
    """What to train on and what to make; the defaults are those of a small model from scratch.

    Attributes:
        data: as `read_data` takes it.
        start: checkpoint to fine-tune, as `load_checkpoint` takes it; None: from scratch. Its sizes
            are kept, and its classifier for the classes that it knows.
        keep_classes: the classes of the start stay; those without examples are learnt from it.
        teacher: checkpoint whose scores join the labels; None: the start for `keep_classes`.
        waveform_teacher: .tflite file of a tagger of waveforms, such as YAMNet, whose scores a
            second head learns.
        has_frames: learn a frame head, too.
        test_folds: recordings of these folds are held out: they are not trained on, and choose
            the thresholds.
        held_out_ratio: of the recordings of each class, if there are no test folds.
        backgrounds: own recordings without any event, files or folders; a part is held out.
        verdicts: folder of reviewed clips, as `ast-stream review export` writes it.
        heard: classes of the start that may be heard in them all the same.
        n_generated: examples of each generated class; 0: recordings only.
        n_backgrounds: generated backgrounds without any event.
        window_s: None: that of the start. A shorter one cuts its position embeddings.
        max_frames: input of a model from scratch; None: as many as the window has.
        width, n_layers: sizes of a model from scratch.
        stride: of the patch grid, in mel bands and frames; None: that of the start. Another one
            interpolates its position embeddings.
        mixing: how windows are drawn: mixed, or whole clips.
        measure_normalization: compute the statistics also where the start has some.
        negatives_s: length of the soundscapes without events that bound the false alarms; 0: choose
            no thresholds.
        budget_per_h: false alarms of one class in an hour of them.
        device: auto, cpu, cuda or cuda:N.
        licence: of the weights.
    """

    data: Path
    start: str | None = None
    keep_classes: bool = False
    teacher: str | None = None
    waveform_teacher: Path | None = None
    has_frames: bool = False
    columns: Columns = field(default_factory=Columns)
    test_folds: tuple[str, ...] = ()
    held_out_ratio: float = 0.0
    backgrounds: tuple[Path, ...] = ()
    verdicts: Path | None = None
    heard: tuple[str, ...] = ()
    n_generated: int = 300
    n_backgrounds: int = 1000
    window_s: float | None = None
    max_frames: int | None = None
    width: int = 192
    n_layers: int = 6
    stride: int | None = None
    mixing: WindowMixing | ClipMixing = field(default_factory=WindowMixing)
    optimization: Optimization = field(default_factory=Optimization)
    measure_normalization: bool = False
    negatives_s: float = 3600.0
    budget_per_h: float = 0.5
    device: str = "cpu"
    licence: str | None = None

    def override(self, **values: Any) -> TrainingConfig:
        """Return the configuration with other values, by name, also those of `optimization`."""
        own = {name: value for name, value in values.items() if name in _TOP_LEVEL}
        optimization = {name: value for name, value in values.items() if name not in _TOP_LEVEL}
        changed = replace(self, **own)
        return replace(changed, optimization=replace(changed.optimization, **optimization))


_TOP_LEVEL = {field.name for field in fields(TrainingConfig)}


class Overrides(TypedDict, total=False):
    """Settings that override the preset; None: as in the preset."""

    keep_classes: bool
    teacher: str | None
    waveform_teacher: Path | None
    has_frames: bool
    columns: Columns
    test_folds: tuple[str, ...]
    held_out_ratio: float | None
    backgrounds: tuple[Path, ...]
    verdicts: Path | None
    heard: tuple[str, ...]
    n_generated: int | None
    n_backgrounds: int | None
    window_s: float | None
    width: int | None
    n_layers: int | None
    stride: int | None
    negatives_s: float
    device: str
    licence: str | None
    steps: int | None
    batch_size: int | None
    learning_rate: float | None
    patch_ratio: float | None
    save_every: int | None
    seed: int
    precision: TrainingPrecision
    teacher_weight: float


def configure(
    data: Path,
    preset: PresetName | None = None,
    start: str | None = None,
    **overrides: Unpack[Overrides],
) -> TrainingConfig:
    """Return the configuration that a preset and a user's overrides make together.

    Args:
        preset: None: the one for fine-tuning where there is a start, else `small`.

    Raises:
        CheckpointError: the start cannot be loaded.
        UsageError: sizes that no model has, or both test folds and a ratio to hold out.
    """
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    _check(given, start)
    if preset is None and start is not None:
        checkpoint = load_checkpoint(start)
        config = fine_tuning(data, start, checkpoint.dims, given.get("keep_classes", False))
        config = replace(config, has_frames=checkpoint.has_frames)
    else:
        config = PRESETS[preset or "small"](data, start)
    preset_window_s = config.window_s
    if start is not None:
        config = replace(config, window_s=None, stride=None)
    if "steps" in given:
        config = config.override(epochs=None)
    if "save_every" in given:
        report_every = min(config.optimization.report_every, given["save_every"])
        config = config.override(report_every=report_every)
    config = config.override(**given)
    # the paper's inputs are a little longer than the clips
    if config.window_s != preset_window_s:
        config = replace(config, max_frames=None)
    return config


def _check(given: dict[str, Any], start: str | None) -> None:
    if given.get("width", HEAD_DIM) % HEAD_DIM:
        raise UsageError(f"--width: expected a multiple of {HEAD_DIM}, got {given['width']}")
    if given.get("held_out_ratio") and given.get("test_folds"):
        raise UsageError("--hold-out: expected either a share or --test-fold, got both")
    if start is not None and ("width" in given or "n_layers" in given):
        raise UsageError("--width, --layers: the sizes are those of --start; expected none of both")


def fine_tuning(data: Path, start: str, dims: AstDims, keep_classes: bool) -> TrainingConfig:
    """Return what suits a checkpoint with few clips: a low rate, but for the classifier a high one.

    The rate is the one that the AST authors advise, times what a narrower model bears. Where
    classes are kept it is the advised one: what they were learnt by must not move far.
    """
    narrower = PUBLISHED_WIDTH / dims.hidden_size
    rate = FINE_TUNING_RATE if keep_classes else FINE_TUNING_RATE * narrower
    return replace(
        small(data, start),
        keep_classes=keep_classes,
        n_generated=60 if keep_classes else 0,
        n_backgrounds=200,
        held_out_ratio=0.2,
        optimization=Optimization(
            steps=150,
            batch_size=24,
            learning_rate=rate,
            warmup_steps=20,
            weight_decay=5e-7,
            ema_decay=0.98,
            drop_path=0.0,
            patch_ratio=1.0,
            report_every=10,
            save_every=50,
            evaluate_every=50,
            optimizer="adam",
            head_rate=HEAD_FINE_TUNING_RATE * narrower / rate,
        ),
    )


def small(data: Path, start: str | None = None) -> TrainingConfig:
    """Return the default recipe for small models."""
    return TrainingConfig(data, start, window_s=2.56, max_frames=256, stride=16, has_frames=True)


def esc50(data: Path, start: str | None = None) -> TrainingConfig:
    """Return the paper's recipe for ESC-50."""
    rate = 1e-4 if start is None else 1e-5
    config = _published(data, start, 5.0, 512, ClipMixing(), _masks(24, 96))
    decay = StepDecay(5, 1, 0.85)
    return config.override(epochs=25, batch_size=48, learning_rate=rate, decay=decay, loss="ce")


def speechcommands(data: Path, start: str | None = None) -> TrainingConfig:
    """Return the paper's recipe for Speech Commands."""
    masks = replace(_masks(48, 48), noise=0.1, shift=10)
    config = _published(data, start, 1.0, 128, ClipMixing(mixup_prob=0.6), masks)
    decay = StepDecay(5, 1, 0.85)
    return config.override(epochs=30, batch_size=128, learning_rate=2.5e-4, decay=decay)


def audioset(data: Path, start: str | None = None) -> TrainingConfig:
    """Return the paper's recipe for AudioSet."""
    mixing = ClipMixing(mixup_prob=0.5, is_balanced=True)
    config = _published(data, start, 10.0, 1024, mixing, _masks(48, 192))
    return config.override(
        epochs=5, batch_size=12, learning_rate=1e-5, decay=StepDecay(2, 1, 0.5), warmup_steps=1000,
        average_from_epoch=1,
    )  # fmt: skip


def audioset_balanced(data: Path, start: str | None = None) -> TrainingConfig:
    """Return the paper's recipe for AudioSet's balanced set."""
    config = _published(data, start, 10.0, 1024, ClipMixing(mixup_prob=0.5), _masks(48, 192))
    return config.override(
        epochs=25, batch_size=12, learning_rate=5e-5, decay=StepDecay(10, 5, 0.5),
        warmup_steps=1000, average_from_epoch=6,
    )  # fmt: skip


PRESETS: dict[PresetName, Callable[[Path, str | None], TrainingConfig]] = {
    "small": small,
    "esc50": esc50,
    "speechcommands": speechcommands,
    "audioset": audioset,
    "audioset-balanced": audioset_balanced,
}


# for the help of `ast-stream train`
PRESET_SUMMARIES: dict[PresetName, str] = {
    "small": (
        "windows mixed as a stream has them, from clips, generated alarms and backgrounds; "
        "192 x 6 layers on 2.56 s, frame by frame, Muon, 4000 steps of 48 at 1e-3, half a cosine"
    ),
    "esc50": (
        "the AST paper on ESC-50: whole clips of 5 s, 25 epochs of 48 at 1e-5 (1e-4 from "
        "scratch), x 0.85 each epoch from 5, masks 24/96, cross-entropy"
    ),
    "speechcommands": (
        "the AST paper on Speech Commands: clips of 1 s, 30 epochs of 128 at 2.5e-4, x 0.85 "
        "each epoch from 5, masks 48/48, mixup 0.6, noise and shift"
    ),
    "audioset": (
        "the AST paper on all of AudioSet: clips of 10 s, 5 epochs of 12 at 1e-5, halved each"
        " epoch from 2, warm-up of 1000 steps, masks 48/192, mixup 0.5, balanced, averaged"
    ),
    "audioset-balanced": (
        "the same on its balanced set: 25 epochs at 5e-5, halved every 5 epochs from 10, not "
        "balanced further, averaged from epoch 6"
    ),
}


def _masks(frequency: int, time: int) -> SpectrogramAugmentation:
    return SpectrogramAugmentation(filter_spread=0.0, frequency_mask=frequency, time_mask=time)


def _published(
    data: Path,
    start: str | None,
    window_s: float,
    max_frames: int,
    mixing: ClipMixing,
    augmentation: SpectrogramAugmentation,
) -> TrainingConfig:
    """Return what the paper's recipes have in common: Adam on DeiT-base, stride 10, whole clips."""
    optimization = Optimization(
        warmup_steps=0,
        warmup_every=50,
        weight_decay=5e-7,
        ema_decay=0.0,
        drop_path=0.0,
        label_smoothing=0.0,
        gradient_clip=0.0,
        patch_ratio=1.0,
        optimizer="adam",
        adam_betas=(0.95, 0.999),
        loss="bce",
        augmentation=augmentation,
    )
    return TrainingConfig(
        data, start, n_generated=0, n_backgrounds=0, window_s=window_s, max_frames=max_frames,
        width=PUBLISHED_WIDTH, n_layers=12, stride=10, mixing=mixing, optimization=optimization,
    )  # fmt: skip
