"""Alerts as the alerts process keeps them: every one, also those published while nobody read.

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
from ast_stream.runtime.database import open_read_only
from ast_stream.runtime.logging import LimitedLog

BOOT = "outbox"  # in place of the run of the publisher: the numbers of rows go on over its runs
MAX_ROWS = 500
BUSY_MS = 20  # for a lock: nothing else is recorded meanwhile
AGAIN_S = 5.0  # after a failure
_NEXT = """
SELECT seq, payload, created_ns FROM deliveries
WHERE action = ? AND seq > ? AND state NOT IN ('snoozed', 'dropped') ORDER BY seq LIMIT ?
"""

logger = logging.getLogger(__name__)


class AlertRows:
    """Reads the outbox of a configuration from where it was read to.

    Args:
        file: the database, which may not be there yet.
        after: number of the last row that was read.
    """

    def __init__(
        self,
        file: Path,
        after: int = 0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.after = after
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
        try:
            if self._db is None:
                self._db = open_read_only(self._file, "the alert database", _wait_little)
            (newest,) = self._db.execute("SELECT max(seq) FROM deliveries").fetchone()
            if newest is None or newest < self.after:  # it was begun anew
                self.after = 0
            rows = self._db.execute(_NEXT, (FEED, self.after, MAX_ROWS)).fetchall()
        except (sqlite3.Error, StartupError) as error:
            self._limited_log.warning("alerts are not read: %s", error)
            self.close()
            self._next_s = self._now_s() + AGAIN_S
            return []
        found = []
        for seq, payload, created_ns in rows:
            self.after = seq
            try:
                alert = Notification.decode(payload).alert
            except (WireError, TypeError) as error:
                self._limited_log.warning("an alert of the outbox cannot be used: %s", error)
                continue
            found.append(FeedMessage.of(alert, Stamp(BOOT, seq, Moment(created_ns, 0))))
        return found

    def close(self) -> None:
        """Close the database; the next reading opens it again."""
        if self._db is not None:
            self._db.close()
            self._db = None


def _wait_little(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
