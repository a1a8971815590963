"""The output `kafka`: topics of a Kafka cluster, written by librdkafka's idempotent producer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ast_stream.errors import StartupError
from ast_stream.forward.output import STATUS, OutgoingMessage, OutputError
from ast_stream.labels import printable
from ast_stream.messages.codec import encode_json
from ast_stream.runtime.credentials import read_secret, secret_file, tls_context
from ast_stream.runtime.logging import Outage
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import KafkaOutput

if TYPE_CHECKING:  # an extra that may not be installed
    from confluent_kafka import Producer

CONTENT_TYPE = b"application/cloudevents+json; charset=utf-8"
MAX_BUFFERED_KB = 16 * 1024  # in the library, in flight to the brokers
WATCH_EVERY_S = 1.0
_GOODBYE_S = 2.0
_POLL_S = 0.1
_REPORT_S = 5.0  # for the library to report on each message after its time limit

_WORDS = {  # explanations of terse errors of the library and of brokers
    "_ALL_BROKERS_DOWN": "none of the brokers can be reached",
    "_TRANSPORT": "no connection",
    "_RESOLVE": "the name of the broker cannot be resolved",
    "_MSG_TIMED_OUT": "no broker has confirmed in time",
    "_AUTHENTICATION": "the brokers refuse the login",
    "_SSL": "no TLS",
    "_UNKNOWN_TOPIC": "the brokers do not have the topic, and do not create it",
    "UNKNOWN_TOPIC_OR_PART": "the brokers do not have the topic, and do not create it",
    "TOPIC_AUTHORIZATION_FAILED": "this user may not write to the topic",
    "CLUSTER_AUTHORIZATION_FAILED": "this user may not write idempotently",
    "NOT_ENOUGH_REPLICAS": "too few brokers have the topic",
}
_NO_CONNECTION = (
    *("_ALL_BROKERS_DOWN", "_TRANSPORT", "_RESOLVE", "_MSG_TIMED_OUT"),
    *("_AUTHENTICATION", "_SSL"),
)
_OF_TLS = {  # TLS errors, by a part of the library's text
    "certificate required": "the brokers ask for a certificate of this box (cert_file)",
    "unknown ca": "the brokers do not accept the certificate of this box",
    "bad certificate": "the brokers do not accept the certificate of this box",
    "certificate verify failed": "the certificate of the broker is not one to trust (ca_file)",
    "SSL": "no TLS",
}
_TOO_LARGE = ("MSG_SIZE_TOO_LARGE", "INVALID_MSG_SIZE")

logger = logging.getLogger(__name__)


class _Sent:
    """A batch in flight: the library's delivery report of each message."""

    def __init__(self, n_messages: int) -> None:
        self.reports: list[Any] = [None] * n_messages  # True, or the error
        self.n_waiting = n_messages

    def report(self, index: int, error: Any, message: Any = None) -> None:
        """Record the delivery report of a message."""
        self.reports[index] = True if error is None else error
        self.n_waiting -= 1


