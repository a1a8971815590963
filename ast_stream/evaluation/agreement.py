"""F1 and polyphonic sound detection scores of several strips, over all classes, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ast_stream.detect.decision import StreamEvents
from ast_stream.evaluation.curves import THRESHOLDS, published_spans
from ast_stream.evaluation.intervals import Interval, bootstrap
from ast_stream.evaluation.overlap import F1_KINDS, Counts
from ast_stream.evaluation.psds import PSDS1, PSDS2, Criteria, SpansAt, psds, sweep
from ast_stream.evaluation.spans import Spans

MOST_THRESHOLDS = 100  # of a sweep over the confidences of events: more change little
SWEPT = range(0, len(THRESHOLDS), 3)  # thresholds that PSDS is taken over
N_PSDS_RESAMPLES = 200  # each takes milliseconds


def f1_counts(
    spans: Mapping[str, Sequence[tuple[Spans, Spans]]], durations: npt.NDArray[np.float64]
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Return by kind and label what was found, false and there in each strip: (n_strips, 3).

    Args:
        spans: by label, what was detected and what is true in each strip.
        durations: of the strips, seconds.
    """
    return {
        kind: {label: _counts(one, durations, count) for label, one in spans.items()}
        for kind, count in F1_KINDS.items()
    }


def _counts(
    spans: Sequence[tuple[Spans, Spans]],
    durations: npt.NDArray[np.float64],
    count: Callable[[Spans, Spans, float], Counts],
) -> npt.NDArray[np.float64]:
    """Return found, false and all of each strip, shape (n_strips, 3)."""
    rows = [
        count(found, true, float(duration))
        for (found, true), duration in zip(spans, durations, strict=True)
    ]
    return np.array([(one.n_found, one.n_false, one.n_sounds) for one in rows], np.float64)


def mean_f1(counts: Sequence[npt.NDArray[np.float64]], seed: int) -> Interval:
    """Return the mean F1 of the classes, with its interval over the strips.

    Args:
        counts: of each class, shape (n_strips, 3), as `f1_counts` returns them.
    """
    if not counts:
        return Interval(math.nan, math.nan, math.nan)
    stacked = np.stack(counts)  # (n_classes, n_strips, 3)

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
    """Return both scores, from events and from scores, with intervals over the strips.

    Args:
        decided: by label, the events in each strip at `THRESHOLDS`.
        spans: by label, what was detected and what is true in each strip.
        present: the classes that count.
        durations: of the strips, seconds.
    """
    truth = [
        {label: spans[label][number][1] for label in present} for number in range(len(durations))
    ]
    by_events: dict[str, tuple[list[SpansAt], Sequence[float]]] = {}
    by_scores: dict[str, tuple[list[SpansAt], Sequence[float]]] = {}
    for label in present:
        found = [one for one, _ in spans[label]]
        confidences = np.unique(np.concatenate([one.confidence for one in found]))
        if len(confidences) > MOST_THRESHOLDS:
            confidences = np.quantile(confidences, np.linspace(0, 1, MOST_THRESHOLDS))
        by_events[label] = [one.at_least for one in found], confidences.tolist()
        by_scores[label] = [_spans_at(events) for events in decided[label]], list(SWEPT)
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


def _spans_at(events: StreamEvents) -> SpansAt:
    return lambda number: published_spans(events.of_classes(int(number)))
