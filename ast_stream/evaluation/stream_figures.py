"""Figures of soundscapes: reference events found, their timing, and false alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ast_stream.detect.stream_events import StreamEvents
from ast_stream.evaluation.curves import (
    BUDGETS_PER_H,
    THRESHOLDS,
    ThresholdCurve,
    decide_at_thresholds,
    published_spans,
    threshold_curve,
)
from ast_stream.evaluation.intervals import (
    Interval,
    bootstrap,
    bootstrap_quantile,
    bootstrap_ratio,
    poisson_upper_bound,
    quantile,
)
from ast_stream.evaluation.matching import (
    F1_KINDS,
    Counts,
    F1Count,
    Matches,
    ReferenceMatch,
    Spans,
    detected_spans,
    match_soundscape,
    sound_spans,
)
from ast_stream.evaluation.psds import PSDS1, PSDS2, Criteria, SpansAt, psds, sweep
from ast_stream.evaluation.scoring import ScoredSoundscape

MAX_THRESHOLDS = 100  # of a sweep over the confidences of events: more change little
SWEPT = range(0, len(THRESHOLDS), 3)  # thresholds that PSDS is taken over
N_PSDS_RESAMPLES = 200  # each takes milliseconds


@dataclass(frozen=True)
class FalseAlarms:
    """Events without a sound of their class.

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
        recall: part of the sounds that an event of their class overlaps, at the thresholds of
            the checkpoint; interval over the clips.
        false_alarms: in the same soundscapes.
        f1: by kind, see `F1_KINDS`; NaN without sounds.
        recall_within: by budget of false alarms per hour, at the best threshold for each, chosen
            on these very soundscapes: what the scores could give.
    """

    n_sounds: int
    n_found: int
    recall: Interval
    false_alarms: FalseAlarms
    f1: dict[str, float]
    recall_within: dict[str, float]
    timing: TimingFigures


@dataclass(frozen=True)
class SoundscapeReport:
    """Figures of soundscapes with sounds.

    Attributes:
        n_sounds, n_found, recall, false_alarms, timing: of all classes together.
        mean_recall, mean_f1, mean_recall_within: means over the classes that have sounds.
        false_alarms_per_class: the rate of a class in the mean, and its bound.
        false_alarms_by_label: of each class, also those that no sound was of.
        psds: by name; from events, with their highest scores as confidence, and from scores at
            all thresholds. Intervals over the soundscapes.
    """

    hours: float
    n_soundscapes: int
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
    timing: TimingFigures
    by_label: dict[str, LabelFigures]


@dataclass(frozen=True, eq=False)
class Measured:
    """A report, and additional data for its plots."""

    report: SoundscapeReport
    curves: dict[str, ThresholdCurve]
    matched: dict[str, list[Matches]]


def measure_streams(
    scored: Sequence[ScoredSoundscape], labels: Sequence[str], seed: int = 0
) -> Measured:
    """Return the figures of the detector on soundscapes with sounds.

    Raises:
        ValueError: soundscapes that no detector has scored.
    """
    matched = {
        label: [match_soundscape(soundscape, label) for soundscape in scored] for label in labels
    }
    present = [label for label in labels if any(part.sounds for part in matched[label])]
    spans = {
        label: [
            (detected_spans(soundscape, label), sound_spans(soundscape, label))
            for soundscape in scored
        ]
        for label in labels
    }
    decided = decide_at_thresholds(scored, present)
    curves = {label: threshold_curve(scored, label, decided[label]) for label in present}
    durations = np.array([soundscape.layout.duration_s for soundscape in scored])
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
    report = SoundscapeReport(
        hours=hours,
        n_soundscapes=len(scored),
        n_sounds=sum(figures.n_sounds for figures in by_label.values()),
        n_found=sum(figures.n_found for figures in by_label.values()),
        recall=_recall(everything, seed),
        mean_recall=_mean([figures.recall.value for figures in by_label.values()]),
        false_alarms=false,
        false_alarms_per_class=rate(false.count, hours * len(labels)),
        false_alarms_by_label={label: false_alarms(matched[label], hours) for label in labels},
        mean_f1={kind: mean_f1(list(counts[kind].values()), seed) for kind in F1_KINDS},
        mean_recall_within={
            name: _mean([figures.recall_within[name] for figures in by_label.values()])
            for name in map(str, BUDGETS_PER_H)
        },
        psds=psds_figures(decided, spans, present, durations, seed),
        timing=timing(everything, seed),
        by_label=by_label,
    )
    return Measured(report, curves, matched)


def false_alarms(parts: Sequence[Matches], hours: float) -> FalseAlarms:
    """Return the rate of false alarms in matched soundscapes of `hours` hours."""
    return rate(sum(len(part.false_alarms) for part in parts), hours)


def rate(count: int, hours: float) -> FalseAlarms:
    """Return `count` events in `hours` as a rate with its bound."""
    if not hours:
        return FalseAlarms(count, hours, math.nan, math.nan)
    return FalseAlarms(count, hours, count / hours, poisson_upper_bound(count) / hours)


def negatives_report(
    scored: Sequence[ScoredSoundscape], labels: Sequence[str]
) -> tuple[FalseAlarms, dict[str, FalseAlarms]]:
    """Return the events of soundscapes without any sound: all together, and of each class.

    The one class that a soundscape is expected to hold is not counted there.
    """
    by_label = {}
    for label in labels:
        counted = [soundscape for soundscape in scored if soundscape.expected_label != label]
        hours = sum(soundscape.layout.duration_s for soundscape in counted) / 3600
        by_label[label] = false_alarms(
            [match_soundscape(soundscape, label) for soundscape in counted], hours
        )
    hours = sum(soundscape.layout.duration_s for soundscape in scored) / 3600
    return rate(sum(alarms.count for alarms in by_label.values()), hours), by_label


def _label_figures(
    parts: Sequence[Matches], hours: float, f1: dict[str, float], curve: ThresholdCurve, seed: int
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


def _recall(parts: Sequence[Matches], seed: int) -> Interval:
    sounds = [sound for part in parts for sound in part.sounds]
    is_found = [bool(sound.detections) for sound in sounds]
    return bootstrap_ratio(is_found, [1.0] * len(sounds), _clips(sounds), seed)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


@dataclass(frozen=True)
class TimeErrors:
    """Times said less true times, in seconds: median, and median of the absolute values."""

    n: int
    bias_s: float
    median_absolute_s: float
    p90_absolute_s: float


@dataclass(frozen=True)
class TimingFigures:
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

    onset: TimeErrors
    offset: TimeErrors
    raw_onset: TimeErrors
    raw_offset: TimeErrors
    onset_absolute_s: Interval
    detect_p50_s: Interval
    detect_p90_s: float
    end_p50_s: float
    end_p90_s: float
    events_per_sound: float
    sounds_per_event: float


def timing(parts: Sequence[Matches], seed: int = 0) -> TimingFigures:
    """Return the timing of some matched soundscapes, of one class or several."""
    sounds = [sound for part in parts for sound in part.sounds]
    onsets = onset_errors(sounds)
    delays = detection_delays(sounds)
    ends = end_delays(sounds)
    found = [sound for sound in sounds if sound.detections]
    n_pairs = sum(len(sound.detections) for sound in found)
    events = {id(detection) for sound in sounds for detection in sound.detections}
    begun = [sound for sound in sounds if sound.is_first]
    timed = [sound for sound in begun if sound.detections]
    return TimingFigures(
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
        sounds_per_event=n_pairs / len(events) if events else math.nan,
    )


def onset_errors(sounds: Sequence[ReferenceMatch], raw: bool = False) -> list[float]:
    """Return onset said less true onset of every found sound that has one of its own, seconds."""
    return [
        (reference.detections[0].raw_onset_s if raw else reference.detections[0].onset_s)
        - reference.sound.onset_s
        for reference in sounds
        if reference.detections and reference.is_first
    ]


def offset_errors(sounds: Sequence[ReferenceMatch], raw: bool = False) -> list[float]:
    """Return offset said less true offset of every found sound that has one of its own, seconds."""
    return [
        (reference.detections[-1].raw_offset_s if raw else reference.detections[-1].offset_s)
        - reference.sound.offset_s
        for reference in sounds
        if reference.detections and reference.is_last
    ]


def detection_delays(sounds: Sequence[ReferenceMatch]) -> list[float]:
    """Return the time to detect of every sound that is not merged into an earlier one, seconds.

    Infinite where it was missed; 0 where an event had begun before the sound.
    """
    return [
        max(0.0, reference.detections[0].known_s - reference.sound.onset_s)
        if reference.detections
        else math.inf
        for reference in sounds
        if reference.is_first
    ]


def end_delays(sounds: Sequence[ReferenceMatch]) -> list[float]:
    """Return the time until the end was published of every found sound that has one, seconds."""
    return [
        max(0.0, reference.detections[-1].ended_s - reference.sound.offset_s)
        for reference in sounds
        if reference.detections and reference.is_last
    ]


def _clips(sounds: Sequence[ReferenceMatch]) -> list[str]:
    return [match.sound.clip or str(number) for number, match in enumerate(sounds)]


def _errors(values: Sequence[float]) -> TimeErrors:
    known = np.array([value for value in values if not math.isnan(value)])
    absolute = np.abs(known)
    return TimeErrors(
        len(known), quantile(known, 0.5), quantile(absolute, 0.5), quantile(absolute, 0.9)
    )


def f1_counts(
    spans: Mapping[str, Sequence[tuple[Spans, Spans]]], durations: npt.NDArray[np.float64]
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Return by kind and label what was found, false and there in each soundscape.

    The arrays have the shape (n_soundscapes, 3).

    Args:
        spans: by label, what was detected and what is true in each soundscape.
        durations: of the soundscapes, seconds.
    """

    def counts(pairs: Sequence[tuple[Spans, Spans]], count: F1Count) -> npt.NDArray[np.float64]:
        rows = [
            astuple(count(found, true, float(duration)))
            for (found, true), duration in zip(pairs, durations, strict=True)
        ]
        return np.array(rows, np.float64)

    return {
        kind: {label: counts(pairs, count) for label, pairs in spans.items()}
        for kind, count in F1_KINDS.items()
    }


