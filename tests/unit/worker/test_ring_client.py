"""The connections by which a worker reads a ring of its own box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ast_stream.messages.audio import AckRequest, ReadRequest
from ast_stream.transport.listener import Listener
from ast_stream.transport.sockets import Poller, Sockets
from ast_stream.worker.stream import RingClient

EPOCH = "aaaaaaaa"
TURNS = 1000  # of 10 ms


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    opened = Sockets()
    yield opened
    opened.close()


def read(number: int) -> ReadRequest:
    return ReadRequest(v=1, op="read", stream="porch", id=number)


def until(find: Callable[[], list[bytes] | None], poller: Poller) -> list[bytes]:
    for _ in range(TURNS):
        if (found := find()) is not None:
            return found
        poller.wait(10)
    raise AssertionError("expected a message, got none")


def test_an_answer_by_the_connection_before_the_last_still_comes_and_acknowledgements_go_there(
    sockets: Sockets, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/ring.sock"
    ring: Listener = sockets.bind("router", endpoint, 64)
    poller = Poller([ring])
    client = RingClient(sockets, poller, endpoint)
    ack = AckRequest(v=1, op="ack", epoch=EPOCH, stop=1600)
    assert client.send(read(1))
    first, *_ = until(ring.receive, poller)
    client.renew()
    assert client.send(read(2))
    second, *_ = until(ring.receive, poller)
    assert second != first
    assert client.send(ack)
    assert until(ring.receive, poller)[0] == first
    ring.send([first, b"late"])
    assert until(client.receive, poller) == [b"late"]
    ring.send([second, b"later"])
    assert until(client.receive, poller) == [b"later"]
    assert client.send(ack)
    assert until(ring.receive, poller)[0] == second
    client.close()


def test_of_several_connections_only_the_last_two_are_open(
    sockets: Sockets, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/ring.sock"
    ring: Listener = sockets.bind("router", endpoint, 64)
    poller = Poller([ring])
    client = RingClient(sockets, poller, endpoint)
    clients = []
    for number in range(3):
        client.renew()
        assert client.send(read(number))
        clients.append(until(ring.receive, poller)[0])
    for _ in range(TURNS):
        if not ring.is_trusted(clients[0]):
            break
        poller.wait(10)
        ring.receive()
    assert [ring.is_trusted(each) for each in clients] == [False, True, True]
    client.close()
