from __future__ import annotations

import threading

import pytest

from ast_stream.alerts.actions.base import ActionRunner, Delivered, Failed, Outcome
from ast_stream.alerts.notification import Notification
from ast_stream.alerts.report import HeartbeatThread
from ast_stream.settings.alerts import AlertSettings

PATIENCE_S = 60.0
NOW_NS = 1_800_000_000_000_000_000


class Receiver(ActionRunner):
    """An action that answers as instructed, and notes what it got."""

    def __init__(self, *answers: Outcome | Exception) -> None:
        super().__init__("receiver", None)
        self.got: list[Notification] = []
        self.has_got_two = threading.Event()
        self._answers = list(answers)

    def deliver(self, notification: Notification) -> Outcome:
        self.got.append(notification)
        if len(self.got) >= 2:
            self.has_got_two.set()
        answer = self._answers.pop(0) if self._answers else Delivered()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Have nothing to let go of."""


def heartbeat(receiver: Receiver, is_well: bool = True, interval_s: float = 60) -> HeartbeatThread:
    return HeartbeatThread(receiver, interval_s, lambda: is_well, lambda: NOW_NS)


def test_beat_says_that_the_process_listens() -> None:
    receiver = Receiver()
    heartbeat(receiver).beat()
    (message,) = receiver.got
    assert (message.id, message.kind, message.at_ns) == (f"heartbeat.{NOW_NS}", "heartbeat", NOW_NS)
    assert (message.title, message.text) == ("[informational] heartbeat", "ast-stream is listening")


def test_there_is_no_beat_while_an_alert_could_be_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = Receiver()
    heartbeat(receiver, is_well=False).beat()
    assert receiver.got == []
    assert "no heartbeat: the worker is silent, or alerts cannot be saved" in caplog.text


def test_beat_that_does_not_arrive_is_logged_and_not_sent_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver = Receiver(Failed("no connection"))
    heartbeat(receiver).beat()
    assert len(receiver.got) == 1
    assert "heartbeat not delivered: no connection" in caplog.text


def test_beats_go_on_after_an_action_has_broken(caplog: pytest.LogCaptureFixture) -> None:
    receiver = Receiver(ValueError("bug"))
    beats = heartbeat(receiver, interval_s=0.01)
    beats.start()
    assert receiver.has_got_two.wait(PATIENCE_S)
    beats.stop()
    beats.join(PATIENCE_S)
    assert not beats.is_alive()
    assert "heartbeat not delivered: internal error: ValueError" in caplog.text


def test_there_is_no_thread_without_a_heartbeat_in_the_settings() -> None:
    assert HeartbeatThread.of(AlertSettings(), lambda: True) is None
