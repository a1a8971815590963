"""Milliseconds of the decision stage for a window of many streams, all classes of AudioSet.

    .venv/bin/python tests/benchmarks/bench_decision.py [--slots 2000] [--events 740]

CPU time of one thread, median over the steps: with nothing above a threshold, and with as many
events that begin or end in each step.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import numpy.typing as npt

from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.parameters import model_facts, resolve_parameters
from ast_stream.model.metadata import Metadata
from ast_stream.settings.schema import DetectionSettings

HOP = 8000


def main() -> None:
    """Print a line with and one without smoothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=527)
    parser.add_argument("--events", type=int, default=740)
    options = parser.parse_args()
    shape = (options.slots, options.classes)
    generator = np.random.default_rng(0)
    quiet = (generator.random(shape) * 0.2).astype(np.float32)
    loud = quiet.copy()
    loud.ravel()[generator.choice(loud.size, options.events, replace=False)] = 0.99
    for smoothing_s in (0.0, 0.5):
        decision = _decision(*shape, smoothing_s)
        steps = [_step(decision, n, quiet) for n in range(10)]
        without = statistics.median(ms for ms, _n in steps)
        steps = [_step(decision, n, loud if n % 2 else quiet) for n in range(10, 30)]
        busy = [(ms, n) for ms, n in steps if n]
        print(
            f"{shape[0]} x {shape[1]}, smoothing {smoothing_s:g} s: {without:.1f} ms, "
            f"{statistics.median(ms for ms, _n in busy):.1f} ms with "
            f"{statistics.median(n for _ms, n in busy):.0f} events"
        )


def _decision(n_slots: int, n_classes: int, smoothing_s: float) -> Decision:
    labels = [f"class_{index:03d}" for index in range(n_classes)]
    defaults = {"confirm_s": 0.0, "hold_s": 0.0, "smoothing_s": smoothing_s}
    detection = DetectionSettings.model_validate({"defaults": defaults})
    names = SlotNames(n_slots)
    for slot in range(n_slots):
        names.add(f"stream-{slot}", "epoch")
    return Decision(
        resolve_parameters(detection, model_facts(labels, 10.24, Metadata(), None), 0.5), names
    )


def _step(decision: Decision, number: int, scores: npt.NDArray[np.float32]) -> tuple[float, int]:
    """Return milliseconds and messages of one window of each slot."""
    slots = np.arange(len(scores))
    ends, start = np.full(len(slots), HOP * (number + 1)), np.zeros(len(slots), np.int64)
    began_s = time.thread_time()
    averages = decision.average(slots, scores, np.zeros(len(slots), np.bool_))
    events = decision.step(
        slots, ends, averages, context_starts=start, first_scored=start + HOP, audio_ends=ends
    )
    return 1000 * (time.thread_time() - began_s), len(events)


if __name__ == "__main__":
    main()
