"""The outbox: what is to be told, to whom, how often it was tried, and what became of it.

Rows are written in the transaction of the state that caused them, and leave `pending` only when
the receiver has them or an end is decided. What is being sent is known to the process alone: after
a kill it is sent again with the same id, and a full disk does not keep anything from going out.
"""

from __future__ import annotations

import json
import logging
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ast_stream.alerts import outbox_upkeep
from ast_stream.alerts.actions.base import Delivered, Failed, Outcome, Refused
from ast_stream.alerts.delivery_policy import (
    FEED,
    MAX_ERROR_CHARACTERS,
    Route,
    backoff_s,
)
from ast_stream.alerts.due_rows import DueRow, DueRows
from ast_stream.alerts.model import Transition
from ast_stream.alerts.notification import Notification, one_line, title_of
from ast_stream.alerts.outbox_writer import SELF_RULE, OutboxWriter
from ast_stream.alerts.receivers import Receivers
from ast_stream.alerts.store import Store
from ast_stream.runtime.logging import Outage
from ast_stream.settings.alert_schema import Action
from ast_stream.units import NS_PER_SECOND

__all__ = ["FEED", "SELF_RULE", "Delivery", "Failing", "Outbox", "Route"]

TIDY_EVERY_S = 600
MIN_WAIT_S = 0.1  # for a row whose time has come and that something else keeps back

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """A row that is being delivered."""

    seq: int
    action: str
    attempts: int
    notification: Notification


@dataclass(frozen=True)
class Failing:
    """An action whose deliveries do not get through.

    Attributes:
        waiting: deliveries that failed, and are tried again.
        attempts: of the one that was tried most often.
        lost: whether the last one that was decided was given up.
        error: why the last one failed.
    """

    action: str
    waiting: int
    attempts: int
    lost: bool
    error: str

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def text(self) -> str:
        """A sentence."""
        waiting = "1 alert waits" if self.waiting == 1 else f"{self.waiting} alerts wait"
        tried = f"{waiting} after up to {self.attempts} attempts" if self.waiting else ""
        lost = "the last one was given up" if self.lost else ""
        facts = " and ".join(part for part in (tried, lost) if part) or "it cannot be used"
        return f"alerts are not delivered by {self.action}: {facts}: {self.error}"


