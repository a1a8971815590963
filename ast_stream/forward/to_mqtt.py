"""The output `mqtt`: an MQTT 5 broker that confirms each message before the position moves.

MQTT promises less than a log: a broker only keeps a message for sessions that have subscribed to
it, and most brokers keep sessions in memory, with occasional copies on disk. So this output treats
a message without subscribers as undelivered, and finds out after each connection which messages
the broker still has (`mqtt_marks`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ast_stream.errors import StartupError
from ast_stream.forward.mqtt_marks import SESSION_S, MqttMarks, OwnWords
from ast_stream.forward.output import STATUS, Memory, OutgoingMessage, OutputError, ReconnectedError
from ast_stream.forward.rivals import Rivals
from ast_stream.messages.codec import encode_json
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.credentials import connection_error
from ast_stream.runtime.logging import Outage
from ast_stream.runtime.mqtt import (
    QOS,
    check_library,
    new_client,
    properties,
    protocol_5,
    reason_in_words,
)
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import MqttOutput

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo
    from paho.mqtt.properties import Properties

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
KEEPALIVE_S = 20
_EXTRA = "fleet"
_RECONNECT_S = (0.5, 60.0)
_HEALTHY_S = 30.0
_GOODBYE_S = 2.0
_NOBODY = 0x10  # "no matching subscribers", a reason code of PUBACK
_HEADER_BYTES = 256  # of a packet, besides topic, id and body
_TAKEN_OVER = 0x8E
_LOGIN_REFUSED = (0x86, 0x87)  # bad user name or password; not authorised
_LOGIN = "user or password is wrong, or this user may not connect"
_MAX_RECEIVE = 65_535  # unconfirmed messages, if the broker sets no limit
_LOOK_EVERY_S = 1.0  # whether the previous status is confirmed
_BESIDE = 2  # a status and a mark may be in flight besides a batch
_MARK = "mark"  # used like a kind

_CALLBACKS = ("on_connect", "on_disconnect", "on_publish", "on_message", "on_subscribe")

logger = logging.getLogger(__name__)


class _MqttLink:
    """One connection, from CONNECT to its end; never reused.

    Attributes:
        is_up: the broker has accepted it, and it has not ended.
        problem: why it was refused, or ended.
        was_replaced: another client has connected with the same client id.
        window: number of messages that may be in flight.
        max_packet: largest packet that the broker accepts, bytes.
        marks: the marks that the broker delivers on it.
    """

    def __init__(
        self,
        client: Client,
        changed: threading.Condition,
        topic: str,
        own: OwnWords,
        now_s: Callable[[], float],
    ) -> None:
        self.client = client
        self.changed = changed
        self.is_up = False
        self.problem: str | None = None
        self.was_replaced = False
        self.window = _MAX_RECEIVE
        self.max_packet: int | None = None
        self.keeps_retained = True
        self.status: MQTTMessageInfo | None = None  # the last status that was published
        self.confirmations: dict[int, Any] = {}  # reason codes by packet id, until they are used
        self.marks = MqttMarks(client, topic, own, changed, lambda: self.is_up, now_s)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish

    def end(self, problem: str) -> None:
        """Record that it has ended."""
        with self.changed:
            self.is_up = False
            self.problem = self.problem or problem
            self.changed.notify_all()

    def detach(self) -> None:
        """Release the client, which closes its sockets."""
        for callback in _CALLBACKS:
            setattr(self.client, callback, None)
        self.marks.detach()

    def forget_confirmations(self) -> None:
        """Drop the confirmations of status and marks, since packet ids are reused."""
        with self.changed:
            self.confirmations.clear()

    def knows(self, number: int) -> bool:
        """Return whether the outcome of a message is known, or will never be."""
        return number in self.confirmations or not self.is_up

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: Any, found: Any) -> None:
        if reason.is_failure:
            why = _LOGIN if reason.value in _LOGIN_REFUSED else reason_in_words(reason)
            self.end(f"the broker refuses the connection: {why}")
            return
        if getattr(found, "MaximumQoS", 1) < QOS:
            self.end("the broker does not confirm messages (QoS 1)")
            return
        with self.changed:
            self.window = getattr(found, "ReceiveMaximum", _MAX_RECEIVE)
            self.max_packet = getattr(found, "MaximumPacketSize", None)
            self.keeps_retained = bool(getattr(found, "RetainAvailable", 1))
            self.is_up = True
            self.changed.notify_all()

    def _on_disconnect(self, client: Client, data: Any, flags: Any, reason: Any, _: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self.was_replaced = reason.value == _TAKEN_OVER
            self.end(f"the broker has ended the connection: {reason_in_words(reason)}")
        else:
            self.end("the connection to the broker was lost")

    def _on_publish(self, client: Client, data: Any, mid: int, reason: Any, _: Any) -> None:
        with self.changed:
            self.marks.heard()
            self.confirmations[mid] = reason
            self.changed.notify_all()


class MqttForwarder:
    """Publishes to one broker; connects and reconnects in the background.

    Args:
        now_s: monotonic clock.

    Raises:
        StartupError: the library is missing.

    Attributes:
        reconnects: number of times that a connection was lost and made again.
        duplicates: always 0: MQTT does not report duplicates.
    """

    def __init__(
        self,
        settings: MqttOutput,
        identity: BoxIdentity,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reconnects = 0
        self.duplicates = 0
        self._settings = settings
        self._identity = identity
        self._now_s = now_s
        self._what = f"output {settings.name}"
        check_library(self._what, _EXTRA)
        self._root = f"{settings.prefix}/{identity.site}/{identity.box}"
        self._client_id = settings.client_id or "-".join(
            (settings.prefix, identity.site, identity.box, settings.name)
        )
        # the output's name is in it, since each output has its own position
        self._mark_topic = f"{self._root}/{_MARK}/{settings.name}"
        self._changed = threading.Condition()
        self._link: _MqttLink | None = None
        self._error: str | None = None
        self._status: bytes | None = None
        self._status_waits = False  # to be sent by the connection's thread
        self._was_connected = False
        self._safe_s = float("-inf")
        self._rivals = Rivals(identity, now_s)
        self._own = OwnWords()
        self._stopping = threading.Event()
        self._outage = Outage(logger, f"{self._what}: {settings.receiver} is connected again")
        self._thread = threading.Thread(
            target=self._keep_connected, name=f"mqtt {settings.name}", daemon=True
        )

    @property
    def name(self) -> str:
        """The name in the settings."""
        return self._settings.name

    @property
    def error(self) -> str | None:
        """Why there is no connection; None while there is one."""
        link = self._link
        if link is not None and link.is_up:
            return None
        return self._error or f"{self._what}: {self._settings.place}: no connection yet"

    @property
    def rival(self) -> str | None:
        """A warning that another box has this box's name and takes its place at the broker."""
        return self._rivals.problem

    @property
    def memory(self) -> Memory:
        """This object, since a broker may lose what it has confirmed."""
        return self

    @property
    def safe_s(self) -> float:
        """`resend_s` before the broker was last alive: what it confirmed until then is saved."""
        link = self._link
        if link is not None and link.marks.is_known:
            self._safe_s = max(self._safe_s, link.marks.heard_s - self._settings.resend_s)
        return self._safe_s

    def mark(self, word: str) -> None:
        """Send a mark to ourselves, if the window has room for it."""
        link = self._link
        if link is not None and link.is_up and link.marks.is_known and link.window > _BESIDE:
            link.marks.send(word)

    def kept(self) -> list[str] | None:
        """Return the marks that the broker still has, once for each connection.

        Raises:
            OutputError: the connection was lost meanwhile.
        """
        link = self._link
        if link is None or not link.is_up or link.marks.is_known:
            return None
        found = link.marks.ask()
        if link.marks.has_strangers:
            self._rivals.note()
        if not link.is_up:
            raise OutputError(self.error or f"{self._what}: the connection was lost")
        return found

    def check(self) -> None:
        """Read secrets and certificates as each connection does, without connecting.

        Raises:
            StartupError: one cannot be used.
        """
        self._new_client()

    def start(self) -> None:
        """Start connecting, in the background."""
        self._thread.start()

    def holds(self, batch: Sequence[OutgoingMessage]) -> set[str]:
        """Return an empty set: a broker cannot tell what it has."""
        return set()

    def send(self, batch: Sequence[OutgoingMessage]) -> int:
        """Publish a batch in order, and return its length once all of it is confirmed.

        Raises:
            OutputError: not all is confirmed.
            ReconnectedError: `kept` has not been called on this connection yet.
        """
        link = self._wait_for_link()
        if not link.marks.is_known:
            raise ReconnectedError(f"{self._what}: there is a new connection")
        return self._publish(link, batch)

    def publish_status(self, report: bytes) -> None:
        """Replace the retained status of this box."""
        with self._changed:
            self._status = b'{"online":true,' + report.lstrip()[1:]
            self._status_waits = True
            self._changed.notify_all()

    def close(self) -> None:
        """Publish that the box is offline, and disconnect."""
        link = self._link
        if link is not None and link.is_up and self._status is not None:
            self._say_goodbye(link)
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(2 * _GOODBYE_S + self._settings.timeout_s)

    def _say_goodbye(self, link: _MqttLink) -> None:
        with self._changed:
            self._status_waits = False
        self._put_status(link, self._offline())
        with suppress(ValueError, RuntimeError):
            if link.status is not None:
                link.status.wait_for_publish(_GOODBYE_S)

    def _wait_for_link(self) -> _MqttLink:
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping.is_set() or (self._link is not None and self._link.is_up),
                self._settings.timeout_s,
            )
            link = self._link
            if link is None or not link.is_up or self._stopping.is_set():
                raise OutputError(self.error or f"{self._what}: it ends")
            return link

    def _publish(self, link: _MqttLink, batch: Sequence[OutgoingMessage]) -> int:
        """Publish messages, and wait until the broker has confirmed them all.

        Raises:
            OutputError: not all are confirmed.
        """
        numbers: list[int] = []  # packet ids
        n_confirmed = 0
        link.forget_confirmations()
        window = max(1, min(link.window - _BESIDE, self._settings.max_unconfirmed))
        for message in batch:
            while len(numbers) - n_confirmed >= window:
                self._wait_for(link, numbers, n_confirmed, batch)
                n_confirmed += 1
            if (problem := self._too_large(link, message)) is not None:
                for index in range(n_confirmed, len(numbers)):
                    self._wait_for(link, numbers, index, batch)
                raise OutputError(f"{self._what}: {problem}", len(numbers), is_too_large=True)
            numbers.append(self._put(link, message))
        for index in range(n_confirmed, len(numbers)):
            self._wait_for(link, numbers, index, batch)
        return len(numbers)

    def _put(self, link: _MqttLink, message: OutgoingMessage) -> int:
        """Send a message without waiting, and return its packet id."""
        details = properties(
            "PUBLISH",
            ContentType=CONTENT_TYPE,
            PayloadFormatIndicator=1,
            UserProperty=[("id", message.id)],
        )
        sent = link.client.publish(self._topic(message), message.body, QOS, properties=details)
        return sent.mid

    def _wait_for(
        self, link: _MqttLink, numbers: Sequence[int], index: int, batch: Sequence[OutgoingMessage]
    ) -> None:
        """Wait until a message is confirmed.

        Raises:
            OutputError: the confirmation is late, or the broker has refused the message.
        """
        with self._changed:
            self._changed.wait_for(
                partial(link.knows, numbers[index]), timeout=self._settings.timeout_s
            )
            reason = link.confirmations.pop(numbers[index], None)
        problem = self._problem(link, batch[index], reason)
        if problem is None:
            return
        if reason is None:
            link.end(problem)  # messages still in flight are sent again
        raise OutputError(f"{self._what}: {problem}", index)

    def _problem(self, link: _MqttLink, message: OutgoingMessage, reason: Any) -> str | None:
        """Return why the broker's answer is no confirmation of a message; None: it is one."""
        if reason is None and link.is_up:
            return f"the broker did not confirm within {self._settings.timeout_s:g} s"
        if reason is None:
            return link.problem or "the connection to the broker was lost"
        if reason.is_failure:
            why = reason_in_words(reason)
            return f"the broker did not take {self._topic(message)}: {why}"
        if reason.value == _NOBODY and self._settings.without_subscriber == "wait":
            text = "nobody has subscribed at the broker, which keeps messages for those who have"
            return f"{text}: {self._topic(message)} waits on this box"
        return None

    def _too_large(self, link: _MqttLink, message: OutgoingMessage) -> str | None:
        size = len(message.body) + len(self._topic(message)) + len(message.id) + _HEADER_BYTES
        if link.max_packet is None or size <= link.max_packet:
            return None
        return f"expected at most {link.max_packet} bytes for the broker, got about {size}"

    def _topic(self, message: OutgoingMessage) -> str:
        return "/".join((self._settings.prefix, *message.parts))

    def _put_status(self, link: _MqttLink, payload: bytes) -> None:
        """Send the status without waiting."""
        details = properties("PUBLISH", ContentType="application/json", PayloadFormatIndicator=1)
        with suppress(ValueError, RuntimeError):  # the connection has ended meanwhile
            link.status = link.client.publish(
                f"{self._root}/{STATUS}", payload, QOS, link.keeps_retained, details
            )

    def _offline(self) -> bytes:
        identity = {"site": self._identity.site, "box": self._identity.box}
        return encode_json({"online": False, **identity})

    def _keep_connected(self) -> None:
        backoff = Backoff(*_RECONNECT_S, healthy_s=_HEALTHY_S)
        while not self._stopping.is_set():
            began_s = self._now_s()
            try:
                self._use(self._new_client())
            except Exception as error:  # a file, the network, or an error of the library
                is_ours = isinstance(error, StartupError)
                text = str(error).removeprefix(f"{self._what}: ")
                self._note(text if is_ours else connection_error(error))
            if not self._stopping.is_set():
                self._stopping.wait(backoff.after_run(self._now_s() - began_s))

    def _use(self, client: Client) -> None:
        """Connect, and return when the connection has ended.

        Raises:
            OSError: the broker cannot be reached.
        """
        link = _MqttLink(client, self._changed, self._mark_topic, self._own, self._now_s)
        session_s = max(SESSION_S, round(self._settings.offline_after_s))
        broker = self._settings
        client.connect_timeout = broker.timeout_s
        try:
            client.connect(
                broker.host,
                broker.port,
                KEEPALIVE_S,
                clean_start=False,  # if back in time, the last will is not sent
                properties=properties("CONNECT", SessionExpiryInterval=session_s),
            )
            client.loop_start()
            self._wait_for_end(link)
            if link.was_replaced:
                self._rivals.note()
            if not self._stopping.is_set():
                self._note(link.problem or f"no answer within {broker.timeout_s:g} s")
        finally:
            with self._changed:
                self._link = None
            client.disconnect(properties=self._goodbye(link))
            client.loop_stop()
            link.detach()

    def _goodbye(self, link: _MqttLink) -> Properties | None:
        """Return properties that end the session with the connection, unless it has marks."""
        if link.marks.is_known:
            return None
        return properties("DISCONNECT", SessionExpiryInterval=0)

    def _wait_for_end(self, link: _MqttLink) -> None:
        """Use a connection once it is accepted, until it ends or this output is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: link.is_up or link.problem is not None or self._stopping.is_set(),
                self._settings.timeout_s,
            )
        if link.is_up:
            self._begin(link)
        while link.is_up and not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(
                    lambda: not link.is_up or self._stopping.is_set() or self._may_put(link),
                    _LOOK_EVERY_S,
                )
                status = self._status if link.is_up and self._may_put(link) else None
                self._status_waits &= status is None
            if status is not None:
                self._put_status(link, status)

    def _may_put(self, link: _MqttLink) -> bool:
        """Return whether there is a new status and no earlier one is in flight."""
        return self._status_waits and (link.status is None or link.status.is_published())

    def _begin(self, link: _MqttLink) -> None:
        """Begin to use a connection that the broker has accepted."""
        self.reconnects += self._was_connected
        self._was_connected = True
        self._status_waits = self._status is not None
        self._error = None
        self._outage.worked()
        with self._changed:
            self._link = link
            self._changed.notify_all()

    def _note(self, problem: str) -> None:
        """Record why there is no connection, and log it the first time."""
        self._error = f"{self._what}: {self._settings.place}: {problem}"
        self._outage.failed("%s", self._error)

    def _new_client(self) -> Client:
        settings = self._settings
        own = None if settings.cert_file is None else (settings.cert_file, settings.key_file)
        client = new_client(
            self._what,
            _EXTRA,
            settings,
            credential=settings.credential,
            own_certificate=own,
            client_id=self._client_id,
            protocol=protocol_5(),
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_queued_messages_set(0)  # a batch is bounded
        client.max_inflight_messages_set(0)  # counted here, by the broker's Receive Maximum
        will = properties(
            "WILLMESSAGE",
            WillDelayInterval=round(settings.offline_after_s),
            ContentType="application/json",
            PayloadFormatIndicator=1,
        )
        client.will_set(f"{self._root}/{STATUS}", self._offline(), QOS, True, will)
        return client


OUTPUT = MqttForwarder
