"""What people see of a training, and how they stop one."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ast_stream.training.state import Metrics
from services.live import ProgressView

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Takes the first signal to stop as a request, so that the step can end and be saved.

    The second one of a kind does what it always does.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    @contextmanager
    def watch(self) -> Iterator[Callable[[], bool]]:
        """Watch for signals; yields what tells whether one came."""
        before = {number: signal.getsignal(number) for number in STOPPING}

        def note(number: int, frame: FrameType | None) -> None:
            self.number = number
            signal.signal(number, before[signal.Signals(number)])

        for number in STOPPING:
            signal.signal(number, note)
        try:
            yield lambda: self.number is not None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Reporter:
    """Shows progress: a bar on a terminal, else a line per report with the time left."""

    def __init__(self) -> None:
        self._progress = ProgressView(
            TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            transient=False,
        )
        self._task = self._progress.add_task("", total=0, visible=False)
        self._steps = 0
        self._first: tuple[float, float] | None = None

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def phase(self, text: str) -> None:
        """Show what takes its time next."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, steps: int) -> None:
        """Show how many steps there will be; again for another model."""
        self._steps, self._first = steps, None
        self._progress.reset(self._task, total=steps, visible=True)

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
