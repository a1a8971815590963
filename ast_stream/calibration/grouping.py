"""How many events scores make at a threshold: the decision stage for one class, over all windows.

Choosing a threshold asks for the events at a hundred candidates; `detect.decision` steps window by
window, so this is the same rule written over whole arrays. tests/test_calibration_grouping.py
proves that both find the same events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ast_stream.detect.boundaries import WindowGeometry, locate_offset, locate_onset
from ast_stream.detect.parameters import (
    DecisionParameters,
    model_facts,
    offset_thresholds,
    resolve_parameters,
)
from ast_stream.detect.state import NEVER
from ast_stream.model.metadata import Metadata
from ast_stream.settings.schema import DetectionDefaults, DetectionSettings

Scores = npt.NDArray[np.float32]
Ends = npt.NDArray[np.int64]


class Span(NamedTuple):
    """One event, as indices of windows.

    Attributes:
        first: first window above the onset threshold.
        confirmed: the window with which the event became known.
        low: first of the windows below the offset threshold that it ended with; None: none.
        ended: the window with which it ended; the number of windows if it was open to the end.
        onset: sample index published as onset.
    """

    first: int
    confirmed: int
    low: int | None
    ended: int
    onset: int


@dataclass(frozen=True)
class GroupingRule:
    """What makes scores of one class into events, with the default detection settings.

    Attributes:
        geometry, hold, max_duration, rise_on, rise_off: in samples.
        confirm_hits, confirm_hops: so many of so many windows confirm an event.
        share_of_newest: of the newest window in the averages of scores.
    """

    geometry: WindowGeometry
    confirm_hits: int
    confirm_hops: int
    hold: int
    max_duration: int
    rise_on: int
    rise_off: int
    share_of_newest: np.float32

    @property
    def quiet_windows(self) -> int:
        """Windows in a row below the offset threshold that end an event."""
        return -(-self.hold // self.geometry.hop) + 1

    def offset(self, span: Span, ends: Ends) -> int:
        """Return the sample index published as the event's offset; its start if it never ended."""
        low = NEVER if span.low is None else int(ends[span.low])
        at = int(ends[min(span.ended, len(ends) - 1)])
        offset = locate_offset(
            self.geometry, span.onset, low, self.rise_on, self.rise_off, audio_end=at
        )
        return min(int(offset.sample), span.onset + self.max_duration)


def grouping_rule(
    window_s: float, hop_s: float, confirm_s: float | None = None, smoothing_s: float = 0.0
) -> GroupingRule:
    """Return the rule of the default settings, with rise times as assumed before any is measured.

    Args:
        confirm_s: None: that of classes for which no checkpoint says more.
        smoothing_s: time constant over which scores are averaged.

    Raises:
        UsageError: a hop at which no event can be confirmed.
    """
    facts = model_facts([""], window_s, Metadata())
    settings = DetectionSettings(
        defaults=DetectionDefaults(confirm_s=confirm_s, smoothing_s=smoothing_s)
    )
    # events that these would drop or hold back would have to be grouped otherwise
    assert settings.defaults.min_duration_s == settings.defaults.refractory_s == 0
    return rule_of(resolve_parameters(settings, facts, hop_s))


def rule_of(parameters: DecisionParameters) -> GroupingRule:
    """Return the rule by which `parameters` make events of their first class."""
    return GroupingRule(
        geometry=parameters.geometry,
        confirm_hits=int(parameters.confirm_hits[0]),
        confirm_hops=int(parameters.confirm_hops[0]),
        hold=int(parameters.hold[0]),
        max_duration=int(parameters.max_duration[0]),
        rise_on=int(parameters.rise_on[0]),
        rise_off=int(parameters.rise_off[0]),
        share_of_newest=parameters.ema_alpha[0],
    )


def offset_threshold(threshold: float) -> np.float32:
    """Return the score below which an event of onset threshold `threshold` may end."""
    return np.float32(offset_thresholds(np.array([threshold], np.float32))[0])


def group_events(scores: Scores, ends: Ends, threshold: float, rule: GroupingRule) -> list[Span]:
    """Return the events that consecutive windows of one stream make at `threshold`, in order.

    Args:
        scores: of one class, averaged, shape (n_windows,), float32 in [0, 1].
        ends: end of each window in samples, shape (n_windows,), a hop apart.
    """
    is_hit = scores >= np.float32(threshold)
    hits_until = np.concatenate(([0], np.cumsum(is_hit)))
    index = np.arange(len(scores))
    before = np.maximum(index + 1 - rule.confirm_hops, 0)
    n_hits = hits_until[1:] - hits_until[before]
    confirming = np.flatnonzero(is_hit & (n_hits >= rule.confirm_hits))
    if not len(confirming):
        return []
    is_low = scores < offset_threshold(threshold)
    last_not_low = np.maximum.accumulate(np.where(is_low, -1, index))

    spans: list[Span] = []
    free_from, earliest = 0, 0  # first window after the last event; its offset
    at = 0
    while at < len(confirming):
        confirmed = int(confirming[at])
        since = max(free_from, confirmed + 1 - rule.confirm_hops)
        if hits_until[confirmed + 1] - hits_until[since] < rule.confirm_hits:
            at += 1  # some of its hits belong to the event before
            continue
        first = since + int(np.argmax(is_hit[since : confirmed + 1]))
        span = _span(first, confirmed, last_not_low, ends, earliest, rule)
        spans.append(span)
        earliest = rule.offset(span, ends)
        free_from = span.ended + 1
        at = int(np.searchsorted(confirming, free_from))
    return spans


def _span(
    first: int,
    confirmed: int,
    last_not_low: npt.NDArray[np.int64],
    ends: Ends,
    earliest: int,
    rule: GroupingRule,
) -> Span:
    located = locate_onset(
        rule.geometry,
        int(ends[first]),
        rule.rise_on,
        uncertainty=0,  # not looked at
        earliest=earliest,
        first_scored=int(ends[0]),
        audio_end=int(ends[confirmed]),
    )
    onset = int(located.sample)
    too_long = max(confirmed, int(np.searchsorted(ends, onset + rule.max_duration)))
    within = last_not_low[confirmed : too_long + 1]
    low_run = np.arange(confirmed, confirmed + len(within)) - within
    is_quiet = low_run >= rule.quiet_windows
    ended = confirmed + int(np.argmax(is_quiet)) if is_quiet.any() else too_long
    since = None
    if ended < len(ends) and low_run[ended - confirmed] > 0:
        since = int(last_not_low[ended]) + 1
    return Span(first, confirmed, since, min(ended, len(ends)), onset)
