"""The output `kafka` against the mock cluster of librdkafka: real sockets and Kafka's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kafka_cluster import Cluster, forwarder
from outgoing_messages import BOX, outgoing, output_settings, send_until_taken
from ports import free_ports

from ast_stream.errors import StartupError
from ast_stream.forward.cloud_events import cloud_event
from ast_stream.forward.output import OutputError
from ast_stream.forward.to_kafka import CONTENT_TYPE, KafkaForwarder


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


def test_messages_are_confirmed_in_order_and_keyed_by_stream(cluster: Cluster) -> None:
    other = cloud_event(BOX, "gap", {"v": 1}, id="g.gap", time_ns=1, stream="porch")
    batch = [outgoing(n) for n in range(100)]
    with forwarder(cluster.brokers) as output:
        send_until_taken(output, [*batch, other])
        assert output.error is None
    events = cluster.messages("ast_stream.event", 100)
    assert [message.value() for message in events] == [message.body for message in batch]
    assert {message.key() for message in events} == {b"home/attic/porch"}
    assert dict(events[7].headers() or []) == {"content-type": CONTENT_TYPE, "id": b"e7.begin"}
    assert [message.value() for message in cluster.messages("ast_stream.gap", 1)] == [other.body]


def test_status_is_a_topic_by_box(cluster: Cluster) -> None:
    with forwarder(cluster.brokers, prefix="status_test") as output:
        output.publish_status(b'{"v":1}')
    first, last = cluster.messages("status_test.status", 2)
    assert first.key() == last.key() == b"home/attic"
    assert json.loads(first.value() or b"") == {"online": True, "v": 1}
    assert json.loads(last.value() or b"") == {"online": False, "site": "home", "box": "attic"}


def test_cluster_that_is_not_there_is_a_sentence() -> None:
    port = free_ports()
    with forwarder([f"127.0.0.1:{port}"], timeout_s=1.0) as output:
        with pytest.raises(OutputError) as error:
            output.send([outgoing(1), outgoing(2)])
        assert error.value.confirmed == 0
        assert str(error.value).startswith(f"output centre: 127.0.0.1:{port}: ")
        assert "Connection refused" in str(error.value) or "can be reached" in str(error.value)
        assert output.error == str(error.value)


def test_cluster_that_has_gone_is_an_error() -> None:
    cluster = Cluster(1)
    brokers = cluster.brokers
    with forwarder(brokers, timeout_s=1.0) as output:
        send_until_taken(output, [outgoing(1)])
        del cluster
        with pytest.raises(OutputError):
            output.send([outgoing(2)])


def test_message_that_is_too_large_is_named(cluster: Cluster) -> None:
    with forwarder(cluster.brokers, prefix="large") as output:
        batch = [outgoing(1), outgoing(2, text="x" * 2_000_000), outgoing(3)]
        with pytest.raises(OutputError) as error:
            output.send(batch)
        assert error.value.confirmed == 1
        assert error.value.is_too_large
        send_until_taken(output, batch[2:])


def test_secret_or_certificate_that_cannot_be_read_is_an_error_at_the_start(
    tmp_path: Path,
) -> None:
    secret = {"username": "box", "password_file": str(tmp_path / "none")}
    for values in (secret, {"tls": True, "ca_file": str(tmp_path / "none")}):
        settings = output_settings(type="kafka", brokers=["localhost:9092"], **values)
        with pytest.raises(StartupError, match=r"output centre: cannot read .*none"):
            KafkaForwarder(settings, BOX).check()
