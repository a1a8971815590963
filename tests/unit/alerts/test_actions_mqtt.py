from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from alert_samples import notification, resolved
from certificates import OPENSSL, Authority, Identity
from home_assistant import check_discovery
from mqtt_broker import (
    MOSQUITTO,
    Broker,
    Forwarder,
    Listener,
    listener,
    mqtt_broker,
    password_file,
    wait_for,
)

from ast_stream.alerts.actions.base import Delivered, Entities, Failed, Outcome
from ast_stream.alerts.actions.mqtt import (
    SETTLE_AFTER,
    MqttRunner,
    Topics,
    announced_before,
    discovery,
)
from ast_stream.errors import StartupError
from ast_stream.messages.event import EventMessage
from ast_stream.messages.status import Health, StreamState
from ast_stream.settings.alerts import MqttAction

needs_mosquitto = pytest.mark.skipif(
    MOSQUITTO is None, reason="needs mosquitto: apt-get install mosquitto"
)
ENTITIES = Entities(("porch", "hall"), ("Bark", "Baby cry, infant cry"), ("dog",))
STATUS = "ast-stream/ast-stream/status"
BARK = "ast-stream/ast-stream/porch/bark/state"
DEVICE = "homeassistant/device/ast-stream_stream_porch/config"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with mqtt_broker(tmp_path) as running:
        yield running


@contextmanager
def running(port: int, entities: Entities = ENTITIES, **options: Any) -> Iterator[MqttRunner]:
    fields = {"type": "mqtt", "host": "127.0.0.1", "port": port, "timeout_s": 5.0}
    fields |= {"node": "ast-stream"} | options
    runner = MqttRunner("ha", MqttAction.model_validate(fields), entities)
    try:
        yield runner
    finally:
        runner.close()


def event(kind: str, id: str = "e1", name: str = "bark") -> EventMessage:
    body = {"type": kind, "id": id, "class": name, "stream": "porch", "peak": 0.9, "score": 0.8}
    times = {"onset": "2027-01-15T08:00:00Z", "captured": "2027-01-15T08:00:01Z"}
    return EventMessage.from_json(body | times | {"label": name.capitalize()})


def components(client: Listener, topic: str) -> dict[str, Any]:
    """Return the components last announced on a discovery topic."""
    found: dict[str, Any] = json.loads(client.last(topic) or "{}").get("components", {})
    return found


def health(state: StreamState = "listening") -> Health:
    return Health(stream="porch", state=state)


@needs_mosquitto
def test_what_others_have_retained_is_left_alone_however_deep() -> None:
    topics, deep = Topics("base", "box"), b'{"components": ' + b"[" * 100_000
    for retained in (deep + b"]" * 100_000 + b"}", deep, b"\xff", b"[]"):
        assert announced_before(topics, retained) is None


def test_classes_without_latin_letters_have_sensors_of_their_own() -> None:
    entities = Entities(streams=("porch",), classes=("狗叫", "海浪", "警笛"))
    (payload,) = discovery(Topics("base", "box"), "homeassistant", entities).values()
    sensors = payload["components"].values()
    assert [sensor["name"] for sensor in sensors] == ["狗叫", "海浪", "警笛"]
    for key in ("unique_id", "state_topic", "json_attributes_topic"):
        assert len({sensor[key] for sensor in sensors}) == 3
        assert all(re.fullmatch(r"[a-zA-Z0-9_/-]+", sensor[key]) for sensor in sensors)


def test_devices_are_announced_retained_and_online(broker: Broker) -> None:
    with running(broker.port), listener(broker.port) as first:
        wait_for(lambda: first.last(STATUS) == "online", "the announcement")
        with listener(broker.port) as late:
            # in what order a broker gives out what it has kept is its own affair
            wait_for(lambda: (DEVICE, first.last(DEVICE), True) in late.got, "the device")
            wait_for(lambda: late.last(STATUS) == "online", "retained messages")
            device = json.loads(late.last(DEVICE) or "")
    sensor = device["components"]["baby_cry_infant_cry"]
    assert sensor["platform"] == "binary_sensor"
    assert sensor["device_class"] == "sound"
    assert sensor["state_topic"] == "ast-stream/ast-stream/porch/baby_cry_infant_cry/state"
    assert sensor["availability_mode"] == "all"
    assert device["origin"]["name"] == "ast-stream"


