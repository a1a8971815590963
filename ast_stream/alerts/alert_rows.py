"""Alerts in the database of the alerts process: all of them, whether they were read or not.

The feed of alerts cannot be replayed; the outbox holds what was put on it, in its order.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.notification import Notification
from ast_stream.errors import StartupError, WireError
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import FeedMessage, Stamp
from ast_stream.runtime.database import open_read_only, reading
from ast_stream.runtime.logging import LimitedLog

BOOT = "outbox"  # in place of the run of the publisher: the numbers of rows go on over its runs
MAX_ROWS = 500
BUSY_MS = 20  # for a lock: nothing else is recorded meanwhile
AGAIN_S = 5.0  # after a failure
_SAME_NS = 1000  # times of messages are whole microseconds
_ENDS = "SELECT min(seq), max(seq) FROM deliveries"
_COUNT = """
SELECT count(*) FROM deliveries
WHERE action = ? AND seq > ? AND state NOT IN ('snoozed', 'dropped')
"""
_NEXT = """
SELECT seq, payload, created_ns FROM deliveries
WHERE action = ? AND seq > ? AND state NOT IN ('snoozed', 'dropped') ORDER BY seq LIMIT ?
"""

_CREATED = "SELECT created_ns FROM deliveries WHERE seq = ?"
_LATER = "SELECT EXISTS (SELECT 1 FROM deliveries WHERE seq < ? AND created_ns > ?)"

logger = logging.getLogger(__name__)


class AlertRows:
    """Reads the outbox of a configuration from where it was read to.

    Args:
        file: the database, which may not be there yet.
        after: number of the last row that was read.
        after_ns: when that one was written; None: not known. By it a database is found that was
            begun anew meanwhile, and has other rows under the same numbers.

    Attributes:
        is_anew: the database was begun anew since the last reading; whoever takes note of it sets
            it back.
        oldest, newest: numbers of the rows that there were when all had been read, of every action;
            0: none, or not known. Rows in between may be missing: those of long ago are deleted.
    """

    def __init__(
        self,
        file: Path,
        after: int = 0,
        now_s: Callable[[], float] = time.monotonic,
        *,
        after_ns: int | None = None,
    ) -> None:
        self.after = after
        self.after_ns = after_ns
        self.is_anew = False
        self._opened: tuple[int, int] | None = None  # device and inode
        self.oldest = self.newest = 0
        self._file = file
        self._now_s = now_s
        self._next_s = float("-inf")
        self._db: sqlite3.Connection | None = None
        self._limited_log = LimitedLog(logger)

    @property
    def position(self) -> tuple[str, int]:
        """Where it was read to, as a position on a feed."""
        return BOOT, self.after

    def read(self) -> list[FeedMessage]:
        """Return the alerts that follow, as they were published; none if they cannot be read."""
        if self._now_s() < self._next_s or (self._db is None and not self._file.exists()):
            return []
        is_opened = self._db is None or self._is_replaced()
        try:
            if self._db is None:
                is_known = self._opened
                self._opened = _identity(self._file)
                self._db = open_read_only(self._file, "the alert database", _wait_little)
                if is_known not in (None, self._opened):
                    self._begin_anew()
            with reading(self._db):
                oldest, newest = self._db.execute(_ENDS).fetchone()
                is_shorter = newest is None or newest < self.after
                if is_shorter or (is_opened and self._has_other_rows(self._db)):
                    self._begin_anew()
                rows = self._db.execute(_NEXT, (FEED, self.after, MAX_ROWS)).fetchall()
            if len(rows) < MAX_ROWS:
                self.oldest, self.newest = oldest or 0, newest or 0
        except (sqlite3.Error, StartupError) as error:
            self._limited_log.warning("alerts are not read: %s", error)
            self.close()
            self._next_s = self._now_s() + AGAIN_S
            return []
        found = []
        for seq, payload, created_ns in rows:
            self.after, self.after_ns = seq, created_ns
            try:
                alert = Notification.decode(payload).alert
            except (WireError, TypeError) as error:
                self._limited_log.warning("an alert of the outbox cannot be used: %s", error)
                continue
            found.append(FeedMessage.of(alert, Stamp(BOOT, seq, Moment(created_ns, 0))))
        return found

    def count(self, after: int) -> int | None:
        """Return how many alerts follow a row; None if that cannot be read."""
        try:
            if self._db is None:
                return None
            (found,) = self._db.execute(_COUNT, (FEED, after)).fetchone()
        except sqlite3.Error:
            return None
        return int(found)

    def _is_replaced(self) -> bool:
        """Close the database if its file was replaced: set aside, or restored from a copy."""
        found = _identity(self._file)
        if found is None or found == self._opened:
            return False
        self.close()
        return True

    def _has_other_rows(self, db: sqlite3.Connection) -> bool:
        """Return whether rows up to the last that was read are not those that were read."""
        if not self.after or self.after_ns is None:
            return False
        row = db.execute(_CREATED, (self.after,)).fetchone()
        if row is not None:
            return abs(int(row[0]) - self.after_ns) > _SAME_NS
        (later,) = db.execute(_LATER, (self.after, self.after_ns + _SAME_NS)).fetchone()
        return bool(later)

    def _begin_anew(self) -> None:
        self.is_anew = self.is_anew or self.after > 0
        self.after, self.after_ns = 0, None

    def close(self) -> None:
        """Close the database; the next reading opens it again."""
        if self._db is not None:
            self._db.close()
            self._db = None


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _wait_little(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
