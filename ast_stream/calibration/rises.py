"""Rise times: how much of a sound a window must hold for its score to cross the threshold.

With t_up the first window of the event and t_down the first one below the offset threshold,

    r_on = t_up - onset - H/2            r_off = W + H/2 - (t_down - offset)

hold for sounds whose score is driven by how much of them the window holds. A steady sound over
noise may hover below the threshold for seconds and then cross it by luck: its crossing says nothing
about the window's filling, and would drag the median to the window's length. Such sounds are told
by two signs and left out: their score never rises clearly above the threshold (where that leaves
sounds to measure), or it crosses when the window has long been full (or falls while the sound still
lasts).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ast_stream.calibration.curve import decided_scores, touched
from ast_stream.calibration.grouping import GroupingRule, group_events
from ast_stream.calibration.streams import LogitStream, with_label
from ast_stream.model.metadata import ScoreMap
from ast_stream.units import SAMPLE_RATE

FEWEST_MEASURED = 5  # sounds needed for a rise time; else it stays assumed
# of the window: averaged scores and high thresholds are reached late, but what took longer was not
# recognised by its beginning
LONGEST_RISE_SHARE = 0.75
CLEARLY_ABOVE = 1.0  # the highest logit of a sound that counts lies so far above the threshold's


@dataclass(frozen=True)
class RiseTime:
    """A measured rise time.

    Attributes:
        spread_s: half of the interquartile range.
        n_measured: sounds behind it.
    """

    median_s: float
    spread_s: float
    n_measured: int


class Crossing(NamedTuple):
    """A sound that was clearly seen to begin.

    Attributes:
        rise_s: from its onset to the first window above the threshold, less half a hop.
        before, first: scores of the window before that one, and of that one.
    """

    rise_s: float
    before: float
    first: float


class Rises(NamedTuple):
    """What the sounds of a class show; a rise time is None where too few of them tell."""

    on: RiseTime | None
    off: RiseTime | None
    crossings: list[Crossing]


def measure_rises(
    index: int,
    label: str,
    streams: Sequence[LogitStream],
    score_map: ScoreMap,
    threshold: float,
    rule: GroupingRule,
) -> Rises:
    """Return r_on and r_off of class `index` at `threshold`.

    Where the threshold leaves no room for scores clearly above it, all sounds found count.
    """
    for clear in (clearly_above(threshold), threshold):
        crossings: list[Crossing] = []
        rises_off: list[float] = []
        for stream in streams:
            on, off_s = _of_stream(index, label, stream, score_map, threshold, rule, clear)
            crossings += on
            rises_off += off_s
        if len(crossings) >= FEWEST_MEASURED:
            break
    window_s = rule.geometry.window / SAMPLE_RATE
    return Rises(
        _summary([one.rise_s for one in crossings], 0.0, window_s),
        _summary(rises_off, -math.inf, window_s),
        crossings,
    )


def _of_stream(
    index: int,
    label: str,
    stream: LogitStream,
    score_map: ScoreMap,
    threshold: float,
    rule: GroupingRule,
    clear: float,
) -> tuple[list[Crossing], list[float]]:
    """Return what the sounds show whose score reaches `clear`."""
    scores = decided_scores(stream, index, score_map, rule)
    spans = group_events(scores, stream.ends, threshold, rule)
    sounds = with_label(stream.truth, label)
    if not spans or not sounds:
        return [], []
    touching = touched(spans, stream, rule, [(one.onset_s, one.offset_s) for one in sounds])
    window_s, half_hop_s = rule.geometry.window / SAMPLE_RATE, rule.geometry.hop / SAMPLE_RATE / 2
    crossings, rises_off = [], []
    for number, sound in enumerate(sounds):
        own = np.flatnonzero(touching[:, number])
        held = (stream.times_s > sound.onset_s) & (stream.times_s < sound.offset_s + window_s)
        if not len(own) or touching[own].sum() != len(own) or scores[held].max() < clear:
            continue  # not found, in one event with another sound, or found by luck
        first, last = spans[own[0]], spans[own[-1]]
        on_s = float(stream.times_s[first.first]) - sound.onset_s - half_hop_s
        if first.first > 0 and -half_hop_s < on_s <= window_s + half_hop_s:
            before, at = scores[first.first - 1], scores[first.first]
            crossings.append(Crossing(on_s, float(before), float(at)))
        if last.low is not None:
            off_s = window_s + half_hop_s - (float(stream.times_s[last.low]) - sound.offset_s)
            # averages outlast the last window that holds the sound
            rises_off += [off_s] if -window_s / 2 < off_s <= window_s + half_hop_s else []
    return crossings, rises_off


def clearly_above(threshold: float) -> float:
    """Return the score that lies `CLEARLY_ABOVE` on the logits above `threshold`."""
    return 1 / (1 + (1 - threshold) / threshold * float(np.exp(-CLEARLY_ABOVE)))


def _summary(rises: Iterable[float], least_s: float, window_s: float) -> RiseTime | None:
    measured = np.clip(np.array(list(rises)), least_s, LONGEST_RISE_SHARE * window_s)
    if len(measured) < FEWEST_MEASURED:
        return None
    low, middle, high = np.percentile(measured, (25, 50, 75))
    return RiseTime(round(float(middle), 3), round(float(high - low) / 2, 3), len(measured))
