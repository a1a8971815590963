"""What people see of a training, and how they stop one."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ast_stream.cli.terminal import PacedLines, ProgressView
from ast_stream.training.state import Metrics

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
    """Shows progress: a bar on a terminal, else a line per report with the time left.

    Args:
        every_s: between two lines about a measurement, where there is no bar.
    """

    def __init__(self, every_s: float = 10.0) -> None:
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

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def phase(self, text: str) -> None:
        """Show what takes its time next."""
        self._progress.console.print(text, soft_wrap=True)
        self._progress.reset(self._waiting, visible=True)

    def begin(self, steps: int) -> None:
        """Show how many steps there will be; again for another model."""
        self._steps, self._first = steps, None
        self._progress.update(self._waiting, visible=False)
        self._progress.reset(self._task, total=steps, visible=True, done=f"step 0 of {steps}")

    def measured(self, share: float) -> None:
        """Show how much of the measurement is done, 0 to 1."""
        done = f"{100 * share:.0f} % measured"
        self._progress.update(self._measuring, completed=share, visible=True, done=done)
        self._progress.update(self._waiting, visible=share >= 1)  # thresholds are chosen now
        if self._progress.disable and share < 1:
            self._lines.show(done)

    def report(self, metrics: Metrics) -> None:
        """Show one report."""
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

    def _left_s(self, step: float) -> float:
        assert self._first is not None
        done, began = self._first
        return (time.monotonic() - began) / max(1.0, step - done) * (self._steps - step)
