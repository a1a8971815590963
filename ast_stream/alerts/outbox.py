"""The outbox: what is to be told, to whom, how often it was tried, and what became of it.

Rows are written in the transaction of the state that caused them, and leave `pending` only when
the receiver has them or an end is decided. What is being sent is known to the process alone: after
a kill it is sent again with the same id, and a full disk does not keep anything from going out.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from ast_stream.alerts.actions.base import (
    Delivered,
    Failed,
    Notification,
    Outcome,
    Refused,
    notification_of,
)
from ast_stream.alerts.model import Alert, Transition, stable_id
from ast_stream.alerts.store import Store
from ast_stream.units import NS_PER_SECOND

FEED = "feed"  # the action that publishes: it gets everything, and is never snoozed
SELF_RULE = "ast_stream_delivery_failed"
BACKOFF_S = (2.0, 10.0, 60.0, 300.0, 900.0, 3600.0)
EXPIRY_S = {
    "informational": 3600,
    "low": 3600,
    "medium": 3600,
    "high": 6 * 3600,
    "critical": 24 * 3600,
}
KEPT_S = 30 * 86400  # rows that are over stay so long, against repeats and for people
MAX_ERROR_CHARACTERS = 300
_HOUR_NS = 3600 * NS_PER_SECOND


@dataclass(frozen=True)
class Route:
    """What one action takes.

    Attributes:
        on: kinds of notifications.
        max_per: at most so many deliveries in so many seconds; None: no limit.
        settings: identifies the action's settings: a closed action is tried again when changed.
    """

    on: frozenset[str]
    max_per: tuple[int, float] | None = None
    settings: str = ""


@dataclass(frozen=True)
class Delivery:
    """A row that is being delivered."""

    seq: int
    action: str
    attempts: int
    notification: Notification


class Outbox:
    """Rows to deliver, by action.

    Args:
        routes: every action by name, in the order of the configuration.
        now_ns: wall clock, nanoseconds since 1970.
        jitter: returns a number in [0, 1).
    """

    def __init__(
        self,
        store: Store,
        routes: Mapping[str, Route],
        now_ns: Callable[[], int],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._routes = dict(routes) | {FEED: Route(frozenset({"firing", "resolved"}))}
        self._now_ns = now_ns
        self._jitter = jitter
        self._in_flight: dict[str, int] = {}

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of all actions, `feed` included."""
        return tuple(self._routes)

    def pending(self) -> dict[str, int]:
        """Return how many deliveries wait, by action.

        Raises:
            StoreError: the database cannot be read.
        """
        counts = dict.fromkeys(self.actions, 0)
        with self._store.reading() as db:
            query = "SELECT action, count(*) FROM deliveries WHERE state = 'pending' GROUP BY 1"
            return counts | dict(db.execute(query).fetchall())

    def enqueue(self, db: sqlite3.Connection, transitions: Iterable[Transition]) -> None:
        """Write what is to be told of transitions; in the transaction of the engine's state."""
        for transition in transitions:
            alert = transition.alert
            db.execute(
                "INSERT INTO alerts (id, rule, state, updated_ns) VALUES (?, ?, ?, ?) ON CONFLICT"
                " (id) DO UPDATE SET state = excluded.state, updated_ns = excluded.updated_ns",
                (alert.id, alert.rule, alert.state, self._now_ns()),
            )
            notification = notification_of(transition)
            if notification is None:
                continue
            for action in (FEED, *transition.actions):
                if notification.kind in self._routes.get(action, Route(frozenset())).on:
                    self._add(db, alert.id, action, notification)

    def take(self, action: str) -> Delivery | float | None:
        """Return the next row to deliver, the seconds until there may be one, or None: no row.

        Rows of one action go out in order: while one waits for its next attempt, so do those
        behind it.
        """
        now_ns = self._now_ns()
        with self._store.reading() as db:
            row = db.execute(
                "SELECT seq, attempts, payload, next_ns FROM deliveries WHERE action = ? AND "
                "state = 'pending' AND held_until_ns <= ? AND expires_ns > ? ORDER BY seq LIMIT 1",
                (action, now_ns, now_ns),
            ).fetchone()
            held_ns = db.execute(
                "SELECT MIN(held_until_ns) FROM deliveries WHERE action = ? AND state = 'pending'"
                " AND held_until_ns > ?",
                (action, now_ns),
            ).fetchone()[0]
            if row is None:
                return None if held_ns is None else (held_ns - now_ns) / NS_PER_SECOND
            seq, attempts, payload, next_ns = row
            due_ns = max(next_ns, self._budget_ns(db, action, now_ns))
            if due_ns > now_ns:
                return float(due_ns - now_ns) / NS_PER_SECOND
            self._in_flight[action] = seq
        return Delivery(seq, action, attempts, Notification.decode(payload))

    def expire(self, action: str) -> None:
        """Give up the rows of an action whose time is over, and tell of them by another.

        Raises:
            StoreError: it could not be written; they are not delivered all the same.
        """
        now_ns = self._now_ns()
        over = "action = ? AND state = 'pending' AND expires_ns <= ?"
        with self._store.reading() as db:
            rows = db.execute(
                f"SELECT seq, payload, last_error FROM deliveries WHERE {over}", (action, now_ns)
            ).fetchall()
        if not rows:
            return
        with self._store.transaction() as db:
            for seq, payload, last_error in rows:
                reason = last_error or "it was not its turn in time"
                db.execute(
                    "UPDATE deliveries SET state = 'expired', last_error = ?, updated_ns = ?"
                    " WHERE seq = ? AND state = 'pending'",
                    (reason, now_ns, seq),
                )
                self._raise_alarm(db, action, Notification.decode(payload), reason)

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Write what came of a delivery.

        Raises:
            StoreError: it could not be written: call it again, do not deliver again.
        """
        with self._store.transaction() as db:
            match outcome:
                case Delivered():
                    self._end(db, delivery.seq, "done", None)
                case Failed():
                    self._postpone(db, delivery, outcome)
                case Refused():
                    self._end(db, delivery.seq, "dead", outcome.reason)
                    if outcome.is_closed:
                        self._close(db, delivery.action, outcome.reason)
                    self._raise_alarm(db, delivery.action, delivery.notification, outcome.reason)
        self._in_flight.pop(delivery.action, None)

    def recover(self) -> None:
        """Begin anew after a start: forget closed actions whose settings have changed; prune."""
        with self._store.transaction() as db:
            for action, settings in db.execute("SELECT action, settings FROM closed_actions"):
                if action not in self._routes or self._routes[action].settings != settings:
                    db.execute("DELETE FROM closed_actions WHERE action = ?", (action,))
            for action in {row[0] for row in db.execute(_PENDING_ACTIONS)} - set(self._routes):
                db.execute(
                    "UPDATE deliveries SET state = 'dead', last_error = 'no such action any more', "
                    "updated_ns = ? WHERE action = ? AND state = 'pending'",
                    (self._now_ns(), action),
                )
            self._prune(db)

    def _add(
        self, db: sqlite3.Connection, alert_id: str, action: str, notification: Notification
    ) -> None:
        now_ns = self._now_ns()
        until_ns = 0 if action == FEED else _snoozed_until(db, notification.rule, now_ns)
        closed = db.execute("SELECT reason FROM closed_actions WHERE action = ?", (action,))
        reason = closed.fetchone()
        state = "pending" if reason is None else "dead"
        if notification.kind == "resolved" and self._supersede(db, alert_id, action, until_ns):
            if until_ns:
                state = "snoozed"  # it began and ended while nobody wanted to know
            notification = replace(notification, is_combined=True)
        expiry_ns = EXPIRY_S.get(notification.severity, _HOUR_NS) * NS_PER_SECOND
        db.execute(
            "INSERT OR IGNORE INTO deliveries (alert_id, transition, action, rule, severity,"
            " payload, state, last_error, created_ns, updated_ns, next_ns, held_until_ns,"
            " expires_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                alert_id,
                notification.kind,
                action,
                notification.rule,
                notification.severity,
                notification.encode(),
                state,
                None if reason is None else f"{action} is closed: {reason[0]}",
                now_ns,
                now_ns,
                now_ns,
                until_ns,
                max(now_ns, until_ns) + expiry_ns,
            ),
        )
        if reason is not None:
            self._raise_alarm(db, action, notification, reason[0])

    def _supersede(self, db: sqlite3.Connection, alert_id: str, action: str, until_ns: int) -> bool:
        """Let a resolve stand for a firing that was not delivered and is not under way.

        Not on the feed: programs want both.
        """
        if action == FEED:
            return False
        changed = db.execute(
            "UPDATE deliveries SET state = ?, updated_ns = ? WHERE alert_id = ? AND"
            " transition = 'firing' AND action = ? AND state = 'pending' AND seq <> ?",
            (
                "snoozed" if until_ns else "superseded",
                self._now_ns(),
                alert_id,
                action,
                self._in_flight.get(action, -1),
            ),
        )
        return changed.rowcount > 0

    def _postpone(self, db: sqlite3.Connection, delivery: Delivery, failed: Failed) -> None:
        longest_s = BACKOFF_S[min(delivery.attempts, len(BACKOFF_S) - 1)]
        wait_s = max(failed.after_s, longest_s * self._jitter())
        now_ns = self._now_ns()
        db.execute(
            "UPDATE deliveries SET attempts = attempts + 1, next_ns = ?, last_error = ?,"
            " updated_ns = ? WHERE seq = ? AND state = 'pending'",
            (
                now_ns + round(wait_s * NS_PER_SECOND),
                failed.reason[:MAX_ERROR_CHARACTERS],
                now_ns,
                delivery.seq,
            ),
        )

    def _end(self, db: sqlite3.Connection, seq: int, state: str, error: str | None) -> None:
        # whatever it was meanwhile (dropped by hand): what really happened is what counts
        db.execute(
            "UPDATE deliveries SET state = ?, attempts = attempts + 1, last_error = ?,"
            " updated_ns = ? WHERE seq = ?",
            (state, error and error[:MAX_ERROR_CHARACTERS], self._now_ns(), seq),
        )

    def _close(self, db: sqlite3.Connection, action: str, reason: str) -> None:
        """Send nothing more to a receiver that said it is gone for good."""
        now_ns = self._now_ns()
        db.execute(
            "INSERT OR REPLACE INTO closed_actions VALUES (?, ?, ?, ?)",
            (action, self._routes[action].settings, now_ns, reason),
        )
        db.execute(
            "UPDATE deliveries SET state = 'dead', last_error = ?, updated_ns = ?"
            " WHERE action = ? AND state = 'pending'",
            (reason[:MAX_ERROR_CHARACTERS], now_ns, action),
        )

    def _raise_alarm(
        self, db: sqlite3.Connection, action: str, lost: Notification, reason: str
    ) -> None:
        """Tell of an undelivered alert by the next action; once an hour for each that fails.

        The next one in turn, so that one after the other is tried when several fail.
        """
        if action == FEED:
            return
        now_ns = self._now_ns()
        alert = _delivery_alert(action, lost, reason, now_ns)
        told = Notification(f"{alert.id}.firing", "firing", now_ns, alert.body())
        names = [name for name in self._routes if name != FEED]
        place = names.index(action) if action in names else -1
        others = names[place + 1 :] + names[: max(0, place)]
        known = db.execute("SELECT 1 FROM deliveries WHERE alert_id = ?", (alert.id,)).fetchone()
        if known is None:
            for name in (FEED, *others[:1]):
                self._add(db, alert.id, name, told)

    def _budget_ns(self, db: sqlite3.Connection, action: str, now_ns: int) -> int:
        """Return when the action's rate limit allows the next delivery; 0: now."""
        limit = self._routes[action].max_per if action in self._routes else None
        if limit is None:
            return 0
        span_ns = round(limit[1] * NS_PER_SECOND)
        row = db.execute(
            "SELECT updated_ns FROM deliveries WHERE action = ? AND state = 'done' AND"
            " updated_ns > ? ORDER BY updated_ns DESC LIMIT 1 OFFSET ?",
            (action, now_ns - span_ns, limit[0] - 1),
        ).fetchone()
        return 0 if row is None else int(row[0]) + span_ns

    def _prune(self, db: sqlite3.Connection) -> None:
        """Forget what is long over; never the deliveries of an alert that still fires."""
        before_ns = self._now_ns() - KEPT_S * NS_PER_SECOND
        db.execute(
            "DELETE FROM deliveries WHERE state <> 'pending' AND updated_ns < ? AND alert_id NOT"
            " IN (SELECT id FROM alerts WHERE state IN ('pending', 'firing', 'recovering'))",
            (before_ns,),
        )
        db.execute(
            "DELETE FROM alerts WHERE state IN ('inactive', 'resolved') AND updated_ns < ?",
            (before_ns,),
        )
        db.execute("DELETE FROM snoozes WHERE until_ns < ?", (self._now_ns(),))


_PENDING_ACTIONS = "SELECT DISTINCT action FROM deliveries WHERE state = 'pending'"


def _snoozed_until(db: sqlite3.Connection, rule: str, now_ns: int) -> int:
    row = db.execute(
        "SELECT until_ns FROM snoozes WHERE rule = ? AND until_ns > ?", (rule, now_ns)
    ).fetchone()
    return 0 if row is None else int(row[0])


def _delivery_alert(action: str, lost: Notification, reason: str, now_ns: int) -> Alert:
    """Return the alert that says an alert could not be delivered."""
    group = {"action": action}
    return Alert(
        id=stable_id(SELF_RULE, action, str(now_ns // _HOUR_NS)),
        fingerprint=stable_id(SELF_RULE, action),
        rule=SELF_RULE,
        state="firing",
        severity="high",
        group=group,
        labels=group | {"alert": SELF_RULE, "severity": "high"},
        annotations={
            "summary": f"{lost.title}: not delivered by {action}: "
            f"{reason[:MAX_ERROR_CHARACTERS]}; see ast-stream outbox list"
        },
        started_ns=now_ns,
        fired_ns=now_ns,
        resolved_ns=None,
        events=(),
    )
