"""Sounds and detections of one strip as spans of time, and which detection found which sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ast_stream.detect.parameters import DecisionParameters
from ast_stream.evaluation.scoring import ScoredSoundscape
from ast_stream.evaluation.spans import Spans, spans_of
from ast_stream.messages.event import Event
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.units import samples_to_seconds

TOLERANCE_S = 0.5  # a detection that overlaps no sound of its class finds one this near


@dataclass(frozen=True)
class Detection:
    """One finished event of a strip.

    Attributes:
        confidence: highest score while it lasted.
        known_s, ended_s: stream time at which begin and end were published.
        raw_onset_s, raw_offset_s: end of the first window above the onset threshold and of the
            first one below the offset threshold: the times without the correction for the
            window. NaN where the scores do not show them.
    """

    label: str
    onset_s: float
    offset_s: float
    confidence: float
    known_s: float
    ended_s: float
    raw_onset_s: float = float("nan")
    raw_offset_s: float = float("nan")


@dataclass(frozen=True)
class Found:
    """One sound and the detections of its class that found it, in order.

    Attributes:
        is_first: the first of them had not found an earlier sound, so that it tells of this one.
        is_last: the last of them finds no later sound.
    """

    sound: ReferenceEvent
    detections: tuple[Detection, ...]
    is_first: bool = True
    is_last: bool = True


@dataclass(frozen=True)
class Matched:
    """The sounds of one class in one strip, found or not, and what was detected elsewhere."""

    sounds: tuple[Found, ...]
    false_alarms: tuple[Detection, ...]


def detections(scored: ScoredSoundscape, label: str) -> list[Detection]:
    """Return the finished events of one class, in order of their ends."""
    begins = {event.id: event for event in scored.events if event.type == "begin"}
    found = []
    for end in scored.events:
        if end.type == "end" and end.label == label:
            found.append(_detection(scored, begins[end.id], end))
    return found


def match(sounds: Sequence[ReferenceEvent], detected: Sequence[Detection]) -> Matched:
    """Tell which detections of a class found which of its sounds.

    A detection finds every sound that it overlaps. One that overlaps none finds the nearest, if
    that is within `TOLERANCE_S`; else it is a false alarm.
    """
    ordered = sorted(detected, key=lambda one: (one.onset_s, one.offset_s))
    hits = [_hits(sounds, one) for one in ordered]
    matched = []
    for index, sound in enumerate(sounds):
        which = [number for number, hit in enumerate(hits) if index in hit]
        matched.append(
            Found(
                sound,
                tuple(ordered[number] for number in which),
                is_first=not which or hits[which[0]][0] == index,
                is_last=not which or hits[which[-1]][-1] == index,
            )
        )
    false = tuple(one for one, hit in zip(ordered, hits, strict=True) if not hit)
    return Matched(tuple(matched), false)


def match_strip(scored: ScoredSoundscape, label: str) -> Matched:
    """Return the matches of one class in one scored strip."""
    sounds = [sound for sound in scored.strip.truth if sound.label == label]
    return match(sounds, detections(scored, label))


def _hits(sounds: Sequence[ReferenceEvent], detected: Detection) -> list[int]:
    distances = [
        max(sound.onset_s - detected.offset_s, detected.onset_s - sound.offset_s)
        for sound in sounds
    ]
    overlapping = [index for index, distance in enumerate(distances) if distance < 0]
    if overlapping or not distances:
        return overlapping
    nearest = int(np.argmin(distances))
    return [nearest] if distances[nearest] <= TOLERANCE_S else []


def _detection(scored: ScoredSoundscape, begin: Event, end: Event) -> Detection:
    assert end.offset_sample is not None
    heard_s = scored.strip.duration_s  # the last windows of a strip reach beyond its audio
    raw_onset_s = raw_offset_s = float("nan")
    if scored.parameters is not None:
        raw_onset_s = _crossing_up(scored, scored.parameters, begin)
        raw_offset_s = _crossing_down(scored, scored.parameters, end)
    return Detection(
        label=end.label,
        onset_s=samples_to_seconds(end.onset_sample),
        offset_s=samples_to_seconds(end.offset_sample),
        confidence=end.peak,
        known_s=min(samples_to_seconds(begin.at_sample), heard_s),
        ended_s=min(samples_to_seconds(end.at_sample), heard_s),
        raw_onset_s=raw_onset_s,
        raw_offset_s=raw_offset_s,
    )


def _crossing_up(scored: ScoredSoundscape, parameters: DecisionParameters, begin: Event) -> float:
    """Return the end of the first window of those that confirmed the event."""
    hop_s = samples_to_seconds(parameters.geometry.hop)
    at_s = samples_to_seconds(begin.at_sample)
    since_s = at_s - (float(parameters.confirm_hops[begin.index]) - 0.5) * hop_s
    is_asked = (scored.times_s > since_s) & (scored.times_s < at_s + hop_s / 2)
    is_high = scored.scores[:, begin.index] >= parameters.onset_threshold[begin.index]
    first = np.flatnonzero(is_asked & is_high)
    return float(scored.times_s[first[0]]) if first.size else float("nan")


def _crossing_down(scored: ScoredSoundscape, parameters: DecisionParameters, end: Event) -> float:
    """Return the end of the first of the low windows that ended the event."""
    hop_s = samples_to_seconds(parameters.geometry.hop)
    heard = scored.times_s < samples_to_seconds(end.at_sample) + hop_s / 2
    is_low = scored.scores[:, end.index] < parameters.offset_threshold[end.index]
    high = np.flatnonzero(heard & ~is_low)
    after = np.flatnonzero(heard & is_low)
    after = after[after > high[-1]] if high.size else after
    return float(scored.times_s[after[0]]) if after.size else float("nan")


def sound_spans(scored: ScoredSoundscape, label: str) -> Spans:
    """Return the sounds of one class."""
    return spans_of(
        [(one.onset_s, one.offset_s, 1.0) for one in scored.strip.truth if one.label == label]
    )


def detected_spans(scored: ScoredSoundscape, label: str) -> Spans:
    """Return the events of one class, each with its highest score; empty ones are left out."""
    return spans_of(
        [
            (one.onset_s, one.offset_s, one.confidence)
            for one in detections(scored, label)
            if one.offset_s > one.onset_s
        ]
    )
