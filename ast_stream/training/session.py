"""One training from data to checkpoint: material, loop, export, thresholds, provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ast_stream.dataset.clips import write_clips
from ast_stream.errors import AstStreamError, UsageError
from ast_stream.model.attributions import write_attributions
from ast_stream.model.checkpoint import Checkpoint, save_checkpoint
from ast_stream.model.device import resolve_device
from ast_stream.training.begin import Session, begin
from ast_stream.training.convolutional import ConvolutionalTeacher
from ast_stream.training.export import calibrated_checkpoint, clips_with_folds
from ast_stream.training.fit import Trainer
from ast_stream.training.learner import Adviser, LearnerT
from ast_stream.training.plan import Plan
from ast_stream.training.pretraining import MaskedAutoencoder, pretraining_recipe
from ast_stream.training.recipe import Recipe
from ast_stream.training.start import first_model
from ast_stream.training.state import Metrics

CHECKPOINT_FOLDER = "checkpoint"
CLIPS_FILE = "clips.csv"
TEACHER_FOLDER = "teacher"
PRETRAINING_FOLDER = "pretraining"

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


def train(
    plan: Plan,
    folder: Path,
    on_report: Callable[[Metrics], None],
    on_begin: Callable[[int], None] = lambda steps: None,
    on_phase: Callable[[str], None] = lambda phase: None,
    on_measured: Callable[[float], None] = lambda share: None,
    stoppable: Callable[[], AbstractContextManager[ShouldStop]] = never_stops,
) -> Checkpoint:
    """Train (or go on training) in `folder` and return the calibrated checkpoint.

    The checkpoint is also written to `folder/checkpoint`, with its attributions; `folder/clips.csv`
    tells which clips were held out.

    Args:
        on_report: called with the metrics of every report.
        on_begin: called with the number of steps once all is prepared.
        on_phase: called with what takes its time next.
        on_measured: called with the share of the measurement after the training, 0 to 1.
        stoppable: entered while steps are made; what it yields is asked whether to stop.

    Raises:
        ConfigError, UsageError, CheckpointError: before the first step, see `prepare`.
        TrainingStopped: it was asked to stop.
    """
    _refuse_to_replace(plan.data, folder / CLIPS_FILE)
    on_phase(f"reading {plan.data}")
    session = begin(plan)
    folder.mkdir(parents=True, exist_ok=True)
    device = resolve_device(plan.device)
    run = _Run(session, device, on_report, on_begin, on_phase, stoppable)
    if plan.convolutional_steps:
        on_phase("training a convolutional network, the teacher")
        network = run(*session.convolutional_network(), folder / TEACHER_FOLDER, None)
        teacher: Adviser | None = ConvolutionalTeacher(network, session.normalization)
    else:
        teacher = session.new_teacher(device)
    model = first_model(plan, session.start, session.maker.labels)
    if plan.pretraining_steps:
        on_phase("learning without labels")
        recipe = pretraining_recipe(session.recipe, plan.pretraining_steps)
        model = run(MaskedAutoencoder(model), recipe, folder / PRETRAINING_FOLDER, None).encoder
        model.requires_grad_(True)
    if plan.convolutional_steps or plan.pretraining_steps:
        on_phase("training the transformer")
    average = run(model, session.recipe, folder, teacher)
    # not before: until its state is read, the folder may be that of another training
    write_clips(clips_with_folds(session), folder / CLIPS_FILE)
    on_phase("measuring the checkpoint, to choose its thresholds")
    checkpoint = folder / CHECKPOINT_FOLDER
    calibrated = calibrated_checkpoint(session, average, str(checkpoint), on_measured)
    save_checkpoint(checkpoint, calibrated, "fp16")
    write_attributions([clip.row for clip in session.prepared.clips if clip.row], checkpoint)
    return calibrated


def _refuse_to_replace(data: Path, clips_file: Path) -> None:
    """Refuse a folder in which the training would write its list of clips over their table."""
    if data.is_file() and clips_file.exists() and data.samefile(clips_file):
        raise UsageError(
            f"{clips_file.parent}: expected another folder for the training than that of its data, "
            f"whose {CLIPS_FILE} it would write over"
        )


@dataclass(frozen=True, eq=False)
class _Run:
    """Trains the models of a session, one after another."""

    session: Session
    device: torch.device
    on_report: Callable[[Metrics], None]
    on_begin: Callable[[int], None]
    on_phase: Callable[[str], None]
    stoppable: Callable[[], AbstractContextManager[ShouldStop]]

    def __call__(
        self, model: LearnerT, recipe: Recipe, folder: Path, teacher: Adviser | None
    ) -> LearnerT:
        """Return the averaged model after all steps of `recipe`."""
        session = self.session
        trainer = Trainer(
            model, session.maker, recipe, folder, session.normalization, session.identity(),
            teacher, self.device, session.kept_rows(),
        )  # fmt: skip
        if trainer.step == recipe.steps:
            self.on_phase(f"{folder}: trained to its last step before")
        self.on_begin(recipe.steps)
        with self.stoppable() as should_stop:
            # an autoencoder names no classes
            measure = None if isinstance(model, MaskedAutoencoder) else session.measure
            for report in trainer.run(measure, should_stop):
                self.on_report(report)
        if trainer.step < recipe.steps:
            raise TrainingStopped(trainer.step, recipe.steps)
        return trainer.average
