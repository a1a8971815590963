"""Connections from capture processes of other boxes, by which the worker reads their rings.

A `RingLink` is to one stream what a `RingClient` is on the same box; it lasts, and is connected or
not. What a capture process says is checked against its key: it speaks for its own streams alone.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.errors import WireError
from ast_stream.machine_clock import read_clocks
from ast_stream.messages.audio import AckRequest, ReadRequest
from ast_stream.messages.pool import Placement
from ast_stream.messages.rings import (
    REPLY,
    REQUEST,
    TAG_BYTES,
    Accepted,
    Hello,
    Leaving,
    OfCapture,
    OfWorker,
    RecordedAck,
    Refused,
    Release,
    decode_of_capture,
)
from ast_stream.runtime.logging import LimitedLog
from ast_stream.transport.sockets import Listener
from ast_stream.units import seconds_to_ns

logger = logging.getLogger(__name__)

RECORD_EVERY_S = 10.0  # between journal records that a capture process is sent
LOST_AFTER_RING_S = 30.0  # beyond what a ring holds: then nobody goes on from where it was
_MESSAGES_A_TICK = 512
_MAX_REPLIES = 16


class RingLink:
    """The connection to the ring of one stream, from its capture process.

    Args:
        worker: name of this worker in its pool; None: it is in none.

    Attributes:
        identity: of the connection; None: there is none now.
        hello: what the capture process said last.
        heard_s: when it said anything.
    """

    def __init__(
        self,
        listener: Listener,
        hello: Hello,
        worker: str | None,
        record_every_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self.stream = hello.stream
        self.identity: bytes | None = None
        self.account = ""
        self.hello = hello
        self.heard_s = now_s()
        self.is_releasing = self.stays = False
        self._worker = worker
        self._taken_s = now_s()
        self._record_every_s = record_every_s
        self._now_s = now_s
        self._listener = listener
        self._replies: deque[list[bytes]] = deque(maxlen=_MAX_REPLIES)
        self._tag = os.urandom(TAG_BYTES)
        self._recorded_s = float("-inf")

    @property
    def endpoint(self) -> str:
        """Whom it connects, for people."""
        return f"{self._listener.endpoint} ({self.account or 'nobody yet'})"

    @property
    def is_connected(self) -> bool:
        """Whether the capture process is connected, as far as is known."""
        return self.identity is not None

    def send(self, request: ReadRequest | AckRequest) -> bool:
        """Send a request; return False if it could not go out now."""
        if isinstance(request, AckRequest):
            return self.acknowledge(request, None)
        return self._send([REQUEST, self._tag, *request.encode()])

    def acknowledge(self, request: AckRequest, record: bytes | None) -> bool:
        """Acknowledge audio, with the stream's journal record; return False if it did not go."""
        return self._send(RecordedAck(request, record).encode())

    def is_record_due(self) -> bool:
        """Return whether the capture process should have a newer journal record."""
        return self.hello.keeps_record and self._now_s() - self._recorded_s >= self._record_every_s

    def note_recorded(self) -> None:
        """Note that a journal record went out."""
        self._recorded_s = self._now_s()

    def expect_record(self) -> None:
        """Let the next acknowledgement bring a journal record."""
        self._recorded_s = float("-inf")

    def say(self, message: OfWorker) -> bool:
        """Send a message; return False if nothing is connected."""
        return self._send(message.encode())

    def receive(self) -> list[bytes] | None:
        """Return the frames of a reply, or None."""
        return self._replies.popleft() if self._replies else None

    def close(self) -> None:
        """Forget all requests so far: replies to them come too late, whatever their numbers."""
        self._tag = os.urandom(TAG_BYTES)
        self._replies.clear()

    def attach(self, identity: bytes, account: str, hello: Hello) -> None:
        """Use another connection of the capture process from now on, or the same one still."""
        if identity != self.identity:
            self.close()
            self.expect_record()
            self.is_releasing = self.stays = False
        self.identity, self.account, self.hello = identity, account, hello
        self.heard_s = self._now_s()

    def detach(self) -> None:
        """Note that the capture process is not connected any more."""
        self.identity = None
        self.close()

    def take_reply(self, frames: list[bytes]) -> None:
        """Take the reply to a request, unless it comes too late."""
        if frames[1:2] == [self._tag]:
            self._replies.append(frames[2:])

    def placement(self) -> Placement | None:
        """Return since when this worker of a pool has the stream."""
        if self._worker is None:
            return None
        age_s = self._now_s() - self._taken_s
        return Placement(
            worker=self._worker,
            since_ns=read_clocks().wall_ns - seconds_to_ns(age_s),
            changes=self.hello.term,
        )

    def lost_after_s(self) -> float:
        """Return how long its events stay open without the capture process."""
        return self.hello.ring_s + LOST_AFTER_RING_S

    def _send(self, frames: list[bytes]) -> bool:
        return self.identity is not None and self._listener.send([self.identity, *frames])


