"""The polyphonic sound detection score: area under recall against false alarms per hour.

Bilen et al. 2020 (arXiv 1910.08440), with exact curves over all thresholds as in Ebbers et al. 2022
(arXiv 2201.13148): recall holds from one operating point to the next. Detections come with a
confidence each and the threshold is swept over it, or from scores, with other spans at every
threshold. Agrees with `sed_scores_eval` (tests/unit/evaluation/test_sed_scores_eval.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.evaluation.matching import DECIMALS, Spans, overlaps, relevant_detections

SpansAt = Callable[[float], Spans]
"""Threshold in, the detections of one class in one soundscape out."""

Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Recall and effective false alarms per hour, both rising, shape (n_points,)."""


@dataclass(frozen=True)
class Criteria:
    """The criteria of a PSDS.

    Attributes:
        detection, sound: part of a detection that must lie on sounds of its class, and part of
            a sound that such detections must cover.
        cross_trigger: part of a false detection on sounds of another class that makes it a
            confusion with that class; None: not looked for.
        cross_trigger_weight: of the confusions per hour of the other classes' sounds.
        spread_weight: of the standard deviation over the classes, taken off their mean recall.
        most_false_per_h: where the curve ends.
    """

    detection: float
    sound: float
    cross_trigger: float | None = None
    cross_trigger_weight: float = 0.0
    spread_weight: float = 1.0
    most_false_per_h: float = 100.0


PSDS1 = Criteria(detection=0.7, sound=0.7)
PSDS2 = Criteria(detection=0.1, sound=0.1, cross_trigger=0.3, cross_trigger_weight=0.5)


@dataclass(frozen=True, eq=False)
class Sweep:
    """One class at all its thresholds, counted for each soundscape.

    Attributes:
        n_found, n_false: shape (n_soundscapes, n_thresholds).
        n_crossed: confusions with each other class, shape (n_soundscapes, n_thresholds, n_others).
        n_sounds: shape (n_soundscapes,).
        others_s: seconds of sounds of each other class, shape (n_soundscapes, n_others).
    """

    n_found: npt.NDArray[np.float64]
    n_false: npt.NDArray[np.float64]
    n_crossed: npt.NDArray[np.float64]
    n_sounds: npt.NDArray[np.float64]
    others_s: npt.NDArray[np.float64]


def sweep(
    spans_at: Sequence[SpansAt],
    thresholds: Sequence[float],
    truth: Sequence[Mapping[str, Spans]],
    label: str,
    criteria: Criteria,
) -> Sweep:
    """Count one class at every threshold in every soundscape.

    Args:
        spans_at, truth: one for each soundscape; truth has the same labels in all.
    """
    others = [other for other in truth[0] if other != label]
    shape = len(truth), len(thresholds)
    swept = Sweep(
        np.zeros(shape),
        np.zeros(shape),
        np.zeros((*shape, len(others))),
        np.array([len(sounds[label]) for sounds in truth], np.float64),
        np.array([[_total_s(sounds[other]) for other in others] for sounds in truth]),
    )
    for soundscape, (at, sounds) in enumerate(zip(spans_at, truth, strict=True)):
        for number, threshold in enumerate(thresholds):
            detected = at(threshold)
            if len(detected):
                rivals = [sounds[other] for other in others]
                found, false, crossed = _count(detected, sounds[label], rivals, criteria)
                swept.n_found[soundscape, number] = found
                swept.n_false[soundscape, number] = false
                swept.n_crossed[soundscape, number] = crossed
    return swept


def psds(
    sweeps: Mapping[str, Sweep],
    durations_s: npt.NDArray[np.float64],
    criteria: Criteria,
    weights: npt.NDArray[np.float64] | None = None,
) -> float:
    """Return the score in [0, 1]; NaN without classes.

    Args:
        sweeps: of each class.
        durations_s: of each soundscape, shape (n_soundscapes,).
        weights: how often each soundscape counts, shape (n_soundscapes,); None: once.
    """
    curves = [class_curve(swept, durations_s, criteria, weights) for swept in sweeps.values()]
    if not curves:
        return float("nan")
    recall, false_per_h = mean_curve(curves, criteria)
    widths = np.diff(np.append(false_per_h, criteria.most_false_per_h))
    return float((recall * widths).sum() / criteria.most_false_per_h)


def class_curve(
    swept: Sweep,
    durations_s: npt.NDArray[np.float64],
    criteria: Criteria,
    weights: npt.NDArray[np.float64] | None = None,
) -> Curve:
    """Return recall against effective false alarms per hour of one class; starts at (0, 0)."""
    weights = np.ones(len(durations_s)) if weights is None else weights
    recall = (weights @ swept.n_found) / max(1.0, float(weights @ swept.n_sounds))
    false_per_s = (weights @ swept.n_false) / (weights @ durations_s)
    if criteria.cross_trigger is not None and swept.n_crossed.shape[2]:
        crossed = np.tensordot(weights, swept.n_crossed, axes=1)
        rates = crossed / np.maximum(weights @ swept.others_s, 1e-12)
        false_per_s = false_per_s + criteria.cross_trigger_weight * rates.mean(axis=1)
    return _rising(np.append(recall, 0.0), 3600 * np.append(false_per_s, 0.0), criteria)


def mean_curve(curves: Sequence[Curve], criteria: Criteria) -> Curve:
    """Return the mean of the classes' recalls less their spread, at all their false alarm rates."""
    rates = np.unique(np.concatenate([rate for _, rate in curves]))
    recalls = np.stack(
        [recall[np.searchsorted(rate, rates, side="right") - 1] for recall, rate in curves]
    )
    spread = criteria.spread_weight * recalls.std(axis=0)
    return np.maximum(recalls.mean(axis=0) - spread, 0.0), rates


def _rising(
    recall: npt.NDArray[np.float64], rate: npt.NDArray[np.float64], criteria: Criteria
) -> Curve:
    order = np.lexsort((recall, rate))
    recall, rate = np.maximum.accumulate(recall[order]), rate[order]
    is_last = np.append(rate[1:] > rate[:-1], True)
    kept = is_last & (rate <= criteria.most_false_per_h)
    recall, rate = recall[kept], rate[kept]
    rises = np.append(True, recall[1:] > recall[:-1])
    return recall[rises], rate[rises]


def _count(
    detected: Spans, sounds: Spans, rivals: Sequence[Spans], criteria: Criteria
) -> tuple[int, int, npt.NDArray[np.float64]]:
    relevant, shared = relevant_detections(detected, sounds, criteria.detection)
    covered = np.round((relevant[:, None] * shared).sum(axis=0), DECIMALS)
    needed = np.round(criteria.sound * (sounds.offset_s - sounds.onset_s), DECIMALS)
    crossed = np.zeros(len(rivals))
    if criteria.cross_trigger is not None and not relevant.all():
        false = Spans(
            detected.onset_s[~relevant],
            detected.offset_s[~relevant],
            detected.confidence[~relevant],
        )
        lengths = np.round(criteria.cross_trigger * (false.offset_s - false.onset_s), DECIMALS)
        for number, rival in enumerate(rivals):
            if len(rival):
                on_rival = np.round(overlaps(false, rival).sum(axis=1), DECIMALS)
                crossed[number] = (on_rival >= lengths).sum()
    return int((covered >= needed).sum()), int((~relevant).sum()), crossed


def _total_s(spans: Spans) -> float:
    return float((spans.offset_s - spans.onset_s).sum())
