"""A Kafka cluster in this process: the mock of librdkafka, with real sockets and protocol."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from outgoing_messages import BOX, output_settings

from ast_stream.forward.to_kafka import KafkaForwarder

PATIENCE_S = 60.0


class Cluster:
    """Brokers that live in this process as long as this does."""

    def __init__(self, n_brokers: int = 3) -> None:
        self._owner = Producer({"test.mock.num.brokers": n_brokers})
        brokers = self._owner.list_topics(timeout=PATIENCE_S).brokers.values()
        self.brokers = [f"{broker.host}:{broker.port}" for broker in brokers]

    def messages(self, topic: str, count: int) -> list[Message]:
        """Return all messages of a topic, once there are so many."""
        consumer = Consumer(
            {
                "bootstrap.servers": ",".join(self.brokers),
                "group.id": f"test-{time.monotonic_ns()}",
            }
        )
        partitions = consumer.list_topics(topic, PATIENCE_S).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        found: list[Message] = []
        end_s = time.monotonic() + PATIENCE_S
        while len(found) < count:
            assert time.monotonic() < end_s, f"{len(found)} of {count} messages"
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                found.append(message)
        consumer.close()
        return found


@contextmanager
def forwarder(brokers: list[str], **values: Any) -> Iterator[KafkaForwarder]:
    given = {"type": "kafka", "brokers": brokers, **values}
    output = KafkaForwarder(output_settings(**given), BOX)
    output.start()
    try:
        yield output
    finally:
        output.close()
