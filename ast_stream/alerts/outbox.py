"""The outbox: which notification goes out by which action, its attempts and its outcome.

Rows are written in the transaction of the engine state that caused them, and leave `pending` only
when the receiver has the message or its end is decided: delivery is at least once, and the id of a
notification is its idempotency key. What is in flight is known to the process alone: after a kill
it is sent again, and a full disk does not keep anything from going out.
"""

from __future__ import annotations

import json
import logging
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ast_stream.alerts.actions.base import Delivered, Failed, Outcome, Undeliverable
from ast_stream.alerts.delivery_schedule import FEED, Receivers, backoff_s, expiry_ns
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.notification import (
    Notification,
    message_alert,
    notification_of,
    title_of,
)
from ast_stream.alerts.outbox_rows import (
    MAX_ERROR_CHARACTERS,
    NOT_AMONG,
    SEVERITY_RANK,
    DueRows,
    end_rows,
    failing_action,
    note_alert,
    prune,
    snooze_at,
)
from ast_stream.alerts.store import Store, delivery_checksum
from ast_stream.errors import WireError
from ast_stream.labels import stable_id
from ast_stream.messages.alert import Alert
from ast_stream.messages.status import FailingAction
from ast_stream.runtime.logging import Outage
from ast_stream.settings.alerts import ActionSection
from ast_stream.settings.retention import MIB
from ast_stream.settings.storage import DAY_S
from ast_stream.units import NS_PER_SECOND, seconds_to_ns

SELF_RULE = "ast_stream_delivery_failed"
MAX_PENDING = 10_000  # for one action; more could never be delivered before they expire
MIN_WAIT_S = 0.1  # for a row that is due and that something else keeps back
PRUNE_EVERY_S = 600
_HOUR_NS = 3600 * NS_PER_SECOND

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """A row that is in flight."""

    seq: int
    action: str
    attempts: int
    notification: Notification


