"""Recent messages of the feeds, and where a browser resumes; no sockets, no clock.

A place is the position that a browser sends when it reconnects: `boot:seq` of the last durable
message of each publisher, joined by commas, in the order of the publishers' names.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from ast_stream.messages.event import MAX_SEQ, FeedMessage, Position

_ONE = re.compile(r"([0-9A-Za-z_-]{1,64}):([0-9]{1,16})")
MAX_PLACE_CHARACTERS = 4096


def format_place(positions: Collection[Position]) -> str:
    """Return the positions of several publishers as one text."""
    return ",".join(f"{boot}:{seq}" for boot, seq in positions)


def parse_place(text: str) -> list[Position]:
    """Return the positions in a place; empty if it is invalid, as browsers may send anything."""
    if len(text) > MAX_PLACE_CHARACTERS:
        return []
    found = [_ONE.fullmatch(part) for part in text.split(",")]
    positions = [(match[1], int(match[2])) for match in found if match is not None]
    return positions if len(positions) == len(found) and _are_seqs(positions) else []


@dataclass(frozen=True)
class RecentMessage:
    """A durable message, and the place of a browser that has received it."""

    feed: str
    message: FeedMessage
    place: str


class RecentMessages:
    """The last durable messages of all publishers, in order of arrival.

    Args:
        max_messages: older messages are dropped; a browser that needs them gets them from the log.
    """

    def __init__(self, max_messages: int) -> None:
        self._entries: deque[RecentMessage] = deque(maxlen=max_messages)
        self._since: dict[str, Position] = {}  # by feed: all later messages are here
        self._newest: dict[str, Position] = {}

    @property
    def place(self) -> str:
        """The place of a browser that has received everything."""
        return format_place([self._newest[name] for name in sorted(self._newest)])

    def begin(self, feed: str, before: Position) -> None:
        """Record the position before a publisher's first message, unless it is known already."""
        if feed not in self._since:
            self._since[feed] = before
            self._newest[feed] = before

    def add(self, feed: str, message: FeedMessage) -> RecentMessage:
        """Add the next durable message of a publisher."""
        if (before := message.position_before) is not None:
            self.begin(feed, before)
        if len(self._entries) == self._entries.maxlen:
            oldest = self._entries[0]
            self._since[oldest.feed] = oldest.message.position
        self._newest[feed] = message.position
        entry = RecentMessage(feed, message, self.place)
        self._entries.append(entry)
        return entry

    def newest(self, count: int) -> list[FeedMessage]:
        """Return the last messages, oldest first."""
        entries = list(self._entries)[-count:]
        return [entry.message for entry in entries]

    def after(self, positions: Collection[Position], feeds: Collection[str]) -> Backlog:
        """Return what a browser at these positions has missed.

        Args:
            feeds: the names of all publishers, including those without messages so far.
        """
        entries = list(self._entries)
        known: dict[str, int] = {}  # by feed: index of the browser's last message
        unknown: list[Position] = []
        for position in positions:
            if (place := self._index(position, entries)) is None:
                unknown.append(position)
            else:
                known[place[0]] = place[1]
        others = [] if not unknown else [name for name in feeds if name not in known]
        missed = [
            entry
            for index, entry in enumerate(entries)
            if entry.feed not in others and index > known.get(entry.feed, -1)
        ]
        return Backlog(missed, unknown, others)

    def _index(self, position: Position, entries: list[RecentMessage]) -> tuple[str, int] | None:
        """Return the feed of a position and its index in the entries; None: it is not here."""
        boot, seq = position
        found: tuple[str, int] | None = None
        for index, entry in enumerate(entries):
            if entry.message.position[0] == boot and entry.message.position[1] <= seq:
                found = entry.feed, index
        if found is not None:
            return found
        for feed, since in self._since.items():
            if since[0] == boot and since[1] <= seq:
                return feed, -1
        return None


@dataclass(frozen=True)
class Backlog:
    """What a browser has missed.

    Attributes:
        entries: the missed messages that are in memory, in order.
        unknown: positions older than everything in memory; the log may have what follows them.
        feeds: the publishers that these may belong to; `entries` has no messages of theirs.
    """

    entries: list[RecentMessage]
    unknown: list[Position]
    feeds: list[str]


def _are_seqs(positions: list[Position]) -> bool:
    return all(0 <= seq <= MAX_SEQ for _, seq in positions)
