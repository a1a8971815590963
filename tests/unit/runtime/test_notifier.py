from __future__ import annotations

import os

import pytest
from clocks import FakeSeconds

from ast_stream.runtime.lifecycle import Notifier


def speaking(watchdog_s: float = 5.0) -> tuple[Notifier, list[str], FakeSeconds]:
    sent: list[str] = []
    clock = FakeSeconds(100.0)

    def send(message: str) -> bool:
        sent.append(message)
        return True

    return Notifier(send, watchdog_s, clock), sent, clock


def test_first_turn_makes_ready_and_later_ones_do_not() -> None:
    notifier, sent, clock = speaking()
    notifier.starting("loading", 180.0)
    assert sent == ["EXTEND_TIMEOUT_USEC=180000000\nSTATUS=loading"]
    notifier.turn(lambda: "listening", is_working=False)
    assert sent[1:] == ["READY=1\nSTATUS=listening"]
    clock.now_s += 10
    notifier.turn(lambda: "listening", is_working=False)
    assert len(sent) == 2


def test_status_is_sent_at_most_once_a_second_and_only_when_it_changes() -> None:
    notifier, sent, clock = speaking()
    for turn in range(16):
        level = min(turn, 10)
        notifier.turn(lambda level=level: f"level {level}", is_working=False)  # type: ignore[misc]
        clock.now_s += 0.25
    assert sent == [
        "READY=1\nSTATUS=level 0",
        *(f"STATUS=level {level}" for level in (4, 8, 10)),
    ]


def test_status_is_not_made_when_it_is_not_due() -> None:
    notifier, _, _ = speaking()
    made = []
    for _ in range(5):
        notifier.turn(lambda: made.append("status") or "status", is_working=False)
    assert made == ["status"]


def test_watchdog_is_fed_by_work_alone_and_at_its_pace() -> None:
    notifier, sent, clock = speaking(watchdog_s=5.0)
    for is_working in (True, True, False, True):
        notifier.turn(lambda: "fine", is_working=is_working)
        clock.now_s += 3.0
    assert sent.count("WATCHDOG=1") == 2  # at 0 and 9 s: 3 s is too soon, 6 s was without work


def test_a_status_of_several_lines_cannot_pass_for_other_assignments() -> None:
    notifier, sent, _ = speaking()
    notifier.turn(lambda: "fine\nWATCHDOG=trigger", is_working=False)
    assert sent == ["READY=1\nSTATUS=fine WATCHDOG=trigger"]


def test_reload_is_begun_with_the_time_and_ended_with_ready() -> None:
    notifier, sent, _ = speaking()
    notifier.reloading()
    notifier.reloaded("settings read again")
    assert sent[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(sent[0].rsplit("=", 1)[1]) > 0
    assert sent[1] == "READY=1\nSTATUS=settings read again"


def test_stopping_is_notified_at_once() -> None:
    notifier, sent, _ = speaking()
    notifier.stopping("ending open events")
    assert sent == ["STOPPING=1\nSTATUS=ending open events"]


def test_a_process_that_begins_again_asks_for_patience_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before, sent, _ = speaking()
    before.turn(lambda: "listening", is_working=False)
    before.beginning_again("with another model", 180.0)
    assert sent[1] == "WATCHDOG_USEC=180000000\nWATCHDOG=1"
    assert sent[2].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert sent[2].endswith("\nSTATUS=with another model")
    after, sent, _ = speaking()  # in the place of the one before, with its environment
    after.starting("loading", 180.0)
    assert sent == ["EXTEND_TIMEOUT_USEC=180000000\nSTATUS=loading\nWATCHDOG=1"]
    after.turn(lambda: "listening", is_working=False)
    assert sent[1:] == ["READY=1\nSTATUS=listening", "WATCHDOG_USEC=10000000\nWATCHDOG=1"]
    again, sent, _ = speaking()
    again.starting("loading", 180.0)
    again.turn(lambda: "listening", is_working=False)
    assert not any("WATCHDOG" in message for message in sent)
