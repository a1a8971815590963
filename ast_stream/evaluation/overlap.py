"""F1 of detections by collar, by intersection and by segments, as the DCASE challenges count them.

Collar: Mesaros, Heittola, Virtanen 2016, "Metrics for polyphonic sound event detection".
Intersection: Bilen et al. 2020, arXiv 1910.08440. Both are counted one class at a time and agree
with `sed_scores_eval` (tests/test_sed_scores_eval.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.evaluation.spans import Spans

DECIMALS = 6  # of seconds: what lies on a limit must not fall on either side by rounding


@dataclass(frozen=True)
class Collar:
    """How far a detection's onset and offset may lie from the sound's.

    Attributes:
        offset_s: None: offsets are not asked.
        offset_share: the offset may also lie this share of the sound's length away.
    """

    onset_s: float
    offset_s: float | None = None
    offset_share: float = 0.2


@dataclass(frozen=True)
class Counts:
    """Sounds found, false detections, and sounds in all; of segments likewise."""

    n_found: int
    n_false: int
    n_sounds: int

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both together."""
        return Counts(
            self.n_found + other.n_found,
            self.n_false + other.n_false,
            self.n_sounds + other.n_sounds,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, NaN where there is nothing to find or found."""
        total = self.n_found + self.n_false + self.n_sounds
        return 2 * self.n_found / total if total else math.nan


def overlaps(detected: Spans, sounds: Spans) -> npt.NDArray[np.float64]:
    """Return the seconds that each detection shares with each sound, shape (n_detected, n_sounds).

    >>> from ast_stream.evaluation.spans import spans_of
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
        allowed = np.maximum(collar.offset_s, collar.offset_share * lengths)
        distance = _distance(detected.offset_s, sounds.offset_s)
        is_hit &= np.round(distance - allowed, DECIMALS) <= 0
    n_found = most_pairs(is_hit)
    return Counts(n_found, len(detected) - n_found, len(sounds))


def intersection_counts(detected: Spans, sounds: Spans, share: float) -> Counts:
    """Return how many sounds are covered by at least `share`, by detections that are so, too."""
    relevant, shared = relevant_detections(detected, sounds, share)
    covered = np.round((relevant[:, None] * shared).sum(axis=0), DECIMALS)
    needed = np.round(share * (sounds.offset_s - sounds.onset_s), DECIMALS)
    return Counts(int((covered >= needed).sum()), int((~relevant).sum()), len(sounds))


def relevant_detections(
    detected: Spans, sounds: Spans, share: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Tell which detections lie on the sounds with at least `share` of their length.

    Returns:
        That, shape (n_detected,), and the shared seconds, shape (n_detected, n_sounds).
    """
    shared = overlaps(detected, sounds)
    needed = np.round(share * (detected.offset_s - detected.onset_s), DECIMALS)
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


def most_pairs(is_hit: npt.NDArray[np.bool_]) -> int:
    """Return how many rows can be paired with a column each (maximum bipartite matching).

    >>> most_pairs(np.array([[True, True], [True, False], [True, False]]))
    2
    """
    partner: dict[int, int] = {}  # column -> row

    def place(row: int, tried: set[int]) -> bool:
        for column in np.flatnonzero(is_hit[row]).tolist():
            if column in tried:
                continue
            tried.add(column)
            if column not in partner or place(partner[column], tried):
                partner[column] = row
                return True
        return False

    return sum(place(row, set()) for row in range(len(is_hit)))


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


F1_KINDS: Mapping[str, Callable[[Spans, Spans, float], Counts]] = {
    "collar 0.2 s": lambda found, true, _: collar_counts(found, true, Collar(0.2, 0.2)),
    "onset 0.5 s": lambda found, true, _: collar_counts(found, true, Collar(0.5)),
    "onset 1 s": lambda found, true, _: collar_counts(found, true, Collar(1.0)),
    "intersection 0.5": lambda found, true, _: intersection_counts(found, true, 0.5),
    "segments 1 s": segment_counts,
}
