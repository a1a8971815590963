"""The interface of sources: one kind of durable messages, read from a position.

Each output has its own sources. Read again from the same position, a source yields the same items
in the same order, so that sending resumes correctly after a kill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ast_stream.forward.output import OutgoingMessage

Cursor = Any
"""The position in a source, as JSON values."""


@dataclass(frozen=True)
class Item:
    """One item of a source.

    Attributes:
        outgoing: the message to send; None: only the position moves.
        cursor: position after the item.
        since_ns: when the message became available; None: not known.
        lost: number of messages that it reports as lost; None: an unknown number.
    """

    outgoing: OutgoingMessage | None
    cursor: Cursor
    since_ns: int | None = None
    lost: int | None = 0


class MessageSource(Protocol):
    """A source of one output, used by that output's thread."""

    @property
    def name(self) -> str:
        """The key of its position, also used in notices of lost messages."""

    def read(self, limit: int, wait_s: float) -> Sequence[Item]:
        """Return the items after those already returned, `limit` at most.

        May wait up to `wait_s` for the first one. Never raises: what cannot be read now is read
        later.
        """

    def count(self, cursor: Cursor) -> int | None:
        """Return the number of messages after a position; None: not known."""

    def close(self) -> None:
        """Release files and sockets."""


class Buffered:
    """A source, with the items that were read from it and are not confirmed yet.

    Attributes:
        cursor: position after the confirmed items; None: nothing is confirmed.
        is_known: the broker was asked which of the first messages it has.
    """

    def __init__(self, source: MessageSource, cursor: Cursor, *, is_known: bool = False) -> None:
        self.source = source
        self.cursor = cursor
        self.is_known = is_known
        self._items: deque[Item] = deque()

    def fill(self, limit: int, wait_s: float) -> bool:
        """Read until `limit` items wait, and return whether there are any."""
        if len(self._items) < limit:
            self._items += self.source.read(limit - len(self._items), 0 if self._items else wait_s)
        return bool(self._items)

    def first(self, limit: int) -> list[Item]:
        """Return the first items that wait."""
        return [self._items[index] for index in range(min(limit, len(self._items)))]

    def replace_first(self, item: Item) -> None:
        """Replace the first item."""
        self._items[0] = item

    def leave_out(self, ids: Collection[str]) -> None:
        """Skip the messages with these ids: only the position moves over them."""
        for index, item in enumerate(self._items):
            if item.outgoing is not None and item.outgoing.id in ids:
                self._items[index] = replace(item, outgoing=None)

    def confirm(self, n_items: int) -> list[Item]:
        """Move past the first items, and return them."""
        done = [self._items.popleft() for _ in range(n_items)]
        if done:
            self.cursor = done[-1].cursor
        return done

    @property
    def oldest_ns(self) -> int | None:
        """When the first waiting message became available; None: none waits, or not known."""
        return next((item.since_ns for item in self._items if item.outgoing is not None), None)

    def waiting(self, *, counts: bool) -> int:
        """Return the number of waiting messages; at least, unless `counts`, which reads the log."""
        read = sum(item.outgoing is not None for item in self._items)
        counted = self.source.count(self.cursor) if counts else None
        return read if counted is None else max(read, counted)
