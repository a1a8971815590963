from __future__ import annotations

import logging

import pytest
from alert_samples import T0_NS, alert, notification, resolved

from ast_stream.alerts.actions.base import Delivered
from ast_stream.alerts.actions.log import LogRunner
from ast_stream.alerts.notification import Notification
from ast_stream.labels import MAX_TEXT_CHARACTERS, one_line
from ast_stream.settings.alerts import LogAction


def test_alert_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert LogRunner("log", LogAction(type="log")).deliver(notification()) == Delivered()
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "[medium] dog: Dog on porch",
    )


def test_level_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    LogRunner("log", LogAction(type="log", level="error")).deliver(notification())
    assert caplog.records[0].levelno == logging.ERROR


def test_end_of_an_alert_is_named_as_such() -> None:
    assert notification("a1", resolved()).title == "[medium] dog is over"


def test_combined_message_says_when_it_began() -> None:
    message = notification("a1", resolved())
    combined = message.model_copy(update={"combined": True})
    assert combined.text == "Dog on porch (from 2027-01-15T08:00:00.000000Z)"


def test_alert_without_a_summary_names_its_group() -> None:
    unnamed = alert(annotations={})
    message = Notification(id="a.firing", kind="firing", at_ns=T0_NS, alert=unnamed)
    assert message.text == "stream porch"


def test_notification_is_the_same_after_the_outbox() -> None:
    message = notification("a1", resolved())
    assert Notification.decode(message.encode()) == message


def test_text_of_others_stays_on_one_line_and_ends() -> None:
    assert one_line("a\r\nb\x1b[31m\u202ec\u2028d\x00") == "a b [31m c d"
    assert len(one_line("x" * 5000)) == MAX_TEXT_CHARACTERS
