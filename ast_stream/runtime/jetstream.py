"""JetStream over a `NatsConnection`: messages published with confirmation, streams, buckets.

A publish is confirmed when the server says that its stream has the message. Many may be on their
way at a time; the server takes those of one connection in their order.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ast_stream.runtime.nats import NatsConnection, NatsError, sentence

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

MESSAGE_ID = "Nats-Msg-Id"  # header by which the server recognises what it gets twice
EXPECTED = "Nats-Expected-Last-Subject-Sequence"  # header: else it refuses
API_TIMEOUT_S = 10.0
MAX_AT_A_TIME = 64  # requests
_TOO_LARGE = 10054  # error of the server: message size exceeds maximum allowed
_CHANGED = 10071  # wrong last sequence
_NOT_FOUND = 404
_STATUS, _NO_RESPONDERS = "Status", "503"
_LOOK_EVERY_S = 0.5  # whether the connection is lost, while confirmations are waited for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NatsMessage:
    """One message to publish.

    Attributes:
        id: what is published again under the same id is stored once, for some time.
        expected: number of the newest message of the subject, else this one is refused; None: it
            may have any.
    """

    subject: str
    body: bytes
    id: str | None = None
    expected: int | None = None

    @property
    def headers(self) -> dict[str, str] | None:
        """What stands before the body."""
        found = {MESSAGE_ID: self.id, EXPECTED: self.expected}
        return {key: str(value) for key, value in found.items() if value is not None} or None


class PublishError(NatsError):
    """A publish that was not confirmed.

    Attributes:
        confirmed: how many messages before it are.
        is_too_large: the message behind those can never be taken.
        has_changed: the newest message of its subject is not the one that was expected.
    """

    def __init__(
        self,
        text: str,
        confirmed: int,
        *,
        is_too_large: bool = False,
        has_changed: bool = False,
    ) -> None:
        super().__init__(text)
        self.confirmed = confirmed
        self.is_too_large = is_too_large
        self.has_changed = has_changed


@dataclass(frozen=True)
class StreamSpec:
    """A stream as it is made if it is not there.

    Attributes:
        max_bytes, max_age_s: None: without limit.
        per_subject: how many messages of each subject are kept; None: all.
        asks_for: what a server may be too small for, and which settings say so, for its refusal.
    """

    name: str
    subjects: tuple[str, ...]
    description: str = ""
    max_bytes: int | None = None
    max_age_s: float | None = None
    replicas: int = 1
    duplicates_s: float = 120.0
    per_subject: int | None = None
    is_bucket: bool = False
    asks_for: str = ""

    def config(self) -> dict[str, Any]:
        """Return it as the server's API has it."""
        max_age_ns = 0 if self.max_age_s is None else round(self.max_age_s * 1e9)
        window_ns = round(self.duplicates_s * 1e9)
        return {
            "name": self.name,
            "subjects": list(self.subjects),
            "description": self.description,
            "retention": "limits",
            "storage": "file",
            "discard": "new" if self.is_bucket else "old",
            "max_bytes": -1 if self.max_bytes is None else self.max_bytes,
            "max_age": max_age_ns,
            "max_msgs": -1,
            "max_consumers": -1,
            "max_msg_size": -1,
            "max_msgs_per_subject": -1 if self.per_subject is None else self.per_subject,
            "num_replicas": self.replicas,
            "duplicate_window": min(window_ns, max_age_ns) if max_age_ns else window_ns,
            "allow_direct": True,
            "allow_rollup_hdrs": self.is_bucket,
            "deny_delete": self.is_bucket,
            "compression": "none" if self.is_bucket else "s2",
        }