class Outbox:
    """Rows to deliver, by action.

    Args:
        actions: settings of every action by name, in the order of the configuration.
        now_ns: clock that nobody sets.
        wall_ns: returns a time of that clock as wall time.
        jitter: returns a number in [0, 1).
        kept_s: for how long rows that are over are kept.
        max_bytes: of the database, beyond which the oldest of them go before that.

    Attributes:
        attempts: deliveries that were tried, by action and outcome; reset with the process.
        evaluated_ns: up to when the engine's alerts are known and saved: what a snooze holds until
            later waits, for it may have ended meanwhile. None: alerts are always known.

    Raises:
        StoreError: by any method, the database cannot be read or written; nothing has changed.
    """

    def __init__(
        self,
        store: Store,
        actions: Mapping[str, ActionSection],
        now_ns: Callable[[], int],
        jitter: Callable[[], float] = random.random,
        *,
        wall_ns: Callable[[int], int] = lambda time_ns: time_ns,
        kept_s: float = 30 * DAY_S,
        max_bytes: int = 256 * MIB,
    ) -> None:
        self._store = store
        self._actions = dict(actions) | {FEED: ActionSection()}
        self._now_ns = now_ns
        self._wall_ns = wall_ns
        self._jitter = jitter
        self._kept_s = kept_s
        self._max_bytes = max_bytes
        self._in_flight: dict[int, str] = {}  # numbers of rows, and their actions
        self.attempts: Counter[tuple[str, str]] = Counter()
        self._prune_ns = 0
        self.evaluated_ns: int | None = None
        self._receivers = Receivers(self._actions, now_ns)

    @property
    def outage(self) -> Outage:
        """Where a `StoreError` is reported by whoever continues after it."""
        return self._store.outage

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of all actions, `feed` included."""
        return tuple(self._actions)

    # -- state, for status and metrics

    def pending(self) -> dict[str, int]:
        """Return how many deliveries wait, by action."""
        counts = dict.fromkeys(self.actions, 0)
        with self._store.reading() as db:
            query = "SELECT action, count(*) FROM deliveries WHERE state = 'pending' GROUP BY 1"
            return counts | dict(db.execute(query).fetchall())

    def failing(self) -> list[FailingAction]:
        """Return the actions whose deliveries do not get through now."""
        with self._store.reading() as db:
            found = (failing_action(db, action) for action in self.actions if action != FEED)
            return [failing for failing in found if failing is not None]

    # -- from the engine's transitions to rows; inside a transaction of the caller

    def enqueue(self, db: sqlite3.Connection, transitions: Iterable[Transition]) -> None:
        """Write the deliveries of transitions, in the transaction of the engine's state."""
        written = set()
        for transition in transitions:
            alert = transition.alert
            note_alert(db, alert, alert.state, self._now_ns())
            notification = notification_of(transition)
            if notification is None:
                continue
            if notification.kind == "resolved":
                self._drop_held(db, alert.id, transition.at_ns)
            for action in (FEED, *transition.actions):
                if self._delivers(action, notification):
                    self._add(db, action, notification, transition.at_ns)
                    written.add(action)
        for action in sorted(written - {FEED}):
            self._shed(db, action)

    def announce(self, db: sqlite3.Connection, alert: Alert, actions: Iterable[str]) -> bool:
        """Write an alert that no rule made and that is never resolved; False if it exists already.

        Args:
            actions: by which it is delivered, besides the feed.
        """
        now_ns = self._now_ns()
        known = db.execute("SELECT 1 FROM deliveries WHERE alert_id = ?", (alert.id,)).fetchone()
        if known is not None:
            return False
        note_alert(db, alert, "resolved", now_ns)
        notification = Notification(
            id=f"{alert.id}.firing", kind="firing", at_ns=self._wall_ns(now_ns), alert=alert
        )
        for name in (FEED, *actions):
            self._add(db, name, notification, now_ns)
        self._drop_held(db, alert.id, now_ns)  # nor will it still fire after a snooze
        return True

    def end_unknown(self, db: sqlite3.Connection, known: Collection[str]) -> None:
        """Resolve the alerts that were announced and that the engine does not know.

        Args:
            known: ids of the alerts that are pending, firing or recovering.
        """
        query = "SELECT id FROM alerts WHERE state IN ('pending', 'firing', 'recovering')"
        for alert_id in {row[0] for row in db.execute(query)} - set(known):
            now_ns = self._now_ns()
            db.execute(
                "UPDATE alerts SET state = 'resolved', updated_ns = ? WHERE id = ?",
                (now_ns, alert_id),
            )
            fired = db.execute(
                "SELECT action, payload FROM deliveries WHERE alert_id = ? AND transition ="
                " 'firing'",
                (alert_id,),
            ).fetchall()
            self._drop_held(db, alert_id, now_ns)
            for action, payload in fired:
                with suppress(WireError):  # damaged: what began is not known
                    ended = _ended_by_restart(Notification.decode(payload), self._wall_ns(now_ns))
                    if self._delivers(action, ended):
                        self._add(db, action, ended, now_ns)

    # -- from rows to outcomes; each a transaction of its own

    def recover(self) -> None:
        """Reopen closed actions whose settings have changed; give up rows of removed actions."""
        with self._store.transaction() as db:
            closed = db.execute("SELECT action, settings FROM closed_actions").fetchall()
            for action, settings in closed:
                if action not in self._actions or self._identity(action) != settings:
                    db.execute("DELETE FROM closed_actions WHERE action = ?", (action,))
            pending = "SELECT DISTINCT action FROM deliveries WHERE state = 'pending'"
            for action in {row[0] for row in db.execute(pending)} - set(self._actions):
                reason = "no such action any more"
                end_rows(db, "dead", self._now_ns(), "action = ?", action, reason=reason)

    def next_delivery(self, action: str, *, urgent_only: bool = False) -> Delivery | float | None:
        """Return the next delivery, the seconds until there may be one, or None: no row waits.

        The most severe goes first, and rows that were never tried before those that have failed.
        Only the rows of one alert wait for each other: one that fails delays nothing but its own
        resolution.
        """
        with self._store.reading() as db:
            rows = DueRows(
                db, action, self._now_ns(), self._in_flight, urgent_only, self.evaluated_ns
            )
            wait_s = self._receivers.pause_s(action) or rows.rate_limit_wait_s(
                self._actions[action].rate_limit, self._receivers.failed_ns(action)
            )
            row = rows.first() if wait_s == 0 else None
            if row is None:
                next_s = rows.wait_s()
                return None if next_s is None else max(wait_s, next_s, MIN_WAIT_S)
            seq, attempts, payload = row
            self._in_flight[seq] = action
        try:
            return Delivery(seq, action, attempts, Notification.decode(payload))
        except WireError:
            self._refuse_unknown(action, seq)
        return 0.0

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Record the outcome of a delivery.

        If that raises `StoreError`, call this again, and do not deliver again.
        """
        action, title = delivery.action, delivery.notification.title
        self.attempts[action, type(outcome).__name__.lower()] += 1
        with self._store.transaction() as db:
            match outcome:
                case Delivered():
                    self._end(db, delivery.seq, "done", None)
                    self._retry_unreachable(db, action)
                case Failed():
                    self._postpone(db, delivery, outcome)
                case Undeliverable():
                    self._end(db, delivery.seq, "dead", outcome.reason)
                    if outcome.is_closed:
                        self._close(db, action, outcome.reason)
                    self._report_undelivered(db, action, title, outcome.reason)
        with self._store.reading():  # its lock: other threads look at this under it
            self._receivers.note(action, delivery.seq, outcome)
            self._in_flight.pop(delivery.seq, None)

    def expire(self, action: str) -> None:
        """Give up the rows of an action that have expired, and report them by another action.

        If that cannot be written they are not delivered all the same.
        """
        self._prune()
        now_ns = self._now_ns()
        with self._store.reading() as db:
            found = db.execute(
                "SELECT seq, severity, rule, transition, last_error FROM deliveries WHERE"
                " action = ? AND state = 'pending' AND expires_ns <= ?",
                (action, now_ns),
            ).fetchall()
        rows = [row for row in found if row[0] not in self._in_flight]
        if not rows:
            return
        with self._store.transaction() as db:
            for seq, severity, rule, transition, last_error in rows:
                reason = last_error or "it was not its turn in time"
                title = title_of(severity, rule, transition)
                logger.error("%s was not delivered by %s in time: %s", title, action, reason)
                end_rows(db, "expired", now_ns, "seq = ?", seq, reason=reason)
                self._report_undelivered(db, action, title, reason)

    def _delivers(self, action: str, notification: Notification) -> bool:
        settings = self._actions.get(action)  # a rule may name one that is not configured
        return settings is not None and notification.kind in settings.on

    def _identity(self, action: str) -> str:
        """Return what changes when an action's settings do: a closed one is then reopened."""
        return self._actions[action].model_dump_json()

    def _refuse_unknown(self, action: str, seq: int) -> None:
        """Give up a row that another version of this program wrote in a format unknown to us."""
        reason = "unknown to this version of ast-stream"
        try:
            with self._store.transaction() as db:
                for row in end_rows(db, "dead", self._now_ns(), "seq = ?", seq, reason=reason):
                    title = title_of(*row)
                    logger.error("%s cannot be delivered by %s: %s", title, action, reason)
                    self._report_undelivered(db, action, title, reason)
        finally:
            with self._store.reading():
                self._in_flight.pop(seq)

    def _prune(self) -> None:
        """Delete old rows from time to time, to the last trace: the process may run for years."""
        now_ns = self._now_ns()
        if now_ns < self._prune_ns:
            return
        self._prune_ns = now_ns + PRUNE_EVERY_S * NS_PER_SECOND
        with self._store.transaction() as db:
            evaluated_ns = now_ns if self.evaluated_ns is None else self.evaluated_ns
            prune(db, now_ns, evaluated_ns, self._kept_s, self._max_bytes)
        self._store.empty_log()
        self._store.delete_aside(self._kept_s)

    def _postpone(self, db: sqlite3.Connection, delivery: Delivery, failed: Failed) -> None:
        wait_s = max(failed.after_s, backoff_s(delivery.attempts, self._jitter))
        now_ns = self._now_ns()
        db.execute(
            "UPDATE deliveries SET attempts = attempts + 1, next_ns = ?, last_error = ?,"
            " updated_ns = ? WHERE seq = ? AND state = 'pending'",
            (
                now_ns + seconds_to_ns(wait_s),
                failed.reason[:MAX_ERROR_CHARACTERS],
                now_ns,
                delivery.seq,
            ),
        )

    def _retry_unreachable(self, db: sqlite3.Connection, action: str) -> None:
        """Retry at once what failed only because the receiver was down: it is back."""
        if unreachable := self._receivers.unreachable(action):
            db.execute(
                "UPDATE deliveries SET next_ns = ? WHERE state = 'pending' AND next_ns > ? AND seq"
                " IN (SELECT value FROM json_each(?))",
                (self._now_ns(), self._now_ns(), json.dumps(unreachable)),
            )

    def _end(self, db: sqlite3.Connection, seq: int, state: str, error: str | None) -> None:
        # whatever state it has by now (dropped by hand): what really happened counts
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
            (action, self._identity(action), now_ns, reason),
        )
        end_rows(db, "dead", now_ns, "action = ?", action, reason=reason)

    def _report_undelivered(
        self, db: sqlite3.Connection, action: str, title: str, reason: str
    ) -> None:
        """Report an undelivered alert through another action, once an hour for each that fails.

        It is the next action in turn, so that all are tried one after another if several fail.

        Args:
            title: of the notification that was not delivered.
        """
        if action == FEED:
            return
        now_ns = self._now_ns()
        alert = _undelivered_alert(action, title, reason, now_ns // _HOUR_NS, self._wall_ns(now_ns))
        names = [name for name in self._actions if name != FEED]
        place = names.index(action) if action in names else -1
        others = names[place + 1 :] + names[: max(0, place)]
        self.announce(db, alert, others[:1])

    def _add(
        self, db: sqlite3.Connection, action: str, notification: Notification, at_ns: int
    ) -> None:
        now_ns, alert = self._now_ns(), notification.alert
        # by when it happened: what is evaluated late happened during the snooze all the same
        snooze = None if action == FEED else snooze_at(db, alert.rule, min(at_ns, now_ns))
        until_ns = 0 if snooze is None else snooze[1]
        closed = db.execute("SELECT reason FROM closed_actions WHERE action = ?", (action,))
        reason = closed.fetchone()
        state = "pending" if reason is None else "dead"
        if notification.kind == "resolved":
            if self._supersede(db, alert.id, action):
                notification = notification.model_copy(update={"combined": True})
            if snooze is not None and not self._is_awaited(db, alert.id, action, snooze[0]):
                state = "snoozed"  # it began and ended during the snooze
        payload = notification.encode()
        words = (alert.id, notification.kind, action, alert.rule, alert.severity)
        db.execute(
            "INSERT OR IGNORE INTO deliveries (alert_id, transition, action, rule, severity,"
            " payload, checksum, state, last_error, created_ns, updated_ns, next_ns,"
            " held_until_ns, expires_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *words,
                payload,
                delivery_checksum(payload, *words),
                state,
                None if reason is None else f"{action} is closed: {reason[0]}",
                now_ns,
                now_ns,
                now_ns,
                until_ns,
                max(now_ns, until_ns) + expiry_ns(alert.severity),
            ),
        )
        if reason is not None:
            self._report_undelivered(db, action, notification.title, reason[0])

    def _shed(self, db: sqlite3.Connection, action: str) -> None:
        """Drop the least severe and oldest of too many rows, and report it by another action."""
        query = "SELECT count(*) FROM deliveries WHERE action = ? AND state = 'pending'"
        n_too_many = db.execute(query, (action,)).fetchone()[0] - MAX_PENDING
        if n_too_many <= 0:
            return
        reason = f"more than {MAX_PENDING} deliveries wait"
        chosen = (
            "seq IN (SELECT seq FROM deliveries WHERE action = ? AND state = 'pending' AND"
            f" {NOT_AMONG} ORDER BY {SEVERITY_RANK} DESC, seq LIMIT ?)"
        )
        bound = (action, json.dumps(list(self._in_flight)), n_too_many)
        if dropped := end_rows(db, "dropped", self._now_ns(), chosen, *bound, reason=reason):
            self._report_undelivered(db, action, title_of(*dropped[0]), reason)

    def _drop_held(self, db: sqlite3.Connection, alert_id: str, ended_ns: int) -> None:
        """Drop the firing of an alert that ended before the snooze which holds it back.

        For all actions, also for those that do not deliver resolutions.
        """
        held = f"alert_id = ? AND transition = 'firing' AND held_until_ns > ? AND {NOT_AMONG}"
        bound = (alert_id, ended_ns, json.dumps(list(self._in_flight)))
        end_rows(db, "snoozed", self._now_ns(), held, *bound)

    def _is_awaited(
        self, db: sqlite3.Connection, alert_id: str, action: str, snoozed_ns: int
    ) -> bool:
        """Return whether the receiver of an action has an alert's beginning and expects its end.

        Args:
            snoozed_ns: when the rule was snoozed.
        """
        row = db.execute(
            "SELECT seq, state FROM deliveries WHERE alert_id = ? AND transition = 'firing' AND"
            " action = ?",
            (alert_id, action),
        ).fetchone()
        if row is not None:
            return row[1] == "done" or row[0] in self._in_flight
        row = db.execute(  # an action for resolutions only: by when the alert was published
            "SELECT created_ns FROM deliveries WHERE alert_id = ? AND transition = 'firing' AND"
            " action = ?",
            (alert_id, FEED),
        ).fetchone()
        return row is not None and row[0] < snoozed_ns

    def _supersede(self, db: sqlite3.Connection, alert_id: str, action: str) -> bool:
        """Let a resolution stand for a firing that was not delivered and is not in flight.

        Not on the feed: programs want both.
        """
        waiting = f"alert_id = ? AND transition = 'firing' AND action = ? AND {NOT_AMONG}"
        bound = (alert_id, action, json.dumps(list(self._in_flight)))
        return action != FEED and bool(end_rows(db, "superseded", self._now_ns(), waiting, *bound))


def _ended_by_restart(fired: Notification, wall_ns: int) -> Notification:
    """Return the resolution of an alert of which only the beginning is still known."""
    ended = {"state": "resolved", "resolved_ns": wall_ns, "reason": "restart"}
    alert = fired.alert.model_copy(update=ended)
    return Notification(id=f"{alert.id}.resolved", kind="resolved", at_ns=wall_ns, alert=alert)


def _undelivered_alert(action: str, title: str, reason: str, hour: int, wall_ns: int) -> Alert:
    """Return the alert that reports an undelivered one."""
    return message_alert(
        stable_id(SELF_RULE, action, str(hour)),
        rule=SELF_RULE,
        severity="high",
        group={"action": action},
        text=f"{title}: not delivered by {action}: {reason[:MAX_ERROR_CHARACTERS]}; "
        "see ast-stream outbox list",
        wall_ns=wall_ns,
    )
