"""The output `mqtt` against a real mosquitto."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import OPENSSL, Authority
from mqtt_broker import (
    MOSQUITTO,
    PATIENCE_S,
    Broker,
    Forwarder,
    listener,
    mqtt_broker,
    password_file,
    wait_for,
)
from outgoing_messages import BOX, outgoing, output_settings, send_until_taken
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from ast_stream.errors import StartupError
from ast_stream.forward import mqtt_marks
from ast_stream.forward.output import OutputError
from ast_stream.forward.to_mqtt import CONTENT_TYPE, MqttForwarder

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (apt)")
STATUS = "ast_stream/home/attic/status"


def test_messages_are_confirmed_and_say_what_they_are(tmp_path: Path) -> None:
    with mqtt_broker(tmp_path) as broker, reader(broker) as got, forwarder(broker) as output:
        batch = [outgoing(n) for n in range(5)]
        assert output.send(batch) == 5
        wait_for(lambda: len(got) == 5, "messages")
    assert [message.topic for message in got] == ["ast_stream/home/attic/event/porch/bark"] * 5
    assert [message.payload for message in got] == [message.body for message in batch]
    assert {message.qos for message in got} == {1}
    assert [message.properties.UserProperty for message in got] == [
        [("id", f"e{n}.begin")] for n in range(5)
    ]
    assert {message.properties.ContentType for message in got} == {CONTENT_TYPE}


def test_status_is_retained_and_says_when_the_box_has_gone(tmp_path: Path) -> None:
    with mqtt_broker(tmp_path) as broker, listener(broker.port) as client:
        with forwarder(broker) as output:
            output.publish_status(b'{"v":1,"site":"home"}')
            output.publish_status(b'{"v":2,"site":"home"}')
            wait_for(lambda: '"v":2' in (client.last(STATUS) or ""), "the status")
            with listener(broker.port) as late:
                wait_for(lambda: late.last(STATUS) is not None, "the retained status")
                assert json.loads(late.last(STATUS) or "") == {
                    "online": True, "v": 2, "site": "home"
                }  # fmt: skip
        wait_for(lambda: "false" in (client.last(STATUS) or ""), "the goodbye")
        assert json.loads(client.last(STATUS) or "") == {
            "online": False, "site": "home", "box": "attic"
        }  # fmt: skip


def test_last_will_comes_for_a_box_that_is_cut_off_and_not_for_one_that_is_soon_back(
    tmp_path: Path,
) -> None:
    with mqtt_broker(tmp_path) as broker, listener(broker.port) as client:
        network = Forwarder(broker.port)
        with forwarder(broker, port=network.port, offline_after_s=600) as output:
            output.publish_status(b'{"v":1}')
            wait_for(lambda: client.count(STATUS) == 1, "the status")
            network.cut()
            wait_for(lambda: client.count(STATUS) == 2, "the status again")
            assert '"online":true' in (client.last(STATUS) or "")
            assert output.reconnects == 1
        network.close()
        network = Forwarder(broker.port)
        client.got.clear()
        output = new_output(broker, port=network.port, offline_after_s=0)
        output.start()
        output.publish_status(b'{"v":3}')
        wait_for(lambda: '"v":3' in (client.last(STATUS) or ""), "the status")
        network.close()  # for good
        wait_for(lambda: '"online":false' in (client.last(STATUS) or ""), "the last will")
        output.close()


def test_message_without_subscriber_waits_on_the_box_for_one(tmp_path: Path) -> None:
    with mqtt_broker(tmp_path) as broker, forwarder(broker) as output:
        with pytest.raises(OutputError, match=r"nobody has subscribed .* waits on") as error:
            output.send([outgoing(1)])
        assert error.value.confirmed == 0
        with reader(broker) as got:
            assert output.send([outgoing(1)]) == 1
            wait_for(lambda: len(got) == 1, "the message")


def test_message_without_subscriber_is_dropped_where_that_is_wanted(tmp_path: Path) -> None:
    with (
        mqtt_broker(tmp_path) as broker,
        forwarder(broker, without_subscriber="drop") as output,
    ):
        assert output.send([outgoing(1)]) == 1


def test_receive_maximum_of_the_broker_is_respected(tmp_path: Path) -> None:
    # mosquitto ends the connection of a client that does not
    with (
        mqtt_broker(tmp_path, "max_inflight_messages 3") as broker,
        reader(broker) as got,
        forwarder(broker) as output,
    ):
        assert output.send([outgoing(n) for n in range(200)]) == 200
        wait_for(lambda: len(got) == 200, "the messages")
        assert output.reconnects == 0


def test_message_that_the_broker_can_never_take_is_named(tmp_path: Path) -> None:
    with (
        mqtt_broker(tmp_path, "max_packet_size 2000") as broker,
        reader(broker),
        forwarder(broker) as output,
    ):
        batch = [outgoing(1), outgoing(2, text="x" * 4000), outgoing(3)]
        with pytest.raises(OutputError, match="expected at most 2000 bytes") as error:
            output.send(batch)
        assert error.value.confirmed == 1
        assert error.value.is_too_large
        assert output.send(batch[2:]) == 1


def test_broker_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    with forwarder(broker, is_reached=False, timeout_s=0.5) as output:
        wait_for(lambda: "refused" in (output.error or ""), "the first try")
        with pytest.raises(OutputError) as error:
            output.send([outgoing(1)])
        assert str(error.value) == f"output centre: 127.0.0.1:{broker.port}: Connection refused"
        assert output.error == str(error.value)
        broker.start()
        try:
            with reader(broker):
                send_until_taken(output, [outgoing(1)])
            assert output.error is None
        finally:
            broker.kill()


def test_broker_that_is_stuck_is_left_and_asked_again(tmp_path: Path) -> None:
    with (
        mqtt_broker(tmp_path) as broker,
        reader(broker) as got,
        forwarder(
            broker,
            timeout_s=1.0,
        ) as output,
    ):
        send_until_taken(output, [outgoing(1)])
        broker.pause()
        with pytest.raises(OutputError, match="did not confirm within 1 s"):
            output.send([outgoing(2)])
        broker.resume()
        send_until_taken(output, [outgoing(2)])
        wait_for(lambda: json.loads(got[-1].payload)["id"] == "e2.begin", "the message")


@pytest.mark.parametrize("password", [None, "wrong"])
def test_broker_that_refuses_says_why(tmp_path: Path, password: str | None) -> None:
    lines = ["allow_anonymous false", f"password_file {password_file(tmp_path, 'box', 'right')}"]
    (tmp_path / "password").write_text(password or "")
    login = {"username": "box", "password_file": str(tmp_path / "password")} if password else {}
    expected = "the broker refuses the connection: user or password is wrong"
    with (
        mqtt_broker(tmp_path, *lines) as broker,
        forwarder(broker, is_reached=False, timeout_s=0.5, **login) as output,
    ):
        wait_for(lambda: expected in (output.error or ""), "the refusal")  # no connection before
        with pytest.raises(OutputError, match=expected):
            output.send([outgoing(1)])


def test_topic_that_the_user_may_not_write_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_marks, "ANSWER_S", 0.2)  # its own mark it may not write either
    (tmp_path / "acl").write_text("topic read #\ntopic write ast_stream/home/attic/status\n")
    (tmp_path / "acl").chmod(0o600)
    with (
        mqtt_broker(tmp_path, f"acl_file {tmp_path}/acl") as broker,
        reader(broker),
        forwarder(broker) as output,
        pytest.raises(OutputError, match=r"did not take ast_stream/home/attic/event/porch/bark: "
                                          "this user may not do it"),
    ):  # fmt: skip
        output.send([outgoing(1)])


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
def test_login_and_tls_are_used(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, own = authority.identity(), authority.identity("DNS:box")
    (tmp_path / "password").write_text("right\n")
    lines = [
        f"password_file {password_file(tmp_path, 'box', 'right')}", "allow_anonymous false",
        f"cafile {authority.ca_file}", "require_certificate true",
        f"certfile {server.certificate}", f"keyfile {server.key}",
    ]  # fmt: skip
    secure: dict[str, Any] = {
        "tls": True, "ca_file": authority.ca_file, "cert_file": str(own.certificate),
        "key_file": str(own.key), "username": "box", "password_file": str(tmp_path / "password"),
    }  # fmt: skip
    with (
        mqtt_broker(tmp_path, *lines) as broker,
        forwarder(broker, without_subscriber="drop", **secure) as output,
    ):
        assert output.send([outgoing(1)]) == 1


def test_secret_that_cannot_be_read_is_an_error_at_the_start(tmp_path: Path) -> None:
    settings = output_settings(
        type="mqtt", host="localhost", username="box", password_file=str(tmp_path / "none")
    )
    with pytest.raises(StartupError, match=r"output centre: cannot read .*none"):
        MqttForwarder(settings, BOX).check()


def new_output(
    broker: Broker, now_s: Callable[[], float] = time.monotonic, **values: Any
) -> MqttForwarder:
    given = {"host": "127.0.0.1", "port": broker.port, "type": "mqtt", **values}
    return MqttForwarder(output_settings(**given), BOX, now_s)


@contextmanager
def forwarder(broker: Broker, *, is_reached: bool = True, **values: Any) -> Iterator[MqttForwarder]:
    output = new_output(broker, **values)
    output.start()
    try:
        if is_reached:
            wait_for(lambda: output.kept() is not None, "what the broker has")
        yield output
    finally:
        output.close()


@contextmanager
def reader(broker: Broker) -> Iterator[list[Any]]:
    """Yield the messages that a subscriber of MQTT 5 gets, besides status."""
    got: list[Any] = []
    ready = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_message = lambda client, data, message: got.append(message)
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", broker.port)
    client.subscribe("ast_stream/+/+/event/#", qos=1)
    client.loop_start()
    assert ready.wait(PATIENCE_S)
    try:
        yield got
    finally:
        client.disconnect()
        client.loop_stop()


def test_connection_that_is_only_tried_says_nothing_of_the_box(tmp_path: Path) -> None:
    with mqtt_broker(tmp_path) as broker, listener(broker.port) as client:
        output = new_output(broker)
        assert "no connection yet" in (output.error or "")
        output.start()
        wait_for(lambda: output.error is None, "the connection")
        output.close()
        client.publish("done", "x")
        wait_for(lambda: client.count("done") == 1, "the last message")
        assert client.count(STATUS) == 0
