"""The output `nats`: a JetStream stream, and a bucket with the status of each box.

Within its duplicate window the server drops duplicates by their `Nats-Msg-Id`. To catch older ones,
it is asked after a start for the newest message of each subject that is about to be sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from ast_stream.forward.output import OUTGOING_KINDS, OutgoingMessage, OutputError
from ast_stream.forward.rivals import Rivals
from ast_stream.runtime.jetstream import (
    JetStream,
    NatsMessage,
    PublishError,
    StreamSpec,
    bucket_spec,
)
from ast_stream.runtime.logging import LimitedLog
from ast_stream.runtime.nats import NatsConnection, NatsError, NatsLogin, check_library, read_login
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import JetStreamLimits, NatsOutput
from ast_stream.units import counted

DAY_S = 86_400.0
GIB = 1024**3
STATUS_TIMEOUT_S = 5.0
_CONNECT_S = 0.5  # per wait, so that a stop does not take long
MAX_BOXES_BYTES = GIB  # of the bucket with the newest status of each box
MIN_BOXES_BYTES = 8 * 1024**2  # for a few thousand boxes of a few streams

logger = logging.getLogger(__name__)


def boxes_bytes(limits: JetStreamLimits) -> int:
    """Return the size of the bucket, which the server sets aside for it: a part of the stream's."""
    return min(MAX_BOXES_BYTES, max(MIN_BOXES_BYTES, round(limits.max_gib * GIB / 10)))


