"""Finds out from an MQTT broker which of the messages that it has confirmed it still has.

A broker queues messages in sessions, usually in memory with occasional copies on disk, so that a
broker that is killed comes back with old queues, or none. MQTT does not report this: a client's
session may be present while messages in other sessions are lost. So the output subscribes to a
topic of its own and sends itself a mark after the messages that were confirmed. It never
acknowledges the newest mark, which therefore stays in a queue like those of the readers, and which
the broker delivers again at each connection if it still has it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ast_stream.labels import printable
from ast_stream.runtime.mqtt import QOS

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

ANSWER_S = 3.0  # for the broker to return a message that was just sent
SESSION_S = 86_400  # for which the broker keeps the marks of a disconnected box
_MAX_WORD = 64
_MAX_WAITING = 64  # unacknowledged messages, whoever sent them
_PROBE = "?"  # begins a word that is no mark: only its return matters

logger = logging.getLogger(__name__)


class OwnWords:
    """Recognises this process's own words by their prefixes.

    Other words come from an earlier run, or from another box.

    Attributes:
        strange: words of others found so far, in all connections.
    """

    def __init__(self) -> None:
        self.probe = _PROBE + secrets.token_hex(6)
        self.strange: set[str] = set()
        self._beginnings = {self.probe}

    def add(self, word: str) -> None:
        """Recognise a word, and all of its series, as our own from now on."""
        self._beginnings.add(word.partition(" ")[0])

    def has_new_strangers(self, words: Iterable[str]) -> bool:
        """Return whether there are words of others that were not seen before."""
        found = {word for word in words if word.partition(" ")[0] not in self._beginnings}
        new = found - self.strange
        if len(self.strange) < _MAX_WAITING:
            self.strange |= new
        return bool(new)


class MqttMarks:
    """The marks of one connection, as the broker delivers them.

    Args:
        topic: that no other client writes to.
        own: words of this process.
        changed: notified at each message; waiting threads hold it, too.
        is_up: returns whether the connection is up.

    Attributes:
        is_known: the broker was asked which marks it has.
        has_strangers: another client has written to the topic since the previous connection.
        heard_s: when the broker was last known to be alive, by the monotonic clock.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        own: OwnWords,
        changed: threading.Condition,
        is_up: Callable[[], bool],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_known = False
        self.has_strangers = False
        self._own = own
        self.heard_s = now_s()
        self._client = client
        self._topic = topic
        self._changed = changed
        self._is_up = is_up
        self._now_s = now_s
        self._unacknowledged: list[tuple[int, str]] = []  # packet ids and words, in order
        self._refusal: str | None = None
        self._sent: MQTTMessageInfo | None = None
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe

    def detach(self) -> None:
        """Release the client of a connection that has ended."""
        self._is_up = lambda: False

    def heard(self) -> None:
        """Note that the broker is alive."""
        self.heard_s = self._now_s()

    def ask(self) -> list[str]:
        """Return the marks that the broker has; empty if it does not answer.

        The broker first delivers what it still had. A word that is sent now comes after that.
        """
        probe = f"{self._own.probe} {secrets.token_hex(4)}"
        self._client.subscribe(self._topic, QOS)
        self._send(probe)
        with self._changed:
            self._changed.wait_for(
                lambda: self._has(probe) or self._refusal is not None or not self._is_up(),
                ANSWER_S,
            )
            is_answered = self._has(probe)
            words = [word for _, word in self._unacknowledged]
        self.has_strangers = self._own.has_new_strangers(words)
        found = [word for word in words if not word.startswith(_PROBE)]
        if not is_answered and self._is_up():
            why = self._refusal or f"not within {ANSWER_S:g} s"
            logger.warning(
                "the broker does not return what is sent to %s (%s): after each connection all "
                "messages are sent again that it may have lost; let this user read there",
                self._topic,
                why,
            )
        self.is_known = True
        if not is_answered:
            return []
        if found:
            self._sent = self._send(found[-1])  # once it returns, older ones can be acknowledged
        return found

    def send(self, word: str) -> None:
        """Send a mark, unless an earlier one is still in flight."""
        self._own.add(word)
        if self._sent is None or self._sent.is_published():
            self._sent = self._send(word)

    def _send(self, word: str) -> MQTTMessageInfo | None:
        with suppress(ValueError, RuntimeError):  # the connection has ended
            return self._client.publish(self._topic, word, QOS)
        return None

    def _has(self, word: str) -> bool:
        return any(found == word for _, found in self._unacknowledged)

    def _on_message(self, client: Client, data: Any, message: Any) -> None:
        """Keep a word; after a new mark, acknowledge all earlier words in order."""
        word = printable(bytes(message.payload[:_MAX_WORD]).decode(errors="replace"))
        with self._changed:
            self.heard()
            done: list[int] = []
            if self.is_known and not word.startswith(_PROBE):
                done = [number for number, _ in self._unacknowledged]
                self._unacknowledged = []
            self._unacknowledged.append((message.mid, word))
            if len(self._unacknowledged) > _MAX_WAITING:
                done.append(self._unacknowledged.pop(0)[0])
            self._changed.notify_all()
        for number in done:
            client.ack(number, QOS)

    def _on_subscribe(self, client: Client, data: Any, mid: int, reasons: Any, _: Any) -> None:
        refused = [reason for reason in reasons if reason.is_failure]
        if refused:
            with self._changed:
                self._refusal = f"it refuses the subscription: {refused[0]}".lower()
                self._changed.notify_all()