def mean_f1(counts: Sequence[npt.NDArray[np.float64]], seed: int) -> Interval:
    """Return the mean F1 of the classes, with its interval over the soundscapes.

    Args:
        counts: of each class, shape (n_soundscapes, 3), as `f1_counts` returns them.
    """
    if not counts:
        return Interval(math.nan, math.nan, math.nan)
    stacked = np.stack(counts)  # (n_classes, n_soundscapes, 3)

    def f1_of(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        sums = np.einsum("rs,csk->rck", weights, stacked)
        f1 = 2 * sums[..., 0] / np.maximum(sums.sum(axis=2), 1e-12)
        mean: npt.NDArray[np.float64] = f1.mean(axis=1)
        return mean

    return bootstrap(f1_of, stacked.shape[1], seed)


def psds_figures(
    decided: Mapping[str, Sequence[StreamEvents]],
    spans: Mapping[str, Sequence[tuple[Spans, Spans]]],
    present: Sequence[str],
    durations: npt.NDArray[np.float64],
    seed: int,
) -> dict[str, Interval]:
    """Return both scores, from events and from scores, with intervals over the soundscapes.

    Args:
        decided: by label, the events in each soundscape at `THRESHOLDS`.
        spans: by label, what was detected and what is true in each soundscape.
        present: the classes that count.
        durations: of the soundscapes, seconds.
    """
    truth = [
        {label: spans[label][number][1] for label in present} for number in range(len(durations))
    ]
    by_events: dict[str, tuple[list[SpansAt], Sequence[float]]] = {}
    by_scores: dict[str, tuple[list[SpansAt], Sequence[float]]] = {}
    for label in present:
        found = [swept for swept, _ in spans[label]]
        confidences = np.unique(np.concatenate([swept.confidence for swept in found]))
        if len(confidences) > MAX_THRESHOLDS:
            confidences = np.quantile(confidences, np.linspace(0, 1, MAX_THRESHOLDS))
        by_events[label] = [swept.at_least for swept in found], confidences.tolist()
        by_scores[label] = [partial(_published, stream) for stream in decided[label]], list(SWEPT)
    return {
        f"{name}, from {source}": _psds_interval(sources, truth, criteria, durations, seed)
        for name, criteria in (("PSDS1", PSDS1), ("PSDS2", PSDS2))
        for source, sources in (("events", by_events), ("scores", by_scores))
    }


def _psds_interval(
    sources: Mapping[str, tuple[list[SpansAt], Sequence[float]]],
    truth: Sequence[Mapping[str, Spans]],
    criteria: Criteria,
    durations: npt.NDArray[np.float64],
    seed: int,
) -> Interval:
    sweeps = {
        label: sweep(spans_at, thresholds, truth, label, criteria)
        for label, (spans_at, thresholds) in sources.items()
    }

    def score(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([psds(sweeps, durations, criteria, row) for row in weights])

    return bootstrap(score, len(durations), seed, N_PSDS_RESAMPLES)


def _published(events: StreamEvents, threshold: float) -> Spans:
    return published_spans(events.of_classes(int(threshold)))
