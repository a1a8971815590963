"""Settings of outputs to MQTT and Kafka: what is only half said is refused in a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from ast_stream.errors import ConfigError
from ast_stream.settings.load import parse_settings

MQTT = "type: mqtt, host: broker"
KAFKA = 'type: kafka, brokers: ["k-1:9092", "[::1]:9092"]'


def output(text: str) -> Any:
    """Return the only output of a configuration."""
    source = "{type: file, path: a.wav}"
    streams = f"streams: [{{name: yard, source: {source}}}]"
    (found,) = parse_settings(f"{streams}\nforward: [{{name: centre, {text}}}]").forward
    return found


@pytest.mark.parametrize("text", [MQTT, KAFKA])
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("username: box", "expected username and password_file or password_env, got one alone"),
        ("password_file: p", "expected username and password_file or password_env, got one alone"),
        (
            "username: box, password_file: p, password_env: P",
            "expected password_file or password_env, got both",
        ),
        ("tls: true, key_file: k", "key_file: expected cert_file beside it, got none"),
        ("ca_file: c", "ca_file: expected tls: true beside it, got false"),
        ("cert_file: c", "cert_file: expected tls: true beside it, got false"),
    ],
)
def test_half_a_login_is_refused(text: str, more: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        output(f"{text}, {more}")


@pytest.mark.parametrize("broker", ["kafka", "kafka:", "user@kafka:9092", "kafka:9092/x", "a b:1"])
def test_address_of_a_kafka_broker_is_host_and_port(broker: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        output(f'type: kafka, brokers: ["{broker}"]')


def test_receivers_are_named_without_secrets() -> None:
    login = "username: box, password_file: /etc/secret"
    mqtt = output(f"{MQTT}, {login}, tls: true")
    assert mqtt.receiver == "the MQTT broker broker:1883, with tls"
    assert mqtt.secret_files == {"password": "/etc/secret"}
    kafka = output(f"{KAFKA}, {login}")
    assert kafka.receiver == "the Kafka cluster k-1:9092, [::1]:9092, not encrypted"
    assert kafka.secret_files == {"password": "/etc/secret"}
