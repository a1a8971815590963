"""How well a model names whole clips: accuracy, average precision per class, confusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.audio.activity import Waveform
from ast_stream.soundscape.soundbank import Foreground
from ast_stream.units import seconds_to_samples

ScoreWindows = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Waveforms (n_windows, n_samples) in, scores (n_windows, n_classes) out."""

MIN_PRESENCE = 0.4  # of the most sound in any window of the clip: quieter ones are not asked
HOPS_PER_WINDOW = 4


@dataclass(frozen=True, eq=False)
class ClipReport:
    """Figures over clips with one label each, or several.

    Attributes:
        accuracy: part of clips whose highest score is that of a label of theirs.
        recall: the same for the clips with one label.
        average_precision: by label, of the clip scores against all clips without it.
        confusion: counts, shape (n_classes, n_classes): row true, column highest. A clip of
            several labels is in the row of the one that was named, else of its first.
        mean_average_precision: over the labels that occur.
    """

    labels: tuple[str, ...]
    accuracy: float
    recall: dict[str, float]
    average_precision: dict[str, float]
    confusion: npt.NDArray[np.int64]
    n_clips: int

    @property
    def mean_average_precision(self) -> float:
        """Mean over the labels that occur."""
        return float(np.mean(list(self.average_precision.values())))


def clip_scores(
    foregrounds: Sequence[Foreground], score: ScoreWindows, n_samples: int
) -> npt.NDArray[np.float64]:
    """Return one score per clip and class, shape (n_clips, n_classes).

    The mean logit of the windows that hold enough of the clip's sound, by energy alone.
    """
    rows = []
    for foreground in foregrounds:
        scores = score(np.stack(_sounding_windows(foreground, n_samples))).astype(np.float64)
        scores = np.clip(scores, 1e-6, 1 - 1e-6)
        mean_logit = np.mean(np.log(scores / (1 - scores)), axis=0)
        rows.append(1 / (1 + np.exp(-mean_logit)))
    return np.stack(rows)


def clip_report(
    foregrounds: Sequence[Foreground], scores: npt.NDArray[np.float64], labels: Sequence[str]
) -> ClipReport:
    """Return the figures of `scores` (n_clips, n_classes) for some foregrounds."""
    named = scores.argmax(axis=1)
    is_of = np.zeros((len(foregrounds), len(labels)), np.bool_)
    for row, foreground in zip(is_of, foregrounds, strict=True):
        row[list(foreground.classes)] = True
    is_right = names_right(foregrounds, scores)
    truth = np.where(is_right, named, [foreground.classes[0] for foreground in foregrounds])
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth, named), 1)
    present = np.flatnonzero(is_of.any(axis=0)).tolist()
    return ClipReport(
        labels=tuple(labels),
        accuracy=float(np.mean(is_right)),
        recall={labels[i]: float(np.mean(is_right[is_of[:, i]])) for i in present},
        average_precision={
            labels[i]: average_precision(is_of[:, i], scores[:, i]) for i in present
        },
        confusion=confusion,
        n_clips=len(foregrounds),
    )


def names_right(
    foregrounds: Sequence[Foreground], scores: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Return for which clips the top class is one of their labels, shape (n_clips,)."""
    named = scores.argmax(axis=1).tolist()
    return np.array(
        [
            highest in foreground.classes
            for foreground, highest in zip(foregrounds, named, strict=True)
        ],
        np.bool_,
    )


def report_clips(
    foregrounds: Sequence[Foreground], score: ScoreWindows, window_s: float, labels: Sequence[str]
) -> ClipReport:
    """Return the clip-level figures of some foregrounds."""
    return clip_report(
        foregrounds, clip_scores(foregrounds, score, seconds_to_samples(window_s)), labels
    )


def average_precision(is_positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    """Return the mean precision at each positive, ranked by score; NaN without positives.

    >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7]))
    0.8333333333333333
    """
    ranked = is_positive[np.argsort(-scores, kind="stable")]
    hits = np.cumsum(ranked)
    precision = hits / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean()) if ranked.any() else float("nan")


def _sounding_windows(foreground: Foreground, n_samples: int) -> list[Waveform]:
    """Return the windows of a clip, a quarter apart, that hold enough of its sound."""
    waveform = foreground.waveform
    if len(waveform) < n_samples:
        waveform = np.pad(waveform, (0, n_samples - len(waveform)))
    starts = range(0, len(waveform) - n_samples + 1, n_samples // HOPS_PER_WINDOW)
    enough = MIN_PRESENCE * foreground.max_active_s(n_samples)
    kept = [start for start in starts if foreground.active_s(start, start + n_samples) >= enough]
    return [waveform[start : start + n_samples] for start in kept or [0]]