@dataclass(frozen=True)
class Said:
    """What a capture process said, and which connection it came by."""

    identity: bytes
    account: str
    message: OfCapture
    record: bytes | None


class RingLinks:
    """The links of all streams, at the socket that capture processes of other boxes connect to.

    Args:
        owner: name of the worker and of its run.
        is_of_pool: that is a name in a pool.
        record_every_s: between journal records that a capture process is sent.
        now_s: a monotonic clock.

    Attributes:
        refused: messages that did not follow the format, or that a key does not allow.
    """

    def __init__(
        self,
        listener: Listener,
        owner: str,
        record_every_s: float,
        now_s: Callable[[], float],
        *,
        is_of_pool: bool = False,
    ) -> None:
        self.listener = listener
        self.owner = owner
        self.refused = 0
        self._worker = owner.rpartition("/")[0] if is_of_pool else None
        self._record_every_s = record_every_s
        self._now_s = now_s
        self._links: dict[str, RingLink] = {}
        self._by_identity: dict[bytes, RingLink] = {}
        self._log = LimitedLog(logger, now_s)

    def get(self, stream: str) -> RingLink | None:
        """Return the link of a stream, if it ever had one."""
        return self._links.get(stream)

    def turn(self) -> list[Said]:
        """Receive what has come, and note who has gone; replies are with their links then."""
        now_s = self._now_s()
        said: list[Said] = []
        for _ in range(_MESSAGES_A_TICK):
            message = self.listener.receive()
            if message is None:
                break
            identity, *frames = message
            link = self._by_identity.get(identity)
            if frames[0] == REPLY and link is not None:
                link.heard_s = now_s
                link.take_reply(frames)
                continue
            try:
                heard = self._decode(identity, frames)
            except WireError as error:
                self.refused += 1
                self._log.warning("%s: %s", self.listener.endpoint, error)
                continue
            if heard is not None:
                said.append(heard)
        for identity, link in list(self._by_identity.items()):
            if not self.listener.is_trusted(identity):
                del self._by_identity[identity]
                link.detach()
                logger.info("stream %s: its capture process is not connected", link.stream)
        return said

    def attach(self, said: Said, hello: Hello) -> RingLink:
        """Return the link of a stream, with this connection from now on."""
        link = self._links.get(hello.stream)
        if link is None:
            link = self._links[hello.stream] = RingLink(
                self.listener, hello, self._worker, self._record_every_s, self._now_s
            )
        if link.identity is not None and link.identity != said.identity:
            self._by_identity.pop(link.identity, None)
        link.attach(said.identity, said.account, hello)
        self._by_identity[said.identity] = link
        return link

    def of(self, said: Said) -> RingLink | None:
        """Return the link that a connection is of."""
        return self._by_identity.get(said.identity)

    def forget(self, link: RingLink) -> None:
        """Forget the link of a stream that is no longer here."""
        self._links.pop(link.stream, None)
        if link.identity is not None:
            self._by_identity.pop(link.identity, None)
        link.detach()

    def accept(self, said: Said, *, is_offer: bool = False) -> None:
        """Answer that the stream is taken, or would be."""
        self._answer(said, Accepted(worker=self.owner, is_offer=is_offer))

    def refuse(self, said: Said, refusal: Refused) -> None:
        """Answer that it is not."""
        self._answer(said, refusal)

    def say_leaving(self) -> None:
        """Ask all capture processes that may have another worker to look for it."""
        for link in self._may_move():
            link.say(Leaving())

    def may_move(self) -> bool:
        """Return whether any of them may still do so."""
        return bool(self._may_move())

    def _may_move(self) -> list[RingLink]:
        links = self._by_identity.values()
        return [link for link in links if link.hello.keeps_record and not link.stays]

    def _answer(self, said: Said, message: OfWorker) -> None:
        self.listener.send([said.identity, *message.encode()])

    def _decode(self, identity: bytes, frames: list[bytes]) -> Said | None:
        """Return what was said.

        Raises:
            WireError: it does not follow the format, or is about a stream of somebody else's.
        """
        if frames[0] == REPLY:
            return None  # of a connection that is no longer the stream's
        requester = self.listener.requester(identity)
        try:
            message, record = decode_of_capture(frames)
        except WireError as error:
            self._answer(Said(identity, "", Release(), None), _malformed(str(error)))
            raise
        said = Said(identity, requester.account, message, record)
        if isinstance(message, Hello) and not requester.rights.may_push(message.stream.encode()):
            self.refuse(said, Refused(reason="not_allowed"))
            raise WireError(f"stream {message.stream}: {requester.name} may not send it")
        return said


def _malformed(detail: str) -> Refused:
    return Refused(reason="malformed", detail=detail[:500])
