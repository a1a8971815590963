"""One training from data to checkpoint: data, trainer, thresholds, provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.calibration.provenance import calibrate_checkpoint
from ast_stream.dataset.annotations import LabelledClip
from ast_stream.dataset.clips import write_clips
from ast_stream.dataset.reviewed_clips import TRAINED_ON, event_digests
from ast_stream.errors import AstStreamError, UsageError
from ast_stream.evaluation.clip_figures import ScoreWindows, report_clips
from ast_stream.labels import did_you_mean, find_label
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_attributions,
)
from ast_stream.model.dims import Normalization
from ast_stream.model.fbank import Fbank, normalize, pad_frames
from ast_stream.model.metadata import FrameDecisions
from ast_stream.model.runners import resolve_device
from ast_stream.model.selfcheck import golden_for
from ast_stream.training.compute import autocast, autocast_type
from ast_stream.training.config import Optimization, TrainingConfig
from ast_stream.training.data import TrainingData, prepare_data
from ast_stream.training.finetune import inherited, initial_dims, initial_model, window_of
from ast_stream.training.state import Metrics
from ast_stream.training.teacher import CheckpointTeacher, LiteRtTeacher
from ast_stream.training.trainer import Trainer
from ast_stream.training.windows import (
    ClipMixing,
    ClipSampler,
    FrameGrid,
    Sampler,
    WindowSampler,
    measure_normalization,
    published_normalization,
)
from ast_stream.units import samples_to_seconds, seconds_to_samples

CHECKPOINT_FOLDER = "checkpoint"
CLIPS_FILE = "clips.csv"
HOP_S = 0.5  # that thresholds are chosen for
TRAINED, HELD_OUT = "trained", "held-out"  # folds, where the data have none

ShouldStop = Callable[[], bool]


class TrainingStopped(AstStreamError):
    """A training that was asked to stop; its state is saved."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(
            f"stopped after step {step} of {steps}; the state is saved, and the same command "
            "resumes from there"
        )


class TrainingMonitor:
    """Follows a training, and may stop it; this one does neither."""

    def phase(self, text: str) -> None:
        """Note the next long phase, for the progress display."""

    def begin(self, steps: int) -> None:
        """Take note that the first of so many steps comes next."""

    def report(self, metrics: Metrics) -> None:
        """Take the metrics of one report."""

    def measured(self, ratio: float) -> None:
        """Take note of how much of the measurement after the last step is done, 0 to 1."""

    @contextmanager
    def stoppable(self) -> Iterator[ShouldStop]:
        """Enter the steps; yields what is asked before each of them whether to stop."""
        yield lambda: False


def train(
    config: TrainingConfig, folder: Path, progress: TrainingMonitor | None = None
) -> Checkpoint:
    """Train and write a checkpoint to `folder`/checkpoint; return it.

    A training run that was started in `folder` with the same configuration is resumed.

    Raises:
        ConfigError, UsageError, CheckpointError: before the first step, see `prepare_data`.
        TrainingStopped: it was asked to stop.
    """
    progress = progress or TrainingMonitor()
    _refuse_to_replace(config.data, folder / CLIPS_FILE)
    progress.phase(f"reading {config.data}")
    session = begin(config)
    folder.mkdir(parents=True, exist_ok=True)
    device = resolve_device(config.device)
    steps = session.optimization.steps
    trainer = Trainer(
        initial_model(config, session.start, session.sampler.labels),
        session.sampler,
        session.optimization,
        folder,
        session.normalization,
        identity=session.identity(),
        teacher=session.new_teacher(device),
        waveform_teacher=session.waveform_teacher,
        device=device,
        frozen_classes=session.frozen_classes(),
    )
    if trainer.step == steps:
        progress.phase(f"{folder}: trained to its last step before")
    progress.begin(steps)
    with progress.stoppable() as should_stop:
        for report in trainer.run(session.evaluate, should_stop):
            progress.report(report)
    if trainer.step < steps:
        raise TrainingStopped(trainer.step, steps)
    # not before: until its state is read, the folder may be that of another training
    write_clips(session.clips_with_folds(), folder / CLIPS_FILE)
    progress.phase("measuring the checkpoint, to choose its thresholds")
    path = folder / CHECKPOINT_FOLDER
    checkpoint = calibrated_checkpoint(session, trainer.average, str(path), progress.measured)
    save_checkpoint(path, checkpoint, "fp16")
    heard = (*session.data.clips, *session.data.unlabelled_clips)
    write_attributions([clip.row for clip in heard if clip.row], path)
    return checkpoint