class Outbox:
    """Rows to deliver, by action.

    Args:
        routes: every action by name, in the order of the configuration.
        now_ns: wall clock, nanoseconds since 1970.
        jitter: returns a number in [0, 1).

    Attributes:
        attempts: deliveries that were tried, by action and outcome; reset with the process.
        evaluated_ns: up to when the engine's alerts are known and saved: what a snooze held back
            until later waits, for it may have ended meanwhile. None: alerts are always known.
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
        self._under_way: dict[int, str] = {}  # numbers of rows, and their actions
        self.attempts: Counter[tuple[str, str]] = Counter()
        self._tidy_ns = 0
        self.evaluated_ns: int | None = None
        self._receivers = Receivers(self._routes, now_ns)
        self._writer = OutboxWriter(self._routes, self._under_way, now_ns)

    @property
    def outage(self) -> Outage:
        """For whoever meets a `StoreError` and goes on."""
        return self._store.outage

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

    def failing(self) -> list[Failing]:
        """Return the actions whose deliveries do not get through now.

        Raises:
            StoreError: the database cannot be read.
        """
        with self._store.reading() as db:
            found = (self._failing(db, action) for action in self.actions if action != FEED)
            return [one for one in found if one is not None]

    def _failing(self, db: sqlite3.Connection, action: str) -> Failing | None:
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
        return Failing(action, waiting, attempts or 0, is_lost, one_line(why or "unknown"))

    def step_clock(self, db: sqlite3.Connection, step_ns: int) -> None:
        """Follow a wall clock that was set: nothing expires or waits longer by that."""
        outbox_upkeep.step_clock(db, step_ns)

    def end_unknown(self, db: sqlite3.Connection, known: Collection[str]) -> None:
        """Resolve alerts that fire, as far as was told, and are not among the `known` ones."""
        self._writer.end_unknown(db, known)

    def enqueue(self, db: sqlite3.Connection, transitions: Iterable[Transition]) -> None:
        """Write what is to be told of transitions; in the transaction of the engine's state."""
        self._writer.enqueue(db, transitions)

    def take(self, action: str, *, urgent_only: bool = False) -> Delivery | float | None:
        """Return the next row to deliver, the seconds until there may be one, or None: no row.

        The most severe goes first, and what was never tried before what has failed. Only the rows
        of one alert wait for each other: one that fails holds up nothing but its own resolve.

        Raises:
            StoreError: the database cannot be read.
        """
        with self._store.reading() as db:
            queue = DueRows(
                db, action, self._now_ns(), self._under_way, urgent_only, self.evaluated_ns
            )
            wait_s = self._receivers.pause_s(action) or queue.budget_wait_s(
                self._routes[action].max_per, self._receivers.failed_ns(action)
            )
            row = queue.first() if wait_s == 0 else None
            if row is None:
                next_s = queue.wait_s()
                return None if next_s is None else max(wait_s, next_s, MIN_WAIT_S)
            self._under_way[row.seq] = action
        try:
            return Delivery(row.seq, action, row.attempts, Notification.decode(row.payload))
        except ValueError:
            self._bury(action, row)
        return 0.0

    def expire(self, action: str) -> None:
        """Give up the rows of an action whose time is over, and tell of them by another.

        Raises:
            StoreError: it could not be written; they are not delivered all the same.
        """
        self._tidy()
        now_ns = self._now_ns()
        with self._store.reading() as db:
            found = db.execute(
                "SELECT seq, severity, rule, transition, last_error FROM deliveries WHERE"
                " action = ? AND state = 'pending' AND expires_ns <= ?",
                (action, now_ns),
            ).fetchall()
        rows = [row for row in found if row[0] not in self._under_way]
        if not rows:
            return
        with self._store.transaction() as db:
            for seq, severity, rule, transition, last_error in rows:
                reason = last_error or "it was not its turn in time"
                lost = title_of(severity, rule, transition)
                logger.error("%s was not delivered by %s in time: %s", lost, action, reason)
                db.execute(
                    "UPDATE deliveries SET state = 'expired', last_error = ?, updated_ns = ?"
                    " WHERE seq = ? AND state = 'pending'",
                    (reason, now_ns, seq),
                )
                self._writer.raise_alarm(db, action, lost, reason)

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Write what came of a delivery.

        Raises:
            StoreError: it could not be written: call it again, do not deliver again.
        """
        action, lost = delivery.action, delivery.notification.title
        self.attempts[action, type(outcome).__name__.lower()] += 1
        with self._store.transaction() as db:
            match outcome:
                case Delivered():
                    self._end(db, delivery.seq, "done", None)
                    self._free_stranded(db, action)
                case Failed():
                    self._postpone(db, delivery, outcome)
                case Refused():
                    self._end(db, delivery.seq, "dead", outcome.reason)
                    if outcome.is_closed:
                        self._close(db, action, outcome.reason)
                    self._writer.raise_alarm(db, action, lost, outcome.reason)
        with self._store.reading():  # its lock: other threads look at this under it
            self._receivers.note(action, delivery.seq, outcome)
            self._under_way.pop(delivery.seq, None)

    def recover(self) -> None:
        """Begin anew after a start: forget closed actions whose settings have changed."""
        with self._store.transaction() as db:
            outbox_upkeep.renew_actions(db, self._routes, self._now_ns())

    def _bury(self, action: str, row: DueRow) -> None:
        """Give up a row that another version of this program wrote in a way unknown to us."""
        reason, lost = "unknown to this version of ast-stream", title_of(*row.named)
        logger.error("%s cannot be delivered by %s: %s", lost, action, reason)
        try:
            with self._store.transaction() as db:
                self._end(db, row.seq, "dead", reason)
                self._writer.raise_alarm(db, action, lost, reason)
        finally:
            with self._store.reading():
                self._under_way.pop(row.seq)

    def _tidy(self) -> None:
        """Forget old rows from time to time: the process may run for years."""
        now_ns = self._now_ns()
        if now_ns < self._tidy_ns:
            return
        self._tidy_ns = now_ns + TIDY_EVERY_S * NS_PER_SECOND
        with self._store.transaction() as db:
            evaluated_ns = now_ns if self.evaluated_ns is None else self.evaluated_ns
            outbox_upkeep.prune(db, now_ns, evaluated_ns)

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

    def _free_stranded(self, db: sqlite3.Connection, action: str) -> None:
        """Try at once what waits only because nothing got there: something does again."""
        if stranded := self._receivers.stranded(action):
            db.execute(
                "UPDATE deliveries SET next_ns = ? WHERE state = 'pending' AND next_ns > ? AND seq"
                " IN (SELECT value FROM json_each(?))",
                (self._now_ns(), self._now_ns(), json.dumps(stranded)),
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


def routes(actions: Mapping[str, Action]) -> dict[str, Route]:
    """Return what the outbox needs to know of the configured actions, in their order."""
    return {
        name: Route(
            on=frozenset(action.on),
            max_per=(action.rate_limit.max, action.rate_limit.per_s),
            settings=action.model_dump_json(),
        )
        for name, action in actions.items()
    }
