"""The source of alerts: rows of the alerts process's database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ast_stream.alerts.alert_rows import AlertRows
from ast_stream.forward.cloud_events import lost, of_alert
from ast_stream.forward.source import Cursor, Item
from ast_stream.settings.fleet import BoxIdentity

READ_EVERY_S = 0.5
_ANEW = "the alert database was begun anew: alerts that were in it and not sent are lost"
_DELETED = "the alert database no longer has them"


class AlertSource:
    """Reads the outbox.

    Args:
        file: the database, which may not exist yet.
        cursor: row numbers: of the last confirmed alert, and of the last row seen of any action;
            and when the former was written (ns).
    """

    name = "alerts"

    def __init__(self, file: Path, cursor: Cursor, identity: BoxIdentity) -> None:
        after, self._seen, after_ns = _rows(cursor)
        self._rows = AlertRows(file, after, after_ns=after_ns)
        self._identity = identity
        self._next_s = float("-inf")
        self._waiting: list[Item] = []

    def read(self, limit: int, wait_s: float) -> Sequence[Item]:
        """Return the next alerts, without waiting."""
        if not self._waiting and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + READ_EVERY_S
            self._waiting = self._read()
        items, self._waiting = self._waiting[:limit], self._waiting[limit:]
        if self._waiting:
            self._next_s = float("-inf")
        return items

    def count(self, cursor: Cursor) -> int | None:
        """Return the number of alerts after a position."""
        return self._rows.count(_rows(cursor)[0])

    def close(self) -> None:
        """Close the database."""
        self._rows.close()

    def _read(self) -> list[Item]:
        messages = self._rows.read()
        items: list[Item] = []
        if messages:
            self._next_s = float("-inf")  # read again at once, there may be more
        if self._rows.is_anew:
            self._rows.is_anew = False
            items.append(self._lost(self._seen, self._seen, _ANEW, [0, 0, None]))
            self._seen = 0
        if 0 < self._seen < self._rows.oldest - 1 and self._rows.newest > self._seen:
            upto = self._rows.oldest - 1
            items.append(self._lost(self._seen, upto, _DELETED, [upto, upto, None]))
        self._seen = max(self._rows.newest, self._rows.after)
        for message in messages:
            row = message.position[1]
            outgoing = of_alert(message, self._identity)
            cursor = [row, max(row, self._seen), message.published_ns]
            items.append(Item(outgoing, cursor, message.published_ns))
        return items

    def _lost(self, after: int, upto: int, reason: str, cursor: Cursor) -> Item:
        outgoing = lost(
            self._identity,
            self.name,
            after=after,
            upto=upto,
            count=None,  # several rows may be deliveries of the same alert
            reason=reason,
        )
        return Item(outgoing, cursor, time.time_ns(), lost=None)


def _rows(cursor: Cursor) -> tuple[int, int, int | None]:
    match cursor:
        case [int(after), int(seen), int(after_ns)]:
            return after, seen, after_ns
        case [int(after), int(seen), *_]:
            return after, seen, None
    return 0, 0, None
