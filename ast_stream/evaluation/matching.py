"""Detected against reference events of one class: which event found which, and F1 of three kinds.

`match` says which detections found which reference events, for recall, false alarms and times. F1
counts by collar, by intersection and by segments, as the DCASE challenges do: Mesaros, Heittola,
Virtanen 2016, "Metrics for polyphonic sound event detection", and Bilen et al. 2020, arXiv
1910.08440. The counts agree with `sed_scores_eval` (tests/unit/evaluation/test_sed_scores_eval.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.detect.parameters import DecisionParameters
from ast_stream.evaluation.scoring import ScoredSoundscape
from ast_stream.messages.event import Event
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.units import samples_to_seconds

Times = npt.NDArray[np.float64]


TOLERANCE_S = 0.5  # a detection that overlaps no sound of its class finds one this near
DECIMALS = 6  # of seconds: what lies on a limit must not fall on either side by rounding


@dataclass(frozen=True, eq=False)
class Spans:
    """Half-open stretches of time, by onset, with a confidence each; shape (n,)."""

    onset_s: Times
    offset_s: Times
    confidence: Times

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.onset_s)

    def at_least(self, threshold: float) -> Spans:
        """Return those with at least this confidence."""
        kept = self.confidence >= threshold
        return Spans(self.onset_s[kept], self.offset_s[kept], self.confidence[kept])


def spans_of(rows: Sequence[tuple[float, float, float]]) -> Spans:
    """Return spans of (onset, offset, confidence)."""
    table = np.array(sorted(rows), np.float64).reshape(-1, 3)
    return Spans(table[:, 0], table[:, 1], table[:, 2])


@dataclass(frozen=True)
class Detection:
    """One finished event of a soundscape.

    Attributes:
        confidence: highest score while it lasted.
        known_s, ended_s: stream time at which begin and end were published.
        raw_onset_s, raw_offset_s: end of the first window above the onset threshold and of the
            first one below the offset threshold: the times without the correction for the
            window. NaN where the scores do not show them, or frames decided.
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
class ReferenceMatch:
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
class Matches:
    """The sounds of one class in one soundscape, found or missed, and the false detections."""

    sounds: tuple[ReferenceMatch, ...]
    false_alarms: tuple[Detection, ...]


def detections(scored: ScoredSoundscape, label: str) -> list[Detection]:
    """Return the finished events of one class, in order of their ends."""
    begins = {event.id: event for event in scored.events if event.type == "begin"}
    found = []
    for end in scored.events:
        if end.type == "end" and end.label == label:
            found.append(_detection(scored, begins[end.id], end))
    return found


def match(sounds: Sequence[ReferenceEvent], detected: Sequence[Detection]) -> Matches:
    """Return which detections of a class found which of its sounds.

    A detection finds every sound that it overlaps. One that overlaps none finds the nearest, if
    that is within `TOLERANCE_S`; else it is a false alarm.
    """
    ordered = sorted(detected, key=lambda event: (event.onset_s, event.offset_s))
    hits = [_hits(sounds, event) for event in ordered]
    matched = []
    for index, sound in enumerate(sounds):
        which = [number for number, hit in enumerate(hits) if index in hit]
        matched.append(
            ReferenceMatch(
                sound,
                tuple(ordered[number] for number in which),
                is_first=not which or hits[which[0]][0] == index,
                is_last=not which or hits[which[-1]][-1] == index,
            )
        )
    false = tuple(event for event, hit in zip(ordered, hits, strict=True) if not hit)
    return Matches(tuple(matched), false)


