"""The query endpoint of a publisher: replay, snapshot, audio and coverage; server and client.

Every request gets one answer, also one that makes no sense. Clients are DEALERs, or REQs with
their empty delimiter. Nothing waits for a client: an answer that does not fit into its queue is
dropped, and the client asks again.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ast_stream.errors import WireError
from ast_stream.messages.administration import AdministrationRequest
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.codec import decode_time
from ast_stream.messages.event import Position
from ast_stream.messages.query import (
    MAX_AUDIO_S,
    AudioAnswer,
    AudioQuery,
    CoverageQuery,
    PingAnswer,
    PingQuery,
    Query,
    ReplayQuery,
    Snapshot,
    SnapshotQuery,
    TooOld,
    decode_query,
    refuse_query,
)
from ast_stream.runtime.logging import LimitedLog
from ast_stream.sample_clock import SampleClock
from ast_stream.transport.allow_list import ALL_RIGHTS, FEED
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.requester import Requester
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Socket, Sockets
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, format_time

ANSWERS_A_TURN = 8  # then the worker's loop continues; the rest waits in the socket
# by op; anyone may ping, and whoever hands out audio says who gets it
_NEEDED = {"replay": FEED, "snapshot": FEED, "coverage": FEED}
SELF = Requester("this process", "this process", os.getpid(), True, ALL_RIGHTS)
_POLL_MS = 100  # how late a stop is noticed

logger = logging.getLogger(__name__)


class QuerySocket(Protocol):
    """A ROUTER socket."""

    def receive(self, timeout_ms: int = 0) -> list[bytes] | None:
        """Return the next message; None if there is none."""

    def send(self, frames: list[bytes]) -> bool:
        """Send now; return False if that is not possible."""

    def requester(self, identity: bytes) -> Requester:
        """Return who the client of a request is, and what it may do."""


class PublisherState(Protocol):
    """The state of the publisher that answers carry."""

    boot: str
    started_ns: int

    @property
    def durable_position(self) -> Position:
        """Position of the last durable message."""


@dataclass(frozen=True)
class AudioRange:
    """Audio from `start` to `stop`: sample indices, or nanoseconds since 1970 if `is_wall_time`.

    Attributes:
        epoch: epoch that the indices belong to; None: the present one.
    """

    stream: str
    epoch: str | None
    start: int
    stop: int
    is_wall_time: bool

    def samples(self, clock: SampleClock) -> tuple[int, int]:
        """Return the range in sample indices, by the stream's clock."""
        if not self.is_wall_time:
            return self.start, self.stop
        return clock.sample_at(self.start), clock.sample_at(self.stop)

    def shown(self) -> tuple[int, int] | tuple[str, str]:
        """Return the range as it was asked for: sample indices or times."""
        if not self.is_wall_time:
            return self.start, self.stop
        return format_time(self.start), format_time(self.stop)


@dataclass(frozen=True, eq=False)
class ReleasedAudio:
    """Audio that may be handed out.

    Attributes:
        withheld: which samples of it are silence because somebody may talk, each range from one
            index to before another; None: nobody looked.
    """

    block: AudioBlock
    withheld: list[tuple[int, int]] | None = None


class LaterAnswers(Protocol):
    """Answers queries for coverage while the publisher goes on."""

    def ask(self, envelope: list[bytes], query: CoverageQuery) -> None:
        """Answer a query later; raises `WireError` if that cannot be."""

    def finished(self) -> list[tuple[list[bytes], list[bytes]]]:
        """Return the answers that are ready, each with the envelope of its client."""


