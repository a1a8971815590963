"""`ast-stream train`: recordings in, a calibrated checkpoint out."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ast_stream.errors import UsageError
from ast_stream.training.curves import plot_curves
from ast_stream.training.fit import METRICS_FILE, Metrics, Recipe, read_metrics
from ast_stream.training.session import Plan
from ast_stream.training.session import train as train_checkpoint
from services.clip_options import (
    DEFAULT_THREADS,
    Data,
    FileColumn,
    FoldColumn,
    LabelColumn,
    Threads,
    Where,
    clip_columns,
)

CURVES_FILE = "curves.png"


def train(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for state and checkpoint.")],
    start: Annotated[
        str | None, typer.Option(help="Checkpoint to fine-tune; none: from scratch.")
    ] = None,
    file_column: FileColumn = "file",
    label_column: LabelColumn = "label",
    fold_column: FoldColumn = "fold",
    where: Where = None,
    test_fold: Annotated[
        list[str] | None, typer.Option(help="Hold this fold out to choose thresholds.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = Recipe.steps,
    batch_size: Annotated[int, typer.Option(min=1)] = Recipe.batch_size,
    learning_rate: Annotated[float, typer.Option(min=0)] = Recipe.learning_rate,
    generated: Annotated[
        int, typer.Option(min=0, help="Generated takes of each alarm class; 0: none.")
    ] = Plan.n_generated,
    backgrounds: Annotated[
        int, typer.Option(min=0, help="Generated backgrounds without any event.")
    ] = Plan.n_backgrounds,
    window: Annotated[float, typer.Option(min=0.3, help="Seconds of a window.")] = Plan.window_s,
    width: Annotated[int, typer.Option(min=64, help="Multiple of 64.")] = Plan.width,
    layers: Annotated[int, typer.Option(min=1)] = Plan.n_layers,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = Recipe.seed,
    threads: Threads = DEFAULT_THREADS,
) -> None:
    """Train a small AST, or fine-tune one; go on where it was if OUT holds a started training.

    OUT/checkpoint can be given to every --model option. OUT also gets metrics and their curves.

    Example: ast-stream train sounds/ --out runs/doorbell --steps 2000
    """
    if width % 64:
        raise UsageError(f"--width: expected a multiple of 64, got {width}")
    torch.set_num_threads(threads)
    plan = Plan(
        data=data,
        start=start,
        columns=clip_columns(file_column, label_column, fold_column, where),
        test_folds=tuple(test_fold or ()),
        n_generated=generated,
        n_backgrounds=backgrounds,
        window_s=window,
        width=width,
        n_layers=layers,
        licence=licence,
        recipe=replace(
            Recipe(), steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed
        ),
    )
    with Progress(
        TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ) as progress:
        reporter = _Reporter(progress, steps)
        train_checkpoint(plan, out, reporter.report)
    plot_curves(read_metrics(out), out / CURVES_FILE)
    print(f"{out / 'checkpoint'}: trained; figures in {out / METRICS_FILE}", file=sys.stderr)


class _Reporter:
    """Shows progress: a bar on a terminal, else a line per report with the time left."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=steps)
        self._steps = steps
        self._first: tuple[float, float] | None = None

    def report(self, metrics: Metrics) -> None:
        """Show one report."""
        shown = "  ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if name != "step"
        )
        self._progress.update(self._task, completed=metrics["step"], description=shown)
        if self._progress.disable:
            left = f"  {self._left_s(metrics['step']):.0f} s left" if self._first else ""
            print(f"step {metrics['step']:.0f} of {self._steps}  {shown}{left}", file=sys.stderr)
        if self._first is None:
            self._first = (metrics["step"], time.monotonic())

    def _left_s(self, step: float) -> float:
        assert self._first is not None
        done, began = self._first
        return (time.monotonic() - began) / max(1.0, step - done) * (self._steps - step)
