"""Connections of browsers: how many at a time, and how long one may take for its part."""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_CONNECTIONS = 256
HEAD_S = 10.0  # for the whole head of a request to come
READ_S = 30.0  # for a browser to read what waits for it


class _Deadline:
    """Something that has to happen in time, or the connection is cut."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._timer: TimerHandle | None = None

    def begin(self, cut: Callable[[], None]) -> None:
        """Start to wait, unless it is waited for already."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._limit_s, cut)

    def end(self) -> None:
        """Stop to wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class RequestConnection(H11Protocol):
    """A connection with requests: refused if there are too many, cut if it is too slow."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head = _Deadline(HEAD_S)
        self._reading = _Deadline(READ_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.abort()
            return
        self._head.begin(self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self._head.end()
        self._reading.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come; anything but a whole head has to go on in time."""
        super().data_received(data)
        if self.transport.get_protocol() is not self:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._head.begin(self.transport.abort)
        else:
            self._head.end()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over."""
        self._head.end()
        super().handle_websocket_upgrade(event)

    def pause_writing(self) -> None:
        """Begin to wait for the browser to read."""
        self._reading.begin(self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._reading.end()
        super().resume_writing()


class LiveConnection(WebSocketsSansIOProtocol):
    """A WebSocket: cut if what waits for the browser is not read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = _Deadline(READ_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self._reading.end()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the browser to read."""
        self._reading.begin(self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._reading.end()
        super().resume_writing()