@needs_mosquitto
def test_alert_is_an_event_that_is_not_retained(broker: Broker) -> None:
    topic = "ast-stream/ast-stream/alerts/dog"
    with running(broker.port) as runner, listener(broker.port) as client:
        assert runner.deliver(notification()) == Delivered()
        assert runner.deliver(notification("a1", resolved())) == Delivered()
        wait_for(lambda: client.count(topic) == 2, "both events")
        first, second = (json.loads(text) for name, text, _ in client.got if name == topic)
        assert (first["event_type"], first["id"]) == ("firing", "a1.firing")
        assert (second["event_type"], second["id"]) == ("resolved", "a1.resolved")
        with listener(broker.port) as late:
            wait_for(lambda: late.last(STATUS) == "online", "retained messages")
            assert late.count(topic) == 0


@needs_mosquitto
def test_sensor_is_on_while_any_event_of_its_class_lasts(broker: Broker) -> None:
    with running(broker.port) as runner, listener(broker.port) as client:
        wait_for(lambda: client.last(STATUS) == "online", "the connection")
        runner.on_event(event("begin", "e1"))
        runner.on_event(event("begin", "e2"))
        runner.on_event(event("end", "e1"))
        runner.on_event(event("begin", "e3", "speech"))  # not exposed
        wait_for(lambda: client.last(BARK) == "ON", "the sensor to be on")
        runner.on_event(event("end", "e2"))
        wait_for(lambda: client.last(BARK) == "OFF", "the sensor to be off")
        states = [text for name, text, _ in client.got if name == BARK]
        attributes = json.loads(client.last(BARK.replace("/state", "/attributes")) or "")
    assert states == ["ON", "OFF"]
    assert attributes["peak"] == 0.9
    assert not any("speech" in name for name, _, _ in client.got)


@needs_mosquitto
def test_sensor_that_was_never_on_is_off_once_updates_would_have_come(broker: Broker) -> None:
    with running(broker.port) as runner, listener(broker.port) as client:
        for _ in range(SETTLE_AFTER - 1):
            runner.on_health(health())
        runner.on_event(event("update"))
        runner.on_health(health())
        quiet = "ast-stream/ast-stream/porch/baby_cry_infant_cry/state"
        wait_for(lambda: client.last(quiet) == "OFF", "the other sensor")
        assert client.last(BARK) == "ON"


@needs_mosquitto
def test_missing_stream_is_not_quiet_but_offline(broker: Broker) -> None:
    topic = "ast-stream/ast-stream/porch/status"
    with running(broker.port) as runner, listener(broker.port) as client:
        runner.on_health(health())
        wait_for(lambda: client.last(topic) == "online", "the stream")
        runner.on_health(health("missing"))
        wait_for(lambda: client.last(topic) == "offline", "the loss")


@needs_mosquitto
def test_everything_is_announced_again_when_home_assistant_starts(broker: Broker) -> None:
    with running(broker.port) as runner, listener(broker.port) as client:
        wait_for(lambda: client.last(STATUS) == "online", "the announcement")
        runner.on_event(event("begin"))
        wait_for(lambda: client.last(BARK) == "ON", "the state")
        before = client.count(DEVICE), client.count(BARK)
        client.publish("homeassistant/status", "online")
        wait_for(
            lambda: (client.count(DEVICE), client.count(BARK)) == (before[0] + 1, before[1] + 1),
            "the second announcement",
        )


@needs_mosquitto
def test_broker_says_offline_when_the_process_dies_and_online_after_a_goodbye_is_over(
    broker: Broker,
) -> None:
    with listener(broker.port) as client, closing(Forwarder(broker.port)) as forwarder:

        def said() -> list[str]:
            """Return what the status became: what the cut left unconfirmed is sent twice."""
            texts = [text for name, text, _ in list(client.got) if name == STATUS]
            return [text for text, _ in groupby(texts)]

        with running(forwarder.port):
            wait_for(lambda: said() == ["online"], "the connection")
            forwarder.cut()  # as the death of the process: no goodbye
            # the last will may be followed by the next connection before anybody looks
            wait_for(lambda: said() == ["online", "offline", "online"], "the next connection")
        wait_for(lambda: said()[3:] == ["offline"], "the goodbye")


