"""Judges from a box's own reports whether it does worse with a new model than before.

A box is only compared with itself. The reasons for the bounds are in docs/design/rollout.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from ast_stream.messages.fleet import (
    MAX_PROBLEM_CHARACTERS,
    MAX_REPORT_PROBLEMS,
    BoxReport,
    RolloutReport,
)
from ast_stream.messages.rollout import Baseline
from ast_stream.units import NS_PER_SECOND

MIN_LAG_S = 5.0  # a smaller lag is no problem, whatever it was before
LAG_FACTOR = 2.0
HOP_FACTOR = 1.01
DAY_S = 86_400.0
HEARD_LOSS = 0.005  # of 24 hours: 7 minutes, even if the box is newer than that
MIN_EVENTS = 10  # of a class, expected or counted, for its rate to be significant
MIN_BEFORE_S = 60.0
BAD_REPORTS = 3  # in a row
_NUMBER = re.compile(r"\d+(\.\d+)?")


def baseline_of(report: BoxReport) -> Baseline:
    """Return the figures of a report that later ones are compared with."""
    return Baseline(
        lag_s=report.lag_s,
        hop_s=_widest_hop_s(report),
        problems=sorted({_kind(problem) for problem in report.problems[:MAX_REPORT_PROBLEMS]}),
        unheard_s=report.unheard_s,
        silent_streams=_silent(report),
    )


def worse(
    report: BoxReport, before: Baseline, *, events_factor: float, has_settled: bool
) -> list[str]:
    """Return in which ways a box does worse than before, one sentence each.

    Args:
        events_factor: how many times more or fewer events of a class are still acceptable; 0: do
            not compare events.
        has_settled: the workers have had time to catch up after their restart.
    """
    rollout = report.rollout
    found = [] if rollout is None or not rollout.restarts else [_restarts(rollout.restarts)]
    if has_settled:
        found += _worse_now(report, before)
    if rollout is not None and events_factor > 0:
        found += worse_events(report, rollout, events_factor)
    return found


def _worse_now(report: BoxReport, before: Baseline) -> Iterator[str]:
    lag_s, hop_s = report.lag_s, _widest_hop_s(report)
    limit_s = max(MIN_LAG_S, LAG_FACTOR * (before.lag_s or 0.0))
    if lag_s is not None and lag_s > limit_s:
        yield f"it is {lag_s:.1f} s behind, where {limit_s:.1f} s are allowed"
    if hop_s is not None and before.hop_s is not None and hop_s > HOP_FACTOR * before.hop_s:
        yield f"it scores a window every {hop_s:g} s, and not every {before.hop_s:g} s"
    if (silent := _silent(report)) > before.silent_streams:
        yield f"{silent} streams are missing or degraded, {before.silent_streams} were before"
    if before.unheard_s is not None and report.unheard_s is not None:
        lost = (report.unheard_s - before.unheard_s) / DAY_S
        if lost > HEARD_LOSS:
            yield f"it has heard {lost:.1%} less of the last 24 hours"
    for problem in report.problems[:MAX_REPORT_PROBLEMS]:
        if _kind(problem) not in before.problems:
            yield problem


def worse_events(report: BoxReport, rollout: RolloutReport, factor: float) -> list[str]:
    """Return a sentence for each class that has many more or many fewer events than before."""
    if rollout.since_ns is None or rollout.before_s < MIN_BEFORE_S:
        return []
    elapsed_s = (report.time_ns - rollout.since_ns) / NS_PER_SECOND
    found = []
    for name in sorted({*rollout.began, *rollout.began_before}):
        expected = rollout.began_before.get(name, 0) * elapsed_s / rollout.before_s
        counted = rollout.began.get(name, 0)
        is_deaf = expected >= MIN_EVENTS and counted < expected / factor
        is_loud = counted > factor * expected + MIN_EVENTS
        if is_deaf or is_loud:
            found.append(f"{counted} events of {name} have begun, where {expected:.0f} did before")
    return found


def _restarts(n: int) -> str:
    return f"its workers began again {n} times by themselves" if n > 1 else "a worker began again"


def _silent(report: BoxReport) -> int:
    return sum(stream.state in (None, "missing", "degraded") for stream in report.streams)


def _widest_hop_s(report: BoxReport) -> float | None:
    return max((stream.hop_s for stream in report.streams if stream.hop_s), default=None)


def _kind(problem: str) -> str:
    """Return a digest of a problem's text without its numbers, to recognise it in later reports.

    A digest is short: a plan holds those of thousands of boxes.
    """
    words = _NUMBER.sub("#", problem[:MAX_PROBLEM_CHARACTERS])
    return hashlib.sha256(words.encode(errors="replace")).hexdigest()[:12]
