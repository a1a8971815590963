"""One output from its sources to a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nats_server import NatsServer, ask, nats_server, needs_nats, stored, wait_for
from outgoing_messages import BOX, Numbers

from ast_stream.forward.positions import PositionFile
from ast_stream.forward.sender import Sender
from ast_stream.forward.to_nats import NatsForwarder
from ast_stream.settings.forward import NatsOutput

pytestmark = [needs_nats, pytest.mark.slow]


@contextmanager
def sending(folder: Path, server: NatsServer, source: Numbers, **settings: Any) -> Iterator[Sender]:
    own = {"name": "hub", "type": "nats", "servers": [server.url], "timeout_s": 2} | settings
    output = NatsOutput.model_validate(own)
    sender = Sender(
        NatsForwarder(output, BOX),
        PositionFile(folder / "hub.json"),
        lambda cursors: [source],
        BOX,
        output.max_unconfirmed,
    )
    sender.start()
    try:
        yield sender
    finally:
        sender.close()


def numbers(server: NatsServer) -> list[int | str]:
    found = stored(server.url)
    return [one.body["data"].get("n", one.body["type"].split(".")[-1]) for one in found]


def test_a_message_that_is_too_large_is_replaced_by_a_note_in_its_place(tmp_path: Path) -> None:
    with nats_server(tmp_path, "max_payload: 4096\n") as server:
        with sending(tmp_path, server, Numbers(None, 6, large=[2, 5])) as sender:
            wait_for(lambda: sender.sent.total() == 6, "all messages")
            assert sender.positions.lost == 2
        assert numbers(server) == [0, 1, "lost", 3, 4, "lost"]
        assert PositionFile(tmp_path / "hub.json").cursors == {"numbers": 6}


def test_a_stream_that_is_deleted_is_made_again(tmp_path: Path) -> None:
    async def delete(client: Any) -> None:
        await client.jetstream().delete_stream("AST_STREAM")

    source = Numbers(None, 5)
    with nats_server(tmp_path) as server, sending(tmp_path, server, source) as sender:
        wait_for(lambda: sender.sent.total() == 5, "the first messages")
        ask(server.url, delete)
        source.n_messages = 10
        wait_for(lambda: sender.sent.total() == 10, "the others")
        assert numbers(server) == [5, 6, 7, 8, 9]


def test_a_stream_that_may_not_be_made_is_asked_for_and_waited_for(tmp_path: Path) -> None:
    async def make(client: Any) -> None:
        await client.jetstream().add_stream(name="AST_STREAM", subjects=["ast_stream.>"])

    with (
        nats_server(tmp_path) as server,
        sending(tmp_path, server, Numbers(None, 5), create=False) as sender,
    ):
        wait_for(lambda: sender.error is not None and "make it" in sender.error, "the sentence")
        assert sender.error is not None
        assert "there is no stream AST_STREAM; make it: nats stream add AST_STREAM" in sender.error
        assert sender.waiting == 5
        ask(server.url, make)
        wait_for(lambda: sender.sent.total() == 5, "all messages")
        assert numbers(server) == [0, 1, 2, 3, 4]


def test_a_full_stream_is_said_and_loses_nothing_nor_its_order(tmp_path: Path) -> None:
    async def make(client: Any) -> None:
        from nats.js import api

        await client.jetstream().add_stream(
            name="AST_STREAM",
            subjects=["ast_stream.>"],
            max_msgs=50,
            discard=api.DiscardPolicy.NEW,
        )

    async def widen(client: Any) -> None:
        from nats.js import api

        config = api.StreamConfig(
            name="AST_STREAM",
            subjects=["ast_stream.>"],
            max_msgs=1000,
            discard=api.DiscardPolicy.NEW,
        )
        await client.jetstream().update_stream(config)

    with nats_server(tmp_path) as server:
        ask(server.url, make)
        with sending(tmp_path, server, Numbers(None, 300)) as sender:
            wait_for(lambda: "maximum messages exceeded" in (sender.error or ""), "the sentence")
            assert sender.sent.total() == 50
            ask(server.url, widen)
            wait_for(lambda: sender.sent.total() == 300, "all messages")
        assert numbers(server) == list(range(300))


def test_what_was_taken_before_a_kill_is_not_sent_again(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        with sending(tmp_path, server, Numbers(None, 200)) as sender:
            wait_for(lambda: sender.sent.total() == 200, "all messages")
        (tmp_path / "hub.json").write_text('{"v":1,"sources":{"numbers":60},"lost":0}')
        limits = {"duplicates_s": 1.0}
        with sending(tmp_path, server, Numbers(60, 210), limits=limits) as sender:
            wait_for(lambda: sender.sent.total() == 10, "the others")
        assert numbers(server) == list(range(210))


def test_what_is_published_after_the_start_is_not_waited_for(tmp_path: Path) -> None:
    source = Numbers(None, 0)
    source.since_ns = time.time_ns() + 10**12
    with nats_server(tmp_path) as server, sending(tmp_path, server, source) as sender:
        wait_for(lambda: sender.error is None, "the connection")

        def publishes_until_sent() -> bool:
            source.n_messages += 1  # it never pauses
            return sender.sent.total() > 0

        wait_for(publishes_until_sent, "a message")
        assert source.n_messages < 256
