"""The clients by which a recorder asks the workers of a pool for audio."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ast_stream.feed import FeedAddress
from ast_stream.pool.feed import PoolFeed
from ast_stream.recorder.audio_clients import PoolClients
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets


class Feed:
    """Knows the worker of the one stream that there is."""

    def __init__(self) -> None:
        self.addresses: dict[str, FeedAddress] = {}
        self.holder = ""

    def give(self, worker: str, query: str | None) -> None:
        self.addresses[worker] = FeedAddress("tcp://127.0.0.1:1", query, None)
        self.holder = worker

    def worker_of(self, stream: str) -> tuple[str, FeedAddress] | None:
        return (self.holder, self.addresses[self.holder]) if self.holder else None


def test_each_worker_has_one_client_until_it_moves_or_leaves(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(QueryClient, "close", lambda client: closed.append(client))
    feed = Feed()
    sockets = Sockets()
    request.addfinalizer(sockets.close)
    client_of = PoolClients(cast(PoolFeed, feed), sockets)
    assert client_of("mic") is None
    feed.give("one", None)
    assert client_of("mic") is None
    feed.give("one", "tcp://127.0.0.1:2")
    first = client_of("mic")
    assert first is not None
    assert client_of("mic") is first
    feed.give("one", "tcp://127.0.0.1:3")
    moved = client_of("mic")
    assert moved is not first
    assert closed == [first]
    del feed.addresses["one"]
    feed.give("two", "tcp://127.0.0.1:4")
    assert client_of("mic") is not moved
    assert closed == [first, moved]
