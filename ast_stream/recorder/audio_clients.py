"""The query clients from which the recorder gets the audio of a stream.

Each is that of the stream's worker or, in a pool, of the worker that has the stream now.
"""

from __future__ import annotations

from collections.abc import Callable

from ast_stream.feed import FeedAddress
from ast_stream.pool.feed import PoolFeed
from ast_stream.settings.paths import query_endpoint
from ast_stream.settings.schema import Settings
from ast_stream.settings.workers import of_worker, worker_names, worker_of
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets

ClientOf = Callable[[str], QueryClient | None]
"""Returns the client of the worker that has a stream; None: no worker can be asked."""


def clients_of_workers(settings: Settings, sockets: Sockets) -> ClientOf:
    """Return the clients of the configured workers, by stream."""
    clients = {
        name: QueryClient(sockets, query_endpoint(of_worker(settings, name)))
        for name in worker_names(settings)
    }
    return lambda stream: clients.get(worker_of(settings, stream))


class PoolClients:
    """The clients of the workers of a pool, where streams move between workers.

    Args:
        feed: knows which worker has a stream.
        sockets: with the key of this process, if the workers require one.
    """

    def __init__(self, feed: PoolFeed, sockets: Sockets) -> None:
        self._feed = feed
        self._sockets = sockets
        self._clients: dict[str, tuple[FeedAddress, QueryClient]] = {}

    def __call__(self, stream: str) -> QueryClient | None:
        """Return the client of the worker that has a stream; None: not known."""
        found = self._feed.worker_of(stream)
        if found is None:
            return None
        name, address = found
        if address.query is None:
            return None
        known = self._clients.get(name)
        if known is not None and known[0] == address:
            return known[1]
        if known is not None:
            known[1].close()
        for left in self._clients.keys() - self._feed.addresses.keys():
            self._clients.pop(left)[1].close()
        client = QueryClient(self._sockets, address.query, server_key=address.key)
        self._clients[name] = address, client
        return client
