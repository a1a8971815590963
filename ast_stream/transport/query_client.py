"""Asking a publisher's query endpoint: one question at a time, a new socket after a timeout."""

from __future__ import annotations

import time
from collections.abc import Callable

from ast_stream.messages.query import Query
from ast_stream.transport.sockets import QUERY_HWM_MESSAGES, Socket, Sockets

_SLICE_MS = 100  # how late a stop is noticed


class QueryClient:
    """A DEALER to a query endpoint that may be absent.

    Args:
        is_stopped: asked while waiting for an answer.
        now_s: a clock that only goes forward.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        is_stopped: Callable[[], bool] = lambda: False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self._sockets = sockets
        self._is_stopped = is_stopped
        self._now_s = now_s
        self._socket: Socket | None = None

    def ask(self, query: Query, timeout_s: float) -> list[bytes] | None:
        """Return the frames of the answer, or None if none came in time."""
        if self._socket is None:
            self._socket = self._sockets.connect("dealer", self.endpoint, QUERY_HWM_MESSAGES)
        self._socket.send(query.encode())
        deadline_s = self._now_s() + timeout_s
        while not self._is_stopped() and self._now_s() < deadline_s:
            frames = self._socket.receive(_SLICE_MS)
            if frames is not None:
                return frames
        self.close()  # else a late answer would be taken for the next question's
        return None

    def close(self) -> None:
        """Close the socket; the next question opens another."""
        if self._socket is not None:
            self._sockets.forget(self._socket)
            self._socket = None
