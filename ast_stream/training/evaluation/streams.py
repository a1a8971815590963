"""Detected events against planted sounds: recall, false alarms per hour, boundary errors, delay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ast_stream.audio.scene import Planted
from ast_stream.messages import Event
from ast_stream.training.material.streams import ScoredStrip
from ast_stream.units import samples_to_seconds

SLACK_S = 1.0  # an event counts for a sound of its label that it overlaps within this
ZERO_ALARMS_BOUND = 3.0  # no alarm in T hours bounds the rate below 3 / T (95 %)


@dataclass(frozen=True)
class Match:
    """One planted sound and the first event that found it, if any."""

    planted: Planted
    onset_s: float | None = None
    offset_s: float | None = None
    decided_s: float | None = None  # stream time at which the event began to be known


@dataclass(frozen=True)
class LabelFigures:
    """Figures of one label, or of all together.

    Attributes:
        false_alarms: events that overlap no sound of their label.
        fragments: further events of sounds that were found already.
        onset_error_s, offset_error_s: median of the absolute error; NaN if none was found.
        time_to_detect_s: median from the sound's onset until known; a miss counts as infinite.
    """

    n_sounds: int
    n_found: int
    false_alarms: int
    false_alarms_per_h: float
    false_alarms_bound_per_h: float
    fragments: int
    onset_error_s: float
    onset_bias_s: float
    offset_error_s: float
    time_to_detect_s: float

    @property
    def recall(self) -> float:
        """Share of the sounds that were found, NaN without sounds."""
        return self.n_found / self.n_sounds if self.n_sounds else float("nan")


@dataclass(frozen=True, eq=False)
class StreamReport:
    """Figures of some strips, in all and by label."""

    hours: float
    overall: LabelFigures
    by_label: dict[str, LabelFigures]


def stream_report(scored: Sequence[ScoredStrip], labels: Sequence[str]) -> StreamReport:
    """Return the figures of what the detector made of some strips."""
    hours = sum(one.strip.duration_s for one in scored) / 3600
    matched = {label: [_match(one, label) for one in scored] for label in labels}
    by_label = {label: _figures(parts, hours) for label, parts in matched.items()}
    everything = [part for parts in matched.values() for part in parts]
    return StreamReport(hours, _figures(everything, hours), by_label)


def _match(scored: ScoredStrip, label: str) -> tuple[list[Match], int, int]:
    """Return the matches of one label's sounds, its false alarms and its fragments."""
    sounds = [sound for sound in scored.strip.truth if sound.label == label]
    matches: dict[int, Match] = {}
    false_alarms = fragments = 0
    for begin, end in _finished(scored.events, label):
        onset_s, offset_s = samples_to_seconds(end.onset_sample), _offset_s(end)
        overlapping = [
            index
            for index, sound in enumerate(sounds)
            if onset_s < sound.offset_s + SLACK_S and offset_s > sound.onset_s - SLACK_S
        ]
        new = [index for index in overlapping if index not in matches]
        false_alarms += not overlapping
        fragments += bool(overlapping) and not new
        for index in new:
            decided_s = samples_to_seconds(begin.at_sample)
            matches[index] = Match(sounds[index], onset_s, offset_s, decided_s)
    found = [matches.get(index, Match(sound)) for index, sound in enumerate(sounds)]
    return found, false_alarms, fragments


def _finished(events: Sequence[Event], label: str) -> list[tuple[Event, Event]]:
    """Return begin and end of each event of one label, in order."""
    begins = {event.id: event for event in events if event.type == "begin"}
    return [
        (begins[event.id], event)
        for event in events
        if event.type == "end" and event.label == label
    ]


def _offset_s(end: Event) -> float:
    assert end.offset_sample is not None
    return samples_to_seconds(end.offset_sample)


def _figures(parts: Sequence[tuple[list[Match], int, int]], hours: float) -> LabelFigures:
    matches = [match for part, _, _ in parts for match in part]
    false_alarms = sum(part[1] for part in parts)
    onset_errors = [m.onset_s - m.planted.onset_s for m in matches if m.onset_s is not None]
    offset_errors = [m.offset_s - m.planted.offset_s for m in matches if m.offset_s is not None]
    delays = [math.inf if m.decided_s is None else m.decided_s - m.planted.onset_s for m in matches]
    return LabelFigures(
        n_sounds=len(matches),
        n_found=len(onset_errors),
        false_alarms=false_alarms,
        false_alarms_per_h=false_alarms / hours if hours else float("nan"),
        false_alarms_bound_per_h=_upper_bound(false_alarms) / hours if hours else float("nan"),
        fragments=sum(part[2] for part in parts),
        onset_error_s=_median([abs(error) for error in onset_errors]),
        onset_bias_s=_median(onset_errors),
        offset_error_s=_median([abs(error) for error in offset_errors]),
        time_to_detect_s=_median(delays),
    )


def _upper_bound(count: int) -> float:
    """Return the one-sided 95 % bound of a Poisson mean after `count` (normal-like above zero)."""
    if count == 0:
        return ZERO_ALARMS_BOUND
    # Wilson-Hilferty's approximation of the chi-square quantile
    n = count + 1
    return n * (1 - 1 / (9 * n) + 1.645 / (3 * math.sqrt(n))) ** 3


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")
