"""What one class finds and falsely alarms at every candidate threshold, and the choice among them.

The choice is by budget: false alarms, grouped by the event decision, must stay within it on sound-
free audio and, separately, among other sounds. F1 is no guide here: it depends on how often the
class occurs, which in a real stream is next to never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.calibration.budget import Budget
from ast_stream.calibration.grouping import GroupingRule, Span, group_events
from ast_stream.calibration.score_map import mapped_scores
from ast_stream.calibration.streams import LogitStream, hours_of, with_label
from ast_stream.detect.decision import smooth
from ast_stream.model.metadata import ScoreMap
from ast_stream.units import SAMPLE_RATE

LOWEST, HIGHEST = 0.2, 0.99  # thresholds outside say more about the few examples than the class
_LOGIT_STEP = 0.05  # candidates are even on the logits: near 1 they must lie closer


def _candidates() -> npt.NDArray[np.float64]:
    low, high = (float(np.log(at / (1 - at))) for at in (LOWEST, HIGHEST))
    logits = np.linspace(low, high, round((high - low) / _LOGIT_STEP) + 1)
    return np.unique(np.round(1 / (1 + np.exp(-logits)), 4))


CANDIDATES = _candidates()


@dataclass(frozen=True, eq=False)
class ClassCurve:
    """What happens at each threshold.

    Attributes:
        thresholds: ascending, shape (n,).
        is_found: whether an event touched the sound, shape (n, n_sounds).
        snr_db: of the sounds, shape (n_sounds,).
        false_among: events without a sound of the class, in streams with sounds, shape (n,).
        false_negatives: events in audio without any sound, shape (n,).
        hours_among, hours_negative: length of both.
    """

    thresholds: npt.NDArray[np.float64]
    is_found: npt.NDArray[np.bool_]
    snr_db: npt.NDArray[np.float64]
    false_among: npt.NDArray[np.int64]
    false_negatives: npt.NDArray[np.int64]
    hours_among: float
    hours_negative: float

    @property
    def n_sounds(self) -> int:
        """How many sounds of the class were planted."""
        return len(self.snr_db)

    def choose(self, budget: Budget, among: Budget | None = None) -> Choice:
        """Return the lowest threshold from which on no higher one exceeds the budget either.

        Args:
            among: the budget among other sounds; None: the same.

        Where even the highest exceeds it, that one is chosen and `is_met` is false.
        """
        exceeds = self.false_among > (among or budget).allowed(self.hours_among)
        exceeds |= self.false_negatives > budget.allowed(self.hours_negative)
        at = int(np.flatnonzero(exceeds)[-1]) + 1 if exceeds.any() else 0
        is_met = at < len(self.thresholds)
        return self.at(min(at, len(self.thresholds) - 1), budget, is_met)

    def at(self, place: int, budget: Budget, is_met: bool) -> Choice:
        """Return the figures of the threshold at index `place`."""
        return Choice(
            budget=budget,
            is_met=is_met,
            threshold=float(self.thresholds[place]),
            is_found=self.is_found[place],
            snr_db=self.snr_db,
            false_among=int(self.false_among[place]),
            false_negatives=int(self.false_negatives[place]),
            hours_among=self.hours_among,
            hours_negative=self.hours_negative,
        )


@dataclass(frozen=True, eq=False)
class Choice:
    """A threshold, what it finds, and the false alarms it costs; see `ClassCurve`."""

    budget: Budget
    is_met: bool
    threshold: float
    is_found: npt.NDArray[np.bool_]
    snr_db: npt.NDArray[np.float64]
    false_among: int
    false_negatives: int
    hours_among: float
    hours_negative: float

    @property
    def n_sounds(self) -> int:
        """How many sounds of the class were planted."""
        return len(self.is_found)

    @property
    def n_found(self) -> int:
        """How many of them are found."""
        return int(self.is_found.sum())

    @property
    def recall(self) -> float:
        """Share that is found, NaN without sounds."""
        return self.n_found / self.n_sounds if self.n_sounds else float("nan")

    def found_between(self, low_db: float, high_db: float) -> tuple[int, int]:
        """Return how many sounds of a band of SNR are found, and how many there are."""
        is_in_band = (self.snr_db >= low_db) & (self.snr_db < high_db)
        return int((self.is_found & is_in_band).sum()), int(is_in_band.sum())


def class_curve(
    index: int,
    label: str,
    with_sounds: Sequence[LogitStream],
    negatives: Sequence[LogitStream],
    score_map: ScoreMap,
    rule: GroupingRule,
    thresholds: npt.NDArray[np.float64] = CANDIDATES,
) -> ClassCurve:
    """Return the curve of class `index`, named `label`, with its scores mapped by `score_map`."""
    found, snr_db = [], []
    false_among = np.zeros(len(thresholds), np.int64)
    false_negatives = np.zeros(len(thresholds), np.int64)
    for stream in with_sounds:
        scores = decided_scores(stream, index, score_map, rule)
        sounds = with_label(stream.truth, label)
        is_found = np.zeros((len(thresholds), len(sounds)), np.bool_)
        for place, spans in _events(scores, stream, thresholds, rule):
            touching = touched(spans, stream, rule, [(s.onset_s, s.offset_s) for s in sounds])
            is_found[place] = touching.any(axis=0)
            false_among[place] += int((~touching.any(axis=1)).sum())
        found.append(is_found)
        snr_db += [sound.snr_db for sound in sounds]
    for stream in negatives:
        scores = decided_scores(stream, index, score_map, rule)
        for place, spans in _events(scores, stream, thresholds, rule):
            false_negatives[place] += len(spans)
    return ClassCurve(
        thresholds=thresholds,
        is_found=np.concatenate([*found, np.zeros((len(thresholds), 0), np.bool_)], axis=1),
        snr_db=np.array(snr_db, np.float64),
        false_among=false_among,
        false_negatives=false_negatives,
        hours_among=hours_of(with_sounds),
        hours_negative=hours_of(negatives),
    )


def delays_s(
    index: int,
    label: str,
    with_sounds: Sequence[LogitStream],
    score_map: ScoreMap,
    rule: GroupingRule,
    threshold: float,
) -> npt.NDArray[np.float64]:
    """Return how long after its onset each sound of the class is known, of those that are found."""
    delays: list[float] = []
    for stream in with_sounds:
        sounds = with_label(stream.truth, label)
        scores = decided_scores(stream, index, score_map, rule)
        spans = group_events(scores, stream.ends, threshold, rule) if sounds else []
        if not spans:
            continue
        touching = touched(spans, stream, rule, [(s.onset_s, s.offset_s) for s in sounds])
        for number in np.flatnonzero(touching.any(axis=0)):
            known_s = stream.times_s[spans[int(np.argmax(touching[:, number]))].confirmed]
            delays.append(max(0.0, float(known_s) - sounds[number].onset_s))
    return np.array(delays, np.float64)


def decided_scores(
    stream: LogitStream, index: int, score_map: ScoreMap, rule: GroupingRule
) -> npt.NDArray[np.float32]:
    """Return the scores of class `index` as the decision stage has them, shape (n_windows,)."""
    scores = mapped_scores(stream.logits[:, [index]], score_map)
    return smooth(scores, np.array([rule.share_of_newest]))[:, 0]


def touched(
    spans: Sequence[Span],
    stream: LogitStream,
    rule: GroupingRule,
    sounds: Sequence[tuple[float, float]],
) -> npt.NDArray[np.bool_]:
    """Tell which events have windows that hold some of which sounds, (n_spans, n_sounds).

    Judged by windows and not by published onsets, which depend on rise times measured later.

    Args:
        sounds: onset and offset of each, in seconds.
    """
    last = len(stream.times_s) - 1
    heard_until = [min(span.ended if span.low is None else span.low - 1, last) for span in spans]
    first_s = stream.times_s[[span.first for span in spans]]
    last_s = stream.times_s[heard_until]
    window_s = rule.geometry.window / SAMPLE_RATE
    onsets, offsets = np.array(sounds, np.float64).reshape(-1, 2).T
    touching: npt.NDArray[np.bool_] = (first_s[:, None] < offsets + window_s) & (
        last_s[:, None] > onsets
    )
    return touching


def _events(
    scores: npt.NDArray[np.float32],
    stream: LogitStream,
    thresholds: npt.NDArray[np.float64],
    rule: GroupingRule,
) -> list[tuple[int, list[Span]]]:
    """Return the events of each threshold that has any, by its index."""
    reached = int(np.searchsorted(thresholds, scores.max(initial=0.0), side="right"))
    ends = stream.ends
    grouped = [
        (place, group_events(scores, ends, float(thresholds[place]), rule))
        for place in range(min(reached + 1, len(thresholds)))  # float32 may round up
    ]
    return [(place, spans) for place, spans in grouped if spans]
