"""The feeds of all workers of a pool as one, so that readers follow streams between workers.

After a take-over two workers may publish the same event message, with the same id: it is delivered
once. The health of a stream is taken from the worker that has it, not from one that has yet to
learn that it lost it; this also tells a reader which worker to ask about a stream.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ast_stream.errors import UsageError
from ast_stream.feed import FeedAddress, FeedMessage, Missed, SeveralFeeds, Subscriber
from ast_stream.labels import is_stream_name
from ast_stream.messages.event import Position
from ast_stream.pool.membership import Membership, pool_membership
from ast_stream.runtime.logging import LimitedLog
from ast_stream.settings.pool import PoolMemberSettings
from ast_stream.settings.schema import Settings
from ast_stream.transport.keys import (
    CLIENT_CREDENTIAL,
    KeyPair,
    read_pair,
    read_public,
)

LOOK_EVERY_S = 1.0  # for workers that have joined or left
LEFT_AFTER_S = 30.0  # for which the feed of a worker that has left is still read
HOLDER_LASTS_S = 5.0  # without a report by the holder, another worker's report counts
MAX_KNOWN = 65_536  # messages remembered, to drop duplicates

logger = logging.getLogger(__name__)


class Workers(Protocol):
    """The workers of a pool, as a source of feeds."""

    def start(self) -> None:
        """Start following them."""

    def close(self) -> None:
        """Stop."""

    def addresses(self) -> Mapping[str, FeedAddress | None]:
        """Return their feed addresses by name; None: the feed is not reachable from elsewhere."""

    def is_lost(self, name: str) -> bool:
        """Return whether a silent worker is dead."""


class ListedFeeds:
    """The workers of a fixed list, all of which are expected to run."""

    def __init__(self, members: Iterable[PoolMemberSettings]) -> None:
        self._addresses = {
            member.name: None
            if member.feed is None
            else FeedAddress(
                member.feed,
                member.query,
                None if member.key is None else read_public(Path(member.key)),
            )
            for member in members
        }

    def start(self) -> None:
        """Do nothing: the list is complete."""

    def close(self) -> None:
        """Do nothing."""

    def addresses(self) -> Mapping[str, FeedAddress | None]:
        """Return where they publish, by name."""
        return self._addresses

    def is_lost(self, name: str) -> bool:
        """Return False: the worker is expected to come back."""
        return False


class MemberFeeds:
    """The workers in the bucket of the pool."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def start(self) -> None:
        """Follow the members."""
        self._membership.start()

    def close(self) -> None:
        """Stop."""
        self._membership.close()

    def addresses(self) -> Mapping[str, FeedAddress | None]:
        """Return where they publish, by name."""
        return {
            name: None
            if member.feed is None
            else FeedAddress(member.feed, member.query, member.key)
            for name, member in self._membership.members.items()
        }

    def is_lost(self, name: str) -> bool:
        """Return whether a worker is dead, according to the bucket."""
        return self._membership.is_lost(name)


@dataclass
class _Holder:
    """The worker that last reported that it has a stream."""

    worker: str
    epoch: object
    changes: int
    heard_s: float