class QueryServer:
    """Answers queries between two turns of the worker's loop.

    Args:
        event_log: what `replay` reads; None: nothing can be replayed.
        snapshot: returns streams, open events and status.
        audio: returns what somebody may have of a range; raises `WireError` with a sentence if
            that is nothing.
        coverage: answers from the coverage ledger; None: there is none.

    Attributes:
        answered: answers, by op; `refused` for requests that make no sense.
        dropped: answers that did not fit into the client's queue.
    """

    def __init__(
        self,
        socket: QuerySocket,
        event_log: EventLog | None,
        publisher: PublisherState,
        *,
        snapshot: Callable[[], Snapshot],
        audio: Callable[[AudioRange, Requester], ReleasedAudio],
        coverage: LaterAnswers | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._socket = socket
        self._log = event_log
        self._publisher = publisher
        self._snapshot = snapshot
        self._audio = audio
        self._coverage = coverage
        self._limited_log = LimitedLog(logger, now_s)
        self.answered: Counter[str] = Counter()
        self.dropped = 0

    def serve(self) -> int:
        """Answer the requests that wait, at most `ANSWERS_A_TURN`; return how many."""
        if self._coverage is not None:
            for client, late in self._coverage.finished():
                self._send(client, late)
        for n_answered in range(ANSWERS_A_TURN):
            frames = self._socket.receive()
            if frames is None:
                return n_answered
            envelope, request = without_envelope(frames)
            requester = self._socket.requester(envelope[0])
            answer = self.answer(request, requester, envelope)
            if answer:
                self._send(envelope, answer)
        return ANSWERS_A_TURN

    def _send(self, envelope: list[bytes], answer: list[bytes]) -> None:
        if not self._socket.send(envelope + answer):
            self.dropped += 1

    def answer(
        self, request: list[bytes], requester: Requester = SELF, envelope: Sequence[bytes] = ()
    ) -> list[bytes]:
        """Return the frames that answer the frames of one request; none: they come later.

        Args:
            envelope: of the client.
        """
        try:
            query = decode_query(request)
            needed = _NEEDED.get(query.op)
            if needed is not None and not requester.rights.may(needed):
                raise WireError(f"{query.op}: not allowed: the client lacks the right {needed!r}")
            answer: list[bytes] = []
            if isinstance(query, CoverageQuery):
                self._ask_coverage(query, envelope)
            else:
                answer = self._answer(query, requester)
        except WireError as error:
            self.answered["refused"] += 1
            self._limited_log.warning("query refused: %s", error)
            return refuse_query(str(error))
        self.answered[query.op] += 1
        return answer

    def _answer(
        self, query: ReplayQuery | SnapshotQuery | AudioQuery | PingQuery, requester: Requester
    ) -> list[bytes]:
        match query:
            case ReplayQuery():
                return self._replay(query)
            case SnapshotQuery():
                return self._snapshot().encode()
            case AudioQuery():
                released = self._audio(_audio_range(query), requester)
                boot, withheld = self._publisher.boot, released.withheld
                return AudioAnswer(released.block, boot, withheld).encode()
            case PingQuery():
                return PingAnswer(
                    boot=self._publisher.boot,
                    started_ns=self._publisher.started_ns,
                    durable_seq=self._publisher.durable_position[1],
                ).encode()

    def _ask_coverage(self, query: CoverageQuery, envelope: Sequence[bytes]) -> None:
        if self._coverage is None:
            raise WireError("coverage: this publisher keeps no coverage ledger")
        self._coverage.ask(list(envelope), query)

    def _replay(self, query: ReplayQuery) -> list[bytes]:
        if self._log is None:
            raise WireError("replay: this publisher keeps no event log")
        page = self._log.replay(query.after)
        return page.encode() if isinstance(page, TooOld) else page.encode(self._publisher.boot)


def without_envelope(frames: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Split off the identity of the client, and the empty delimiter of a REQ."""
    n_envelope = 2 if len(frames) > 2 and frames[1] == b"" else 1
    return frames[:n_envelope], frames[n_envelope:]


def _audio_range(query: AudioQuery) -> AudioRange:
    start, stop = query.start, query.stop
    if isinstance(start, int) and isinstance(stop, int):
        limit, is_wall_time = MAX_AUDIO_S * SAMPLE_RATE, False
    elif isinstance(start, str) and isinstance(stop, str):
        start, stop = _time("from", start), _time("to", stop)
        limit, is_wall_time = MAX_AUDIO_S * NS_PER_SECOND, True
    else:
        raise WireError("audio: expected 'from' and 'to' both as samples or both as times")
    if not 0 <= stop - start <= limit:
        raise WireError(f"audio: expected 'to' 0 to {MAX_AUDIO_S} s after 'from', got another span")
    return AudioRange(query.stream, query.epoch, start, stop, is_wall_time)


def _time(key: str, text: str) -> int:
    try:
        return decode_time(text)
    except (ValueError, OverflowError) as error:
        raise WireError(f"audio: {key}: {error}") from error


class QueryClient:
    """A DEALER that asks one query at a time; the publisher may be absent.

    Args:
        is_stopped: polled while an answer is waited for.
        now_s: monotonic clock.
        server_key: public key of the publisher, in Z85; None: the one of the configuration.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        is_stopped: Callable[[], bool] = lambda: False,
        now_s: Callable[[], float] = time.monotonic,
        server_key: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._server_key = server_key
        self._sockets = sockets
        self._is_stopped = is_stopped
        self._now_s = now_s
        self._socket: Socket | None = None

    def ask(self, query: Query | AdministrationRequest, timeout_s: float) -> list[bytes] | None:
        """Return the frames of the answer; None if none came in time."""
        if self._socket is None:
            self._socket = self._sockets.connect(
                "dealer", self.endpoint, QUERY_HWM_MESSAGES, self._server_key
            )
        self._socket.send(query.encode())
        deadline_s = self._now_s() + timeout_s
        while not self._is_stopped() and self._now_s() < deadline_s:
            frames = self._socket.receive(_POLL_MS)
            if frames is not None:
                return frames
        self.close()  # else a late answer would be mistaken for that to the next query
        return None

    def close(self) -> None:
        """Close the socket; the next query opens another."""
        if self._socket is not None:
            self._sockets.forget(self._socket)
            self._socket = None
