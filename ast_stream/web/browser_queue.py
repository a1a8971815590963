"""The bounded queue of messages to one browser."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from ast_stream.messages.event import Position


@dataclass(frozen=True)
class BrowserMessage:
    """A message to one or all browsers; `position` is that of a durable message."""

    data: bytes | str
    position: Position | None = None


class BrowserQueue:
    """The bounded queue of messages to one browser.

    Args:
        may_drop: drop the oldest message if the queue is full; otherwise the newest.

    Attributes:
        streams: names of the streams whose pictures the browser wants.
        dropped: number of messages dropped because the queue was full.
    """

    def __init__(self, max_waiting: int, *, may_drop: bool) -> None:
        self.streams: frozenset[str] = frozenset()
        self.dropped = 0
        self._may_drop = may_drop
        self._waiting: deque[BrowserMessage] = deque()
        self._max_waiting = max_waiting
        self._news = asyncio.Event()

    @property
    def is_overrun(self) -> bool:
        """Whether a message was dropped that the browser must not miss."""
        return self.dropped > 0 and not self._may_drop

    def put(self, message: BrowserMessage) -> bool:
        """Add a message; return False if one had to be dropped."""
        self._news.set()
        has_room = len(self._waiting) < self._max_waiting
        if not has_room:
            self.dropped += 1
        if not has_room and self._may_drop:
            self._waiting.popleft()
        if has_room or self._may_drop:
            self._waiting.append(message)
        return has_room

    def wake(self) -> None:
        """Let `next` return."""
        self._news.set()

    async def next(self, timeout_s: float) -> BrowserMessage | None:
        """Return the next message; None if none arrives in time."""
        if not self._waiting:
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout_s)
        return self._waiting.popleft() if self._waiting else None
