"""Rows of the outbox: which are due, how they end, and when they are deleted.

Each function works inside a transaction, or a reading, of the caller.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.labels import one_line
from ast_stream.messages.alert import Alert
from ast_stream.messages.status import FailingAction
from ast_stream.settings.alerts import RateLimit
from ast_stream.units import NS_PER_SECOND, seconds_to_ns

MAX_ERROR_CHARACTERS = 300
PRUNE_BATCH = 10_000  # rows deleted at once: nothing else can be written meanwhile
NOT_AMONG = "seq NOT IN (SELECT value FROM json_each(?))"
_NOT_ACTIVE = "alert_id NOT IN (SELECT id FROM alerts WHERE state NOT IN ('inactive', 'resolved'))"
SEVERITY_RANK = (  # SQL: 0 is the most severe
    "CASE severity WHEN 'critical' THEN 0 WHEN 'high' THEN 1 WHEN 'medium' THEN 2"
    " WHEN 'low' THEN 3 ELSE 4 END"
)
# deliveries that only their time keeps from going out. An earlier one of the same alert does, too,
# unless it has expired, which a full disk may keep from being recorded. The plus signs make SQLite
# look it up by its alert: the index of pending rows would compare all with all
_READY = """
    FROM deliveries AS it WHERE action = :action AND state = 'pending' AND expires_ns > :now_ns
    AND (NOT :urgent_only OR severity IN ('critical', 'high'))
    AND seq NOT IN (SELECT value FROM json_each(:in_flight))
    AND NOT EXISTS (
        SELECT 1 FROM deliveries AS other WHERE other.alert_id = it.alert_id
        AND +other.action = it.action AND +other.state = 'pending' AND +other.seq < it.seq
        AND (other.expires_ns > :now_ns
             OR other.seq IN (SELECT value FROM json_each(:in_flight))))
"""
# a row last touched in the future: the clock was set back, and its next time means nothing
_DUE = (
    "AND held_until_ns <= :now_ns AND (next_ns <= :now_ns OR updated_ns > :now_ns)"
    " AND (held_until_ns = 0 OR :evaluated_ns IS NULL OR held_until_ns <= :evaluated_ns)"
)


class DueRows:
    """The pending rows of one action at one moment.

    Args:
        now_ns: wall clock, nanoseconds since 1970.
        in_flight: action of each row that is being delivered, by number.
        urgent_only: consider alerts of high and critical severity only.
        evaluated_ns: up to when alerts are known; what is held until later stays held.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        action: str,
        now_ns: int,
        in_flight: Mapping[int, str],
        urgent_only: bool = False,
        evaluated_ns: int | None = None,
    ) -> None:
        self._db = db
        self._action = action
        self._now_ns = now_ns
        self._n_in_flight = sum(name == action for name in in_flight.values())
        self._bound = {
            "action": action,
            "now_ns": now_ns,
            "urgent_only": urgent_only,
            "evaluated_ns": evaluated_ns,
            "in_flight": json.dumps(list(in_flight)),
        }

    def first(self) -> tuple[int, int, bytes] | None:
        """Return number, attempts and payload of what to deliver next; on the feed the oldest."""
        order = "seq" if self._action == FEED else f"{SEVERITY_RANK}, attempts > 0, seq"
        query = f"SELECT seq, attempts, payload {_READY} {_DUE} ORDER BY {order} LIMIT 1"
        row: tuple[int, int, bytes] | None = self._db.execute(query, self._bound).fetchone()
        return row

    def wait_s(self) -> float | None:
        """Return the seconds until the next row is due, None if no row waits for its time."""
        query = f"SELECT MIN(MAX(next_ns, held_until_ns)) {_READY}"
        next_ns = self._db.execute(query, self._bound).fetchone()[0]
        return None if next_ns is None else max(0.0, (next_ns - self._now_ns) / NS_PER_SECOND)

    def rate_limit_wait_s(self, limit: RateLimit, failed_ns: Sequence[int]) -> float:
        """Return the seconds until a rate limit allows the next delivery, 0 if it does now.

        Args:
            failed_ns: when deliveries failed, oldest first: a receiver in trouble is spared too.
        """
        if self._action == FEED:
            return 0.0
        span_ns = seconds_to_ns(limit.per_s)
        failed = [time for time in failed_ns if self._now_ns - span_ns < time <= self._now_ns]
        n_left = limit.max - self._n_in_flight - len(failed)
        if n_left <= 0:
            until_ns = failed[0] + span_ns if failed else self._now_ns + span_ns
            return (until_ns - self._now_ns) / NS_PER_SECOND
        row = self._db.execute(
            "SELECT updated_ns FROM deliveries WHERE action = ? AND state = 'done' AND"
            " updated_ns > ? AND updated_ns <= ? ORDER BY updated_ns DESC LIMIT 1 OFFSET ?",
            (self._action, self._now_ns - span_ns, self._now_ns, n_left - 1),
        ).fetchone()
        return 0.0 if row is None else float(row[0] + span_ns - self._now_ns) / NS_PER_SECOND


