"""When sounds were said to begin and end, and when that was known, against when they did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ast_stream.evaluation.detections import Found, Matched
from ast_stream.evaluation.intervals import Interval, bootstrap_quantile, quantile


@dataclass(frozen=True)
class Errors:
    """Times said less true times, in seconds: median, and median of the absolute values."""

    n: int
    bias_s: float
    median_absolute_s: float
    p90_absolute_s: float


@dataclass(frozen=True)
class Timing:
    """When things were said to happen and when it was known.

    Sounds that an event of an earlier sound ran on into have no onset of their own, and those
    whose event ran on into a later sound no offset: they are counted as merged, not here.

    Attributes:
        onset, offset: of the published times, corrected for the window.
        raw_onset, raw_offset: of the ends of the windows that crossed the thresholds.
        detect_s: from a sound's onset until its begin was published, on the stream's clock;
            a sound that was not found counts as infinite.
        end_s: from a sound's offset until its end was published.
        events_per_sound: of the found ones: more than 1 is fragmentation.
        sounds_per_event: of the events that found any: more than 1 is merging.
    """

    onset: Errors
    offset: Errors
    raw_onset: Errors
    raw_offset: Errors
    onset_absolute_s: Interval
    detect_p50_s: Interval
    detect_p90_s: float
    end_p50_s: float
    end_p90_s: float
    events_per_sound: float
    sounds_per_event: float


def timing(parts: Sequence[Matched], seed: int = 0) -> Timing:
    """Return the timing of some matched strips, of one class or several."""
    sounds = [sound for part in parts for sound in part.sounds]
    onsets = onset_errors(sounds)
    delays = detection_delays(sounds)
    ends = end_delays(sounds)
    found = [one for one in sounds if one.detections]
    n_pairs = sum(len(one.detections) for one in found)
    n_events = sum(_n_events(part) for part in parts)
    begun = [one for one in sounds if one.is_first]
    timed = [one for one in begun if one.detections]
    return Timing(
        onset=_errors(onsets),
        offset=_errors(offset_errors(sounds)),
        raw_onset=_errors(onset_errors(sounds, raw=True)),
        raw_offset=_errors(offset_errors(sounds, raw=True)),
        onset_absolute_s=bootstrap_quantile(
            [abs(error) for error in onsets], _clips(timed), 0.5, seed
        ),
        detect_p50_s=bootstrap_quantile(delays, _clips(begun), 0.5, seed),
        detect_p90_s=quantile(np.array(delays), 0.9),
        end_p50_s=quantile(np.array(ends), 0.5),
        end_p90_s=quantile(np.array(ends), 0.9),
        events_per_sound=n_pairs / len(found) if found else math.nan,
        sounds_per_event=n_pairs / n_events if n_events else math.nan,
    )


def onset_errors(sounds: Sequence[Found], raw: bool = False) -> list[float]:
    """Return onset said less true onset of every found sound that has one of its own, seconds."""
    return [
        (one.detections[0].raw_onset_s if raw else one.detections[0].onset_s) - one.sound.onset_s
        for one in sounds
        if one.detections and one.is_first
    ]


def offset_errors(sounds: Sequence[Found], raw: bool = False) -> list[float]:
    """Return offset said less true offset of every found sound that has one of its own, seconds."""
    return [
        (one.detections[-1].raw_offset_s if raw else one.detections[-1].offset_s)
        - one.sound.offset_s
        for one in sounds
        if one.detections and one.is_last
    ]


def detection_delays(sounds: Sequence[Found]) -> list[float]:
    """Return the time to detect of every sound that is not merged into an earlier one, seconds.

    Infinite where it was missed; 0 where an event had begun before the sound.
    """
    return [
        max(0.0, one.detections[0].known_s - one.sound.onset_s) if one.detections else math.inf
        for one in sounds
        if one.is_first
    ]


def end_delays(sounds: Sequence[Found]) -> list[float]:
    """Return the time until the end was published of every found sound that has one, seconds."""
    return [
        max(0.0, one.detections[-1].ended_s - one.sound.offset_s)
        for one in sounds
        if one.detections and one.is_last
    ]


def _clips(sounds: Sequence[Found]) -> list[str]:
    return [one.sound.clip or str(number) for number, one in enumerate(sounds)]


def _n_events(part: Matched) -> int:
    return len({id(one) for sound in part.sounds for one in sound.detections})


def _errors(values: Sequence[float]) -> Errors:
    known = np.array([value for value in values if not math.isnan(value)])
    return Errors(
        len(known),
        quantile(known, 0.5),
        quantile(np.abs(known), 0.5),
        quantile(np.abs(known), 0.9),
    )
