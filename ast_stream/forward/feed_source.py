"""The source of events and gaps: the feed of one worker, by replay and then live."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal

from ast_stream.feed import FeedMessage, Missed, Position, Subscriber
from ast_stream.forward.cloud_events import lost, of_feed
from ast_stream.forward.output import OutgoingMessage
from ast_stream.forward.source import Cursor, Item
from ast_stream.runtime.segments import segment_numbers, segment_path
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import Kind
from ast_stream.transport.event_log import SEGMENTS

FEED = "feed"  # the names of these sources begin with it
TOPICS = ("event/", "gap/")
REPLAY_PATIENCE_S = 60.0  # enough for a worker that ended without answering to restart


def feed_source_name(worker: str | None) -> str:
    """Return the name of the source with the events of a worker."""
    return FEED if worker is None else f"{FEED}.{worker}"


class FeedSource:
    """Reads the feed of one worker.

    Args:
        subscribe: returns a reader that begins at a position.
        cursor: boot and seq of the last confirmed message; None: begin with the oldest.
        kinds: which of events and gaps are wanted.
        updates: whether updates of events are wanted.
        log: folder of the worker's event log, for counting the messages that wait.
    """

    def __init__(
        self,
        name: str,
        subscribe: Callable[[Position | Literal["oldest"]], Subscriber],
        cursor: Cursor,
        identity: BoxIdentity,
        kinds: Collection[Kind],
        *,
        updates: bool,
        log: Path,
    ) -> None:
        self.name = name
        self._feed = subscribe(_position(cursor) or "oldest")
        self._identity = identity
        self._kinds = kinds
        self._updates = updates
        self._log = log

    @property
    def is_heard(self) -> bool:
        """Whether the worker has published recently."""
        return self._feed.is_publisher_there

    def read(self, limit: int, wait_s: float) -> Sequence[Item]:
        """Return the next messages of the worker."""
        items: list[Item] = []
        while len(items) < limit:
            found = self._feed.receive(0.0 if items else wait_s)
            if found is None:
                return items
            if isinstance(found, Missed):
                items.append(self._lost(found))
            elif found.is_durable:
                items.append(Item(self._wanted(found), list(found.position), found.published_ns))
        return items

    def count(self, cursor: Cursor) -> int | None:
        """Return the number of log lines after a position, of all kinds."""
        try:
            return lines_after(self._log, _position(cursor))
        except OSError:
            return None

    def close(self) -> None:
        """Close the sockets."""
        self._feed.close()

    def _wanted(self, message: FeedMessage) -> OutgoingMessage | None:
        is_update = message.kind == "event" and message.body.get("type") == "update"
        if message.kind not in self._kinds or (is_update and not self._updates):
            return None
        return of_feed(message, self._identity)

    def _lost(self, missed: Missed) -> Item:
        outgoing = lost(
            self._identity,
            self.name,
            after=None if missed.after is None else list(missed.after),
            upto=list(missed.upto),
            count=None,  # `seq` counts all messages, most of which are not kept
            reason=missed.reason,
        )
        return Item(outgoing, list(missed.upto), time.time_ns(), lost=None)


def lines_after(log: Path, position: Position | None) -> int:
    """Return the number of lines after a position in an event log; all if the log has no such line.

    The lines are not decoded, since the log may have 64 MiB.

    Raises:
        OSError: it cannot be read.
    """
    found = 0
    boundary = None
    if position is not None:
        boundary = f'"boot":"{position[0]}","seq":{position[1]},'.encode()
    for number in reversed(segment_numbers(log, SEGMENTS) if log.is_dir() else []):
        content = segment_path(log, SEGMENTS, number).read_bytes()
        at = -1 if boundary is None else content.rfind(boundary)
        behind = content[at:] if at >= 0 else content
        found += behind.count(b"\n") - (at >= 0) - behind.count(b'"topic":"boot/"')
        if at >= 0:
            break
    return max(0, found)


def _position(cursor: Cursor) -> Position | None:
    match cursor:
        case [str(boot), int(seq)]:
            return boot, seq
    return None
