"""Limits on browser connections: how many there may be, and how slow."""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_CONNECTIONS = 256
HEAD_S = 10.0  # for the whole head of a request to arrive
READ_S = 30.0  # for a browser to read what has been sent to it


class _Deadline:
    """A time limit, after which a connection is closed."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timer: TimerHandle | None = None

    def begin(self, cut: Callable[[], None]) -> None:
        """Start the time limit, unless it is running already."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limit_s, cut)

    def end(self) -> None:
        """Stop the time limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Read(asyncio.Protocol):
    """Base of all connections: closes one whose browser does not read."""

    transport: asyncio.Transport

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = _Deadline(READ_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._reading.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the time limit for the browser to read."""
        self._reading.begin(self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop the time limit and resume."""
        self._reading.end()
        super().resume_writing()


class RequestConnection(_Read, H11Protocol):
    """An HTTP connection: refused if there are too many, closed if it is too slow."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head = _Deadline(HEAD_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time limit for a request."""
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.abort()
            return
        self._head.begin(self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all time limits."""
        self._head.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process received bytes; an incomplete head must be completed in time."""
        super().data_received(data)
        if self.transport.get_protocol() is not self:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._head.begin(self.transport.abort)
        else:
            self._head.end()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to the WebSocket protocol."""
        self._head.end()
        super().handle_websocket_upgrade(event)


class LiveConnection(_Read, WebSocketsSansIOProtocol):
    """A WebSocket."""
