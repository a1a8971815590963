"""Webhooks over TLS, by a real server with certificates of a real authority."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from alert_samples import notification
from certificates import OPENSSL, Authority, Identity
from http_receiver import HANG, http_receiver

from ast_stream.alerts.actions.base import Delivered, Failed, Outcome
from ast_stream.alerts.actions.webhook import WebhookRunner
from ast_stream.errors import StartupError
from ast_stream.settings.alerts import WebhookAction

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs openssl: apt-get install openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def runner(url: str, ca_file: str | None, timeout_s: float = 5.0) -> WebhookRunner:
    fields = {"url": url, "allow_private": True, "timeout_s": timeout_s, "ca_file": ca_file}
    return WebhookRunner("hook", WebhookAction.model_validate({"type": "webhook"} | fields))


def answer_of(server: Identity, ca_file: str | None) -> tuple[Outcome, int]:
    """Return what came of a post to `server`, and how many requests it got."""
    with http_receiver(tls=server.server_context()) as receiver:
        outcome = runner(receiver.url, ca_file).deliver(notification())
        return outcome, len(receiver.got)


def refusal(reason: str) -> tuple[Outcome, int]:
    text = f"no answer from 127.0.0.1: its certificate is not accepted: {reason}"
    return Failed(text, is_down=True), 0


def test_receiver_with_a_certificate_of_the_named_authority_gets_it(
    authority: Authority,
) -> None:
    assert answer_of(authority.identity(), authority.ca_file) == (Delivered(), 1)


def test_authority_that_was_not_named_is_not_trusted(authority: Authority) -> None:
    reason = "unable to get local issuer certificate"
    assert answer_of(authority.identity(), None) == refusal(reason)


def test_certificate_that_has_expired_is_refused(authority: Authority) -> None:
    expired = authority.identity(days=-1)
    assert answer_of(expired, authority.ca_file) == refusal("certificate has expired")


def test_certificate_of_another_host_is_refused(authority: Authority) -> None:
    other = authority.identity("DNS:example.test")
    reason = "IP address mismatch, certificate is not valid for '127.0.0.1'"
    assert answer_of(other, authority.ca_file) == refusal(reason)


def test_name_in_the_url_is_what_the_certificate_must_have(authority: Authority) -> None:
    with http_receiver(tls=authority.identity("DNS:localhost").server_context()) as receiver:
        url = receiver.url.replace("127.0.0.1", "localhost")
        assert runner(url, authority.ca_file).deliver(notification()) == Delivered()


def test_self_signed_certificate_is_refused_unless_it_is_named(authority: Authority) -> None:
    own = authority.self_signed()
    assert answer_of(own, authority.ca_file) == refusal("self-signed certificate")
    assert answer_of(own, str(own.certificate)) == (Delivered(), 1)


def test_receiver_that_speaks_no_tls_is_named_as_such(authority: Authority) -> None:
    with http_receiver() as receiver:
        url = receiver.url.replace("http:", "https:")
        outcome = runner(url, authority.ca_file).deliver(notification())
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("no answer from 127.0.0.1: no TLS: ")


def test_handshake_and_answer_that_never_come_are_left_in_time(authority: Authority) -> None:
    late = Failed("no answer from 127.0.0.1: nothing within 0.3 s", is_down=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never says a word
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        assert runner(url, authority.ca_file, 0.3).deliver(notification()) == late
    with http_receiver(HANG, tls=authority.identity().server_context()) as receiver:
        assert runner(receiver.url, authority.ca_file, 0.3).deliver(notification()) == late


def test_ca_file_that_is_missing_or_holds_none_is_reported_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError) as raised:
        runner("https://example.test/", str(tmp_path / "none"))
    expected = f"action hook: cannot read ca_file {tmp_path}/none: No such file or directory"
    assert str(raised.value) == expected
    for text in ("", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"):
        (tmp_path / "ca.pem").write_text(text)
        with pytest.raises(StartupError, match=r"expected certificates in ca_file .*, got none"):
            runner("https://example.test/", str(tmp_path / "ca.pem"))


def test_ca_file_without_tls_is_refused() -> None:
    with pytest.raises(ValueError, match="ca_file: expected an https:// url beside it"):
        runner("http://example.test/", "/etc/ssl/ca.pem")
