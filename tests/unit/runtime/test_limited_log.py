"""Trouble that goes on is logged when it begins, once a minute, and when it is over."""

from __future__ import annotations

import logging

import pytest
from clocks import FakeSeconds

from ast_stream.runtime.logging import RECOVERY_S, Outage

logger = logging.getLogger("test")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_fault_that_lasts_is_logged_once_a_minute_and_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeSeconds(1_000.0)
    outage = Outage(logger, "the log is written again", clock)
    outage.worked()
    for _ in range(130):
        outage.failed("the log cannot be written: %s", "disk full")
        clock.now_s += 1
    assert outage.text == "the log cannot be written: disk full"
    assert messages(caplog) == [
        "the log cannot be written: disk full",
        "the log cannot be written: disk full (and 59 more like it since the last such line)",
        "the log cannot be written: disk full (and 59 more like it since the last such line)",
    ]
    clock.now_s += RECOVERY_S
    outage.worked()
    outage.worked()
    assert outage.text is None
    assert messages(caplog)[3:] == ["the log is written again after 129 s and 130 failures"]


def test_what_fails_and_works_by_turns_is_one_fault(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeSeconds(1_000.0)
    outage = Outage(logger, "the journal is written again", clock)
    for _ in range(40):
        outage.failed("the journal cannot be written")
        clock.now_s += 0.5
        outage.worked()
        clock.now_s += 0.5
    assert messages(caplog) == ["the journal cannot be written"]
    assert outage.text is not None


def test_a_fault_that_comes_again_later_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeSeconds(1_000.0)
    outage = Outage(logger, "it works again", clock)
    outage.failed("it fails")
    clock.now_s += RECOVERY_S
    outage.worked()
    outage.failed("it fails")
    assert messages(caplog) == ["it fails", "it works again after 0 s and 1 failures", "it fails"]