def bucket_spec(
    name: str,
    description: str = "",
    *,
    history: int = 1,
    ttl_s: float | None = None,
    max_bytes: int | None = None,
    replicas: int = 1,
    asks_for: str = "",
) -> StreamSpec:
    """Return the stream that is a key-value bucket.

    Args:
        history: values kept of each key.
        ttl_s: after which values are deleted; None: never.
    """
    return StreamSpec(
        f"KV_{name}",
        (f"$KV.{name}.>",),
        description,
        max_bytes,
        ttl_s,
        replicas,
        per_subject=history,
        is_bucket=True,
        asks_for=asks_for,
    )


@dataclass
class _Unconfirmed:
    """A message on its way, or a request."""

    subject: str
    answer: asyncio.Future[dict[str, Any]] = field(repr=False)
    stream: str | None = None  # that has to confirm it; None: any

    def drop(self) -> None:
        """Expect no answer any more."""
        if not self.answer.cancel() and not self.answer.cancelled():
            self.answer.exception()  # else the loop complains that nobody has looked at it


class JetStream:
    """Streams of the servers that a connection leads to; for use by one thread at a time.

    Args:
        domain: of JetStream, e.g. of a leaf node; None: of the servers themselves.

    Attributes:
        duplicates: messages that the server had already.
        newest: number of the message that was confirmed last; 0: none was.
    """

    def __init__(self, connection: NatsConnection, domain: str | None = None) -> None:
        self.duplicates = 0
        self.newest = 0
        self._connection = connection
        self._prefix = "$JS.API" if domain is None else f"$JS.{domain}.API"
        self._client: Client | None = None  # whose answers are subscribed to
        self._inbox = ""
        self._next = 0
        self._waiting: dict[str, _Unconfirmed] = {}  # by the last token of the inbox
        self._other_streams: set[str] = set()  # that took messages, too
        connection.on_refusal(self._on_refusal)

    def publish(
        self, messages: Sequence[NatsMessage], timeout_s: float, stream: str | None = None
    ) -> int:
        """Publish in order, and return how many are confirmed, which is all of them.

        Args:
            timeout_s: without any confirmation.
            stream: confirmations of others do not count; None: of any.

        Raises:
            PublishError: not all are; says how many from the first on.
            NatsError: none is, for there is no connection.
        """
        confirmed, error = self._connection.call(
            lambda client: self._publish(client, messages, timeout_s, stream),
            timeout_s * (2 + len(messages) // 64),
        )
        if error is not None:
            raise error
        return confirmed

    def ids(self, stream: str, subjects: Sequence[str]) -> dict[str, str]:
        """Return the id of the newest message of each subject; not of those that have none.

        Raises:
            NatsError: the server does not say.
        """
        return self._connection.call(
            lambda client: self._ids(client, stream, subjects),
            API_TIMEOUT_S * (1 + len(subjects) // MAX_AT_A_TIME),
        )

    def ensure(self, spec: StreamSpec, *, create: bool) -> None:
        """Make a stream if it is not there; one that is there is left as it is.

        Raises:
            NatsError: it is not there and cannot be made, or takes other subjects; says what to do.
        """
        self._connection.call(lambda client: self._ensure(client, spec, create), 3 * API_TIMEOUT_S)

    async def _publish(
        self, client: Client, messages: Sequence[NatsMessage], timeout_s: float, stream: str | None
    ) -> tuple[int, PublishError | None]:
        await self._listen(client)
        sent: list[str] = []
        too_large: str | None = None
        try:
            for message in messages:
                size = len(message.body) + (0 if message.id is None else len(message.id) + 64)
                if size > client.max_payload:
                    too_large = f"{size} bytes, where the server takes {client.max_payload}"
                    break
                token = self._expect(message.subject, stream)
                sent.append(token)
                inbox = f"{self._inbox}.{token}"
                await client.publish(message.subject, message.body, inbox, message.headers)
            waiting = [self._waiting[token].answer for token in sent]
            await self._settle(client, waiting, timeout_s)
            return self._outcome(messages, waiting, stream, too_large, timeout_s)
        finally:
            for token in sent:
                self._waiting.pop(token).drop()

    @staticmethod
    async def _settle(
        client: Client, waiting: Sequence[asyncio.Future[Any]], timeout_s: float
    ) -> None:
        """Wait until all are answered, or none has been for `timeout_s`."""
        loop = asyncio.get_running_loop()
        pending = set(waiting)
        end_s = loop.time() + timeout_s
        while pending and not client.is_closed and (left_s := end_s - loop.time()) > 0:
            step_s = min(left_s, _LOOK_EVERY_S)
            done, pending = await asyncio.wait(pending, timeout=step_s)
            if any(future.exception() is not None for future in done):
                # what was sent behind it is confirmed or refused soon, or will be sent again
                if pending:
                    await asyncio.wait(pending, timeout=_LOOK_EVERY_S)
                return
            if done:
                end_s = loop.time() + timeout_s

    def _outcome(
        self,
        messages: Sequence[NatsMessage],
        waiting: Sequence[asyncio.Future[dict[str, Any]]],
        stream: str | None,
        too_large: str | None,
        timeout_s: float,
    ) -> tuple[int, PublishError | None]:
        for index, answer in enumerate(waiting):
            subject = messages[index].subject
            if not answer.done():
                others = ", ".join(sorted(self._other_streams - {stream or ""}))
                why = f"; the stream {others} took it" if others else ""
                text = f"{subject} is not confirmed within {timeout_s:g} s{why}"
                return index, PublishError(text, index)
            if (error := answer.exception()) is not None:
                text = sentence(error)
                return index, PublishError(text if subject in text else f"{subject}: {text}", index)
            reply = answer.result()
            if "error" in reply:
                code = reply["error"].get("err_code")
                text = f"{subject}: {_said(reply)}"
                return index, PublishError(
                    text, index, is_too_large=code == _TOO_LARGE, has_changed=code == _CHANGED
                )
            self.duplicates += bool(reply.get("duplicate"))
            self.newest = int(reply["seq"])
        if too_large is not None:
            subject = messages[len(waiting)].subject
            text = f"{subject}: the message has {too_large}"
            return len(waiting), PublishError(text, len(waiting), is_too_large=True)
        return len(waiting), None

    async def _ids(self, client: Client, stream: str, subjects: Sequence[str]) -> dict[str, str]:
        limit = asyncio.Semaphore(MAX_AT_A_TIME)

        async def newest(subject: str) -> tuple[str, str | None]:
            async with limit:
                where = f"{self._prefix}.DIRECT.GET.{stream}.{subject}"
                message = await self._ask(client, where, b"")
            return subject, (message.headers or {}).get(MESSAGE_ID)

        found = await asyncio.gather(*(newest(subject) for subject in dict.fromkeys(subjects)))
        return {subject: id for subject, id in found if id is not None}

    async def _ensure(self, client: Client, spec: StreamSpec, create: bool) -> None:
        what = f"the bucket {spec.name[3:]}" if spec.is_bucket else f"the stream {spec.name}"
        made_by = (
            f"nats kv add {spec.name[3:]}"
            if spec.is_bucket
            else f"nats stream add {spec.name} --subjects '{','.join(spec.subjects)}'"
        )
        info = await self._api(client, f"STREAM.INFO.{spec.name}", b"")
        error = info.get("error", {})
        if error.get("code") == _NOT_FOUND and not create:
            raise NatsError(f"there is no {what[4:]}; make it: {made_by}")
        if error.get("code") == _NOT_FOUND:
            config = json.dumps(spec.config()).encode()
            try:
                info = await self._api(client, f"STREAM.CREATE.{spec.name}", config)
            except NatsError as refused:
                text = f"there is no {what[4:]}, and {refused}; make it: {made_by}"
                raise NatsError(text) from refused
            if "error" in info:
                asked = f", where {spec.asks_for}" if spec.asks_for else ""
                text = f"{what} cannot be made: {_said(info)}{asked}; make it: {made_by}"
                raise NatsError(text)
            logger.info("%s is made", what)
        elif error:
            raise NatsError(f"{what}: {_said(info)}")
        config_now = info.get("config", {})
        lacks = [
            subject for subject in spec.subjects if subject not in config_now.get("subjects", [])
        ]
        covered = config_now.get("subjects", [])
        lacks = [
            subject for subject in lacks if not any(_covers(wide, subject) for wide in covered)
        ]
        is_fed = bool(config_now.get("sources") or config_now.get("mirror"))
        if lacks and not is_fed:
            text = f"{what} does not take {', '.join(lacks)}: add them to its subjects"
            raise NatsError(text)

    async def _api(self, client: Client, call: str, body: bytes) -> dict[str, Any]:
        reply = await self._ask(client, f"{self._prefix}.{call}", body)
        try:
            found = json.loads(reply.data)
        except ValueError as error:
            raise NatsError(f"{call}: expected JSON, got something else") from error
        if not isinstance(found, dict):
            raise NatsError(f"{call}: expected a JSON object, got something else")
        return found

    async def _ask(self, client: Client, subject: str, body: bytes) -> Msg:
        """Return the answer to a request; a refusal of the server ends the wait for it."""
        token = self._expect(subject)
        refused = self._waiting[token].answer
        request = asyncio.ensure_future(client.request(subject, body, timeout=API_TIMEOUT_S))
        try:
            both: set[asyncio.Future[Any]] = {request, refused}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not request.done():
                refused.result()  # raises: only a refusal completes it
            return request.result()
        except NatsError:
            raise
        except Exception as error:  # of the library, or of the server through it
            raise NatsError(sentence(error)) from error
        finally:
            request.cancel()
            self._waiting.pop(token).drop()

    def _expect(self, subject: str, stream: str | None = None) -> str:
        self._next += 1
        token = str(self._next)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[token] = _Unconfirmed(subject, future, stream)
        return token

    async def _listen(self, client: Client) -> None:
        """Subscribe to the answers of a new connection."""
        if self._client is client:
            return
        self._inbox = client.new_inbox()
        await client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        self._client = client

    async def _on_answer(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is None or waiting.answer.done():
            return
        if (message.headers or {}).get(_STATUS) == _NO_RESPONDERS:
            text = "no stream takes it, or JetStream is off there"
            waiting.answer.set_exception(NatsError(text))
            return
        with suppress(ValueError):
            reply = json.loads(message.data)
            if not isinstance(reply, dict) or ("error" not in reply and "seq" not in reply):
                return
            by = reply.get("stream")
            if "error" not in reply and waiting.stream is not None and by != waiting.stream:
                self._other_streams.add(str(by))  # e.g. one of the hub behind a leaf node
                return
            waiting.answer.set_result(reply)

    def _on_refusal(self, text: str) -> None:
        """Fail what the server says that this user may not do; the library has it in lower case."""
        for waiting in list(self._waiting.values()):
            is_meant = f'"{waiting.subject.lower()}"' in text.lower()
            if is_meant and not waiting.answer.done():
                refused = f"this user may not publish to {waiting.subject}"
                waiting.answer.set_exception(NatsError(refused))


def _said(reply: Mapping[str, Any]) -> str:
    error = reply.get("error")
    description = error.get("description") if isinstance(error, Mapping) else None
    return f"the server says: {description or 'no reason'}"


def _covers(wide: str, narrow: str) -> bool:
    """Return whether a subject with wildcards takes all that another one takes.

    >>> _covers("a.*.>", "a.*.event.>"), _covers("a.*", "a.>"), _covers("a.>", "a")
    (True, False, False)
    """
    wides, narrows = wide.split("."), narrow.split(".")
    for index, token in enumerate(wides):
        if token == ">":
            return len(narrows) > index
        if index >= len(narrows) or narrows[index] == ">":
            return False
        if token not in ("*", narrows[index]):
            return False
    return len(wides) == len(narrows)
