"""The outbox: what is to be told, to whom, how often it was tried, and what became of it.

Rows are written in the transaction of the state that caused them, and leave `pending` only when
the receiver has them or an end is decided. What is being sent is known to the process alone: after
a kill it is sent again with the same id, and a full disk does not keep anything from going out.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ast_stream.alerts import outbox_upkeep
from ast_stream.alerts.actions.base import Delivered, Failed, Notification, Outcome, Refused
from ast_stream.alerts.delivery_policy import FEED, MAX_ERROR_CHARACTERS, Route, backoff_s
from ast_stream.alerts.model import Transition
from ast_stream.alerts.outbox_writer import SELF_RULE, OutboxWriter
from ast_stream.alerts.store import Store
from ast_stream.units import NS_PER_SECOND

__all__ = ["FEED", "SELF_RULE", "Delivery", "Outbox", "Route"]


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
        self._under_way: set[int] = set()
        self._writer = OutboxWriter(self._routes, self._under_way, now_ns)

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
        self._writer.enqueue(db, transitions)

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
            self._under_way.add(seq)
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
                self._writer.raise_alarm(db, action, Notification.decode(payload), reason)

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Write what came of a delivery.

        Raises:
            StoreError: it could not be written: call it again, do not deliver again.
        """
        action, lost = delivery.action, delivery.notification
        with self._store.transaction() as db:
            match outcome:
                case Delivered():
                    self._end(db, delivery.seq, "done", None)
                case Failed():
                    self._postpone(db, delivery, outcome)
                case Refused():
                    self._end(db, delivery.seq, "dead", outcome.reason)
                    if outcome.is_closed:
                        self._close(db, action, outcome.reason)
                    self._writer.raise_alarm(db, action, lost, outcome.reason)
        self._under_way.discard(delivery.seq)

    def recover(self) -> None:
        """Begin anew after a start: forget closed actions whose settings have changed; prune."""
        with self._store.transaction() as db:
            outbox_upkeep.renew_actions(db, self._routes, self._now_ns())
            outbox_upkeep.prune(db, self._now_ns())

    def _postpone(self, db: sqlite3.Connection, delivery: Delivery, failed: Failed) -> None:
        wait_s = max(failed.after_s, backoff_s(delivery.attempts, self._jitter))
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
