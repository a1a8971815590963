"""The events of whole streams at many thresholds at once, for calibration and evaluation.

The same decision stage as live: here the streams are its slots, and the thresholds its classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.detect.decision import (
    BEGIN,
    END,
    NOTHING,
    Decision,
    Indices,
    Scores,
    SlotNames,
    Transitions,
    moving_average,
)
from ast_stream.detect.parameters import DecisionParameters
from ast_stream.detect.state import NEVER


@dataclass(frozen=True, eq=False)
class WindowScores:
    """The scores of a whole stream, of consecutive windows.

    Attributes:
        ends: end of each window in samples, a hop apart, shape (n_windows,).
        scores: smoothed, as the decision uses them, shape (n_windows, n_columns), in [0, 1].
        n_samples: end of the audio; the last windows may reach beyond it.
    """

    ends: Indices
    scores: Scores
    n_samples: int


@dataclass(frozen=True, eq=False)
class StreamEvents:
    """The finished events of one stream, in order of their ends; arrays of shape (n_events,).

    Attributes:
        index: class of the parameters; a threshold, where these are one class at many.
        t_up: end of the first window that saw the sound.
        known_at: end of the window with which the event became known.
        last_seen: end of the last window that saw the sound.
        t_down: end of the first window that no longer saw it; NEVER where it lasted to the end.
        onset, offset: as published, in samples.
        peak: highest score.
    """

    index: Indices
    t_up: Indices
    known_at: Indices
    last_seen: Indices
    t_down: Indices
    onset: Indices
    offset: Indices
    peak: Scores

    def of_classes(self, first: int, count: int = 1) -> StreamEvents:
        """Return the events of `count` classes from index `first` on, which becomes 0."""
        is_kept = (self.index >= first) & (self.index < first + count)
        kept = {name: values[is_kept] for name, values in vars(self).items()}
        return StreamEvents(**kept | {"index": kept["index"] - first})


def decide_streams(
    parameters: DecisionParameters,
    streams: Sequence[WindowScores],
    column: npt.ArrayLike | None = None,
) -> list[StreamEvents]:
    """Return the events of whole streams, in their order.

    Args:
        parameters: one class for every combination to be decided.
        column: the column of the scores for each class, shape (n_classes,); None: the first.
    """
    if not streams:
        return []
    columns = np.zeros(len(parameters.labels), np.int64) if column is None else np.asarray(column)
    names = SlotNames(len(streams))
    for number in range(len(streams)):
        names.add(str(number), "")
    decision = Decision(parameters, names)
    n_windows = np.array([len(stream.ends) for stream in streams])
    shape = (int(n_windows.max()), len(streams))
    scores = np.zeros((*shape, streams[0].scores.shape[1]), np.float32)
    ends, is_busy = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    thresholds = parameters.onset_threshold
    if parameters.geometry.is_of_frames:
        thresholds = parameters.rising_threshold
    lowest = thresholds.min(initial=np.inf)
    for slot, stream in enumerate(streams):
        scores[: n_windows[slot], slot] = stream.scores
        ends[: n_windows[slot], slot] = stream.ends
        is_high = stream.scores.max(axis=1, initial=0) >= lowest
        # low windows change nothing while no event is open, except for the window before a rising
        # score, which tells when it rose, and the window after it, which ends the rise
        near = np.pad(is_high, 1)
        is_busy[: n_windows[slot], slot] = near[:-2] | near[1:-1] | near[2:]
    n_samples = np.array([stream.n_samples for stream in streams])
    is_live, is_any_live = np.zeros(len(streams), np.bool_), False
    found = [NOTHING]
    is_any_busy = np.logical_or.reduce(is_busy, axis=1)
    for number in range(shape[0]):
        if not (is_any_busy[number] or is_any_live):
            continue
        slots = np.flatnonzero(is_busy[number] | (is_live & (number < n_windows)))
        if not len(slots):
            continue
        at = ends[number, slots]
        found.append(
            decision.advance(
                slots,
                at,
                scores[number, slots][:, columns],
                context_starts=np.zeros(len(slots), np.int64),
                first_scored=ends[0, slots],
                audio_ends=np.minimum(at, n_samples[slots]),
            )
        )
        is_live[slots] = decision.has_live(slots)
        is_any_live = bool(is_live.any())
    for slot, stream in enumerate(streams):
        last = int(stream.ends[-1]) if len(stream.ends) else 0
        found.append(decision.cut(slot, "quiet", last, stream.n_samples))
    transitions = np.concatenate(found)
    hop = parameters.geometry.hop
    return [_of_slot(transitions[transitions["slot"] == slot], hop) for slot in range(len(streams))]


def smooth(scores: Scores, alpha: Scores) -> Scores:
    """Return the moving averages of a whole stream as `Decision.average` computes them.

    Args:
        scores: shape (n_windows, n_columns).
        alpha: weight of the newest window in each column.
    """
    averages = scores.copy()
    smoothed = np.flatnonzero(alpha < 1)
    if len(smoothed):
        kept = np.zeros(len(smoothed), np.float32)
        for number, row in enumerate(scores[:, smoothed]):
            average, kept = moving_average(row, kept, alpha[smoothed], number == 0)
            averages[number, smoothed] = average
    return averages


def _of_slot(transitions: Transitions, hop: int) -> StreamEvents:
    """Return the events of one stream: each end with the begin of its class before it."""
    begins = transitions[transitions["kind"] == BEGIN]
    ends = transitions[transitions["kind"] == END]
    # begins and ends of one class alternate, so sorted by class (stably) they are pairs
    begins = begins[np.argsort(begins["index"], kind="stable")]
    order = np.argsort(ends["index"], kind="stable")
    known_at = np.zeros(len(ends), np.int64)
    known_at[order] = begins["known_at"]
    last_seen = np.where(ends["t_down"] == NEVER, ends["at"], ends["t_down"] - hop)
    return StreamEvents(
        ends["index"].astype(np.int64),
        ends["t_up"],
        known_at,
        last_seen,
        ends["t_down"],
        ends["onset"],
        ends["offset"],
        ends["peak"],
    )
