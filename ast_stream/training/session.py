"""One training from data to checkpoint: material, loop, export, thresholds, provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ast_stream.errors import AstStreamError
from ast_stream.model.ast import AudioSpectrogramTransformer
from ast_stream.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ast_stream.model.device import resolve_device
from ast_stream.model.fbank import Normalization
from ast_stream.model.golden import golden_for
from ast_stream.training.calibration.checkpoint import calibrate_checkpoint
from ast_stream.training.clip_batches import ClipMaker, ClipMixing
from ast_stream.training.distill import Teacher
from ast_stream.training.evaluation.clips import report_clips
from ast_stream.training.fit import Evaluate, Trainer
from ast_stream.training.inherit import inherited, with_inherited
from ast_stream.training.material.clips import write_attributions, write_clips
from ast_stream.training.mixing import WindowMaker
from ast_stream.training.plan import Plan
from ast_stream.training.prepare import Prepared, prepare
from ast_stream.training.recipe import Recipe
from ast_stream.training.score import score_with
from ast_stream.training.start import first_dims, first_model, window_of
from ast_stream.training.state import Metrics
from ast_stream.training.statistics import measure_normalization, published_normalization
from ast_stream.units import seconds_to_samples

HOP_S = 0.5  # that thresholds are chosen for
CHECKPOINT_FOLDER = "checkpoint"
CLIPS_FILE = "clips.csv"
FOLDS = ("trained", "held-out")  # in CLIPS_FILE

ShouldStop = Callable[[], bool]


class TrainingStopped(AstStreamError):
    """A training that was asked to stop; its state is saved."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(
            f"stopped after step {step} of {steps}; the state is saved, and the same command goes "
            "on from there"
        )


@contextmanager
def never_stops() -> Iterator[ShouldStop]:
    """Let a training run to its end."""
    yield lambda: False


@dataclass(frozen=True, eq=False)
class _Session:
    """What a training is made of, ready for its first step."""

    plan: Plan
    start: Checkpoint | None
    teacher: Checkpoint | None
    prepared: Prepared
    recipe: Recipe
    maker: WindowMaker | ClipMaker
    normalization: Normalization
    window_s: float

    def identity(self) -> dict[str, Any]:
        """Return what must be the same to go on with a training."""
        return {
            "mixing": asdict(self.plan.mixing),
            "data": self.prepared.facts,
            "generated": [self.plan.n_generated, self.plan.n_backgrounds],
            "start": self.start and self.start.hash,
            "teacher": self.teacher and self.teacher.hash,
        }


def train(
    plan: Plan,
    folder: Path,
    on_report: Callable[[Metrics], None],
    on_begin: Callable[[int], None] = lambda steps: None,
    on_phase: Callable[[str], None] = lambda phase: None,
    stoppable: Callable[[], AbstractContextManager[ShouldStop]] = never_stops,
) -> Checkpoint:
    """Train (or go on training) in `folder` and return the calibrated checkpoint.

    The checkpoint is also written to `folder/checkpoint`, with its attributions; `folder/clips.csv`
    tells which clips were held out.

    Args:
        on_report: called with the metrics of every report.
        on_begin: called with the number of steps once all is prepared.
        on_phase: called with what takes its time next.
        stoppable: entered while steps are made; what it yields is asked whether to stop.

    Raises:
        ConfigError, UsageError, CheckpointError: before the first step, see `prepare`.
        TrainingStopped: it was asked to stop.
    """
    on_phase(f"reading {plan.data}")
    session = _begin(plan)
    folder.mkdir(parents=True, exist_ok=True)
    if session.prepared.held_out_clips:
        clips = zip(FOLDS, (session.prepared.clips, session.prepared.held_out_clips), strict=True)
        write_clips([(clip, fold) for fold, part in clips for clip in part], folder / CLIPS_FILE)
    device = resolve_device(plan.device)
    labels = session.maker.labels
    trainer = Trainer(
        first_model(plan, session.start, labels),
        session.maker,
        session.recipe,
        folder,
        session.normalization,
        session.identity(),
        _teacher(session, device),
        device,
    )
    on_begin(session.recipe.steps)
    with stoppable() as should_stop:
        for report in trainer.run(_measure(session), should_stop):
            on_report(report)
    if trainer.step < session.recipe.steps:
        raise TrainingStopped(trainer.step, session.recipe.steps)
    on_phase("measuring the checkpoint, to choose its thresholds")
    calibrated = _calibrated(session, trainer.average, folder)
    save_checkpoint(folder / CHECKPOINT_FOLDER, calibrated, "fp16")
    write_attributions(session.prepared.clips, folder / CHECKPOINT_FOLDER / "ATTRIBUTIONS.csv")
    return calibrated


