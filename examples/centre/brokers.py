"""Where messages come from: NATS JetStream or an MQTT 5 broker. Both keep what is not acknowledged.

`receive` raises `ConnectionError` where there is no connection, and may be called again.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from dataclasses import dataclass
from typing import Any, Protocol

KINDS = ("event", "gap", "alert", "coverage", "health", "lost")
KEEP_S = 30 * 86_400  # how long an MQTT broker keeps messages for a consumer that is away


@dataclass(frozen=True)
class Received:
    """One message, and what it is acknowledged with."""

    topic: str
    body: bytes
    receipt: Any


class Broker(Protocol):
    """Delivers each message at least once."""

    async def receive(self, max_messages: int, wait_s: float) -> list[Received]:
        """Return messages that have come; none after `wait_s`."""

    async def acknowledge(self, messages: list[Received]) -> None:
        """Let the broker forget messages: they are kept."""

    async def close(self) -> None:
        """End the connection."""


class Nats:
    """A durable pull consumer of a JetStream stream; several of one name share the messages.

    Args:
        stream: of JetStream; the boxes make it.
        name: the broker remembers what it has acknowledged.
        ack_wait_s: after which what is not acknowledged comes again.
        options: of `nats.connect`, e.g. user_credentials.
    """

    def __init__(
        self, servers: str, stream: str, name: str, ack_wait_s: float, **options: Any
    ) -> None:
        self._servers = servers.split(",")
        self._stream = stream
        self._name = name
        self._ack_wait_s = ack_wait_s
        self._options = options
        self._client: Any = None
        self._messages: Any = None

    async def receive(self, max_messages: int, wait_s: float) -> list[Received]:
        """Pull."""
        from nats.errors import Error
        from nats.errors import TimeoutError as NoneCame
        from nats.js.errors import NotFoundError

        try:
            if self._messages is None:
                await self._connect(max_messages)
        except NotFoundError:
            await self.close()
            text = f"NATS: no box has made the stream {self._stream} yet"
            raise ConnectionError(text) from None
        except (Error, OSError) as error:
            await self.close()
            raise ConnectionError(f"NATS: {error or 'no answer'}") from error
        try:
            found = await self._messages.fetch(max_messages, timeout=wait_s)
        except NoneCame:
            if self._client.is_connected:
                return []
            await self.close()
            raise ConnectionError("NATS: the connection has ended") from None
        except (Error, OSError) as error:
            await self.close()
            raise ConnectionError(f"NATS: {error or type(error).__name__}") from error
        return [Received(message.subject, message.data, message) for message in found]

    async def acknowledge(self, messages: list[Received]) -> None:
        """Acknowledge each; what is lost of that comes again, and is dropped then."""
        from nats.errors import Error

        with contextlib.suppress(Error, OSError):
            for message in messages:
                await message.receipt.ack()
            await self._client.flush()

    async def close(self) -> None:
        """End the connection."""
        client, self._client, self._messages = self._client, None, None
        if client is not None:
            with contextlib.suppress(Exception):  # it may have ended already
                await client.close()

    async def _connect(self, max_messages: int) -> None:
        import nats
        from nats.js.api import AckPolicy, ConsumerConfig

        self._client = await nats.connect(
            self._servers, name=self._name, allow_reconnect=False, connect_timeout=5,
            error_cb=_quiet, ping_interval=10, **self._options,
        )  # fmt: skip
        config = ConsumerConfig(
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait_s,
            max_ack_pending=2 * max_messages,
        )
        self._messages = await self._client.jetstream().pull_subscribe(
            "", durable=self._name, stream=self._stream, config=config
        )


async def _quiet(error: Exception) -> None:
    """The library would log what the caller gets."""


class Mqtt:
    """A persistent session at an MQTT 5 broker; one consumer of a name at a time.

    Args:
        prefix: of the topics.
        name: client id; the broker keeps messages for it while it is away.
        login: user and password.
    """

    def __init__(
        self, host: str, port: int, prefix: str, name: str, login: tuple[str, str] | None = None
    ) -> None:
        self._address = host, port
        self._prefix = prefix
        self._name = name
        self._login = login
        self._client: Any = None
        self._came: queue.SimpleQueue[Received | None] = queue.SimpleQueue()  # None: it has ended

    async def receive(self, max_messages: int, wait_s: float) -> list[Received]:
        """Wait for the first message, and return all that have come by then."""
        if self._client is None:
            await asyncio.to_thread(self._connect, max_messages)
        found = await asyncio.to_thread(self._gather, max_messages, wait_s)
        if found and found[-1] is None:
            await self.close()
            if len(found) == 1:
                raise ConnectionError("MQTT: the connection has ended")
        return [message for message in found if message is not None]

    async def acknowledge(self, messages: list[Received]) -> None:
        """Acknowledge on the connection that each came by: another one has other numbers."""
        for message in messages:
            client, number = message.receipt
            client.ack(number, 1)

    async def close(self) -> None:
        """End the connection, but not the session."""
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(_leave, client)

    def _gather(self, max_messages: int, wait_s: float) -> list[Received | None]:
        found: list[Received | None] = []
        with contextlib.suppress(queue.Empty):
            while len(found) < max_messages and (not found or found[-1] is not None):
                found.append(self._came.get(not found, wait_s))
        return found

    def _connect(self, max_messages: int) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        came: queue.SimpleQueue[Received | None] = queue.SimpleQueue()
        client = Client(
            CallbackAPIVersion.VERSION2,
            self._name,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        if self._login is not None:
            client.username_pw_set(*self._login)

        def on_connect(client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
            if reason.is_failure:
                came.put(None)
            else:
                topics = [f"{self._prefix}/+/+/{kind}/#" for kind in KINDS]
                client.subscribe([(topic, 1) for topic in topics])

        client.on_connect = on_connect
        client.on_message = lambda client, data, message: came.put(
            Received(message.topic, bytes(message.payload), (client, message.mid))
        )
        client.on_disconnect = lambda *_: came.put(None)
        wanted = Properties(PacketTypes.CONNECT)
        wanted.SessionExpiryInterval = KEEP_S
        wanted.ReceiveMaximum = min(2 * max_messages, 65_535)
        client.connect(*self._address, keepalive=20, clean_start=False, properties=wanted)
        client.loop_start()
        self._came, self._client = came, client


def _leave(client: Any) -> None:
    """Disconnect; without properties, so that the session stays."""
    client.disconnect()
    client.loop_stop()
