from __future__ import annotations

import json
import re
import socket
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from alert_samples import T0_NS, notification, resolved
from http_receiver import DRIP, GARBAGE, HANG, HUGE_BODY, SLOW_BODY, Script, http_receiver

from ast_stream.alerts.actions.base import Delivered, Failed, Outcome, Undeliverable
from ast_stream.alerts.actions.webhook import (
    WebhookRunner,
    cloud_event,
    is_public,
    new_signer,
    retry_after_s,
    sign,
)
from ast_stream.alerts.notification import Notification
from ast_stream.errors import StartupError
from ast_stream.settings.alerts import WebhookAction
from ast_stream.units import format_time

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW_S = 1_700_000_000.5


def runner(url: str, *, allow_private: bool = True, **options: object) -> WebhookRunner:
    settings = WebhookAction.model_validate(
        {"type": "webhook", "url": url, "allow_private": allow_private, "timeout_s": 5} | options
    )
    return WebhookRunner("hook", settings, lambda: NOW_S)


def answer_to(*script: Script, timeout_s: float = 5.0) -> Outcome:
    with http_receiver(*script) as receiver:
        return runner(receiver.url, timeout_s=timeout_s).deliver(notification())


def test_post_is_a_signed_cloud_event(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    message = notification()
    with http_receiver() as receiver:
        sender = runner(receiver.url, secret_file=str(tmp_path / "secret"))
        assert sender.deliver(message) == Delivered()
        (got,) = receiver.got
    assert got.path == "/hook?x=1"
    assert got.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert got.headers["webhook-id"] == "a1.firing"
    assert got.headers["webhook-timestamp"] == "1700000000"
    expected = sign([new_signer(SECRET)], "a1.firing", 1_700_000_000, got.raw)
    assert got.headers["webhook-signature"] == expected
    assert {key: got.body[key] for key in got.body if key != "data"} == {
        "specversion": "1.0",
        "id": "a1.firing",
        "source": "/ast-stream/rule/dog",
        "type": "org.ast-stream.alert.firing.v1",
        "subject": "a1",
        "time": format_time(T0_NS),
        "datacontenttype": "application/json",
        "severitytext": "medium",
        "causationid": "e1",
    }
    assert got.body["data"]["alert"] == message.alert.to_json()
    assert got.body["data"]["text"] == "Dog on porch"


@pytest.mark.parametrize("message", [notification(), notification("a1", resolved())])
def test_body_is_what_cloud_events_1_0_asks_for(message: Notification) -> None:
    event = json.loads(cloud_event(message))
    for required in ("id", "source", "specversion", "type"):
        assert event[required]
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in event)
    assert urlsplit(event["source"]).path == event["source"]  # a reference, without a host
    assert re.fullmatch(r"org(\.[a-z0-9-]+)+", event["type"])  # a reversed domain
    assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
    assert len(cloud_event(message)) < 20_000  # what Standard Webhooks recommends at most


def test_body_is_the_same_at_every_attempt() -> None:
    assert cloud_event(notification()) == cloud_event(notification())
    assert cloud_event(notification("a1", resolved())) != cloud_event(notification())


def test_there_is_no_signature_without_a_secret() -> None:
    with http_receiver() as receiver:
        runner(receiver.url).deliver(notification())
        assert "webhook-signature" not in receiver.got[0].headers


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (200, Delivered()),
        (204, Delivered()),
        (500, Failed("the receiver answered 500")),
        (503, Failed("the receiver answered 503", is_down=True)),
        (408, Failed("the receiver answered 408")),
        ((429, {"Retry-After": "90"}), Failed("the receiver answered 429", 90.0)),
        ((503, {"Retry-After": "soon"}), Failed("the receiver answered 503", 0.0, True)),
        (400, Undeliverable("the receiver answered 400")),
        (404, Undeliverable("the receiver answered 404")),
        (
            410,
            Undeliverable(
                "the receiver answered 410 (gone): nothing more is sent there", is_closed=True
            ),
        ),
    ],
)
def test_answer_decides_whether_it_is_tried_again(script: Script, outcome: Outcome) -> None:
    assert answer_to(script) == outcome


def test_redirects_are_not_followed() -> None:
    with http_receiver() as other:
        outcome = answer_to((307, {"Location": other.url}))
        assert outcome == Undeliverable("the receiver answered 307: redirects are not followed")
        assert other.got == []


@pytest.mark.parametrize("how", [HANG, DRIP])
def test_receiver_that_never_ends_its_answer_is_left_in_time(how: str) -> None:
    reason = "no answer from 127.0.0.1: nothing within 0.3 s"
    assert answer_to(how, timeout_s=0.3) == Failed(reason, is_down=True)


@pytest.mark.parametrize("how", [SLOW_BODY, HUGE_BODY])
def test_body_of_an_answer_is_not_waited_for(how: str) -> None:
    assert answer_to(how) == Delivered()


