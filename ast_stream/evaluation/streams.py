"""Figures of streams: what was found of the planted sounds, when, and what was not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ast_stream.evaluation.agreement import f1_counts, mean_f1, psds_figures
from ast_stream.evaluation.curves import (
    BUDGETS_PER_H,
    ThresholdCurve,
    decide_at_thresholds,
    threshold_curve,
)
from ast_stream.evaluation.detections import (
    Matched,
    detected_spans,
    match_strip,
    sound_spans,
)
from ast_stream.evaluation.intervals import (
    Interval,
    bootstrap_ratio,
    poisson_upper_bound,
)
from ast_stream.evaluation.overlap import (
    F1_KINDS,
    Counts,
)
from ast_stream.evaluation.scoring import ScoredSoundscape
from ast_stream.evaluation.timing import Timing, timing


@dataclass(frozen=True)
class FalseAlarms:
    """Events where no sound of their class was.

    Attributes:
        bound_per_h: the rate lies below this with 95 % confidence (exact, Poisson).
    """

    count: int
    hours: float
    per_h: float
    bound_per_h: float


@dataclass(frozen=True)
class LabelFigures:
    """Figures of one class.

    Attributes:
        recall: share of the sounds that an event of their class overlaps, at the thresholds of
            the checkpoint; interval over the clips.
        false_alarms: in the same strips.
        f1: by kind, see `overlap.F1_KINDS`; NaN without sounds.
        recall_within: by budget of false alarms per hour, at the best threshold for each, chosen
            on these very strips: what the scores could give.
    """

    n_sounds: int
    n_found: int
    recall: Interval
    false_alarms: FalseAlarms
    f1: dict[str, float]
    recall_within: dict[str, float]
    timing: Timing


@dataclass(frozen=True)
class StreamReport:
    """Figures of strips with sounds.

    Attributes:
        n_sounds, n_found, recall, false_alarms, timing: of all classes together.
        mean_recall, mean_f1, mean_recall_within: means over the classes that have sounds.
        false_alarms_per_class: the rate of a class in the mean, and its bound.
        false_alarms_by_label: of each class, also those that no sound was of.
        psds: by name; from events, with their highest scores as confidence, and from scores at
            all thresholds. Intervals over the strips.
    """

    hours: float
    n_strips: int
    n_sounds: int
    n_found: int
    recall: Interval
    mean_recall: float
    false_alarms: FalseAlarms
    false_alarms_per_class: FalseAlarms
    false_alarms_by_label: dict[str, FalseAlarms]
    mean_f1: dict[str, Interval]
    mean_recall_within: dict[str, float]
    psds: dict[str, Interval]
    timing: Timing
    by_label: dict[str, LabelFigures]


@dataclass(frozen=True, eq=False)
class Measured:
    """A report and what plots need beyond it."""

    report: StreamReport
    curves: dict[str, ThresholdCurve]
    matched: dict[str, list[Matched]]


def measure_streams(
    scored: Sequence[ScoredSoundscape], labels: Sequence[str], seed: int = 0
) -> Measured:
    """Return the figures of what the detector made of some strips with sounds.

    Raises:
        ValueError: strips that no detector has scored.
    """
    matched = {label: [match_strip(one, label) for one in scored] for label in labels}
    present = [label for label in labels if any(part.sounds for part in matched[label])]
    spans = {
        label: [(detected_spans(one, label), sound_spans(one, label)) for one in scored]
        for label in labels
    }
    decided = decide_at_thresholds(scored, present)
    curves = {label: threshold_curve(scored, label, decided[label]) for label in present}
    durations = np.array([one.strip.duration_s for one in scored])
    counts = f1_counts({label: spans[label] for label in present}, durations)
    hours = float(durations.sum()) / 3600
    by_label = {
        label: _label_figures(
            matched[label],
            hours,
            {kind: Counts(*counts[kind][label].sum(axis=0).tolist()).f1 for kind in F1_KINDS},
            curves[label],
            seed,
        )
        for label in present
    }
    everything = [part for label in labels for part in matched[label]]
    false = false_alarms(everything, hours)
    report = StreamReport(
        hours=hours,
        n_strips=len(scored),
        n_sounds=sum(one.n_sounds for one in by_label.values()),
        n_found=sum(one.n_found for one in by_label.values()),
        recall=_recall(everything, seed),
        mean_recall=_mean([one.recall.value for one in by_label.values()]),
        false_alarms=false,
        false_alarms_per_class=rate(false.count, hours * len(labels)),
        false_alarms_by_label={label: false_alarms(matched[label], hours) for label in labels},
        mean_f1={kind: mean_f1(list(counts[kind].values()), seed) for kind in F1_KINDS},
        mean_recall_within={
            name: _mean([one.recall_within[name] for one in by_label.values()])
            for name in map(str, BUDGETS_PER_H)
        },
        psds=psds_figures(decided, spans, present, durations, seed),
        timing=timing(everything, seed),
        by_label=by_label,
    )
    return Measured(report, curves, matched)


def false_alarms(parts: Sequence[Matched], hours: float) -> FalseAlarms:
    """Return the rate of the false alarms of some matched strips of so many hours."""
    return rate(sum(len(part.false_alarms) for part in parts), hours)


def rate(count: int, hours: float) -> FalseAlarms:
    """Return `count` events in `hours` as a rate with its bound."""
    if not hours:
        return FalseAlarms(count, hours, math.nan, math.nan)
    return FalseAlarms(count, hours, count / hours, poisson_upper_bound(count) / hours)


def negatives_report(
    scored: Sequence[ScoredSoundscape], labels: Sequence[str]
) -> tuple[FalseAlarms, dict[str, FalseAlarms]]:
    """Return the events of strips without any sound: all together, and of each class."""
    hours = sum(one.strip.duration_s for one in scored) / 3600
    matched = {label: [match_strip(one, label) for one in scored] for label in labels}
    by_label = {label: false_alarms(parts, hours) for label, parts in matched.items()}
    return rate(sum(one.count for one in by_label.values()), hours), by_label


def _label_figures(
    parts: Sequence[Matched], hours: float, f1: dict[str, float], curve: ThresholdCurve, seed: int
) -> LabelFigures:
    sounds = [sound for part in parts for sound in part.sounds]
    return LabelFigures(
        n_sounds=len(sounds),
        n_found=sum(bool(sound.detections) for sound in sounds),
        recall=_recall(parts, seed),
        false_alarms=false_alarms(parts, hours),
        f1=f1,
        recall_within={str(budget): curve.recall_within(budget) for budget in BUDGETS_PER_H},
        timing=timing(parts, seed),
    )


def _recall(parts: Sequence[Matched], seed: int) -> Interval:
    sounds = [sound for part in parts for sound in part.sounds]
    return bootstrap_ratio(
        [bool(one.detections) for one in sounds],
        [1.0] * len(sounds),
        [one.sound.clip or str(number) for number, one in enumerate(sounds)],
        seed,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
