"""The feeds of the workers of a pool, as the page reads them: from now on, each message once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.pool.feed import PoolFeed, Workers, own_key, pool_feed, pool_workers
from ast_stream.settings.schema import Settings
from ast_stream.transport.keys import KeyPair


@dataclass(frozen=True)
class PoolReading:
    """Opens feeds of all workers, which share the list of these.

    Attributes:
        workers: of the pool.
        open_feed: returns a feed of some topics, beginning with the next message.
        own: the key of this process; None: it has none.
    """

    workers: Workers
    open_feed: Callable[[tuple[str, ...]], PoolFeed]
    own: KeyPair | None = None

    @classmethod
    def of(cls, settings: Settings) -> PoolReading:
        """Return the feeds of the pool that a configuration names.

        Raises:
            StartupError: a key cannot be read.
        """
        workers = pool_workers(settings, "web")

        def open_feed(topics: tuple[str, ...]) -> PoolFeed:
            return pool_feed(settings, workers, topics, since=None)

        return cls(workers, open_feed, own_key(settings))