def test_receiver_that_is_not_there_is_tried_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        outcome = runner(f"http://127.0.0.1:{taken.getsockname()[1]}/").deliver(notification())
    assert outcome == Failed("no answer from 127.0.0.1: Connection refused", is_down=True)


def test_answer_that_is_no_http_is_reported_on_one_line() -> None:
    with http_receiver(GARBAGE) as receiver:
        outcome = runner(receiver.url).deliver(notification())
    assert outcome == Failed("no answer from 127.0.0.1: [31mgarbage", is_down=True)


def test_name_that_does_not_exist_is_tried_again() -> None:
    outcome = runner("http://does-not-exist.invalid/").deliver(notification())
    assert isinstance(outcome, Failed)


def test_name_that_no_resolver_can_be_asked_for_is_reported() -> None:
    outcome = runner(f"http://{'a' * 70}.test/").deliver(notification())
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("no answer from aaa")


@pytest.mark.parametrize("host", ["[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "0"])
def test_other_spellings_of_loopback_are_refused(host: str) -> None:
    with http_receiver() as receiver:
        url = receiver.url.replace("127.0.0.1", host)
        assert isinstance(runner(url, allow_private=False).deliver(notification()), Undeliverable)
        assert receiver.got == []


def test_redirect_is_not_followed_wherever_it_leads() -> None:
    with http_receiver() as inside, http_receiver((307, {"Location": inside.url})) as receiver:
        outcome = runner(receiver.url).deliver(notification())
        assert isinstance(outcome, Undeliverable)
        assert inside.got == []


def test_private_addresses_are_refused_unless_allowed() -> None:
    with http_receiver() as receiver:
        outcome = runner(receiver.url, allow_private=False).deliver(notification())
        assert isinstance(outcome, Undeliverable)
        to_do = "is not public; the action's 'allow_private: true' lets it"
        assert outcome.reason == f"127.0.0.1 {to_do}"
        by_name = receiver.url.replace("127.0.0.1", "localhost")
        assert isinstance(
            runner(by_name, allow_private=False).deliver(notification()), Undeliverable
        )
        assert receiver.got == []


def test_address_that_was_looked_at_is_the_one_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that resolves to a public address first and to a private one later gains nothing."""
    resolve = socket.getaddrinfo
    asked: list[object] = []

    def rebinding(host: object, port: object, *args: object, **kwargs: object) -> object:
        asked.append(host)
        address = "127.0.0.1" if len(asked) > 1 else "127.1.2.3"
        return resolve(address, port, *args, **kwargs)  # type: ignore[arg-type]

    with http_receiver() as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        url = receiver.url.replace("127.0.0.1", "rebind.test")
        outcome = runner(url).deliver(notification())
        assert asked == ["rebind.test"]
        assert receiver.got == []  # it listens at the second address, which was never asked for
    assert isinstance(outcome, Failed)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:0a00:0001::1", False),
        ("2002:7f00:1::", False),  # 6to4
        ("2001:0:7f00:1::", False),  # Teredo
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("64:ff9b::7f00:1", False),  # NAT64
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::93.184.216.34", True),
        ("64:ff9b:1::93.184.216.34", False),  # NAT64 of one network
        ("64:ff9b:1:ffff::7f00:1", False),
        ("::127.0.0.1", False),  # IPv4-compatible
        ("::93.184.216.34", False),
        ("::ffff:93.184.216.34", True),  # IPv4-mapped
        ("::ffff:0:127.0.0.1", False),  # IPv4-translated
        ("::ffff:0:93.184.216.34", False),
        ("2606:2800:220:1:0:5efe:a00:1", False),  # ISATAP
        ("2606:2800:220:1:200:5efe:a00:1", False),
        ("fec0::1", False),  # site-local
        ("ff0e::1", False),
        ("100::1", False),
        ("5f00::1", False),
        ("4000::1", False),  # not given out
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("2001:4860:4860::8888", True),
        ("::", False),
        ("192.0.0.8", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("203.0.113.7", False),
        ("172.31.255.255", False),
        ("172.32.0.1", True),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("223.255.255.255", True),
    ],
)
def test_public_addresses_are_distinguished_from_others(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("7", 7.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("999999999", 86_400.0),
        ("9" * 40, 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, 10.0) == seconds


def test_secret_that_is_missing_or_none_is_reported_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartupError, match=r"action hook: cannot read .*: No such file"):
        runner("https://example.test/", secret_file=str(tmp_path / "none"))
    with pytest.raises(StartupError, match="expected the environment variable HOOK, got none"):
        runner("https://example.test/", secret_env="HOOK")
    monkeypatch.setenv("HOOK", "whsec_c2hvcnQ=")
    with pytest.raises(StartupError, match="action hook: expected a secret of 24 to 64 bytes"):
        runner("https://example.test/", secret_env="HOOK")
