"""`ast-stream train`: recordings in, a calibrated checkpoint out."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ast_stream.cli.clip_options import ColumnOptions, Data
from ast_stream.cli.options import N_CORES, Device, Threads, require_packages, with_option_groups
from ast_stream.cli.terminal import PacedLines, ProgressView
from ast_stream.errors import AstStreamError
from ast_stream.training.config import (
    PRESET_SUMMARIES,
    Optimization,
    PresetName,
    TrainingConfig,
    TrainingPrecision,
    configure,
)
from ast_stream.training.session import (
    CHECKPOINT_FOLDER,
    ShouldStop,
    TrainingMonitor,
    TrainingStopped,
)
from ast_stream.training.session import train as train_checkpoint
from ast_stream.training.state import METRICS_FILE, Metrics, plot_curves, read_metrics

CURVES_FILE = "curves.png"
SIGNAL_EXIT = 128  # plus the signal's number, as shells have it
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
FROM_PRESET = " (default: the preset's)"


@dataclass(frozen=True)
class RecipeOptions:
    """What `configure` takes by these names; None: as the preset says."""

    start: Annotated[
        str | None, typer.Option(help="Checkpoint to fine-tune; none: from scratch.")
    ] = None
    preset: Annotated[
        PresetName | None, typer.Option(help="Recipe, see above; other options override it.")
    ] = None
    keep_classes: Annotated[
        bool,
        typer.Option(
            "--keep-classes",
            help="Keep all classes of --start; those without examples are learnt from it.",
        ),
    ] = False
    teacher: Annotated[
        str | None, typer.Option(help="Checkpoint whose scores of each window join the labels.")
    ] = None
    waveform_teacher: Annotated[
        Path | None,
        typer.Option(
            help="Tagger of waveforms with classes of its own, such as YAMNet (.tflite), that a "
            "head learns from which the checkpoint does not keep."
        ),
    ] = None
    has_frames: Annotated[
        bool | None,
        typer.Option(
            "--frames/--windows",
            help="Learn when in a window each class sounds, or only whether.",
            show_default=False,
        ),
    ] = None
    teacher_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the teacher in the loss.")
    ] = Optimization.teacher_weight
    backgrounds: Annotated[
        list[Path] | None,
        typer.Option(help="Recordings without any event, file or folder; may be repeated."),
    ] = None
    verdicts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `ast-stream review export`: confirmed examples, and sounds that must "
            "not be named."
        ),
    ] = None
    heard: Annotated[
        list[str] | None,
        typer.Option(
            help="Class of --start that occurs in --backgrounds, such as Speech where the "
            "radio is on: its threshold is not raised for that; may be repeated."
        ),
    ] = None
    test_folds: Annotated[
        list[str] | None,
        typer.Option("--test-fold", help="Hold this fold out to choose thresholds."),
    ] = None
    held_out_ratio: Annotated[
        float | None,
        typer.Option(
            "--hold-out", min=0, max=0.9, help="Fraction of each class to hold out." + FROM_PRESET
        ),
    ] = None
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps." + FROM_PRESET)] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows." + FROM_PRESET)] = None
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Highest rate." + FROM_PRESET)
    ] = None
    n_generated: Annotated[
        int | None,
        typer.Option(
            "--generated",
            min=0,
            help="Generated examples of each alarm class; 0: none." + FROM_PRESET,
        ),
    ] = None
    n_backgrounds: Annotated[
        int | None,
        typer.Option(
            "--generated-backgrounds",
            min=0,
            help="Generated backgrounds without any event." + FROM_PRESET,
        ),
    ] = None
    window_s: Annotated[
        float | None,
        typer.Option(
            "--window", min=0.3, help="Seconds of a window. (default: the preset's or the start's)"
        ),
    ] = None
    width: Annotated[
        int | None, typer.Option(min=64, help="Multiple of 64, from scratch." + FROM_PRESET)
    ] = None
    n_layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="From scratch." + FROM_PRESET)
    ] = None
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=16,
            help="Mel bands and frames from patch to patch; a start's position embeddings are "
            "interpolated. (default: the preset's or the start's)",
        ),
    ] = None
    patch_ratio: Annotated[
        float | None,
        typer.Option(
            "--patch-share",
            min=0.01,
            max=1,
            help="Patches seen in a step, 0 to 1." + FROM_PRESET,
        ),
    ] = None
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between saved states." + FROM_PRESET)
    ] = None
    device: Device = "auto"
    precision: Annotated[
        TrainingPrecision,
        typer.Option(help="Of the matrix products; auto: what the device is fast in."),
    ] = "auto"
    licence: Annotated[str | None, typer.Option(help="Licence of the weights.")] = None
    seed: Annotated[int, typer.Option(min=0)] = Optimization.seed


@with_option_groups
def train(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for state and checkpoint.")],
    *,
    recipe: RecipeOptions,
    columns: ColumnOptions,
    negative_hours: Annotated[
        float,
        typer.Option(min=0, help="Length of the streams without events; 0: choose no thresholds."),
    ] = TrainingConfig.negatives_s / 3600,
    threads: Threads = None,
) -> None:
    """Train a small AST, or fine-tune one; resume the training that OUT holds.

    DATA is a folder with a sub-folder per class, a CSV or TSV of files and labels, or of sections
    of long recordings (with onset and offset), Audacity label tracks beside their recordings, or a
    segment list of AudioSet. OUT/checkpoint can be given to every --model option; OUT also gets
    metrics and their curves, and in clips.csv which clips were held out. With --start and without
    a preset it fine-tunes: few steps at a low rate with a faster classifier, on mixed windows.

    Example: ast-stream train doorbell/ --start bundled --keep-classes --backgrounds room.wav -o out
    """
    torch.set_num_threads(threads or N_CORES)
    require_packages("train", "scipy", "matplotlib")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(recipe).items()
    }
    given |= {"columns": columns.columns(), "negatives_s": negative_hours * 3600}
    _run(configure(data, **given), out)
    print(
        f"{out / CHECKPOINT_FOLDER}: trained; figures in {out / METRICS_FILE}, "
        f"curves in {out / CURVES_FILE}",
        file=sys.stderr,
    )


train.__doc__ = f"{train.__doc__}\n    Presets:\n" + "".join(
    f"\n    {name}: {summary}.\n" for name, summary in PRESET_SUMMARIES.items()
)


def _run(config: TrainingConfig, out: Path) -> None:
    progress = TrainingProgress()
    try:
        with progress:
            train_checkpoint(config, out, progress)
            plot_curves(read_metrics(out), out / CURVES_FILE)
    except TrainingStopped as stopped:
        print(f"ast-stream: {stopped}", file=sys.stderr)
        number = progress.stop_signal or signal.SIGINT
        raise typer.Exit(SIGNAL_EXIT + number) from stopped
    except OSError as error:
        place = error.filename or out
        raise AstStreamError(f"{place}: cannot be used: {error.strerror or error}") from error


class TrainingProgress(TrainingMonitor):
    """Shows progress: a bar on a terminal, else a line per report with the time left.

    The first signal to stop is a request, so that the step can end and be saved; the second one of
    a kind does what it always does.

    Attributes:
        stop_signal: the signal that asked to stop.

    Args:
        every_s: between two lines about a measurement, where there is no bar.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self.stop_signal: int | None = None
        self._progress = ProgressView(
            TextColumn("{task.fields[done]}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            transient=False,
        )
        # one of these is shown: steps, what is measured, and what has no length that is known
        self._task = self._progress.add_task("", total=0, visible=False, done="")
        self._measuring = self._progress.add_task("", total=1, visible=False, done="")
        self._waiting = self._progress.add_task("", total=None, visible=False, done="")
        self._lines = PacedLines(every_s)
        self._steps = 0
        self._first: tuple[float, float] | None = None

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def phase(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)
        self._progress.reset(self._waiting, visible=True)

    def begin(self, steps: int) -> None:
        self._steps, self._first = steps, None
        self._progress.update(self._waiting, visible=False)
        self._progress.reset(self._task, total=steps, visible=True, done=f"step 0 of {steps}")

    def measured(self, ratio: float) -> None:
        done = f"{100 * ratio:.0f} % measured"
        self._progress.update(self._measuring, completed=ratio, visible=True, done=done)
        self._progress.update(self._waiting, visible=ratio >= 1)  # thresholds are chosen now
        if self._progress.disable and ratio < 1:
            self._lines.show(done)

    def report(self, metrics: Metrics) -> None:
        shown = "  ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if name != "step"
        )
        done = f"step {metrics['step']:.0f} of {self._steps}"
        self._progress.update(self._task, completed=metrics["step"], description=shown, done=done)
        if self._progress.disable:
            left = f"  {self._left_s(metrics['step']):.0f} s left" if self._first else ""
            print(f"{done}  {shown}{left}", file=sys.stderr)
        if self._first is None:
            self._first = (metrics["step"], time.monotonic())

    @contextmanager
    def stoppable(self) -> Iterator[ShouldStop]:
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

        def note(number: int, frame: FrameType | None) -> None:
            self.stop_signal = number
            signal.signal(number, before[signal.Signals(number)])

        for number in STOP_SIGNALS:
            signal.signal(number, note)
        try:
            yield lambda: self.stop_signal is not None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _left_s(self, step: float) -> float:
        assert self._first is not None
        done, began = self._first
        return (time.monotonic() - began) / max(1.0, step - done) * (self._steps - step)
