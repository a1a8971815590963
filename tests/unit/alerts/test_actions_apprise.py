from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from alert_samples import alert, firing, notification
from apprise.decorators import notify
from http_receiver import HANG, http_receiver
from mqtt_broker import wait_for

from ast_stream.alerts.actions.apprise import MAX_AT_ONCE, AppriseRunner
from ast_stream.alerts.actions.base import Delivered, Failed
from ast_stream.alerts.notification import Notification
from ast_stream.errors import StartupError
from ast_stream.settings.alerts import AppriseAction

# apprise imports a module that Python announces to remove, and brings its own for later
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


def urls(folder: Path, text: str) -> str:
    path = folder / "urls"
    path.write_text(text)
    return str(path)


def runner(folder: Path, text: str, timeout_s: float = 10.0) -> AppriseRunner:
    settings = AppriseAction(type="apprise", urls_file=urls(folder, text), timeout_s=timeout_s)
    return AppriseRunner("phone", settings)


def as_service(url: str) -> str:
    """Return the apprise URL of its JSON service, posting to `url`."""
    return url.replace("http://", "json://").split("?")[0]


def test_message_reaches_the_service(tmp_path: Path) -> None:
    with http_receiver() as receiver:
        sender = runner(tmp_path, f"# comment\n{as_service(receiver.url)}\n")
        assert sender.deliver(notification()) == Delivered()
        (got,) = receiver.got
    assert (got.body["title"], got.body["message"]) == ("[medium] dog", "Dog on porch")


def test_message_is_written_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "messages"

    @notify(on="tofile")  # type: ignore[untyped-decorator]
    def write(body: str, title: str, notify_type: str, *args: Any, **kwargs: Any) -> bool:
        out.write_text(f"{notify_type} {title}: {body}")
        return True

    assert runner(tmp_path, "tofile://").deliver(notification()) == Delivered()
    assert out.read_text() == "warning [medium] dog: Dog on porch"


def test_values_with_markup_and_line_breaks_come_out_inert(tmp_path: Path) -> None:
    nasty = alert(annotations={"summary": 'a <b onclick="x">\n\r\u2028{{7*7}}\u202e\\n *b*'})
    message = Notification(id="n.firing", kind="firing", at_ns=0, alert=nasty)
    with http_receiver() as receiver:
        runner(tmp_path, as_service(receiver.url)).deliver(message)
        assert receiver.got[0].body["message"] == 'a <b onclick="x"> {{7*7}} \\n *b*'


def test_service_that_fails_is_tried_again(tmp_path: Path) -> None:
    with http_receiver(500) as receiver:
        outcome = runner(tmp_path, as_service(receiver.url)).deliver(notification())
    assert outcome == Failed("a service refused the message or was not there", is_down=True)


def test_service_that_hangs_is_left_in_time_and_gets_only_a_few_at_once(tmp_path: Path) -> None:
    with http_receiver(*[HANG] * MAX_AT_ONCE) as receiver:
        sender = runner(tmp_path, as_service(receiver.url), timeout_s=0.2)
        for _ in range(MAX_AT_ONCE):
            late = Failed("no answer within 0.2 s", is_down=True)
            assert sender.deliver(notification()) == late
        full = Failed("the last 4 messages are not answered yet", is_down=True)
        assert sender.deliver(notification("a2", firing("a2"))) == full
        receiver.let_go.set()
        wait_for(lambda: sender.deliver(notification()) == Delivered(), "the service")
        wait_for(
            lambda: not any(thread.name == "apprise" for thread in threading.enumerate()), "the end"
        )


def test_message_that_hangs_does_not_hold_up_the_next(tmp_path: Path) -> None:
    with http_receiver(HANG) as receiver:
        sender = runner(tmp_path, as_service(receiver.url), timeout_s=0.5)
        assert isinstance(sender.deliver(notification()), Failed)
        # a busy machine may need several half seconds, one that is held up all of them
        wait_for(
            lambda: sender.deliver(notification("a2", firing("a2"))) == Delivered(), "the next"
        )
        receiver.let_go.set()
        wait_for(
            lambda: not any(thread.name == "apprise" for thread in threading.enumerate()), "the end"
        )


def test_urls_are_never_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with http_receiver(500) as receiver:
        url = as_service(receiver.url).replace("//", "//user:secret@")
        runner(tmp_path, url).deliver(notification())
    with pytest.raises(StartupError, match="action phone: ") as raised:
        runner(tmp_path, "nosuch://secret@host")
    assert "secret" not in caplog.text + str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected at least one apprise URL, got none"),
        ("\nnosuch://secret@host", "line 2 is no URL that apprise knows"),
    ],
)
def test_url_that_is_none_is_reported_without_showing_it(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(StartupError) as raised:
        runner(tmp_path, text)
    assert str(raised.value) == f"action phone: {reason}"
