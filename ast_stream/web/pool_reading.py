"""The feeds of the workers of a pool, as the page reads them: from now on, each message once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.pool.feed import FeedAddress, PoolFeed, Workers, pool_feed, pool_keys, pool_workers
from ast_stream.settings.schema import Settings
from ast_stream.transport.keys import ClientKeys


@dataclass(frozen=True)
class PoolReading:
    """Opens feeds of all workers, which share the list of these.

    Attributes:
        workers: of the pool.
        open_feed: returns a feed of some topics, beginning with the next message.
        keys_of: returns the keys for one of the workers; None: it wants none.
    """

    workers: Workers
    open_feed: Callable[[tuple[str, ...]], PoolFeed]
    keys_of: Callable[[FeedAddress], ClientKeys | None]

    @classmethod
    def of(cls, settings: Settings) -> PoolReading:
        """Return the feeds of the pool that a configuration names.

        Raises:
            StartupError: a key cannot be read.
        """
        workers = pool_workers(settings, "web")

        def open_feed(topics: tuple[str, ...]) -> PoolFeed:
            return pool_feed(settings, workers, topics, since=None)

        return cls(workers, open_feed, pool_keys(settings))
