"""Two boxes with one name are noticed by both, at each broker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from mqtt_broker import MOSQUITTO, Forwarder, mqtt_broker
from mqtt_broker import wait_for as wait_at_mqtt
from nats_server import nats_server, needs_nats, wait_for
from outgoing_messages import BOX, output_settings

from ast_stream.forward.output import Output, OutputError
from ast_stream.forward.rivals import REMEMBERED_S, Rivals
from ast_stream.forward.to_mqtt import MqttForwarder
from ast_stream.forward.to_nats import NatsForwarder

SENTENCE = "another box reports as home/attic, too: give each a name of its own"


def test_one_sign_says_nothing_and_old_ones_are_forgotten() -> None:
    now_s = [0.0]
    rivals = Rivals(BOX, lambda: now_s[0])
    rivals.note()
    assert rivals.problem is None
    rivals.note()
    assert SENTENCE in (rivals.problem or "")
    now_s[0] = REMEMBERED_S + 1
    assert rivals.problem is None
    rivals.note()
    assert rivals.problem is None


@needs_nats
def test_two_boxes_of_one_name_are_noticed_on_nats(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        settings = output_settings(type="nats", servers=[server.url], timeout_s=5)
        first, second = NatsForwarder(settings, BOX), NatsForwarder(settings, BOX)
        check_rivals(first, second, wait_for)
        alone = NatsForwarder(settings, BOX)
        alone.start()
        wait_for(lambda: alone.error is None, "the connection")
        for n in range(5):
            alone.publish_status(b'{"n":%d}' % n)
        assert alone.rival is None
        alone.close()


@pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto (apt)")
def test_two_boxes_of_one_name_are_noticed_on_mqtt(tmp_path: Path) -> None:
    with mqtt_broker(tmp_path) as broker:
        settings = output_settings(type="mqtt", host="127.0.0.1", port=broker.port, timeout_s=5)
        check_rivals(MqttForwarder(settings, BOX), MqttForwarder(settings, BOX), wait_at_mqtt)
        network = Forwarder(broker.port)
        output = MqttForwarder(settings.model_copy(update={"port": network.port}), BOX)
        output.start()
        for _ in range(3):
            wait_at_mqtt(lambda: output.kept() is not None, "what the broker has")
            network.cut()
        assert output.rival is None
        output.close()
        network.close()


def check_rivals(
    first: Output, second: Output, wait: Callable[[Callable[[], bool], str], None]
) -> None:
    """Have two outputs report in turn until both say that they are two."""
    outputs = (first, second)
    for output in outputs:
        output.start()

    def are_noticed() -> bool:
        for n, output in enumerate(outputs):
            output.publish_status(b'{"boot":%d}' % n)
            if output.memory is not None:
                with suppress(OutputError):
                    output.memory.kept()
        return all(output.rival is not None for output in outputs)

    try:
        wait(are_noticed, "both to notice")
        assert SENTENCE in (first.rival or "")
        assert SENTENCE in (second.rival or "")
    finally:
        for output in outputs:
            output.close()