def _refuse_to_replace(data: Path, clips_file: Path) -> None:
    """Refuse a folder in which the training would write its list of clips over their table."""
    if data.is_file() and clips_file.exists() and data.samefile(clips_file):
        raise UsageError(
            f"{clips_file.parent}: expected another folder for the training than that of its data, "
            f"whose {CLIPS_FILE} it would write over"
        )


@dataclass(frozen=True, eq=False)
class TrainingSession:
    """The parts of a training, ready for the first step.

    Attributes:
        optimization: the configuration's, with the number of steps that its epochs make.
    """

    config: TrainingConfig
    start: Checkpoint | None
    teacher: Checkpoint | None
    data: TrainingData
    optimization: Optimization
    sampler: Sampler
    normalization: Normalization
    window_s: float
    waveform_teacher: LiteRtTeacher | None = None

    def identity(self) -> dict[str, Any]:
        """Return the settings that must be unchanged to resume a training run."""
        return {
            "mixing": asdict(self.config.mixing),
            "data": self.data.facts,
            TRAINED_ON: event_digests([*self.data.clips, *self.data.unlabelled_clips]),
            "generated": [self.config.n_generated, self.config.n_backgrounds],
            "start": self.start and self.start.hash,
            "teacher": self.teacher and self.teacher.hash,
            "waveform_teacher": self.waveform_teacher and self.waveform_teacher.hash,
            "has_frames": self.config.has_frames,
        }

    def frozen_classes(self) -> list[int]:
        """Return the classes of the start that stay as they are: those without examples."""
        if not self.config.keep_classes:
            return []
        return [index for index, has in enumerate(self.sampler.has_examples) if not has]

    def new_teacher(self, device: torch.device) -> CheckpointTeacher | None:
        """Return the teacher on a device, None without one."""
        if self.teacher is None:
            return None
        return CheckpointTeacher(self.teacher, self.sampler.labels, self.window_s, device)

    def evaluate(self, model: AudioSpectrogramTransformer) -> Metrics:
        """Return the figures of the held-out clips; empty without clips."""
        held_out = self.data.held_out.recorded
        if not held_out:
            return {}
        score = _score_with(model, self.normalization)
        report = report_clips(held_out, score, self.window_s, self.sampler.labels)
        return {"clip_accuracy": report.accuracy, "map": report.mean_average_precision}

    def clips_with_folds(self) -> list[tuple[LabelledClip, str]]:
        """Return all clips, with folds that mark held-out ones for `evaluate` and `calibrate`."""
        has_folds = bool(self.config.test_folds)
        return [
            (clip, clip.fold if has_folds and clip.fold else fold)
            for fold, clips in ((TRAINED, self.data.clips), (HELD_OUT, self.data.held_out_clips))
            for clip in clips
        ]

    def provenance(self) -> dict[str, Any]:
        """Return the provenance that the checkpoint records of its training."""
        config = self.config
        return {
            "start": self.start and self.start.hash,
            "teacher": self.teacher and self.teacher.hash,
            "waveform_teacher": self.waveform_teacher and self.waveform_teacher.hash,
            "kept_classes": config.keep_classes,
            "test_folds": list(config.test_folds) or [HELD_OUT] * bool(self.data.held_out_clips),
            "data": self.data.facts,
            TRAINED_ON: event_digests([*self.data.clips, *self.data.unlabelled_clips]),
            "generated_takes": config.n_generated,  # read by `calibrate`, from older ones as well
            "generated_backgrounds": config.n_backgrounds,
            "recipe": asdict(self.optimization),
            "mixing": asdict(config.mixing),
        }


