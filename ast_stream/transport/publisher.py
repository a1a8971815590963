"""The feed as its publisher sees it: numbers every message and logs the durable ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from ast_stream.messages.codec import PROTOCOL_VERSION
from ast_stream.messages.event import WORKER_STATUS_TOPIC
from ast_stream.messages.feed import FeedMessage, Position, Scores16, encode_message
from ast_stream.transport.event_log import EventLog
from ast_stream.units import format_time

_STATES_POSITION = ("status/", "health/")  # tell readers where the durable messages stand


class Sender(Protocol):
    """What the publisher needs of a PUB socket."""

    def send(self, frames: list[bytes]) -> bool:
        """Send now, or return False."""


class FeedPublisher:
    """Publishes messages of all topics with one gap-free `seq`.

    Durable messages (events and gaps) also carry `previous`, the `seq` of the durable one before
    (0 for none in this boot), and are in the log before anyone can receive them. `status/` and
    `health/` bodies carry `durable_seq`, so that a loss after the last event shows as well.

    Args:
        event_log: keeps the durable messages; None: nothing can be replayed.
        boot: id of this run of the publisher.
        now_ns: wall clock, nanoseconds since 1970; stamps `published`.

    Attributes:
        messages: messages published, by first word of the topic.
        drops: messages that the socket refused.
    """

    def __init__(
        self,
        pub_socket: Sender,
        event_log: EventLog | None,
        boot: str,
        now_ns: Callable[[], int],
    ) -> None:
        self._socket = pub_socket
        self._log = event_log
        self._now_ns = now_ns
        self.boot = boot
        self.started_ns = now_ns()
        self.messages: Counter[str] = Counter()
        self.drops = 0
        self._seq = 0
        self._durable_seq = 0
        if event_log is not None:
            event_log.begin(boot)

    @property
    def log_errors(self) -> int:
        """Durable messages that could not be written to disk when they were published."""
        return 0 if self._log is None else self._log.write_errors

    @property
    def log_damaged(self) -> int:
        """Lines and files of the log that were found damaged when it was opened."""
        return 0 if self._log is None else self._log.damaged

    @property
    def durable_position(self) -> Position:
        """Position of the last durable message; seq 0 if there is none in this boot."""
        return self.boot, self._durable_seq

    def publish(self, topic: str, body: dict[str, Any]) -> None:
        """Publish a message that need not be repeated (health, status)."""
        if topic.startswith(_STATES_POSITION):
            body = body | {"durable_seq": self._durable_seq}
        if self._log is not None and topic == WORKER_STATUS_TOPIC:
            self._log.retry()  # once a second is often enough for a full disk
        self._send(topic, encode_message(topic, self._numbered(body)))

    def publish_scores(self, topic: str, header: dict[str, Any], scores: Scores16) -> None:
        """Publish the scores of one window: shape (n_classes,), float16, in [0, 1]."""
        self._send(topic, encode_message(topic, self._numbered(header), scores))

    def publish_durable(self, topic: str, body: dict[str, Any]) -> None:
        """Log and publish an event or a gap."""
        numbered = self._numbered(body | {"previous": self._durable_seq})
        self._durable_seq = self._seq
        if self._log is not None:
            self._log.append(FeedMessage(topic, numbered))
        self._send(topic, encode_message(topic, numbered))

    def _numbered(self, body: dict[str, Any]) -> dict[str, Any]:
        self._seq += 1
        return body | {
            "v": PROTOCOL_VERSION,
            "boot": self.boot,
            "seq": self._seq,
            "published": format_time(self._now_ns()),
        }

    def _send(self, topic: str, frames: list[bytes]) -> None:
        self.messages[topic.split("/", 1)[0]] += 1
        if not self._socket.send(frames):
            self.drops += 1