class KafkaForwarder:
    """Produces to one cluster; the library connects and reconnects by itself.

    Raises:
        StartupError: the library is missing.

    Attributes:
        reconnects: number of times that a new producer had to be created.
        duplicates: always 0: a cluster does not report duplicates.
    """

    def __init__(self, settings: KafkaOutput, identity: BoxIdentity) -> None:
        self.reconnects = 0
        self.duplicates = 0
        self._settings = settings
        self._identity = identity
        self._what = f"output {settings.name}"
        self._error: str | None = f"{self._what}: {settings.place}: no connection yet"
        self._stopping = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch, name=f"kafka {settings.name}", daemon=True
        )
        self._lock = threading.Lock()
        self._outage = Outage(logger, f"{self._what}: {settings.receiver} takes messages again")
        self._producer: Producer | None = None
        self._is_closed = False
        self._has_status = False  # then an offline status is due at the end
        try:
            import confluent_kafka  # noqa: F401
        except ImportError as error:
            text = f"{self._what}: confluent-kafka is not installed: "
            raise StartupError(f"{text}pip install 'ast-stream[kafka]'") from error

    @property
    def name(self) -> str:
        """The name in the settings."""
        return self._settings.name

    @property
    def error(self) -> str | None:
        """Why there is no connection; None while there is one."""
        return self._error

    @property
    def rival(self) -> None:
        """None: a cluster does not report other writers."""
        return None

    @property
    def memory(self) -> None:
        """None: confirmed messages are durable."""
        return None

    def check(self) -> None:
        """Read secrets and certificates as `start` does, without connecting.

        Raises:
            StartupError: one cannot be used.
        """
        self._new_config()

    def start(self) -> None:
        """Start connecting, in the background."""
        self._watcher.start()

    def holds(self, batch: Sequence[OutgoingMessage]) -> set[str]:
        """Return an empty set: a cluster cannot tell what it has."""
        return set()

    def send(self, batch: Sequence[OutgoingMessage]) -> int:
        """Produce a batch in order, and return its length once all of it is confirmed.

        Raises:
            OutputError: not all is confirmed.
        """
        producer = self._open()
        sent = _Sent(len(batch))
        for index, message in enumerate(batch):
            self._produce(producer, message, index, sent)
        end_s = time.monotonic() + self._settings.timeout_s + _REPORT_S
        while sent.n_waiting and time.monotonic() < end_s:
            producer.poll(_POLL_S)
        self._check(batch, sent)
        self._is_reached()
        return len(batch)

    def publish_status(self, report: bytes) -> None:
        """Produce the status of this box to its topic, which may be compacted to the newest."""
        self._has_status = True
        self._put_status(b'{"online":true,' + report.lstrip()[1:])

    def close(self) -> None:
        """Publish that the box is offline, and disconnect."""
        self._stopping.set()
        if self._watcher.ident is not None:
            self._watcher.join(2 * WATCH_EVERY_S)
        if self._has_status:
            identity = {"site": self._identity.site, "box": self._identity.box}
            self._put_status(encode_json({"online": False, **identity}))
        with self._lock:
            self._is_closed = True
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.flush(_GOODBYE_S)
            producer.purge()
            producer.flush(_GOODBYE_S)

    def _watch(self) -> None:
        """Serve the library's callbacks, and check whether the cluster is reachable again."""
        from confluent_kafka import KafkaException

        while not self._stopping.is_set():
            with suppress(OutputError):
                producer = self._open()
                producer.poll(0)
                if self._error is not None:
                    with suppress(KafkaException):
                        producer.list_topics(timeout=WATCH_EVERY_S)
                        self._is_reached()
            self._stopping.wait(WATCH_EVERY_S)

    def _is_reached(self) -> None:
        self._error = None
        self._outage.worked()

    def _open(self) -> Producer:
        """Return the producer, creating it if necessary.

        Raises:
            OutputError: the output is closed, or a secret or certificate cannot be read.
        """
        with self._lock:
            if self._is_closed:
                raise OutputError(f"{self._what}: it is closed")
            try:
                self._producer = self._producer or self._new_producer()
            except StartupError as error:
                self._note(str(error))
                raise OutputError(str(error)) from error
            return self._producer

    def _produce(
        self, producer: Producer, message: OutgoingMessage, index: int, sent: _Sent
    ) -> None:
        """Hand a message to the library, which eventually reports on each."""
        from confluent_kafka import KafkaError, KafkaException

        key = "/".join(filter(None, (message.site, message.box, message.stream)))
        end_s = time.monotonic() + self._settings.timeout_s
        while True:
            try:
                producer.produce(
                    f"{self._settings.prefix}.{message.kind}",
                    message.body,
                    key.encode(),
                    headers=[("content-type", CONTENT_TYPE), ("id", message.id.encode())],
                    on_delivery=partial(sent.report, index),
                )
                return
            except BufferError:  # status messages fill the buffer
                producer.poll(_POLL_S)
                if time.monotonic() > end_s:
                    sent.report(index, KafkaError(KafkaError._MSG_TIMED_OUT))
                    return
            except KafkaException as error:
                sent.report(index, error.args[0])
                return

    def _check(self, batch: Sequence[OutgoingMessage], sent: _Sent) -> None:
        """Check that all messages are confirmed.

        Raises:
            OutputError: one is not.
        """
        for index, report in enumerate(sent.reports):
            if report is True:
                continue
            topic = f"{self._settings.prefix}.{batch[index].kind}"
            name = "_MSG_TIMED_OUT" if report is None else report.name()
            why = _in_words(report) if report is not None else _WORDS[name]
            if name == "_MSG_TIMED_OUT" and self._error is not None:
                why = self._error
            else:
                why = f"{self._what}: {self._settings.place}: {topic}: {why}"
            if report is None or report.fatal():
                self._begin_again()
            if report is None or name in _NO_CONNECTION:
                self._note(why)
            raise OutputError(why, index, is_too_large=name in _TOO_LARGE)

    def _put_status(self, body: bytes) -> None:
        from confluent_kafka import KafkaException

        with self._lock, suppress(BufferError, KafkaException):
            if self._producer is not None:
                self._producer.produce(
                    f"{self._settings.prefix}.{STATUS}",
                    body,
                    f"{self._identity.site}/{self._identity.box}".encode(),
                    headers=[("content-type", b"application/json")],
                )
                self._producer.poll(0)

    def _begin_again(self) -> None:
        """Drop the producer, which can no longer be used, so that another is created."""
        with self._lock:
            producer, self._producer = self._producer, None
            self.reconnects += 1
        if producer is not None:
            producer.purge()
            producer.flush(_GOODBYE_S)

    def _note(self, problem: str) -> None:
        self._error = problem
        self._outage.failed("%s", problem)

    def _on_error(self, error: Any) -> None:
        """Record an error of a connection, reported by the library."""
        if error.name() != "_ALL_BROKERS_DOWN" or self._error is None:
            self._note(f"{self._what}: {self._settings.place}: {_in_words(error)}")

    def _new_producer(self) -> Producer:
        from confluent_kafka import Producer

        return Producer(self._new_config() | {"error_cb": self._on_error}, logger=_quiet_logger())

    def _new_config(self) -> dict[str, Any]:
        settings = self._settings
        config: dict[str, Any] = {
            "bootstrap.servers": ",".join(settings.brokers),
            "client.id": f"ast-stream {self._identity.site}/{self._identity.box}",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # like Kafka's own clients
            "compression.type": settings.compression,
            "linger.ms": 20,
            "message.timeout.ms": round(1000 * settings.timeout_s),
            "socket.connection.setup.timeout.ms": max(1000, round(1000 * settings.timeout_s)),
            "queue.buffering.max.kbytes": MAX_BUFFERED_KB,
            "queue.buffering.max.messages": 2 * settings.max_unconfirmed + 100,
            "reconnect.backoff.max.ms": 10_000,
        }
        is_tls = settings.tls
        if is_tls:
            tls_context(self._what, settings.ca_file)  # raises if the file cannot be used
            if settings.ca_file is not None:
                config["ssl.ca.location"] = settings.ca_file
            if settings.cert_file is not None:
                key = settings.key_file or settings.cert_file
                config["ssl.certificate.location"] = settings.cert_file
                config["ssl.key.location"] = str(secret_file(key, settings.credential("key")))
        if settings.username is not None:
            config["sasl.mechanism"] = settings.mechanism
            config["sasl.username"] = settings.username
            config["sasl.password"] = read_secret(
                self._what,
                settings.password_file,
                settings.password_env,
                settings.credential("password"),
            )
        kinds = {
            (False, False): "PLAINTEXT",
            (True, False): "SSL",
            (False, True): "SASL_PLAINTEXT",
            (True, True): "SASL_SSL",
        }
        config["security.protocol"] = kinds[is_tls, settings.username is not None]
        return config


def _in_words(error: Any) -> str:
    """Return an error of the library or a broker in words."""
    name = error.name()
    words = _WORDS.get(name)
    detail = " ".join(printable(error.str()).split())[:200]
    if name in ("_SSL", "_TRANSPORT"):
        words = next((said for part, said in _OF_TLS.items() if part in detail), words)
    if words is None:
        return detail
    is_telling = name in ("_TRANSPORT", "_AUTHENTICATION", "_SSL", "_RESOLVE")
    return f"{words}: {detail}" if is_telling else words


def _quiet_logger() -> logging.Logger:
    """Return a silent logger for the library: what matters is also reported as errors."""
    quiet = logging.getLogger(f"{__name__}.library")
    quiet.setLevel(logging.CRITICAL)
    return quiet


OUTPUT = KafkaForwarder