class PoolFeed(SeveralFeeds):
    """Reads the feeds of all workers of a pool, including those that join later.

    Args:
        subscribe: returns a reader of a feed, beginning at a position.
        workers: of the pool, started; not closed together with this reader.
        positions: where reading of each worker's feed last ended; other names are ignored.
        has_replays: also read older messages, and wait for all workers so that they merge.
        now_s: monotonic clock.
    """

    def __init__(
        self,
        workers: Workers,
        subscribe: Callable[[FeedAddress, Position | None], Subscriber],
        positions: Mapping[str, Position],
        *,
        has_replays: bool = True,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__({})
        self._has_begun = not has_replays
        self._given.update({n: at for n, at in positions.items() if is_stream_name(n)})
        self._workers = workers
        self._subscribe = subscribe
        self._now_s = now_s
        self._addresses: dict[str, FeedAddress] = {}  # of the feeds being read
        self._left_s: dict[str, float] = {}  # when workers left the pool
        self._looked_s = float("-inf")
        self._known: OrderedDict[tuple[Any, ...], str] = OrderedDict()
        self._holders: dict[str, _Holder] = {}
        self._from = ""  # the worker whose message was delivered last
        self._log = LimitedLog(logger)

    @property
    def addresses(self) -> Mapping[str, FeedAddress]:
        """Addresses of the workers whose feeds are being read, by name."""
        return self._addresses

    @property
    def given_by(self) -> tuple[str, FeedAddress] | None:
        """The worker whose message was delivered last; None: it has left."""
        address = self._addresses.get(self._from)
        return None if address is None else (self._from, address)

    @property
    def is_publisher_there(self) -> bool:
        """Whether the feeds of all live workers, and of at least one, are being received."""
        silent = [name for name, feed in self._feeds.items() if not feed.is_publisher_there]
        lost = [name for name in silent if name in self._left_s or self._workers.is_lost(name)]
        return len(silent) == len(lost) < len(self._feeds)

    def worker_of(self, stream: str) -> tuple[str, FeedAddress] | None:
        """Return the worker that has a stream, as far as known; None while it is silent."""
        known = self._holders.get(stream)
        feed = None if known is None else self._feeds.get(known.worker)
        if known is None or feed is None or not feed.is_publisher_there:
            return None
        return known.worker, self._addresses[known.worker]

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        """Return the next message, without duplicates of other workers; see `SeveralFeeds`."""
        end_s = None if timeout_s is None else self._now_s() + timeout_s
        while True:
            self._follow()
            wait_s = LOOK_EVERY_S
            if end_s is not None:
                wait_s = min(wait_s, max(0.0, end_s - self._now_s()))
            item = super().receive(wait_s)
            if item is not None and not (isinstance(item, FeedMessage) and self._is_known(item)):
                return item
            is_over = end_s is not None and self._now_s() >= end_s
            if self._is_stopped.is_set() or (item is None and is_over):
                return None

    def _follow(self) -> None:
        """Start reading the feeds of workers that joined, and stop for those that left."""
        now_s = self._now_s()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        found = self._workers.addresses()
        for name, address in found.items():
            self._left_s.pop(name, None)
            if address is None:
                self._log.warning("worker %s has no feed by tcp: its events are not heard", name)
            elif self._addresses.get(name) != address:
                self._read(name, address)
        for name in [name for name in self._addresses if name not in found]:
            if now_s - self._left_s.setdefault(name, now_s) >= LEFT_AFTER_S:
                logger.info("worker %s has left the pool", name)
                del self._addresses[name], self._left_s[name]
                self.remove_feed(name)

    def _read(self, name: str, address: FeedAddress) -> None:
        try:
            feed = self._subscribe(address, self._given.get(name))
        except UsageError as error:  # an invalid entry must not affect the other workers
            self._log.warning("worker %s: %s: its events are not heard", name, error)
            return
        logger.info("reading the feed of worker %s at %s", name, address.feed)
        self._addresses[name] = address
        self.add_feed(name, feed)

    def _note(self, name: str, item: FeedMessage | Missed) -> None:
        self._from = name
        super()._note(name, item)

    def _is_known(self, message: FeedMessage) -> bool:
        """Return whether another worker has published this message, or a better one."""
        body, worker = message.body, self._from
        if message.kind == "health":
            return not self._is_of_holder(worker, body)
        try:
            if message.kind == "event":
                id, kind = body.get("id"), body.get("type")
                over = ("over", id)
                if kind == "end":
                    self._note_first(over, worker)
                elif self._known.get(over, worker) != worker:
                    return True  # from a late worker: the event has ended elsewhere
                return self._note_first(("event", id, kind, body.get("at_sample")), worker)
            if message.kind == "gap":
                key = ("gap", body.get("stream"), body.get("epoch"), body.get("start"))
                return self._note_first(key, worker)
        except TypeError:  # a malformed message, which its consumer refuses
            pass
        return False

    def _note_first(self, key: tuple[Any, ...], worker: str) -> bool:
        """Record a message of a worker; return whether another one has published it before."""
        first = self._known.setdefault(key, worker)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return first != worker

    def _is_of_holder(self, worker: str, body: Mapping[str, Any]) -> bool:
        """Return whether a worker that reports on a stream has it, as far as known."""
        placement, stream = body.get("placement"), body.get("stream")
        changes = placement.get("changes") if isinstance(placement, Mapping) else None
        if not isinstance(changes, int) or not isinstance(stream, str):
            return True
        now_s, known = self._now_s(), self._holders.get(stream)
        if known is not None and known.worker != worker:
            is_older = known.epoch == body.get("epoch") and changes < known.changes
            if is_older and now_s - known.heard_s < HOLDER_LASTS_S:
                return False
        self._holders[stream] = _Holder(worker, body.get("epoch"), changes, now_s)
        if len(self._holders) > MAX_KNOWN:
            self._holders.pop(next(iter(self._holders)))
        return True


def pool_workers(settings: Settings, process: str) -> Workers:
    """Return the workers of the configured pool; the caller starts and closes them.

    Args:
        process: name of this process, as the NATS server shows it.

    Raises:
        StartupError: a key cannot be used.
    """
    assert settings.pool is not None
    if settings.pool.nats is None:
        return ListedFeeds(settings.pool.members)
    return MemberFeeds(pool_membership(settings, process))


def own_key(settings: Settings) -> KeyPair | None:
    """Return the key that identifies this reader to the workers of a pool; None: none is needed.

    Raises:
        StartupError: it cannot be used.
    """
    curve = settings.transport.curve
    if curve is None or curve.client_secret is None:
        return None
    return read_pair(Path(curve.client_secret), CLIENT_CREDENTIAL)


def pool_feed(
    settings: Settings,
    workers: Workers,
    topics: tuple[str, ...],
    positions: Mapping[str, Position] | None = None,
    *,
    since: Literal["oldest"] | None = "oldest",
    replay_patience_s: float = 5.0,
) -> PoolFeed:
    """Return the feed of the configured pool.

    Args:
        workers: of the pool, started.
        positions: where reading of each worker's feed last ended.
        since: where reading begins for a worker without a position; None: with the next message.
        replay_patience_s: how long a worker is asked for missed messages.

    Raises:
        StartupError: a key cannot be used.
    """
    own = own_key(settings)

    def subscribe(address: FeedAddress, after: Position | None) -> Subscriber:
        return address.subscriber(
            topics, own, after=after or since, replay_patience_s=replay_patience_s
        )

    return PoolFeed(workers, subscribe, positions or {}, has_replays=since is not None)