def end_rows(
    db: sqlite3.Connection, state: str, now_ns: int, where: str, *bound: object, reason: str = ""
) -> list[tuple[str, str, str]]:
    """Let pending rows go to another state; return severity, rule and transition of each.

    Args:
        where: which rows, in SQL with a mark for each of `bound`.
        reason: why they will not be delivered; empty: what was noted last is kept.
    """
    query = (
        "UPDATE deliveries SET state = ?, last_error = coalesce(?, last_error), updated_ns = ?"
        f" WHERE state = 'pending' AND {where} RETURNING severity, rule, transition"
    )
    return db.execute(
        query, (state, reason[:MAX_ERROR_CHARACTERS] or None, now_ns, *bound)
    ).fetchall()


def failing_action(db: sqlite3.Connection, action: str) -> FailingAction | None:
    """Return how deliveries by an action fail, None if they get through."""
    waiting, attempts, error = db.execute(
        "SELECT count(*), max(attempts), last_error FROM deliveries"
        " WHERE action = ? AND state = 'pending' AND attempts > 0",
        (action,),
    ).fetchone()
    lost = db.execute(
        "SELECT updated_ns, last_error FROM deliveries WHERE action = ?"
        " AND state IN ('dead', 'expired') ORDER BY updated_ns DESC LIMIT 1",
        (action,),
    ).fetchone()
    done = db.execute(
        "SELECT max(updated_ns) FROM deliveries WHERE action = ? AND state = 'done'", (action,)
    ).fetchone()
    is_lost = lost is not None and (done[0] is None or lost[0] >= done[0])
    if not waiting and not is_lost:
        return None
    why = error if waiting else lost[1]
    return FailingAction(
        action=action,
        waiting=waiting,
        attempts=attempts or 0,
        lost=is_lost,
        error=one_line(why or "unknown"),
    )


def prune(
    db: sqlite3.Connection, now_ns: int, evaluated_ns: int, kept_s: float, max_bytes: int
) -> None:
    """Delete what has long been over, a batch at a time; never rows of an active alert.

    Args:
        evaluated_ns: up to when alerts are known.
        kept_s: for how long rows that are over are kept, against repeats and for people.
        max_bytes: of all rows; beyond it the oldest that are over go before their time.
    """
    is_full = used_bytes(db) > max_bytes
    before_ns = now_ns - seconds_to_ns(kept_s)
    db.execute(
        "DELETE FROM deliveries WHERE seq IN (SELECT seq FROM deliveries WHERE state <> 'pending'"
        f" AND (updated_ns < ? OR ?) AND {_NOT_ACTIVE} ORDER BY seq LIMIT ?)",
        (before_ns, is_full, PRUNE_BATCH),
    )
    db.execute(
        "DELETE FROM alerts WHERE rowid IN (SELECT rowid FROM alerts WHERE state IN"
        " ('inactive', 'resolved') AND (updated_ns < ? OR ?) ORDER BY rowid LIMIT ?)",
        (before_ns, is_full, PRUNE_BATCH),
    )
    db.execute("DELETE FROM snoozes WHERE until_ns < ?", (min(now_ns, evaluated_ns),))


def used_bytes(db: sqlite3.Connection) -> int:
    """Return the size of the database without pages that are free: those are used again."""
    size, count, free = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "page_count", "freelist_count")
    )
    return int(size) * (int(count) - int(free))


def note_alert(db: sqlite3.Connection, alert: Alert, state: str, now_ns: int) -> None:
    """Write the state of an alert."""
    db.execute(
        "INSERT INTO alerts (id, rule, state, updated_ns) VALUES (?, ?, ?, ?) ON CONFLICT"
        " (id) DO UPDATE SET state = excluded.state, updated_ns = excluded.updated_ns",
        (alert.id, alert.rule, state, now_ns),
    )


def snooze_at(db: sqlite3.Connection, rule: str, at_ns: int) -> tuple[int, int] | None:
    """Return since when and until when a rule is snoozed, None if it is not at `at_ns`."""
    row = db.execute(
        "SELECT since_ns, until_ns FROM snoozes WHERE rule = ? AND until_ns > ?", (rule, at_ns)
    ).fetchone()
    return None if row is None else (row[0], row[1])
