"""Recall against false alarms per hour, at other thresholds.

The decision stage that runs live decides every stream once more, at many thresholds at once. An
event finds a reference event if one of its windows holds some of it: by windows and not by
published times, which depend on rise times that calibration has yet to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.detect.parameters import DecisionParameters
from ast_stream.detect.stream_events import StreamEvents, WindowScores, decide_streams
from ast_stream.evaluation.matching import Spans
from ast_stream.evaluation.scoring import ScoredSoundscape
from ast_stream.soundscape.mixing import ReferenceEvent
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

THRESHOLDS = 1 / (1 + np.exp(-np.linspace(-5.0, 7.0, 121)))  # evenly spaced on the logit
BUDGETS_PER_H = (0.1, 0.5, 1.0)

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """One class at every threshold; shape (n_thresholds,), thresholds rising."""

    thresholds: Values
    recall: Values
    false_per_h: Values

    def recall_within(self, budget_per_h: float) -> float:
        """Return the highest recall within a rate of false alarms per hour."""
        return float(np.max(self.recall[self.false_per_h <= budget_per_h], initial=0.0))


def decide_at_thresholds(
    scored: Sequence[ScoredSoundscape], labels: Sequence[str], thresholds: Values = THRESHOLDS
) -> dict[str, list[StreamEvents]]:
    """Return the events of each label in each soundscape at every threshold.

    The index of an event is that of its threshold; all else is as the events were decided by.
    """
    by_label: dict[str, list[StreamEvents]] = {label: [] for label in labels}
    if not labels:
        return by_label
    n = len(thresholds)
    for soundscape in scored:
        parameters = known_parameters(soundscape)
        index = [parameters.labels.index(label) for label in labels]
        stream = WindowScores(
            np.round(soundscape.times_s * SAMPLE_RATE).astype(np.int64),
            soundscape.scores[:, index],
            seconds_to_samples(soundscape.layout.duration_s),
        )
        (events,) = decide_streams(
            DecisionParameters.joined(
                [parameters.at_thresholds(class_index, thresholds) for class_index in index]
            ),
            [stream],
            np.repeat(np.arange(len(labels)), n),
        )
        for number, label in enumerate(labels):
            by_label[label].append(events.of_classes(number * n, n))
    return by_label


def threshold_curve(
    scored: Sequence[ScoredSoundscape],
    label: str,
    events: Sequence[StreamEvents],
    thresholds: Values = THRESHOLDS,
) -> ThresholdCurve:
    """Return recall and false alarms of one class over some soundscapes.

    There are at least as many false alarms as at any higher threshold: at a very low one all is a
    single event, which holds some reference event and would otherwise count as right.

    Args:
        events: of the class, as `decide_at_thresholds` returns them.
    """
    n_found, n_false = np.zeros(len(thresholds)), np.zeros(len(thresholds))
    n_sounds, hours = 0, 0.0
    for soundscape, its in zip(scored, events, strict=True):
        window = known_parameters(soundscape).geometry.window
        sounds = [sound for sound in soundscape.layout.truth if sound.label == label]
        is_found, false = found_and_false(its, sounds, len(thresholds), window)
        n_found += is_found.sum(axis=1)
        n_false += false
        n_sounds += len(sounds)
        hours += soundscape.layout.duration_s / 3600
    recall = n_found / n_sounds if n_sounds else np.full(len(thresholds), np.nan)
    most_false = np.maximum.accumulate(n_false[::-1])[::-1]
    return ThresholdCurve(thresholds, recall, most_false / hours)


def found_and_false(
    events: StreamEvents, references: Sequence[ReferenceEvent], n_thresholds: int, window: int
) -> tuple[Flags, npt.NDArray[np.int64]]:
    """Return which reference events are found, and how many events find none.

    Args:
        events: of one stream, by index of the threshold.
        references: of the class, in the stream.
        window: length of the windows in samples.

    Returns:
        Shapes (n_thresholds, n_references) and (n_thresholds,).
    """
    is_found = np.zeros((n_thresholds, len(references)), np.bool_)
    is_false = np.ones(len(events.index), np.bool_)
    for number, reference in enumerate(references):
        is_touching = touches(events, reference, window)
        is_found[events.index[is_touching], number] = True
        is_false &= ~is_touching
    return is_found, np.bincount(events.index[is_false], minlength=n_thresholds)


def touches(events: StreamEvents, reference: ReferenceEvent, window: int) -> Flags:
    """Return which events have a window that holds some of a reference event, shape (n,)."""
    begins_before = events.t_up / SAMPLE_RATE < reference.offset_s + window / SAMPLE_RATE
    is_touching: Flags = begins_before & (events.last_seen / SAMPLE_RATE > reference.onset_s)
    return is_touching


def published_spans(events: StreamEvents) -> Spans:
    """Return the published times of the events of one stream, each with its highest score."""
    is_kept = events.offset > events.onset
    order = np.argsort(events.onset[is_kept], kind="stable")
    return Spans(
        events.onset[is_kept][order] / SAMPLE_RATE,
        events.offset[is_kept][order] / SAMPLE_RATE,
        events.peak[is_kept][order].astype(np.float64),
    )


def known_parameters(scored: ScoredSoundscape) -> DecisionParameters:
    """Return what the events of a soundscape were decided by.

    Raises:
        ValueError: it is not known.
    """
    if scored.parameters is None:
        raise ValueError("expected a soundscape scored by a detector, got one without parameters")
    return scored.parameters
