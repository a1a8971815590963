from __future__ import annotations

import pytest

from ast_stream.errors import ConfigError
from ast_stream.settings.load import parse_settings

START = "streams: [{name: porch, source: {type: stdin}}]\nalerts:\n"


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_settings(START + text, "c.yaml")
    return str(raised.value)


def test_every_type_of_action_can_be_configured() -> None:
    alerts = parse_settings(
        START
        + """
  rules: [alerts.yaml]
  allow_exec: true
  actions:
    note: {type: log, level: info, on: [resolved]}
    siren: {type: command, argv: [/usr/bin/siren, "on"]}
    siem: {type: webhook, url: "https://example.test/hook", secret_env: HOOK}
    home: {type: mqtt, host: broker.local, tls: true}
    phone: {type: apprise, urls_file: /run/secrets/phone, rate_limit: {max: 5, per_s: 60}}
  heartbeat: {action: siem, interval_s: 30}
"""
    ).alerts
    assert [action.type for action in alerts.actions.values()] == [
        "log",
        "command",
        "webhook",
        "mqtt",
        "apprise",
    ]
    assert alerts.actions["note"].on == ["resolved"]
    assert all(action.on == ["firing", "resolved"] for action in list(alerts.actions.values())[1:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "  actions: {a: {type: command, argv: [/bin/true]}}",
            "action 'a' runs a program: needs alerts.allow_exec: true",
        ),
        (
            "  allow_exec: true\n  actions: {a: {type: command, argv: [siren]}}",
            "expected a program with its absolute path, got 'siren'",
        ),
        (
            "  actions: {a: {type: webhook, url: 'https://u:p@example.test/'}}",
            "expected http(s)://host/path without user, password and fragment",
        ),
        (
            "  actions: {a: {type: webhook, url: 'http://x/', secret_env: A, secret_file: b}}",
            "expected secret_file or secret_env, got both",
        ),
        ("  actions: {a: {type: apprise}}", "expected either urls_file or urls_env"),
        ("  actions: {feed: {type: log}}", "other than 'feed', got 'feed'"),
        ("  actions: {Phone: {type: log}}", "got 'Phone'"),
        ("  actions: {a: {type: log, on: [fired]}}", "fired"),
        ("  actions: {a: {type: sms}}", "sms"),
        (
            "  actions: {a: {level: info}}",
            "the key 'type' is missing; expected log, command, webhook, mqtt or apprise",
        ),
        (
            "  actions: {a: {type: mqtt, host: b}}\n  heartbeat: {action: a}",
            "expected the name of a webhook, command, log or apprise action, got 'a'",
        ),
        ("  heartbeat: {action: none}", "got 'none'"),
    ],
)
def test_mistake_is_reported_at_its_place(text: str, expected: str) -> None:
    problem = refusal(text)
    assert expected in problem
    assert problem.startswith("c.yaml:")