def match_soundscape(scored: ScoredSoundscape, label: str) -> Matches:
    """Return the matches of one class in one scored soundscape."""
    sounds = [sound for sound in scored.layout.truth if sound.label == label]
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
    audio_s = scored.layout.duration_s  # the last windows of a soundscape reach beyond its audio
    raw_onset_s = raw_offset_s = float("nan")
    if scored.parameters is not None and not scored.parameters.geometry.is_of_frames:
        raw_onset_s = _crossing_up(scored, scored.parameters, begin)
        raw_offset_s = _crossing_down(scored, scored.parameters, end)
    return Detection(
        label=end.label,
        onset_s=samples_to_seconds(end.onset_sample),
        offset_s=samples_to_seconds(end.offset_sample),
        confidence=end.peak,
        known_s=min(samples_to_seconds(begin.at_sample), audio_s),
        ended_s=min(samples_to_seconds(end.at_sample), audio_s),
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
    is_before = scored.times_s < samples_to_seconds(end.at_sample) + hop_s / 2
    is_low = scored.scores[:, end.index] < parameters.offset_threshold[end.index]
    high = np.flatnonzero(is_before & ~is_low)
    after = np.flatnonzero(is_before & is_low)
    after = after[after > high[-1]] if high.size else after
    return float(scored.times_s[after[0]]) if after.size else float("nan")


def sound_spans(scored: ScoredSoundscape, label: str) -> Spans:
    """Return the sounds of one class."""
    return spans_of(
        [
            (sound.onset_s, sound.offset_s, 1.0)
            for sound in scored.layout.truth
            if sound.label == label
        ]
    )


def detected_spans(scored: ScoredSoundscape, label: str) -> Spans:
    """Return the events of one class, each with its highest score; empty ones are left out."""
    return spans_of(
        [
            (event.onset_s, event.offset_s, event.confidence)
            for event in detections(scored, label)
            if event.offset_s > event.onset_s
        ]
    )


@dataclass(frozen=True)
class Collar:
    """How far a detection's onset and offset may lie from the sound's.

    Attributes:
        offset_s: None: offsets are not asked.
        offset_share: the offset may also lie this part of the sound's length away.
    """

    onset_s: float
    offset_s: float | None = None
    offset_ratio: float = 0.2


@dataclass(frozen=True)
class Counts:
    """Sounds found, false detections, and sounds in all; of segments likewise."""

    n_found: int
    n_false: int
    n_sounds: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN without sounds and detections."""
        total = self.n_found + self.n_false + self.n_sounds
        return 2 * self.n_found / total if total else math.nan


def overlaps(detected: Spans, sounds: Spans) -> npt.NDArray[np.float64]:
    """Return the seconds that each detection shares with each sound, shape (n_detected, n_sounds).

    >>> from ast_stream.evaluation.matching import spans_of
    >>> overlaps(spans_of([(1.0, 3.0, 0.9)]), spans_of([(0.0, 2.0, 1.0), (5.0, 6.0, 1.0)]))
    array([[1., 0.]])
    """
    stops = np.minimum(detected.offset_s[:, None], sounds.offset_s)
    shared: npt.NDArray[np.float64] = np.maximum(
        stops - np.maximum(detected.onset_s[:, None], sounds.onset_s), 0.0
    )
    return shared


def collar_counts(detected: Spans, sounds: Spans, collar: Collar) -> Counts:
    """Return how many sounds are matched one to one by detections within the collar."""
    is_hit = np.round(_distance(detected.onset_s, sounds.onset_s) - collar.onset_s, DECIMALS) <= 0
    if collar.offset_s is not None:
        lengths = sounds.offset_s - sounds.onset_s
        allowed = np.maximum(collar.offset_s, collar.offset_ratio * lengths)
        distance = _distance(detected.offset_s, sounds.offset_s)
        is_hit &= np.round(distance - allowed, DECIMALS) <= 0
    n_found = max_pairs(is_hit)
    return Counts(n_found, len(detected) - n_found, len(sounds))


def intersection_counts(detected: Spans, sounds: Spans, ratio: float) -> Counts:
    """Return how many sounds are covered by at least `share`, by detections that are so, too."""
    relevant, shared = relevant_detections(detected, sounds, ratio)
    covered = np.round((relevant[:, None] * shared).sum(axis=0), DECIMALS)
    needed = np.round(ratio * (sounds.offset_s - sounds.onset_s), DECIMALS)
    return Counts(int((covered >= needed).sum()), int((~relevant).sum()), len(sounds))


def relevant_detections(
    detected: Spans, sounds: Spans, ratio: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Return which detections lie on the sounds with at least `share` of their length.

    Returns:
        That, shape (n_detected,), and the shared seconds, shape (n_detected, n_sounds).
    """
    shared = overlaps(detected, sounds)
    needed = np.round(ratio * (detected.offset_s - detected.onset_s), DECIMALS)
    return np.round(shared.sum(axis=1), DECIMALS) >= needed, shared


def segment_counts(
    detected: Spans, sounds: Spans, duration_s: float, segment_s: float = 1.0
) -> Counts:
    """Return how many segments with a sound have a detection, and how many without have one."""
    n_segments = math.ceil(duration_s / segment_s)
    is_detected = _active_segments(detected, n_segments, segment_s)
    is_sounding = _active_segments(sounds, n_segments, segment_s)
    return Counts(
        int((is_detected & is_sounding).sum()),
        int((is_detected & ~is_sounding).sum()),
        int(is_sounding.sum()),
    )


def max_pairs(is_hit: npt.NDArray[np.bool_]) -> int:
    """Return how many rows can be paired with a column each (maximum bipartite matching).

    >>> max_pairs(np.array([[True, True], [True, False], [True, False]]))
    2
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return int((maximum_bipartite_matching(csr_array(is_hit)) >= 0).sum()) if is_hit.size else 0


def _distance(
    detected: npt.NDArray[np.float64], true: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    distance: npt.NDArray[np.float64] = np.abs(detected[:, None] - true)
    return distance


def _active_segments(spans: Spans, n_segments: int, segment_s: float) -> npt.NDArray[np.bool_]:
    starts = np.round(np.arange(n_segments) * segment_s, DECIMALS)
    stops = np.round(np.arange(1, n_segments + 1) * segment_s, DECIMALS)
    is_active = (starts[:, None] < spans.offset_s) & (stops[:, None] > spans.onset_s)
    active: npt.NDArray[np.bool_] = np.logical_or.reduce(is_active, axis=1)
    return active


F1Count = Callable[[Spans, Spans, float], Counts]
"""Takes the detections, sounds and seconds of a soundscape, and returns the matches."""

F1_KINDS: Mapping[str, F1Count] = {
    "collar 0.2 s": lambda found, true, _: collar_counts(found, true, Collar(0.2, 0.2)),
    "onset 0.5 s": lambda found, true, _: collar_counts(found, true, Collar(0.5)),
    "onset 1 s": lambda found, true, _: collar_counts(found, true, Collar(1.0)),
    "intersection 0.5": lambda found, true, _: intersection_counts(found, true, 0.5),
    "segments 1 s": segment_counts,
}