@needs_mosquitto
def test_states_are_published_again_to_a_broker_that_was_restarted(broker: Broker) -> None:
    with running(broker.port) as runner:
        assert runner.deliver(notification()) == Delivered()
        broker.kill()
        runner.on_event(event("begin"))
        broker.start()
        with listener(broker.port) as client:
            wait_for(lambda: client.last(BARK) == "ON", "the state")
            assert json.loads(client.last(DEVICE) or "")["components"]


@pytest.mark.slow
@needs_mosquitto
def test_broker_that_is_away_is_tried_again(broker: Broker) -> None:
    broker.kill()
    with running(broker.port, timeout_s=0.2) as runner:
        outcome = runner.deliver(notification())
        reason = f"no connection to 127.0.0.1:{broker.port}: Connection refused"
        assert outcome == Failed(reason, is_down=True)
        broker.start()
        wait_for(lambda: runner.deliver(notification()) == Delivered(), "the broker")


@needs_mosquitto
def test_wrong_password_is_reported_once_and_the_right_one_lets_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = password_file(tmp_path, "ears", "right")
    (tmp_path / "wrong").write_text("wrong\n")
    (tmp_path / "right").write_text("right\n")
    lines = ("allow_anonymous false", f"password_file {passwords}")
    with mqtt_broker(tmp_path, *lines) as broker:
        login: dict[str, Any] = {
            "username": "ears",
            "password_file": str(tmp_path / "wrong"),
            "timeout_s": 0.5,
        }
        with running(broker.port, **login) as runner:
            place = f"127.0.0.1:{broker.port}"
            expected = Failed(f"no connection to {place}: refused: not authorized", is_down=True)
            wait_for(lambda: runner.deliver(notification()) == expected, "the refusal")
            assert runner.deliver(notification()) == expected
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert errors == [f"no connection to the broker {place}: refused: not authorized"]
        login["password_file"] = str(tmp_path / "right")
        with running(broker.port, **login) as runner:
            wait_for(lambda: runner.deliver(notification()) == Delivered(), "the connection")
    assert "right" not in caplog.text.replace("the right", "")


@needs_mosquitto
@pytest.mark.skipif(OPENSSL is None, reason="needs openssl: apt-get install openssl")
# paho leaves a socket to the garbage collector when a handshake fails
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_broker_must_have_a_certificate_of_the_named_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, other = authority.identity(), authority.identity("DNS:example.test")

    def expect(expected: Outcome, server: Identity, **options: Any) -> None:
        lines = (f"certfile {server.certificate}", f"keyfile {server.key}")
        with mqtt_broker(tmp_path, *lines) as broker:
            settings = {"tls": True, "timeout_s": 2.0} | options

            def is_so() -> bool:  # at first it may only be that there is no connection yet
                found = runner.deliver(notification())
                if isinstance(found, Failed):
                    found = replace(found, reason=found.reason[34:])
                return found == expected

            with running(broker.port, **settings) as runner:
                wait_for(is_so, str(expected))

    expect(Delivered(), good, ca_file=authority.ca_file)
    reason = "its certificate is not accepted: unable to get local issuer certificate"
    expect(Failed(reason, is_down=True), good)
    reason = (
        "its certificate is not accepted: IP address mismatch, certificate is not valid for "
        "'127.0.0.1'"
    )
    expect(Failed(reason, is_down=True), other, ca_file=authority.ca_file)


