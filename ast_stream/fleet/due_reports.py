"""Decides when a box's report is sent: when it has news, and otherwise at intervals."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from ast_stream.messages.fleet import BoxReport, RolloutReport
from ast_stream.units import NS_PER_SECOND

SENT_EVERY_S = 60.0  # without news
WATCHED_S = 7200.0  # while a model is newer than this, each report counts in judging it
_FIGURES = re.compile(r"\d+(\.\d+)?")
_AS = {"gated": "listening"}  # a quiet room alternates between the two all the time


class DueReports:
    """Chooses which reports are sent.

    Figures that change all the time (lag, load, the clock, what waits) are no news: they are sent
    with the next report. During a roll-out every report is sent.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._sent_s = float("-inf")
        self._news: Any = None

    def is_due(self, report: BoxReport) -> bool:
        """Return whether to send a report; if so, it counts as sent."""
        now_s, news = self._now_s(), news_of(report)
        if news == self._news and now_s - self._sent_s < 0.95 * report.every_s:
            return False
        self._sent_s, self._news = now_s, news
        return True


def sent_every_s(made_every_s: float, rollout: RolloutReport | None, now_ns: int) -> float:
    """Return the longest time until the next report is sent, in seconds.

    Args:
        made_every_s: interval at which reports are made.
        now_ns: by the clock of the box.
    """
    if rollout is None:
        return max(made_every_s, SENT_EVERY_S)
    since_s = WATCHED_S
    if rollout.since_ns is not None:
        since_s = (now_ns - rollout.since_ns) / NS_PER_SECOND
    is_watched = rollout.state != "in_use" or since_s < WATCHED_S
    return made_every_s if is_watched else max(made_every_s, SENT_EVERY_S)


def news_of(report: BoxReport) -> tuple[Any, ...]:
    """Return the facts of a report that readers should learn at once when they change."""
    rollout = report.rollout
    return (
        (report.version, report.boot, report.configuration, report.checkpoint),
        report.clock.is_synchronised,
        [
            (worker.name, worker.boot, worker.model, worker.device, worker.restart_needed)
            for worker in report.workers
        ],
        sorted(
            (
                stream.stream,
                _AS.get(stream.state or "", stream.state or ""),
                _words(stream.detail),
                (stream.placement and stream.placement.worker) or "",
            )
            for stream in report.streams
        ),
        [
            (output.name, output.is_connected, output.lost, _words(output.error))
            for output in report.outputs
        ],
        None if rollout is None else (rollout.wanted, rollout.current, rollout.state),
        sorted({_words(problem) for problem in report.problems}),
    )


def _words(text: str | None) -> str:
    """Return a sentence without its numbers."""
    return _FIGURES.sub("#", text or "")