def _begin(plan: Plan) -> _Session:
    start = None if plan.start is None else load_checkpoint(plan.start)
    teacher = start if plan.keep_classes else None
    if plan.teacher is not None:
        teacher = load_checkpoint(plan.teacher)
    window_s = window_of(plan, start)
    prepared = prepare(plan, start)
    recipe, mixing, material = plan.recipe, plan.mixing, prepared.material
    maker: WindowMaker | ClipMaker
    if isinstance(mixing, ClipMixing):
        max_frames = first_dims(plan, start, len(material.labels)).max_frames
        maker = ClipMaker(material, max_frames, mixing)
        epoch_steps = maker.epoch_steps(recipe.batch_size)
        steps = recipe.steps if recipe.epochs is None else recipe.epochs * epoch_steps
        recipe = replace(recipe, epoch_steps=epoch_steps, steps=steps)
        normalization = published_normalization(material, max_frames, recipe.seed)
    else:
        maker = WindowMaker(material, seconds_to_samples(window_s), mixing)
        normalization = (
            start.normalization
            if start is not None and not plan.measure_normalization
            else measure_normalization(maker, recipe.seed)
        )
    return _Session(plan, start, teacher, prepared, recipe, maker, normalization, window_s)


def _teacher(session: _Session, device: torch.device) -> Teacher | None:
    if session.teacher is None:
        return None
    return Teacher(session.teacher, session.maker.labels, session.window_s, device)


def _measure(session: _Session) -> Evaluate:
    """Return the figures of the held-out clips in a report; none without any."""
    tested = session.prepared.held_out.recordings

    def measure(model: AudioSpectrogramTransformer) -> Metrics:
        if not tested:
            return {}
        score = score_with(model, session.normalization)
        report = report_clips(tested, score, session.window_s, session.maker.labels)
        return {"clip_accuracy": report.accuracy, "map": report.mean_average_precision}

    return measure


def _calibrated(session: _Session, model: AudioSpectrogramTransformer, folder: Path) -> Checkpoint:
    """Return the trained model as a checkpoint with thresholds."""
    plan, held = session.plan, session.prepared.held_out
    # what is measured are the weights as they will be stored
    stored = {name: one.cpu().half().float() for name, one in model.state_dict().items()}
    metadata = inherited(session.start, session.maker.labels, held).model_copy(
        update={
            "window_s": session.window_s,
            "hop_s": HOP_S,
            "licence": plan.licence,
            "provenance": _provenance(session),
        }
    )
    checkpoint = Checkpoint(
        dims=model.dims,
        state_dict=stored,
        labels=session.maker.labels,
        normalization=session.normalization,
        metadata=metadata,
        origin=str(folder / CHECKPOINT_FOLDER),
    )
    if not plan.negatives_s:
        golden = golden_for(checkpoint)
        return replace(checkpoint, metadata=metadata.model_copy(update={"golden": golden}))
    calibrated = calibrate_checkpoint(checkpoint, held, plan.negatives_s, plan.budget_per_h)
    return with_inherited(calibrated, metadata)


def _provenance(session: _Session) -> dict[str, Any]:
    plan = session.plan
    return {
        "start": session.start and session.start.hash,
        "teacher": session.teacher and session.teacher.hash,
        "kept_classes": plan.keep_classes,
        "test_folds": list(plan.test_folds),
        "data": session.prepared.facts,
        "generated_takes": plan.n_generated,
        "generated_backgrounds": plan.n_backgrounds,
        "recipe": asdict(session.recipe),
        "mixing": asdict(plan.mixing),
    }
