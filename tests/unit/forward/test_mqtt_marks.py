"""What an MQTT broker has forgotten is sent again, and no more than that, with a real mosquitto."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mqtt_broker import (
    MOSQUITTO,
    Broker,
    Forwarder,
    Listener,
    listener,
    mqtt_broker,
    wait_for,
)
from outgoing_messages import BOX, Numbers, output_settings
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from ast_stream.forward import mqtt_marks
from ast_stream.forward.positions import PositionFile
from ast_stream.forward.sender import Sender
from ast_stream.forward.to_mqtt import MqttForwarder

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (apt)")
MARKS = "ast_stream/home/attic/mark/centre"
KEEPS = ("persistence true", "autosave_interval 0", "max_queued_messages 0")


class Centre:
    """A reader whose session lasts; what comes is kept and acknowledged."""

    def __init__(self, broker: Broker) -> None:
        self.got: list[int] = []
        self._client = Client(
            CallbackAPIVersion.VERSION2, "reader", protocol=MQTTProtocolVersion.MQTTv5
        )
        lasting = Properties(PacketTypes.CONNECT)
        lasting.SessionExpiryInterval = 3600
        self._is_ready = False
        self._client.on_message = lambda client, data, message: self.got.append(
            json.loads(message.payload)["data"]["n"]
        )
        self._client.on_subscribe = lambda *_: setattr(self, "_is_ready", True)
        self._client.connect("127.0.0.1", broker.port, clean_start=False, properties=lasting)
        self._client.subscribe("ast_stream/+/+/gap/#", qos=1)
        self._client.loop_start()
        wait_for(lambda: self._is_ready, "the reader")

    def leave(self) -> list[int]:
        """Return what came; the session stays."""
        self._client.disconnect()
        self._client.loop_stop()
        return self.got


@contextmanager
def sending(folder: Path, port: int, source: Numbers, **settings: Any) -> Iterator[Sender]:
    """Yield a sender of numbers, from where its position file says."""
    own = {"type": "mqtt", "host": "127.0.0.1", "port": port, "timeout_s": 2.0} | settings
    output = output_settings(**own)
    sender = Sender(
        MqttForwarder(output, BOX),
        PositionFile(folder / "centre.json"),
        lambda cursors: [source.behind(cursors.get(source.name))],
        BOX,
        output.max_unconfirmed,
    )
    sender.start()
    try:
        yield sender
    finally:
        sender.close()


def wait_for_mark(watcher: Listener, folder: Path, upto: int) -> None:
    """Wait until the broker has a mark behind a number."""

    def newest() -> str:
        marks = json.loads((folder / "centre.json").read_bytes()).get("marks")
        return f"{marks['series']} {marks['newest']}" if marks else ""

    wait_for(
        lambda: (
            PositionFile(folder / "centre.json").newest.get("numbers") == upto
            and watcher.last(MARKS) == newest()
        ),
        "the mark",
    )


def test_lost_connection_and_killed_forwarder_repeat_nothing(tmp_path: Path) -> None:
    source = Numbers(None, 10)
    with mqtt_broker(tmp_path) as broker, listener(broker.port) as watcher:
        centre = Centre(broker)
        network = Forwarder(broker.port)
        with sending(tmp_path, network.port, source) as sender:
            wait_for_mark(watcher, tmp_path, 10)
            network.cut()
            wait_for(lambda: sender.output.reconnects == 1, "a new connection")
            source.n_messages = 20
            wait_for_mark(watcher, tmp_path, 20)
            network.close()  # what is left of this one is of no use any more
            source.n_messages = 30
            with sending(tmp_path, broker.port, source):
                wait_for_mark(watcher, tmp_path, 30)
        assert centre.leave() == list(range(30))


def test_killed_broker_gets_again_what_it_had_not_saved(tmp_path: Path) -> None:
    source = Numbers(None, 10)
    lines = (*KEEPS, f"persistence_location {tmp_path}/")
    with mqtt_broker(tmp_path, *lines) as broker:
        Centre(broker).leave()
        with sending(tmp_path, broker.port, source, without_subscriber="wait") as sender:
            with listener(broker.port) as watcher:
                wait_for_mark(watcher, tmp_path, 10)
                broker.signal(signal.SIGUSR1)  # it saves
                saved = tmp_path / "mosquitto.db"
                wait_for(saved.is_file, "what is saved")
                source.n_messages = 17
                wait_for_mark(watcher, tmp_path, 17)
            broker.kill()
            source.n_messages = 20
            broker.start()
            wait_for(lambda: sender.sent.total() == 10 + 7 + 10, "what was forgotten, and the rest")
        centre = Centre(broker)
        wait_for(lambda: len(centre.got) >= 20, "all messages")
        assert centre.leave() == list(range(20))


@pytest.mark.parametrize("is_killed_too", [False, True])
def test_broker_that_keeps_nothing_gets_all_again(tmp_path: Path, is_killed_too: bool) -> None:
    source = Numbers(None, 10)
    with mqtt_broker(tmp_path) as broker:
        Centre(broker).leave()
        with listener(broker.port) as watcher, sending(tmp_path, broker.port, source) as sender:
            wait_for_mark(watcher, tmp_path, 10)
            if is_killed_too:
                sender.close()
            broker.kill()
            broker.start()
            centre = Centre(broker)
            if not is_killed_too:
                wait_for(lambda: sender.sent.total() == 20, "all messages again")
        if is_killed_too:
            with sending(tmp_path, broker.port, source) as sender:
                wait_for(lambda: sender.sent.total() == 10, "all messages again")
        wait_for(lambda: len(centre.got) >= 10, "all messages")
        assert centre.leave() == list(range(10))


def test_broker_that_returns_no_marks_gets_all_again_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_marks, "ANSWER_S", 0.2)
    (tmp_path / "acl").write_text("topic write ast_stream/#\ntopic read ast_stream/+/+/gap/#\n")
    (tmp_path / "acl").chmod(0o600)
    source = Numbers(None, 10)
    with mqtt_broker(tmp_path, f"acl_file {tmp_path}/acl") as broker:
        centre = Centre(broker)
        for n_runs in (1, 2):
            with sending(tmp_path, broker.port, source) as sender:
                wait_for(lambda: sender.sent.total() == 10, "all messages")
            wait_for(lambda: len(centre.got) == 10 * n_runs, "them")  # noqa: B023
        centre.leave()
    assert f"does not return what is sent to {MARKS}" in caplog.text


def test_marks_of_others_say_nothing(tmp_path: Path) -> None:
    source = Numbers(None, 10)
    with mqtt_broker(tmp_path) as broker, listener(broker.port) as watcher:
        centre = Centre(broker)
        with sending(tmp_path, broker.port, source):
            wait_for_mark(watcher, tmp_path, 10)
        (tmp_path / "centre.json").unlink()  # it has another series
        for n in range(5):
            watcher.publish(MARKS, f"abc {n}")
        with sending(tmp_path, broker.port, source) as sender:
            wait_for(lambda: sender.sent.total() == 10, "all messages again")
        wait_for(lambda: len(centre.got) == 20, "all messages")
        assert centre.leave() == [*range(10), *range(10)]
