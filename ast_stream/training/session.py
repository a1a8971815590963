"""One training from data to checkpoint: material, loop, export, thresholds, provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ast_stream.dataset.clips import write_clips
from ast_stream.errors import AstStreamError, UsageError
from ast_stream.model.attributions import write_attributions
from ast_stream.model.checkpoint import Checkpoint, save_checkpoint
from ast_stream.model.device import resolve_device
from ast_stream.training.begin import begin
from ast_stream.training.export import calibrated_checkpoint, clips_with_folds
from ast_stream.training.fit import Trainer
from ast_stream.training.plan import Plan
from ast_stream.training.start import first_model
from ast_stream.training.state import Metrics

CHECKPOINT_FOLDER = "checkpoint"
CLIPS_FILE = "clips.csv"

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
    trainer = Trainer(
        first_model(plan, session.start, session.maker.labels),
        session.maker,
        session.recipe,
        folder,
        session.normalization,
        session.identity(),
        session.new_teacher(device),
        device,
        session.kept_rows(),
    )
    if trainer.step == session.recipe.steps:
        on_phase(f"{folder}: trained to its last step before")
    on_begin(session.recipe.steps)
    with stoppable() as should_stop:
        for report in trainer.run(session.measure, should_stop):
            on_report(report)
    if trainer.step < session.recipe.steps:
        raise TrainingStopped(trainer.step, session.recipe.steps)
    # not before: until its state is read, the folder may be that of another training
    write_clips(clips_with_folds(session), folder / CLIPS_FILE)
    on_phase("measuring the checkpoint, to choose its thresholds")
    checkpoint = folder / CHECKPOINT_FOLDER
    calibrated = calibrated_checkpoint(session, trainer.average, str(checkpoint), on_measured)
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
