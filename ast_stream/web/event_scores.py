"""The scores around an event, for its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_stream.history.records import EventRecord
from ast_stream.history.score_blocks import ScoreSpan
from ast_stream.units import NS_PER_SECOND, seconds_to_ns

AROUND_S = 10.0  # before and after an event
MAX_S = 600.0
SHOWN_CLASSES = 4
MAX_POINTS = 2000
_DIGITS = 4


@dataclass(frozen=True)
class EventScores:
    """The scores of an event's class, and of the most likely other classes.

    Attributes:
        times_s: since the onset, shape (n_points,).
        series: label and scores of each class; None where windows are missing.
    """

    times_s: list[float]
    series: list[tuple[str, list[float | None]]]

    def to_json(self, duration_s: float | None) -> dict[str, Any]:
        """Return it as JSON values."""
        series = [{"label": label, "scores": scores} for label, scores in self.series]
        return {"times_s": self.times_s, "duration_s": duration_s, "series": series}


def moments_around(event: EventRecord) -> tuple[int, int]:
    """Return start and end of the time whose scores are shown, nanoseconds since 1970."""
    stop_ns = event.onset_ns if event.offset_ns is None else event.offset_ns
    stop_ns = min(stop_ns, event.onset_ns + seconds_to_ns(MAX_S))
    return event.onset_ns - seconds_to_ns(AROUND_S), stop_ns + seconds_to_ns(AROUND_S)


def event_scores(event: EventRecord, spans: Sequence[ScoreSpan]) -> EventScores:
    """Return the scores to draw around an event; spans of other models are left out."""
    known = [span for span in spans if span.labels is not None and event.label in span.labels]
    if not known or known[0].labels is None:
        return EventScores([], [])
    labels = known[0].labels
    used = [span for span in known if span.labels == labels]
    peaks = np.max([span.scores.max(axis=0) for span in used], axis=0)
    likeliest = [labels[index] for index in np.argsort(-peaks, kind="stable")]
    shown = list(dict.fromkeys([event.label, *likeliest]))[:SHOWN_CLASSES]
    columns = [labels.index(label) for label in shown]
    step = -(-sum(len(span.ends) for span in used) // MAX_POINTS)
    times: list[float] = []
    scores: list[list[float | None]] = [[] for _ in shown]
    for number, span in enumerate(used):
        after_s = (span.times_ns[::step] - event.onset_ns) / NS_PER_SECOND
        if number > 0:  # interrupt the line where windows are missing
            times.append(round(float(after_s[0]) - 1e-3, 3))
            for series in scores:
                series.append(None)
        times += [round(float(value), 3) for value in after_s]
        for series, column in zip(scores, columns, strict=True):
            series += _rounded(span.scores[::step, column])
    return EventScores(times, list(zip(shown, scores, strict=True)))


def _rounded(scores: npt.NDArray[np.float16]) -> list[float]:
    return [round(float(score), _DIGITS) for score in scores]