@needs_mosquitto
def test_what_an_earlier_run_announced_and_is_shown_no_more_is_removed(broker: Broker) -> None:
    lamp = {"components": {"bark": {"platform": "light", "state_topic": "lamp/state"}}}
    others = {"homeassistant/device/lamp/config": json.dumps(lamp)}
    others["homeassistant/device/odd/config"] = '{"components": ["what they like"]}'
    with running(broker.port), listener(broker.port) as client:
        wait_for(lambda: client.last(STATUS) == "online", "the announcement")
        for topic, payload in others.items():
            client.publish(topic, payload, retain=True)
    hall = DEVICE.replace("porch", "hall")
    alerts = "homeassistant/device/ast-stream_alerts/config"
    with listener(broker.port) as client:
        with running(broker.port, Entities(("porch",), ("Bark",), ("cat",))):
            wait_for(lambda: client.last(hall) == "", "the removal of a stream")
            gone = {"baby_cry_infant_cry": {"platform": "binary_sensor"}}
            wait_for(lambda: gone.items() <= components(client, DEVICE).items(), "of a class")
            gone = {"dog": {"platform": "event"}}
            wait_for(lambda: gone.items() <= components(client, alerts).items(), "of a rule")
            assert components(client, DEVICE)["bark"]["name"] == "Bark"
        n_before = client.count(DEVICE)
        with running(broker.port, Entities(("porch",), ("Bark",), ("cat",))):
            wait_for(lambda: client.count(DEVICE) > n_before, "the next run")
            assert set(components(client, DEVICE)) == {"bark"}
        assert {topic: client.last(topic) for topic in others} == others


@needs_mosquitto
def test_what_is_announced_is_what_home_assistant_asks_for(broker: Broker) -> None:
    with running(broker.port) as runner, listener(broker.port) as client:
        wait_for(lambda: client.last(STATUS) == "online", "the announcement")
        runner.expose(Entities(("porch",), ("Bark",), ("cat",)))
        cat = "homeassistant/device/ast-stream_alerts/config"
        wait_for(lambda: "cat" in components(client, cat), "the change")
        discovered = [message for message in client.got if message[0].startswith("homeassistant/")]
    assert len(discovered) >= 6
    for topic, payload, _ in discovered:
        check_discovery(topic, payload)


@needs_mosquitto
def test_components_of_rules_that_are_gone_are_removed(broker: Broker) -> None:
    with running(broker.port) as runner, listener(broker.port) as client:
        wait_for(lambda: client.last(STATUS) == "online", "the announcement")
        n_before = client.count(DEVICE)
        runner.expose(Entities(("porch",), ("Bark",), ("dog",)))
        wait_for(lambda: client.count(DEVICE) > n_before, "the change")
        components = json.loads(client.last(DEVICE) or "")["components"]
        assert components["baby_cry_infant_cry"] == {"platform": "binary_sensor"}
        assert components["bark"]["name"] == "Bark"
        hall = DEVICE.replace("porch", "hall")
        wait_for(lambda: client.last(hall) == "", "the removal of a stream")


def test_ids_have_only_characters_that_home_assistant_allows() -> None:
    entities = Entities(("porch",), ("Baby cry, infant cry",), ("smoke-alarm",))
    messages = discovery(Topics("base", "box-1"), "homeassistant", entities)
    for topic, payload in messages.items():
        ids = [topic.split("/")[2], *payload["components"], *payload["device"]["identifiers"]]
        ids += [component["unique_id"] for component in payload["components"].values()]
        assert all(id.replace("_", "").replace("-", "").isalnum() for id in ids)


def test_nothing_exposed_announces_nothing() -> None:
    assert discovery(Topics("base", "node"), "homeassistant", Entities()) == {}


def test_password_and_certificates_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    common = {"type": "mqtt", "host": "localhost"}
    wrong = {"username": "u", "password_file": str(tmp_path / "none")}
    with pytest.raises(StartupError, match="action ha: cannot read"):
        MqttRunner("ha", MqttAction.model_validate(common | wrong))
    wrong_tls = {"tls": True, "ca_file": str(tmp_path / "none")}
    with pytest.raises(StartupError, match="action ha: cannot read ca_file"):
        MqttRunner("ha", MqttAction.model_validate(common | wrong_tls))


@pytest.mark.parametrize(
    ("host", "node"),
    [
        ("box1", "box1"),
        ("box1.home.arpa", "box1-home-arpa"),
        ("b\u00fcro", "b-ro"),
        ("", "ast-stream"),
    ],
)
def test_machines_that_share_a_broker_are_distinguished_by_their_host_names(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, host: str, node: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    with listener(broker.port) as client, running(broker.port, node=None):
        wait_for(lambda: client.last(f"ast-stream/{node}/status") == "online", "the node")