class NatsForwarder:
    """Publishes to one stream.

    Raises:
        StartupError: the library is missing.
    """

    def __init__(self, settings: NatsOutput, identity: BoxIdentity) -> None:
        self._settings = settings
        self._identity = identity
        what = f"output {settings.name}"
        check_library(what)
        self._login: Callable[[], NatsLogin] = partial(
            read_login, what, settings, settings.credential
        )
        self._connection = NatsConnection(
            self._login,
            f"ast-stream {identity.site}/{identity.box}",
            f"{what}: {', '.join(settings.servers)}",
            # unique to this box, so that permissions can keep others from reading the answers
            inbox=f"_INBOX.{identity.site}.{identity.box}",
            timeout_s=settings.timeout_s,
        )
        self._stream = JetStream(self._connection, settings.domain)
        self._status = JetStream(self._connection, settings.domain)
        self._ensured = 0  # number of the connection on which the stream was looked up
        self._bucket_ensured = 0
        self._revision: int | None = None  # of the last status
        self._rivals = Rivals(identity)
        self._limited_log = LimitedLog(logger)

    @property
    def name(self) -> str:
        """The name in the settings."""
        return self._settings.name

    @property
    def error(self) -> str | None:
        """Why there is no connection, as a sentence; None while there is one."""
        return self._connection.error

    @property
    def reconnects(self) -> int:
        """Number of times that a connection was lost and made again."""
        return max(0, self._connection.connects - 1)

    @property
    def duplicates(self) -> int:
        """Number of messages that the server reported as duplicates."""
        return self._stream.duplicates

    @property
    def rival(self) -> str | None:
        """A warning that another box has this box's name: its status has replaced ours."""
        return self._rivals.problem

    @property
    def memory(self) -> None:
        """None: confirmed messages are durable."""
        return None

    def check(self) -> None:
        """Read the credentials and certificates, without connecting."""
        self._login()

    def start(self) -> None:
        """Start connecting, in the background."""
        self._connection.start()

    def holds(self, batch: Sequence[OutgoingMessage]) -> set[str]:
        """Return the ids that the stream has: on each subject, all up to its newest message."""
        self._prepare()
        subjects = [self.subject(message) for message in batch]
        try:
            newest = self._stream.ids(self._settings.stream, subjects)
        except NatsError as error:
            if not self._connection.is_connected:
                raise OutputError(str(error)) from error
            text = "what the stream has is not known, and may be sent again: %s"
            self._limited_log.warning(text, error)
            return set()
        held: set[str] = set()
        by_subject: dict[str, list[str]] = {}
        for subject, message in zip(subjects, batch, strict=True):
            by_subject.setdefault(subject, []).append(message.id)
        for subject, ids in by_subject.items():
            if (found := newest.get(subject)) in ids:
                held.update(ids[: ids.index(found) + 1])
        return held

    def send(self, batch: Sequence[OutgoingMessage]) -> int:
        """Publish the whole batch at once."""
        self._prepare()
        messages = [
            NatsMessage(self.subject(message), message.body, message.id) for message in batch
        ]
        try:
            return self._stream.publish(messages, self._settings.timeout_s, self._settings.stream)
        except PublishError as error:
            self._ensured = 0  # the stream may have been deleted
            raise OutputError(
                str(error), error.confirmed, is_too_large=error.is_too_large
            ) from error
        except NatsError as error:
            raise OutputError(str(error)) from error

    def publish_status(self, report: bytes) -> None:
        """Put the status under the key of this box."""
        if not self._connection.is_connected:
            return
        bucket = self._settings.bucket
        try:
            if self._bucket_ensured != self._connection.connects:
                text = "status of the boxes of a fleet, by <site>.<box>"
                max_bytes = boxes_bytes(self._settings.limits)
                spec = bucket_spec(
                    bucket,
                    text,
                    max_bytes=max_bytes,
                    replicas=self._settings.limits.replicas,
                    asks_for=f"it asks for {max_bytes / GIB:.3g} GiB, a tenth of limits.max_gib, "
                    f"{self._asked_replicas}",
                )
                self._look_for(self._status, spec)
                self._bucket_ensured = self._connection.connects
            subject = f"$KV.{bucket}.{self._identity.key}"
            try:
                self._put(NatsMessage(subject, report, expected=self._revision))
            except PublishError as error:
                if not error.has_changed:
                    raise
                self._rivals.note()
                self._put(NatsMessage(subject, report))
        except NatsError as error:
            self._bucket_ensured, self._revision = 0, None
            self._limited_log.warning("the status of this box is not published: %s", error)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    def subject(self, message: OutgoingMessage) -> str:
        """Return the subject of a message."""
        return ".".join((self._settings.prefix, *message.parts))

    @property
    def _asked_replicas(self) -> str:
        return f"and limits.replicas for {counted(self._settings.limits.replicas, 'server')}"

    def _put(self, status: NatsMessage) -> None:
        self._status.publish([status], STATUS_TIMEOUT_S, f"KV_{self._settings.bucket}")
        self._revision = self._status.newest

    def _prepare(self) -> None:
        """Wait for a connection, and look up the stream on a new one.

        Raises:
            OutputError: there is no connection, or no stream.
        """
        if not self._connection.wait(_CONNECT_S):
            raise OutputError(self._connection.error or "there is no connection")
        if self._ensured == self._connection.connects:
            return
        own, limits = self._settings, self._settings.limits
        subjects = tuple(
            f"{own.prefix}.*.*.{kind}{rest}" for kind in OUTGOING_KINDS for rest in ("", ".>")
        )
        spec = StreamSpec(
            own.stream,
            subjects,
            "events, gaps, alerts, coverage and health of the boxes of a fleet",
            max_bytes=round(limits.max_gib * GIB),
            max_age_s=None if limits.max_days is None else limits.max_days * DAY_S,
            replicas=limits.replicas,
            duplicates_s=limits.duplicates_s,
            asks_for=f"limits.max_gib asks for {limits.max_gib:g} GiB, {self._asked_replicas}",
        )
        connects = self._connection.connects
        try:
            self._look_for(self._stream, spec)
        except NatsError as error:
            raise OutputError(str(error)) from error
        self._ensured = connects

    def _look_for(self, stream: JetStream, spec: StreamSpec) -> None:
        """Create the stream if it does not exist and this user may do so.

        Raises:
            NatsError: it does not exist and cannot be created.
        """
        try:
            stream.ensure(spec, create=self._settings.create)
        except NatsError as error:
            # a user that may only publish learns from the answers whether the stream exists
            if "STREAM.INFO" not in str(error) or not self._connection.is_connected:
                raise


OUTPUT = NatsForwarder