def begin(config: TrainingConfig) -> TrainingSession:
    """Read, check and generate all that the configuration asks for.

    Raises:
        ConfigError, UsageError, CheckpointError: see `prepare_data`, `window_of`,
            `load_checkpoint`.
    """
    start = None if config.start is None else load_checkpoint(config.start)
    teacher = start if config.keep_classes else None
    if config.teacher is not None:
        teacher = load_checkpoint(config.teacher)
    window_s = window_of(config, start)
    heard_labels(config, start)
    data = prepare_data(config, start)
    optimization, soundbank = config.optimization, data.soundbank
    if isinstance(config.mixing, ClipMixing):
        max_frames = initial_dims(config, start, len(soundbank.labels)).max_frames
        clips = ClipSampler(soundbank, max_frames, config.mixing)
        epoch_steps = clips.epoch_steps(optimization.batch_size)
        epochs, steps = optimization.epochs, optimization.steps
        steps = steps if epochs is None else epochs * epoch_steps
        optimization = replace(optimization, epoch_steps=epoch_steps, steps=steps)
        normalization = published_normalization(soundbank, max_frames, optimization.seed)
        return TrainingSession(
            config, start, teacher, data, optimization, clips, normalization, window_s
        )
    dims = initial_dims(config, start, len(soundbank.labels))
    grid = FrameGrid(dims.n_time_patches, dims.time_stride) if config.has_frames else None
    windows = WindowSampler(soundbank, seconds_to_samples(window_s), config.mixing, grid)
    waveform_teacher = None
    if config.waveform_teacher is not None:
        waveform_teacher = LiteRtTeacher(config.waveform_teacher)
        least_s = samples_to_seconds(waveform_teacher.n_samples)
        if window_s < least_s:
            raise UsageError(
                f"--window: expected {least_s:g} s or more, which the teacher "
                f"{config.waveform_teacher} takes, got {window_s:g}"
            )
    if start is not None and not config.measure_normalization:
        normalization = start.normalization
    else:
        normalization = measure_normalization(windows, optimization.seed)
    return TrainingSession(
        config,
        start,
        teacher,
        data,
        optimization,
        windows,
        normalization,
        window_s,
        waveform_teacher,
    )


def heard_labels(config: TrainingConfig, start: Checkpoint | None) -> set[str]:
    """Return the classes of the start that may be heard in the backgrounds.

    Raises:
        UsageError: the start has no such class.
    """
    known = start.labels if start is not None else []
    labels = {name: find_label(name, known) for name in config.heard}
    for name, label in labels.items():
        if label is None:
            raise UsageError(
                f"--heard: expected a class of --start, got {name!r}{did_you_mean(name, known)}"
            )
    return {label for label in labels.values() if label is not None}


def calibrated_checkpoint(
    session: TrainingSession,
    model: AudioSpectrogramTransformer,
    origin: str,
    on_measured: Callable[[float], None] = lambda ratio: None,
) -> Checkpoint:
    """Return the trained model as a checkpoint with thresholds.

    Args:
        on_measured: called with how much of the measurement is done, 0 to 1.
    """
    config, held_out = session.config, session.data.held_out
    # what is measured are the weights as they will be stored
    stored = {name: weight.cpu().half().float() for name, weight in model.state_dict().items()}
    known = inherited(session.start, session.sampler.labels, held_out)
    metadata = known.model_copy(
        update={
            "window_s": session.window_s,
            "hop_s": HOP_S,
            "frames": (known.frames or FrameDecisions()) if config.has_frames else None,
            "licence": config.licence,
            "provenance": session.provenance(),
        }
    )
    checkpoint = Checkpoint(
        dims=model.dims,
        state_dict=stored,
        labels=session.sampler.labels,
        normalization=session.normalization,
        metadata=metadata,
        origin=origin,
    )
    if not config.negatives_s:
        golden = golden_for(checkpoint)
        return replace(checkpoint, metadata=metadata.model_copy(update={"golden": golden}))
    return calibrate_checkpoint(
        checkpoint,
        held_out,
        config.negatives_s,
        config.budget_per_h,
        on_measured,
        heard_labels(config, session.start),
    )


def _score_with(model: AudioSpectrogramTransformer, normalization: Normalization) -> ScoreWindows:
    """Return a function that scores waveforms with a model in training, on its device."""
    device = next(model.parameters()).device
    fbank, dtype = Fbank(device), autocast_type("auto", device)

    @torch.inference_mode()
    def score(waveforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        samples = torch.from_numpy(waveforms).to(device)
        frames = pad_frames(fbank.frames(samples), model.dims.max_frames)
        with autocast(device, dtype):
            logits = model(normalize(frames, normalization))
        scores: npt.NDArray[np.float32] = torch.sigmoid(logits.float()).cpu().numpy()
        return scores

    return score
