"""What other thresholds would give: recall against false alarms per hour, from scores alone.

Events are confirmed and held as the decision stage does, at one threshold after another, but they
end at the same threshold as they begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.detect.parameters import DecisionParameters
from ast_stream.evaluation.detections import sound_spans
from ast_stream.evaluation.scoring import ScoredSoundscape
from ast_stream.evaluation.spans import Spans
from ast_stream.units import samples_to_seconds

THRESHOLDS = 1 / (1 + np.exp(-np.linspace(-5.0, 7.0, 121)))  # evenly spaced on the logit
BUDGETS_PER_H = (0.1, 0.5, 1.0)
SHORTEST_SPAN_S = 0.01

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """One class at every threshold; shape (n_thresholds,), thresholds rising."""

    thresholds: Values
    recall: Values
    false_per_h: Values

    def recall_within(self, budget_per_h: float) -> float:
        """Return the highest recall with at most so many false alarms per hour; NaN without."""
        return float(np.max(self.recall[self.false_per_h <= budget_per_h], initial=0.0))

    def threshold_within(self, budget_per_h: float) -> float:
        """Return the lowest threshold with at most so many false alarms per hour, else 1."""
        kept = self.thresholds[self.false_per_h <= budget_per_h]
        return float(kept.min(initial=1.0))


def score_curve(
    scored: Sequence[ScoredSoundscape], label: str, thresholds: Values = THRESHOLDS
) -> ScoreCurve:
    """Return recall and false alarms of one class over some strips."""
    n_found, n_false = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    n_sounds, hours = 0, 0.0
    for one in scored:
        parameters = known_parameters(one)
        index = parameters.labels.index(label)
        confirmed = confirmed_scores(one.scores[:, index], parameters, index)
        touching = _touching(one, parameters, label)
        peaks = np.array([confirmed[which].max(initial=0.0) for which in touching])
        is_free = ~np.logical_or.reduce(touching)
        n_found += (peaks[:, None] >= thresholds).sum(axis=0)
        hold_hops = _hold_hops(parameters, index)
        raw = one.scores[:, index]
        n_false += _false_alarms(raw, confirmed, is_free, hold_hops, thresholds)
        n_sounds += len(peaks)
        hours += one.strip.duration_s / 3600
    recall = n_found / n_sounds if n_sounds else np.full(len(thresholds), np.nan)
    return ScoreCurve(thresholds, recall, n_false / hours)


def confirmed_scores(
    scores: npt.NDArray[np.float32], parameters: DecisionParameters, index: int
) -> Values:
    """Return for each window the highest threshold at which it would confirm an event.

    That is the K-th highest of the last N scores, but not more than the window's own.
    """
    n_hops = int(parameters.confirm_hops[index])
    n_hits = int(parameters.confirm_hits[index])
    padded = np.concatenate([np.zeros(n_hops - 1), scores.astype(np.float64)])
    last = np.lib.stride_tricks.sliding_window_view(padded, n_hops)
    kth = np.sort(last, axis=1)[:, n_hops - n_hits]
    confirmed: Values = np.minimum(kth, scores)
    return confirmed


def score_spans(scored: ScoredSoundscape, label: str, threshold: float) -> Spans:
    """Return the stretches where the raw score reaches `threshold`, corrected for the window."""
    parameters = known_parameters(scored)
    index = parameters.labels.index(label)
    high = np.flatnonzero(scored.scores[:, index] >= threshold)
    breaks = np.flatnonzero(np.diff(high) > 1)
    firsts, lasts = high[np.r_[0, breaks + 1]] if high.size else high, high
    if high.size:
        lasts = high[np.r_[breaks, len(high) - 1]]
    hop_s = samples_to_seconds(parameters.geometry.hop)
    window_s = samples_to_seconds(parameters.geometry.window)
    rise_on_s = samples_to_seconds(int(parameters.rise_on[index]))
    rise_off_s = samples_to_seconds(int(parameters.rise_off[index]))
    onset = scored.times_s[firsts] - hop_s / 2 - rise_on_s
    offset = scored.times_s[lasts] + hop_s / 2 - (window_s - rise_off_s)
    onset = np.maximum(onset, 0.0)
    offset = np.maximum(offset, onset + max(rise_on_s, SHORTEST_SPAN_S))
    return Spans(onset, offset, np.full(len(onset), threshold))


def known_parameters(scored: ScoredSoundscape) -> DecisionParameters:
    """Return what the events of a strip were decided by.

    Raises:
        ValueError: it is not known.
    """
    if scored.parameters is None:
        raise ValueError("expected a strip scored by a detector, got one without its parameters")
    return scored.parameters


def _touching(
    scored: ScoredSoundscape, parameters: DecisionParameters, label: str
) -> npt.NDArray[np.bool_]:
    """Tell which windows hold some of which sound, shape (n_sounds, n_windows)."""
    sounds = sound_spans(scored, label)
    window_s = samples_to_seconds(parameters.geometry.window)
    touching: npt.NDArray[np.bool_] = (scored.times_s > sounds.onset_s[:, None]) & (
        scored.times_s < sounds.offset_s[:, None] + window_s
    )
    return touching


def _hold_hops(parameters: DecisionParameters, index: int) -> int:
    return int(-(-parameters.hold[index] // parameters.geometry.hop))


def _false_alarms(
    scores: npt.NDArray[np.float32],
    confirmed: Values,
    is_free: npt.NDArray[np.bool_],
    hold_hops: int,
    thresholds: Values,
) -> Values:
    """Return how many confirmed events at each threshold hold no window with a sound of the class.

    At least as many as at any higher threshold: at a very low one all is a single event, which
    holds some sound and would otherwise count as right.
    """
    counts = np.zeros(len(thresholds))
    for number, threshold in enumerate(thresholds):
        high = np.flatnonzero(scores >= threshold)
        if high.size:
            starts = np.r_[0, np.flatnonzero(np.diff(high) > hold_hops + 1) + 1]
            is_false = np.logical_and.reduceat(is_free[high], starts)
            is_event = np.logical_or.reduceat(confirmed[high] >= threshold, starts)
            counts[number] = (is_false & is_event).sum()
    most: Values = np.maximum.accumulate(counts[::-1])[::-1]
    return most
