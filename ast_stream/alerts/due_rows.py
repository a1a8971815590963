"""Which row of an action goes out next: due, most severe first, within the rate limit."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ast_stream.alerts.delivery_policy import FEED, SEVERITY_RANK, URGENT
from ast_stream.units import NS_PER_SECOND

# rows that nothing but their time keeps from going out; a row of the same alert that was written
# before does, unless its own time is over, which a full disk keeps from being written down.
# Plus signs have it looked up by its alert: the index of pending rows would compare all with all
_READY = """
    FROM deliveries AS one WHERE action = :action AND state = 'pending' AND expires_ns > :now_ns
    AND (NOT :urgent_only OR severity IN (:critical, :high))
    AND seq NOT IN (SELECT value FROM json_each(:under_way))
    AND NOT EXISTS (
        SELECT 1 FROM deliveries AS other WHERE other.alert_id = one.alert_id
        AND +other.action = one.action AND +other.state = 'pending' AND +other.seq < one.seq
        AND (other.expires_ns > :now_ns
             OR other.seq IN (SELECT value FROM json_each(:under_way))))
"""
_COLUMNS = "seq, attempts, payload, severity, rule, transition"
# a row last touched in the future: the clock was put back, and its next time means nothing
_DUE = (
    "AND held_until_ns <= :now_ns AND (next_ns <= :now_ns OR updated_ns > :now_ns)"
    " AND (held_until_ns = 0 OR :evaluated_ns IS NULL OR held_until_ns <= :evaluated_ns)"
)


@dataclass(frozen=True)
class DueRow:
    """A row to deliver."""

    seq: int
    attempts: int
    payload: bytes
    named: tuple[str, str, str]  # severity, rule and transition


class DueRows:
    """The rows of one action at one moment.

    Args:
        now_ns: wall clock, nanoseconds since 1970.
        under_way: action of each row that is being delivered, by number.
        urgent_only: look at alerts of high and critical severity only.
        evaluated_ns: up to when alerts are known; what is held until later stays held.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        action: str,
        now_ns: int,
        under_way: Mapping[int, str],
        urgent_only: bool = False,
        evaluated_ns: int | None = None,
    ) -> None:
        self._db = db
        self._action = action
        self._now_ns = now_ns
        self._n_under_way = sum(one == action for one in under_way.values())
        self._bound = {
            "action": action,
            "now_ns": now_ns,
            "urgent_only": urgent_only,
            "evaluated_ns": evaluated_ns,
            "critical": URGENT[0],
            "high": URGENT[1],
            "under_way": json.dumps(list(under_way)),
        }

    def first(self) -> DueRow | None:
        """Return the row whose turn it is; on the feed the one that was written first."""
        order = "seq" if self._action == FEED else f"{SEVERITY_RANK}, attempts > 0, seq"
        query = f"SELECT {_COLUMNS} {_READY} {_DUE} ORDER BY {order} LIMIT 1"
        row = self._db.execute(query, self._bound).fetchone()
        return None if row is None else DueRow(row[0], row[1], row[2], row[3:])

    def wait_s(self) -> float | None:
        """Return the seconds until the next row is due, None if none waits for its time."""
        query = f"SELECT MIN(MAX(next_ns, held_until_ns)) {_READY}"
        next_ns = self._db.execute(query, self._bound).fetchone()[0]
        return None if next_ns is None else max(0.0, (next_ns - self._now_ns) / NS_PER_SECOND)

    def budget_wait_s(self, max_per: tuple[int, float] | None, failed_ns: Sequence[int]) -> float:
        """Return the seconds until a rate limit allows the next delivery, 0 if it does now.

        Args:
            max_per: at most so many deliveries in so many seconds; None: no limit.
            failed_ns: when deliveries failed, oldest first: a receiver in trouble is spared too.
        """
        if max_per is None:
            return 0.0
        span_ns = round(max_per[1] * NS_PER_SECOND)
        failed = [one for one in failed_ns if self._now_ns - span_ns < one <= self._now_ns]
        n_left = max_per[0] - self._n_under_way - len(failed)
        if n_left <= 0:
            until_ns = failed[0] + span_ns if failed else self._now_ns + span_ns
            return (until_ns - self._now_ns) / NS_PER_SECOND
        row = self._db.execute(
            "SELECT updated_ns FROM deliveries WHERE action = ? AND state = 'done' AND"
            " updated_ns > ? AND updated_ns <= ? ORDER BY updated_ns DESC LIMIT 1 OFFSET ?",
            (self._action, self._now_ns - span_ns, self._now_ns, n_left - 1),
        ).fetchone()
        return 0.0 if row is None else float(row[0] + span_ns - self._now_ns) / NS_PER_SECOND
