"""`ast-stream train`: recordings in, a calibrated checkpoint out."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from ast_stream.cli.clip_options import (
    DEFAULT_THREADS,
    Data,
    FileColumn,
    FoldColumn,
    LabelColumn,
    OffsetColumn,
    OnsetColumn,
    Threads,
    Where,
    clip_columns,
)
from ast_stream.cli.train_plan import Overrides, choose_preset, plan_of
from ast_stream.cli.train_progress import Reporter, StopSignal
from ast_stream.errors import AstStreamError
from ast_stream.training.curves import plot_curves
from ast_stream.training.plan import Plan
from ast_stream.training.presets import PRESETS, PresetName
from ast_stream.training.recipe import Recipe, TrainingPrecision
from ast_stream.training.session import CHECKPOINT_FOLDER, TrainingStopped
from ast_stream.training.session import train as train_checkpoint
from ast_stream.training.state import METRICS_FILE, read_metrics

CURVES_FILE = "curves.png"
SIGNAL_EXIT = 128  # plus the signal's number, as shells have it
FROM_PRESET = " (default: the preset's)"


def train(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for state and checkpoint.")],
    start: Annotated[
        str | None, typer.Option(help="Checkpoint to fine-tune; none: from scratch.")
    ] = None,
    preset: Annotated[
        PresetName | None, typer.Option(help="Recipe, see above; other options override it.")
    ] = None,
    keep_classes: Annotated[
        bool,
        typer.Option(
            "--keep-classes",
            help="Keep all classes of --start; those without examples are learnt from it.",
        ),
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="Checkpoint whose scores of each window join the labels.")
    ] = None,
    teacher_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the teacher in the loss.")
    ] = Recipe.teacher_weight,
    backgrounds: Annotated[
        list[Path] | None,
        typer.Option(help="Recordings without any event, file or folder; may be repeated."),
    ] = None,
    file_column: FileColumn = "file",
    label_column: LabelColumn = "label",
    fold_column: FoldColumn = None,
    onset_column: OnsetColumn = None,
    offset_column: OffsetColumn = None,
    where: Where = None,
    test_fold: Annotated[
        list[str] | None, typer.Option(help="Hold this fold out to choose thresholds.")
    ] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Hold this share of each class out." + FROM_PRESET),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps." + FROM_PRESET)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows." + FROM_PRESET)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Highest rate." + FROM_PRESET)
    ] = None,
    generated: Annotated[
        int | None,
        typer.Option(min=0, help="Generated examples of each alarm class; 0: none." + FROM_PRESET),
    ] = None,
    generated_backgrounds: Annotated[
        int | None,
        typer.Option(min=0, help="Generated backgrounds without any event." + FROM_PRESET),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(min=0.3, help="Seconds of a window. (default: the preset's or the start's)"),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=64, help="Multiple of 64, from scratch." + FROM_PRESET)
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="From scratch." + FROM_PRESET)] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=16,
            help="Mel bands and frames from patch to patch; a start's position embeddings are "
            "interpolated. (default: the preset's or the start's)",
        ),
    ] = None,
    patch_share: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Patches seen in a step, 0 to 1." + FROM_PRESET),
    ] = None,
    negative_hours: Annotated[
        float,
        typer.Option(min=0, help="Length of the streams without events; 0: choose no thresholds."),
    ] = Plan.negatives_s / 3600,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between saved states." + FROM_PRESET)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        TrainingPrecision,
        typer.Option(help="Of the matrix products; auto: what the device is fast in."),
    ] = "auto",
    licence: Annotated[str | None, typer.Option(help="Licence of the weights.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = Recipe.seed,
    threads: Threads = DEFAULT_THREADS,
) -> None:
    """Train a small AST, or fine-tune one; resume the training that OUT holds.

    DATA is a folder with a sub-folder per class, a CSV or TSV of files and labels, or of sections
    of long recordings (with onset and offset), Audacity label tracks beside their recordings, or a
    segment list of AudioSet. OUT/checkpoint can be given to every --model option; OUT also gets
    metrics and their curves, and in clips.csv which clips were held out. With --start and without
    a preset it fine-tunes: few steps at a low rate with a faster classifier, on mixed windows.

    Example: ast-stream train doorbell/ --start bundled --keep-classes --backgrounds room.wav -o out
    """
    torch.set_num_threads(threads)
    columns = clip_columns(
        file_column, label_column, fold_column, onset_column, offset_column, where
    )
    plan = plan_of(
        choose_preset(preset, start, keep_classes),
        Overrides(
            steps, batch_size, learning_rate, save_every, generated, generated_backgrounds, window,
            width, layers, hold_out, stride, patch_share,
        ),
        data=data,
        start=start,
        columns=columns,
        test_folds=tuple(test_fold or ()),
        seed=seed,
        precision=precision,
        teacher_weight=teacher_weight,
        keep_classes=keep_classes,
        teacher=teacher,
        backgrounds=tuple(backgrounds or ()),
        negatives_s=negative_hours * 3600,
        device=device,
        licence=licence,
    )  # fmt: skip
    _run(plan, out)
    print(
        f"{out / CHECKPOINT_FOLDER}: trained; figures in {out / METRICS_FILE}, "
        f"curves in {out / CURVES_FILE}",
        file=sys.stderr,
    )


# what the presets set is told where they are defined
train.__doc__ = f"{train.__doc__}\n    Presets:\n" + "".join(
    f"\n    {name}: {preset.summary}.\n" for name, preset in PRESETS.items()
)


def _run(plan: Plan, out: Path) -> None:
    stop = StopSignal()
    try:
        with Reporter() as reporter:
            train_checkpoint(
                plan, out, reporter.report, reporter.begin, reporter.phase, reporter.measured,
                stop.watch,
            )  # fmt: skip
            plot_curves(read_metrics(out), out / CURVES_FILE)
    except TrainingStopped as stopped:
        print(f"ast-stream: {stopped}", file=sys.stderr)
        raise typer.Exit(SIGNAL_EXIT + (stop.number or signal.SIGINT)) from stopped
    except OSError as error:
        place = error.filename or out
        raise AstStreamError(f"{place}: cannot be used: {error.strerror or error}") from error
