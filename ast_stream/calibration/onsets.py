"""Onsets and offsets: rise times, and how they depend on the scores around a crossing.

A rise time is how much of a sound a window must hold for its score to cross the threshold. With
t_up the first window of the event and t_down the first one below the offset threshold,

    r_on = t_up - onset - H/2            r_off = W + H/2 - (t_down - offset)

hold for sounds whose score is driven by how much of them the window holds. A steady sound over
noise may hover below the threshold for seconds and then cross it by chance: its crossing says
nothing about the window's filling, and would drag the median to the window's length. Such sounds
have two signs and are left out: their score never rises clearly above the threshold (where that
leaves sounds to measure), or it crosses when the window has long been full (or falls while the
sound still lasts).

An onset fit estimates the rise time from the scores around the crossing, where that makes onsets
clearly finer. It takes least absolute deviations, since some sounds begin with a part that nobody
would recognise and are seen late whatever their scores say: they must not move the others' onsets.
What a fit is worth is measured on sounds that it was not fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ast_stream.detect.boundaries import WindowGeometry, logits_above
from ast_stream.detect.state import NEVER
from ast_stream.detect.stream_events import StreamEvents
from ast_stream.evaluation.curves import touches
from ast_stream.model.metadata import StoredOnsetFit
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.units import SAMPLE_RATE

MIN_MEASURED = 5  # sounds needed for a rise time; else it stays assumed
# of the window: averaged scores and high thresholds are reached late, but what took longer was not
# recognised by its beginning
MAX_RISE_RATIO = 0.75
CLEARLY_ABOVE = 1.0  # the highest logit of a sound that counts lies so far above the threshold's

MIN_FITTED = 20  # sounds
N_PARTS = 5  # each is estimated by a fit to the others
WORTH_FITTING = 0.9  # of the median rise's error, at most
PERCENTILES = (5, 95)  # of the measured rises, beyond which no estimate may lie
WITHIN = 90  # percent of the estimates are so close
_RIDGE = 2.0  # of slopes in standard deviations: a few sounds prove no steep one
_ROUNDS = 30
_CLOSE_S = 0.02  # deviations below weigh alike

IN_ONE_EVENT = 0.9  # of the sounds of a class are not to be cut by their pauses
HOLD_S = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
HOLD_MARGIN_S = 0.32  # two frames: how much the edges of events around a pause vary

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DecidedStream:
    """A stream as one class decides it.

    Attributes:
        sounds: the reference events of the class, in order.
        ends: end of each window in samples.
        scores: as they are decided by, shape (n_windows,).
    """

    geometry: WindowGeometry
    sounds: Sequence[ReferenceEvent]
    ends: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    events: StreamEvents

    def of_threshold(self, number: int) -> DecidedStream:
        """Return the stream with the events of one threshold, by its index."""
        return replace(self, events=self.events.of_classes(number))


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
    """Measurements on the sounds of a class; a rise time is None if there are too few."""

    on: RiseTime | None
    off: RiseTime | None
    crossings: list[Crossing]


@dataclass(frozen=True)
class FittedOnset:
    """A fit, and the median error of onsets with and without it, both of sounds not fitted to."""

    fit: StoredOnsetFit
    error_s: float
    error_without_s: float
    n_measured: int


def choose_hold(streams: Sequence[DecidedStream]) -> float | None:
    """Return the quiet time that ends an event of a class whose frames decide.

    The shortest that keeps most of its sounds in one event each; None: the usual one does, or the
    pauses are too long to be taken for part of a sound.

    Args:
        streams: with the events that the usual time gives.
    """
    longest_s = []
    for stream in streams:
        for sound in stream.sounds:
            which = np.flatnonzero(touches(stream.events, sound, stream.geometry.window))
            if len(which):
                order = which[np.argsort(stream.events.onset[which])]
                pauses = stream.events.onset[order][1:] - stream.events.offset[order][:-1]
                longest_s.append(float(pauses.max(initial=0)) / SAMPLE_RATE)
    if len(longest_s) < MIN_MEASURED:
        return None
    needed_s = float(np.quantile(longest_s, IN_ONE_EVENT, method="higher"))
    if needed_s == 0:
        return None
    return next((hold_s for hold_s in HOLD_S if hold_s >= needed_s + HOLD_MARGIN_S), None)


def measure_rises(streams: Sequence[DecidedStream], threshold: float) -> Rises:
    """Return r_on and r_off of a class whose events were decided at `threshold`.

    Where the threshold leaves no room for scores clearly above it, all sounds found count.
    """
    window_s = streams[0].geometry.window / SAMPLE_RATE if streams else 0.0
    for clear in (clearly_above(threshold), threshold):
        crossings: list[Crossing] = []
        rises_off: list[float] = []
        for stream in streams:
            on, off_s = _of_stream(stream, clear)
            crossings += on
            rises_off += off_s
        if len(crossings) >= MIN_MEASURED:
            break
    return Rises(
        _summary([crossing.rise_s for crossing in crossings], 0.0, window_s),
        _summary(rises_off, -math.inf, window_s),
        crossings,
    )


def _of_stream(stream: DecidedStream, clear: float) -> tuple[list[Crossing], list[float]]:
    """Return the measurements on the sounds whose score reaches `clear`."""
    events, geometry = stream.events, stream.geometry
    window_s, half_hop_s = geometry.window / SAMPLE_RATE, geometry.hop / SAMPLE_RATE / 2
    times_s = stream.ends / SAMPLE_RATE
    touching = [touches(events, sound, geometry.window) for sound in stream.sounds]
    n_touched = np.sum(touching, axis=0) if touching else np.zeros(len(events.index))
    crossings, rises_off = [], []
    for sound, is_own in zip(stream.sounds, touching, strict=True):
        own = np.flatnonzero(is_own)
        held = (times_s > sound.onset_s) & (times_s < sound.offset_s + window_s)
        if not len(own) or (n_touched[own] > 1).any() or stream.scores[held].max() < clear:
            continue  # not found, in one event with another sound, or found by chance
        first = int(np.searchsorted(stream.ends, events.t_up[own[0]]))
        on_s = float(times_s[first]) - sound.onset_s - half_hop_s
        if first > 0 and -half_hop_s < on_s <= window_s + half_hop_s:
            before, at = stream.scores[first - 1], stream.scores[first]
            crossings.append(Crossing(on_s, float(before), float(at)))
        t_down = int(events.t_down[own[-1]])
        if t_down != NEVER:
            off_s = window_s + half_hop_s - (t_down / SAMPLE_RATE - sound.offset_s)
            # averages outlast the last window that holds the sound
            rises_off += [off_s] if -window_s / 2 < off_s <= window_s + half_hop_s else []
    return crossings, rises_off


def clearly_above(threshold: float) -> float:
    """Return the score that lies `CLEARLY_ABOVE` on the logits above `threshold`."""
    return 1 / (1 + (1 - threshold) / threshold * float(np.exp(-CLEARLY_ABOVE)))


def _summary(rises: Iterable[float], least_s: float, window_s: float) -> RiseTime | None:
    measured = np.clip(np.array(list(rises)), least_s, MAX_RISE_RATIO * window_s)
    if len(measured) < MIN_MEASURED:
        return None
    low, middle, high = np.percentile(measured, (25, 50, 75))
    return RiseTime(round(float(middle), 3), round(float(high - low) / 2, 3), len(measured))


def fit_onset(
    crossings: Sequence[Crossing], threshold: float, window_s: float
) -> FittedOnset | None:
    """Return the fit for a class of this threshold; None: too few sounds, or no clear gain."""
    if len(crossings) < MIN_FITTED:
        return None
    rises = np.clip([crossing.rise_s for crossing in crossings], None, MAX_RISE_RATIO * window_s)
    scores = np.array([(crossing.before, crossing.first) for crossing in crossings])
    heights = logits_above(scores, threshold)  # (n, 2)
    low, high = np.percentile(rises, PERCENTILES)
    part = np.arange(len(rises)) % N_PARTS
    errors, plain = np.zeros(len(rises)), np.zeros(len(rises))
    for number in range(N_PARTS):
        own = part == number
        line = _least_deviations(heights[~own], rises[~own])
        errors[own] = np.abs(np.clip(line[0] + heights[own] @ line[1:], low, high) - rises[own])
        plain[own] = np.abs(np.median(rises[~own]) - rises[own])
    if np.median(errors) > WORTH_FITTING * np.median(plain):
        return None
    rise_s, before_s, first_s = _least_deviations(heights, rises)
    fit = StoredOnsetFit(
        rise_s=round(float(rise_s), 4),
        before_s=round(float(before_s), 4),
        first_s=round(float(first_s), 4),
        lowest_s=round(float(low), 3),
        highest_s=round(float(high), 3),
        within_s=round(float(np.percentile(errors, WITHIN)), 3),
    )
    error_s, plain_s = (round(float(np.median(values)), 3) for values in (errors, plain))
    return FittedOnset(fit, error_s, plain_s, len(rises))


def _least_deviations(heights: Floats, rises: Floats) -> Floats:
    """Return base and slopes (3,) of the line with the least absolute deviations.

    Args:
        heights: shape (n, 2).
        rises: shape (n,).
    """
    middle, spread = heights.mean(axis=0), heights.std(axis=0) + 1e-6
    scaled = np.column_stack([np.ones(len(rises)), (heights - middle) / spread])
    ridge = np.diag([1e-9, _RIDGE, _RIDGE])
    weights = np.ones(len(rises))
    line = np.zeros(3)
    for _ in range(_ROUNDS):  # reweighted least squares
        weighted = scaled * weights[:, None]
        line = np.linalg.solve(weighted.T @ scaled + ridge, weighted.T @ rises)
        weights = 1 / np.maximum(np.abs(rises - scaled @ line), _CLOSE_S)
        weights /= weights.mean()
    slopes = line[1:] / spread
    return np.array([line[0] - slopes @ middle, *slopes])
