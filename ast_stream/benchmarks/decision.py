"""The decision stage timed: a window of many streams, all classes of AudioSet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.benchmarks.report import Spread, TableColumn
from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.parameters import model_facts, resolve_parameters
from ast_stream.model.metadata import Metadata
from ast_stream.settings.detection import DetectionSettings

HOP = 8000
WINDOW_S = 10.24
SMOOTHINGS_S = (0.0, 0.5)
QUIET, LOUD = 0.2, 0.99  # scores: below any threshold at most, and above all

COLUMNS = (
    TableColumn("streams", "{streams}"),
    TableColumn("classes", "{classes}"),
    TableColumn("smoothing s", "{smoothing_s:g}"),
    TableColumn("events", "{events:.0f}"),
    TableColumn("ms", "{ms:.2f}"),
    TableColumn("min", "{low_ms:.2f}"),
    TableColumn("max", "{high_ms:.2f}"),
)

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecisionTiming:
    """What deciding a window of all streams takes.

    Attributes:
        events: that begin or end in it, median over the rounds.
        ms: of one core's time, median over the rounds.
    """

    streams: int
    classes: int
    smoothing_s: float
    events: float
    ms: float
    low_ms: float
    high_ms: float


def time_decision(
    n_streams: int, n_classes: int, n_events: int, n_rounds: int, on_round: Callable[[], None]
) -> list[DecisionTiming]:
    """Return the timings with nothing above a threshold, and with events, for each smoothing.

    Args:
        n_events: that begin in every second window, and end in the next.
    """
    generator = np.random.default_rng(0)
    quiet = (generator.random((n_streams, n_classes)) * QUIET).astype(np.float32)
    loud = quiet.copy()
    loud.ravel()[generator.choice(loud.size, min(n_events, loud.size), replace=False)] = LOUD
    cases = [(smoothing_s, busy) for smoothing_s in SMOOTHINGS_S for busy in (False, True)]
    stages = [_Stage(quiet, loud if busy else quiet, smoothing_s) for smoothing_s, busy in cases]
    steps: list[list[tuple[float, int]]] = [[] for _stage in stages]
    for _round in range(n_rounds):
        for stage, of_stage in zip(stages, steps, strict=True):
            of_stage += [stage.step(), stage.step()]
        on_round()
    return [
        _timing(n_streams, n_classes, smoothing_s, of_stage if not busy else _busy(of_stage))
        for (smoothing_s, busy), of_stage in zip(cases, steps, strict=True)
    ]


def _busy(steps: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Return the steps in which there was something to say: smoothing delays what is heard."""
    return [step for step in steps if step[1]] or list(steps)


def _timing(
    n_streams: int, n_classes: int, smoothing_s: float, steps: Sequence[tuple[float, int]]
) -> DecisionTiming:
    ms = Spread.of([ms for ms, _n in steps])
    events = Spread.of([n for _ms, n in steps]).median
    return DecisionTiming(n_streams, n_classes, smoothing_s, events, ms.median, ms.low, ms.high)


class _Stage:
    """A decision stage that is given two windows in turn."""

    def __init__(self, first: Scores, second: Scores, smoothing_s: float) -> None:
        n_streams, n_classes = first.shape
        labels = [f"class_{index:03d}" for index in range(n_classes)]
        defaults = {"confirm_s": 0.0, "hold_s": 0.0, "smoothing_s": smoothing_s}
        detection = DetectionSettings.model_validate({"defaults": defaults})
        names = SlotNames(n_streams)
        for slot in range(n_streams):
            names.add(f"stream-{slot}", "epoch")
        facts = model_facts(labels, WINDOW_S, Metadata(), None)
        self._decision = Decision(resolve_parameters(detection, facts, 0.5), names)
        self._windows = (first, second)
        self._slots = np.arange(n_streams)
        self._n_steps = 0
        for _window in range(2):  # what is first done only once is not timed
            self.step()

    def step(self) -> tuple[float, int]:
        """Return milliseconds and messages of one window of each stream."""
        scores = self._windows[self._n_steps % 2]
        self._n_steps += 1
        ends = np.full(len(self._slots), HOP * self._n_steps)
        start = np.zeros_like(ends)
        began_s = time.thread_time()
        averages = self._decision.average(self._slots, scores, np.zeros(len(ends), np.bool_))
        events = self._decision.step(
            self._slots, ends, averages, context_starts=start, first_scored=start + HOP,
            audio_ends=ends,
        )  # fmt: skip
        return 1000 * (time.thread_time() - began_s), len(events)
