from __future__ import annotations

from typing import Any

import pytest

from ast_stream.errors import ConfigError
from ast_stream.settings.load import parse_settings
from ast_stream.settings.web import SCOPES, WebSettings

START = "streams: [{name: porch, source: {type: scene}}]\nweb: "


def web(text: str) -> WebSettings:
    return parse_settings(START + text).web


def test_the_page_is_off_unless_it_is_asked_for() -> None:
    assert web("{}").listen is None


@pytest.mark.parametrize(
    ("text", "needs_login"),
    [
        ("{listen: '127.0.0.1:8080'}", False),
        ("{listen: '[::1]:8080'}", False),
        ("{listen: 'localhost:8080'}", False),
        ("{listen: '127.0.0.1:8080', without_login: []}", True),
        ("{listen: '127.0.0.1:8080', certificate: a.pem, private_key: b.pem}", True),
        ("{listen: '127.0.0.1:8080', behind_proxy: {token_file: a}}", True),
        ("{listen: '0.0.0.0:8443', certificate: a.pem, private_key: b.pem}", True),
    ],
)
def test_only_plain_loopback_needs_no_login(text: str, needs_login: bool) -> None:
    assert web(text).needs_login is needs_login


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{listen: '0.0.0.0:8080'}", "web.listen: expected a certificate and a private_key"),
        ("{listen: '192.168.1.5:8080'}", "web.listen: expected a certificate and a private_key"),
        ("{listen: 'box.local:8080'}", "web.listen: expected a certificate and a private_key"),
        (
            "{listen: '10.0.0.1:80', behind_proxy: {token_file: a}}",
            "web.listen: expected a certificate and a private_key",
        ),
        ("{listen: 8080}", "expected host:port, e.g. 127.0.0.1:8080 for this machine alone, got"),
        ("{listen: '8080'}", "expected host:port, e.g. 127.0.0.1:8080 for this machine alone, got"),
        ("{listen: ':8080'}", "expected host:port, e.g. 127.0.0.1:8080 for this machine alone"),
        ("{listen: true}", "web.listen: expected text, got true"),
        ("{listen: '127.0.0.1:0'}", "web.listen: expected a port from 1 to 65535, got 0"),
        ("{certificate: a.pem}", "web.certificate: expected private_key, too"),
        ("{private_key: a.pem}", "web.private_key: expected certificate, too"),
        ("{hosts: ['https://box.local']}", "web.hosts: expected names without port or scheme"),
        ("{without_login: [everything]}", "web.without_login[0]"),
        ("{behind_proxy: {}}", "web.behind_proxy"),
        ("{behind_proxy: {token_file: a, user_header: 'X User'}}", "web.behind_proxy.user_header"),
        ("{listen: 8080}", "web.listen"),
    ],
)
def test_settings_that_are_not_safe_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"<text>:2: ") as caught:
        web(text)
    assert sentence in str(caught.value)


def test_everything_is_open_to_whoever_is_on_the_box_unless_it_is_narrowed() -> None:
    settings: dict[str, Any] = {"listen": "127.0.0.1:8080"}
    assert WebSettings.model_validate(settings).without_login == list(SCOPES)
    narrowed = WebSettings.model_validate(settings | {"without_login": ["view"]})
    assert narrowed.without_login == ["view"]
