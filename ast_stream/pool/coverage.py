"""The coverage of the streams of a pool: the ledgers of all its workers, asked for and joined.

Each worker is asked by its query endpoint, all at the same time. What one that does not answer may
have had is shown as such, by the claims in the bucket, and never as time that nobody listened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ast_stream.coverage.answer import CoverageAnswer
from ast_stream.coverage.spans import Span
from ast_stream.coverage.timeline import Others
from ast_stream.coverage.union import joined, others_between, own_part
from ast_stream.errors import StartupError, WireError
from ast_stream.feed import FeedAddress
from ast_stream.messages.pool import StreamClaim
from ast_stream.messages.query import CoverageQuery
from ast_stream.pool.bucket import PoolBucket
from ast_stream.pool.feed import ListedFeeds, own_key
from ast_stream.pool.membership import Allowed, last_known, ranked
from ast_stream.runtime.nats import NatsError
from ast_stream.settings.pool import is_capture_box, member_name
from ast_stream.settings.schema import Settings
from ast_stream.transport.keys import ClientKeys, KeyPair
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Socket, Sockets
from ast_stream.units import format_time

ANSWER_S = 10.0  # for all that a worker is asked
CONNECT_S = 5.0  # to NATS
MAX_PAGES = 16  # of one worker
MAX_LOOKED_UP = 2000  # streams whose claims are read
ANOTHER = "another worker"  # where the workers of the pool are not known
_POLL_MS = 20

logger = logging.getLogger(__name__)


class Holders(Protocol):
    """Which workers of a pool may have had a stream."""

    def claims(self, stream: str) -> Sequence[StreamClaim] | None:
        """Return the claims on a stream, oldest first; None: they cannot be read."""

    def home(self, stream: str) -> str | None:
        """Return the worker of a fixed list that always has a stream; None: it moves."""

    def streams(self) -> Sequence[str]:
        """Return all streams that are known, in no ledger either."""


@dataclass(frozen=True)
class PoolCoverage:
    """The ledgers of a pool.

    Attributes:
        ledgers: by worker and stream.
        unasked: workers whose ledgers are missing, in whole or in part, and why.
    """

    ledgers: Mapping[str, Mapping[str, Sequence[Span]]]
    unasked: Mapping[str, str]
    holders: Holders

    def unseen(self) -> dict[str, str]:
        """Return streams that are in no ledger, and the worker without one that has them."""
        if not self.unasked:
            return {}
        seen = {name for spans in self.ledgers.values() for name in spans}
        found = {}
        for stream in [name for name in self.holders.streams() if name not in seen][:MAX_LOOKED_UP]:
            claims = self.holders.claims(stream)
            if claims and claims[-1].worker in self.unasked:
                found[stream] = claims[-1].worker
        return found

    def joined(self) -> dict[str, list[Span]]:
        """Return the spans of each stream, each sample once."""
        names = sorted({name for spans in self.ledgers.values() for name in spans})
        return {
            name: joined(spans.get(name, ()) for spans in self.ledgers.values()) for name in names
        }

    def others(self) -> Callable[[str], Others]:
        """Return a function that says of a stream which workers without ledgers may have had it."""
        looked_up: dict[str, Sequence[StreamClaim] | None] = {}
        known = self.ledgers.keys() - self.unasked.keys()

        def claims_of(stream: str) -> Sequence[StreamClaim] | None:
            if stream not in looked_up and len(looked_up) < MAX_LOOKED_UP:
                looked_up[stream] = self.holders.claims(stream)
            return looked_up.get(stream)

        def of_stream(stream: str) -> Others:
            home = self.holders.home(stream)

            def others(before: Span, after: Span | None) -> Sequence[str]:
                if home is not None:
                    return [home] if home in self.unasked else []
                claims = claims_of(stream)
                if claims is None:
                    return sorted(self.unasked)
                return others_between(before, after, claims, known)

            return others

        return of_stream


class ListHolders:
    """The workers of a fixed list: each stream has its own."""

    def __init__(self, settings: Settings) -> None:
        assert settings.pool is not None
        self._weights = {member.name: member.weight for member in settings.pool.members}

    def claims(self, stream: str) -> Sequence[StreamClaim] | None:
        """Return nothing: nobody claims anything."""
        return []

    def home(self, stream: str) -> str | None:
        """Return the worker that has a stream by its name."""
        return ranked(stream, self._weights)[0]

    def streams(self) -> Sequence[str]:
        """Return none: the boxes alone know them."""
        return []


class BucketHolders:
    """The workers that have claimed a stream in the bucket of the pool."""

    def __init__(self, bucket: PoolBucket) -> None:
        self._bucket = bucket

    def claims(self, stream: str) -> Sequence[StreamClaim] | None:
        """Return the claims on a stream; None: the bucket cannot be read."""
        if not self._bucket.is_connected:
            return None
        try:
            return self._bucket.history(stream).claims
        except NatsError as error:
            logger.debug("claims on stream %s cannot be read: %s", stream, error)
            return None

    def home(self, stream: str) -> str | None:
        """Return None: streams move."""
        return None

    def streams(self) -> Sequence[str]:
        """Return the streams that any worker has claimed; none if the bucket cannot be read."""
        try:
            return self._bucket.streams() if self._bucket.is_connected else []
        except NatsError as error:
            logger.debug("the streams of the pool cannot be read: %s", error)
            return []


class OwnPart:
    """What a worker of a pool has of each stream, for those who add up the parts of all workers.

    Args:
        worker: its name.
        claims: returns the claims on a stream; None: they cannot be read.
        is_ready: returns whether they can be.
        close: ends all that is needed for it.
    """

    def __init__(
        self,
        worker: str,
        claims: Callable[[str], Sequence[StreamClaim] | None],
        is_ready: Callable[[], bool] = lambda: True,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._worker = worker
        self._claims = claims
        self.is_ready = is_ready
        self.close = close

    def of(self, stream: str, spans: Sequence[Span]) -> tuple[list[Span], Others] | None:
        """Return the spans that no worker after it has, too, and whose the time between them is.

        None while that is not known.
        """
        claims = self._claims(stream)
        if claims is None:
            return None
        known = {self._worker}

        def others(before: Span, after: Span | None) -> Sequence[str]:
            return others_between(before, after, claims, known)

        return own_part(spans, claims, self._worker), others


def own_part_of(settings: Settings, process: str) -> OwnPart | None:
    """Return the part of the worker of a configuration; None: its streams do not move.

    Args:
        process: name of this process, as the NATS server shows it.
    """
    pool = settings.pool
    if pool is None or pool.nats is None or is_capture_box(settings):
        return None
    name = member_name(settings)
    bucket = PoolBucket(pool, f"{process} {name}")
    bucket.start()
    holders = BucketHolders(bucket)
    return OwnPart(name, holders.claims, lambda: bucket.connection.wait(CONNECT_S), bucket.close)


@contextmanager
def ask_pool(
    settings: Settings,
    own: Mapping[str, Sequence[Span]],
    since_ns: int | None,
    until_ns: int | None,
    timeout_s: float = ANSWER_S,
    max_pages: int = MAX_PAGES,
) -> Iterator[PoolCoverage]:
    """Yield the ledgers of the configured pool; those who claimed a stream can be read meanwhile.

    Args:
        own: spans of each stream in the ledger of this configuration's worker, if it is one.
        since_ns, until_ns: the time that is asked for; None: all.
        max_pages: requests to each worker at most.

    Raises:
        StartupError: a key cannot be used.
    """
    pool = settings.pool
    assert pool is not None
    name = None if is_capture_box(settings) else member_name(settings)
    query = CoverageQuery(since_ns=since_ns, until_ns=until_ns)

    def asked(
        addresses: Mapping[str, FeedAddress | None], holders: Holders, problem: str | None = None
    ) -> PoolCoverage:
        others = {other: address for other, address in addresses.items() if other != name}
        ledgers, unasked = ask_workers(others, own_key(settings), query, timeout_s, max_pages)
        if name is not None or own:
            ledgers = {name or "": own, **ledgers}
        if problem is not None:
            unasked = {**unasked, ANOTHER: problem}
        return PoolCoverage(ledgers, unasked, holders)

    if pool.nats is None:
        yield asked(ListedFeeds(pool.members).addresses(), ListHolders(settings))
        return
    bucket = PoolBucket(pool, "coverage", is_quiet=True)
    bucket.start()
    try:
        is_allowed, problem = Allowed(settings), None
        try:
            if not bucket.connection.wait(CONNECT_S):
                raise NatsError(bucket.connection.error or "the NATS server does not answer")
            members = list(bucket.members().values())
        except NatsError as error:
            problem = f"{error}; only workers that were known before are asked"
            members = last_known(settings)
        addresses = {
            member.name: None
            if member.feed is None
            else FeedAddress(member.feed, member.query, member.key)
            for member in members
            if is_allowed(member)
        }
        yield asked(addresses, BucketHolders(bucket), problem)
    finally:
        bucket.close()


@dataclass
class _Talk:
    """What one worker has answered so far: pages, the newest first."""

    socket: Socket
    pages: list[list[Span]]


def ask_workers(
    addresses: Mapping[str, FeedAddress | None],
    own: KeyPair | None,
    query: CoverageQuery,
    timeout_s: float = ANSWER_S,
    max_pages: int = MAX_PAGES,
    now_s: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Mapping[str, Sequence[Span]]], dict[str, str]]:
    """Return what workers have of a time, by worker and stream, and who has not answered, and why.

    Args:
        own: the key of whoever asks; None: it has none.
        max_pages: requests to each worker at most; what is older then is left out.
    """
    found: dict[str, Mapping[str, Sequence[Span]]] = {}
    unasked: dict[str, str] = {}
    deadline_s = now_s() + timeout_s
    with closing(_sockets(own)) as sockets:
        talks: dict[str, _Talk] = {}
        for name, address in addresses.items():
            if address is None or address.query is None:
                unasked[name] = "it has no query endpoint by tcp"
                continue
            try:
                socket = sockets.connect("dealer", address.query, QUERY_HWM_MESSAGES, address.key)
            except StartupError as error:
                unasked[name] = str(error)
                continue
            talks[name] = _Talk(socket, [])
            socket.send(query.encode())
        while talks and now_s() < deadline_s:
            for name, talk in list(talks.items()):
                frames = talk.socket.receive(max(1, _POLL_MS // len(talks)))
                if frames is None:
                    continue
                try:
                    older = _take(talk, frames)
                except WireError as error:
                    unasked[name], older = str(error), None
                if older is not None and len(talk.pages) < max_pages:
                    talk.socket.send(query.model_copy(update={"until_ns": older}).encode())
                    continue
                if older is not None:
                    unasked[name] = f"it has too much: it was asked since {format_time(older)}"
                del talks[name]
                if talk.pages:
                    found[name] = _by_stream(talk)
        for name, talk in talks.items():
            unasked[name] = "it does not answer"
            if talk.pages:
                found[name] = _by_stream(talk)
    return found, unasked


def _take(talk: _Talk, frames: list[bytes]) -> int | None:
    """Keep the spans in an answer; return the time before which there are more, None: nowhere.

    Raises:
        WireError: it does not follow the format, or the query was refused.
    """
    answer = CoverageAnswer.decode(frames)
    talk.pages.append(answer.spans)
    return answer.complete_from_ns


def _by_stream(talk: _Talk) -> dict[str, list[Span]]:
    streams: dict[str, list[Span]] = {}
    for page in reversed(talk.pages):
        for span in page:
            streams.setdefault(span.stream, []).append(span)
    return streams


def _sockets(own: KeyPair | None) -> Sockets:
    # each worker has a key of its own, which is given where it is connected
    return Sockets(None if own is None else ClientKeys(own, own.public))
