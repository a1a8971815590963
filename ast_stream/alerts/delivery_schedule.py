"""When a delivery goes out: most severe first, rate limits, back-off, and receivers in trouble."""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ast_stream.alerts.actions.base import Delivered, Failed, Outcome
from ast_stream.settings.alerts import FEED_ACTION, Action
from ast_stream.units import NS_PER_SECOND

FEED = FEED_ACTION  # publishes; it delivers everything and is never snoozed
BACKOFF_S = (2.0, 10.0, 60.0, 300.0, 900.0, 3600.0)
EXPIRY_S = {
    "informational": 3600,
    "low": 3600,
    "medium": 3600,
    "high": 6 * 3600,
    "critical": 24 * 3600,
}
MAX_PAUSE_S = 60.0  # what a receiver's answer can impose on all deliveries of its action
URGENT = ("critical", "high")
SEVERITY_RANK = (  # SQL: 0 is the most severe
    "CASE severity WHEN 'critical' THEN 0 WHEN 'high' THEN 1 WHEN 'medium' THEN 2"
    " WHEN 'low' THEN 3 ELSE 4 END"
)
# deliveries that only their time keeps from going out. An earlier one of the same alert does, too,
# unless it has expired, which a full disk may keep from being recorded. The plus signs make SQLite
# look it up by its alert: the index of pending rows would compare all with all
_READY = """
    FROM deliveries AS it WHERE action = :action AND state = 'pending' AND expires_ns > :now_ns
    AND (NOT :urgent_only OR severity IN (:critical, :high))
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


@dataclass(frozen=True)
class Route:
    """What one action delivers.

    Attributes:
        on: kinds of notifications.
        max_per: at most so many deliveries in so many seconds; None: no limit.
        settings: identifies the action's settings: a closed action is reopened when they change.
    """

    on: frozenset[str]
    max_per: tuple[int, float] | None = None
    settings: str = ""


def routes(actions: Mapping[str, Action]) -> dict[str, Route]:
    """Return the routes of the configured actions, in their order."""
    return {
        name: Route(
            on=frozenset(action.on),
            max_per=(action.rate_limit.max, action.rate_limit.per_s),
            settings=action.model_dump_json(),
        )
        for name, action in actions.items()
    }


def expiry_ns(severity: str) -> int:
    """Return for how long an alert of this severity is worth delivering, in nanoseconds."""
    return EXPIRY_S.get(severity, EXPIRY_S["low"]) * NS_PER_SECOND


def backoff_s(n_failed: int, jitter: Callable[[], float]) -> float:
    """Return the wait before the next attempt, with full jitter.

    Args:
        n_failed: attempts that failed before the last one.
        jitter: returns a number in [0, 1).
    """
    return BACKOFF_S[min(n_failed, len(BACKOFF_S) - 1)] * jitter()


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
            "critical": URGENT[0],
            "high": URGENT[1],
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

    def rate_limit_wait_s(
        self, max_per: tuple[int, float] | None, failed_ns: Sequence[int]
    ) -> float:
        """Return the seconds until a rate limit allows the next delivery, 0 if it does now.

        Args:
            max_per: at most so many deliveries in so many seconds; None: no limit.
            failed_ns: when deliveries failed, oldest first: a receiver in trouble is spared too.
        """
        if max_per is None:
            return 0.0
        span_ns = round(max_per[1] * NS_PER_SECOND)
        failed = [time for time in failed_ns if self._now_ns - span_ns < time <= self._now_ns]
        n_left = max_per[0] - self._n_in_flight - len(failed)
        if n_left <= 0:
            until_ns = failed[0] + span_ns if failed else self._now_ns + span_ns
            return (until_ns - self._now_ns) / NS_PER_SECOND
        row = self._db.execute(
            "SELECT updated_ns FROM deliveries WHERE action = ? AND state = 'done' AND"
            " updated_ns > ? AND updated_ns <= ? ORDER BY updated_ns DESC LIMIT 1 OFFSET ?",
            (self._action, self._now_ns - span_ns, self._now_ns, n_left - 1),
        ).fetchone()
        return 0.0 if row is None else float(row[0] + span_ns - self._now_ns) / NS_PER_SECOND


class Receivers:
    """How the receivers of all actions have fared lately; forgotten with the process.

    Args:
        routes: every action by name.
        now_ns: wall clock, nanoseconds since 1970.
    """

    def __init__(self, routes: Mapping[str, Route], now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._failed_ns: dict[str, deque[int]] = {
            name: deque(maxlen=1 if route.max_per is None else route.max_per[0])
            for name, route in routes.items()
        }
        self._paused_until_ns: dict[str, int] = {}
        self._unreachable: dict[str, set[int]] = {}

    def note(self, action: str, seq: int, outcome: Outcome) -> None:
        """Note the outcome of the delivery `seq`."""
        if isinstance(outcome, Delivered):
            self._unreachable.pop(action, None)
            return
        now_ns = self._now_ns()
        self._failed_ns[action].append(now_ns)
        if not isinstance(outcome, Failed):
            return
        if outcome.after_s > 0:
            pause_s = min(outcome.after_s, MAX_PAUSE_S)
            self._paused_until_ns[action] = now_ns + round(pause_s * NS_PER_SECOND)
        elif outcome.is_down:
            self._unreachable.setdefault(action, set()).add(seq)

    def failed_ns(self, action: str) -> Sequence[int]:
        """Return when deliveries failed, oldest first, no more than the rate limit asks for."""
        return self._failed_ns[action]

    def pause_s(self, action: str) -> float:
        """Return for how long the receiver asked to be left alone, up to the limit."""
        left_s = (self._paused_until_ns.get(action, 0) - self._now_ns()) / NS_PER_SECOND
        return min(max(0.0, left_s), MAX_PAUSE_S)

    def unreachable(self, action: str) -> list[int]:
        """Return the deliveries that may have failed only because the receiver was down."""
        return sorted(self._unreachable.get(action, ()))
