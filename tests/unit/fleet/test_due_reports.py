"""A report is sent when it says something new, and now and then."""

from __future__ import annotations

from typing import Any

import pytest
from sample_messages import box_report

from ast_stream.fleet.due_reports import SENT_EVERY_S, WATCHED_S, DueReports, sent_every_s
from ast_stream.messages.fleet import (
    BoxReport,
    ClockReport,
    OutputReport,
    RolloutReport,
    StreamReport,
    WorkerReport,
)
from ast_stream.units import NS_PER_SECOND

NOW_NS = 2_000_000_000 * NS_PER_SECOND


def report(**changes: Any) -> BoxReport:
    first: dict[str, Any] = {
        "every_s": 60.0,
        "streams": [StreamReport(stream="porch", state="listening", lag_s=0.1)],
        "outputs": [OutputReport(name="centre", is_connected=True, waiting=0)],
        "workers": [WorkerReport(boot="b1", model="sha256:a", lag_s=0.1)],
        "clock": ClockReport(is_synchronised=True, offset_s=0.001),
        "problems": ["forward centre is 70 s behind"],
    }
    return box_report(**(first | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"time_ns": 7 * NS_PER_SECOND},
        {"streams": [StreamReport(stream="porch", state="gated", lag_s=2.0, heard=0.5)]},
        {"outputs": [OutputReport(name="centre", is_connected=True, waiting=9, lag_s=1.0)]},
        {"workers": [WorkerReport(boot="b1", model="sha256:a", lag_s=3.0, uptime_s=9.0)]},
        {"clock": ClockReport(is_synchronised=True, offset_s=0.002)},
        {"problems": ["forward centre is 81 s behind"]},
    ],
)
def test_figures_alone_are_no_news(change: dict[str, Any]) -> None:
    now_s = [0.0]
    due = DueReports(lambda: now_s[0])
    assert due.is_due(report())
    now_s[0] = 10.0
    assert not due.is_due(report(**change))
    now_s[0] = SENT_EVERY_S
    assert due.is_due(report(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"streams": [StreamReport(stream="porch", state="missing")]},
        {"streams": [StreamReport(stream="porch", state="warming")]},
        {"streams": [StreamReport(stream="porch")]},
        {"streams": [StreamReport(stream="yard", state="listening")]},
        {"outputs": [OutputReport(name="centre", is_connected=False)]},
        {"outputs": [OutputReport(name="centre", is_connected=True, lost=1)]},
        {"workers": [WorkerReport(boot="b2", model="sha256:a")]},
        {"workers": [WorkerReport()]},
        {"clock": ClockReport(is_synchronised=False)},
        {"problems": []},
        {"configuration": "sha256:b"},
        {"boot": "b9"},
    ],
)
def test_what_a_reader_should_know_is_sent_at_once(change: dict[str, Any]) -> None:
    due = DueReports(lambda: 0.0)
    assert due.is_due(report())
    assert not due.is_due(report())
    assert due.is_due(report(**change))
    assert not due.is_due(report(**change))


def test_each_report_is_sent_while_a_model_is_tried() -> None:
    def every_s(since_s: float | None, state: str = "in_use") -> float:
        since_ns = None if since_s is None else NOW_NS - round(since_s * NS_PER_SECOND)
        rollout = RolloutReport(state=state, since_ns=since_ns)  # type: ignore[arg-type]
        return sent_every_s(10.0, rollout, NOW_NS)

    assert sent_every_s(10.0, None, NOW_NS) == SENT_EVERY_S
    assert every_s(None) == SENT_EVERY_S
    assert every_s(None, "downloading") == 10.0
    assert every_s(60.0) == 10.0
    assert every_s(WATCHED_S + 1) == SENT_EVERY_S
    now_s = [0.0]
    due = DueReports(lambda: now_s[0])
    for n in range(5):
        now_s[0] = 10.0 * n
        assert due.is_due(report(every_s=10.0))
