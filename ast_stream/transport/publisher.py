"""The feed as its publisher sees it: numbers every message and logs the durable ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from ast_stream.messages.event import EventMessage, GapMessage
from ast_stream.messages.feed import Content, FeedMessage, Position, Scores16, Stamp
from ast_stream.messages.status import AlertsStatus, Health, WorkerStatus
from ast_stream.transport.event_log import EventLog


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

    def publish(self, content: Content, scores: Scores16 | None = None) -> None:
        """Number and publish one message; events and gaps are logged first.

        Args:
            scores: of a `ScoresHeader`: shape (n_classes,), float16, in [0, 1].
        """
        self._seq += 1
        previous = durable_seq = None
        match content:
            case EventMessage() | GapMessage():
                previous, self._durable_seq = self._durable_seq, self._seq
            case Health() | WorkerStatus() | AlertsStatus():
                durable_seq = self._durable_seq
        stamp = Stamp(self.boot, self._seq, self._now_ns(), previous, durable_seq)
        message = FeedMessage.of(content, stamp, scores)
        if self._log is not None and message.is_durable:
            self._log.append(message)
        elif self._log is not None and isinstance(content, WorkerStatus):
            self._log.retry()  # once a second is often enough for a full disk
        self.messages[message.kind] += 1
        if not self._socket.send(message.encode()):
            self.drops += 1
