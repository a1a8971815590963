"""How deliveries get into the outbox: rows for each action, and alarms about what was lost.

Everything here runs inside a transaction of the caller, together with what caused it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from ast_stream.alerts.delivery_policy import (
    FEED,
    MAX_ERROR_CHARACTERS,
    SEVERITY_RANK,
    Route,
    expiry_ns,
)
from ast_stream.alerts.model import Alert, Transition, stable_id
from ast_stream.alerts.notification import Notification, notification_of, title_of
from ast_stream.alerts.store import delivery_checksum
from ast_stream.units import NS_PER_SECOND, format_time

SELF_RULE = "ast_stream_delivery_failed"
MAX_PENDING = 10_000  # for one action; more could never be delivered before they expire
_HOUR_NS = 3600 * NS_PER_SECOND
_NOWHERE = Route(frozenset())


class OutboxWriter:
    """Writes rows to deliver.

    Args:
        routes: every action by name, in the order of the configuration.
        under_way: numbers of the rows that are being delivered now.
        now_ns: wall clock, nanoseconds since 1970.
    """

    def __init__(
        self, routes: Mapping[str, Route], under_way: Collection[int], now_ns: Callable[[], int]
    ) -> None:
        self._routes = routes
        self._under_way = under_way
        self._now_ns = now_ns

    def enqueue(self, db: sqlite3.Connection, transitions: Iterable[Transition]) -> None:
        """Write what is to be told of transitions."""
        told = set()
        for transition in transitions:
            alert = transition.alert
            _note_alert(db, alert, alert.state, self._now_ns())
            notification = notification_of(transition)
            if notification is None:
                continue
            if notification.kind == "resolved":
                self._drop_held(db, alert.id, notification.at_ns)
            for action in (FEED, *transition.actions):
                if notification.kind in self._routes.get(action, _NOWHERE).on:
                    self._add(db, alert.id, action, notification)
                    told.add(action)
        for action in sorted(told - {FEED}):
            self._shed(db, action)

    def raise_alarm(self, db: sqlite3.Connection, action: str, lost: str, reason: str) -> None:
        """Tell of an undelivered alert by the next action; once an hour for each that fails.

        The next one in turn, so that one after the other is tried when several fail.

        Args:
            lost: title of what was not delivered.
        """
        if action == FEED:
            return
        now_ns = self._now_ns()
        alert = _delivery_alert(action, lost, reason, now_ns)
        names = [name for name in self._routes if name != FEED]
        place = names.index(action) if action in names else -1
        others = names[place + 1 :] + names[: max(0, place)]
        self.announce(db, alert, others[:1])

    def announce(self, db: sqlite3.Connection, alert: Alert, actions: Iterable[str]) -> bool:
        """Write an alert that no rule made and nothing comes after; False if it is there already.

        Args:
            actions: who gets it, besides the feed.
        """
        now_ns = self._now_ns()
        known = db.execute("SELECT 1 FROM deliveries WHERE alert_id = ?", (alert.id,)).fetchone()
        if known is not None:
            return False
        _note_alert(db, alert, "resolved", now_ns)
        notification = Notification(f"{alert.id}.firing", "firing", now_ns, alert.body())
        for name in (FEED, *actions):
            self._add(db, alert.id, name, notification)
        self._drop_held(db, alert.id, now_ns)  # nor will it still fire after a snooze
        return True

    def end_unknown(self, db: sqlite3.Connection, known: Collection[str]) -> None:
        """Resolve the alerts that fire, as far as was told, and that the engine knows nothing of.

        Args:
            known: ids of the alerts that are firing or recovering.
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
                with suppress(ValueError, KeyError):  # damaged: what began is not known
                    told = _lost(Notification.decode(payload), now_ns)
                    if told.kind in self._routes.get(action, _NOWHERE).on:
                        self._add(db, alert_id, action, told)

    def _add(
        self, db: sqlite3.Connection, alert_id: str, action: str, notification: Notification
    ) -> None:
        now_ns = self._now_ns()
        # by when it happened: what is evaluated late happened while it was snoozed all the same
        at_ns = min(notification.at_ns, now_ns)
        snoozed = None if action == FEED else _snooze_at(db, notification.rule, at_ns)
        until_ns = 0 if snoozed is None else snoozed[1]
        closed = db.execute("SELECT reason FROM closed_actions WHERE action = ?", (action,))
        reason = closed.fetchone()
        state = "pending" if reason is None else "dead"
        if notification.kind == "resolved":
            if self._supersede(db, alert_id, action):
                notification = replace(notification, is_combined=True)
            if snoozed is not None and not self._was_told(db, alert_id, action, snoozed[0]):
                state = "snoozed"  # it began and ended while nobody wanted to know
        payload = notification.encode()
        named = (alert_id, notification.kind, action, notification.rule, notification.severity)
        db.execute(
            "INSERT OR IGNORE INTO deliveries (alert_id, transition, action, rule, severity,"
            " payload, checksum, state, last_error, created_ns, updated_ns, next_ns,"
            " held_until_ns, expires_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *named,
                payload,
                delivery_checksum(payload, *named),
                state,
                None if reason is None else f"{action} is closed: {reason[0]}",
                now_ns,
                now_ns,
                now_ns,
                until_ns,
                max(now_ns, until_ns) + expiry_ns(notification.severity),
            ),
        )
        if reason is not None:
            self.raise_alarm(db, action, notification.title, reason[0])

    def _shed(self, db: sqlite3.Connection, action: str) -> None:
        """Drop the least severe and oldest of too many rows, and tell of it by another action."""
        query = "SELECT count(*) FROM deliveries WHERE action = ? AND state = 'pending'"
        n_too_many = db.execute(query, (action,)).fetchone()[0] - MAX_PENDING
        if n_too_many <= 0:
            return
        reason = f"more than {MAX_PENDING} deliveries wait"
        shed = db.execute(
            f"UPDATE deliveries SET state = 'dropped', last_error = ?, updated_ns = ? WHERE seq IN"
            " (SELECT seq FROM deliveries WHERE action = ? AND state = 'pending' AND seq NOT IN"
            f" (SELECT value FROM json_each(?)) ORDER BY {SEVERITY_RANK} DESC, seq LIMIT ?)"
            " RETURNING severity, rule, transition",
            (reason, self._now_ns(), action, json.dumps(list(self._under_way)), n_too_many),
        ).fetchall()
        if shed:
            self.raise_alarm(db, action, title_of(*shed[0]), reason)

    def _drop_held(self, db: sqlite3.Connection, alert_id: str, ended_ns: int) -> None:
        """Let nobody know that an alert began which ended before the snooze that holds this back.

        Of whatever action, also of those that are not told of ends.
        """
        db.execute(
            "UPDATE deliveries SET state = 'snoozed', updated_ns = ? WHERE alert_id = ? AND"
            " transition = 'firing' AND state = 'pending' AND held_until_ns > ? AND seq NOT IN"
            " (SELECT value FROM json_each(?))",
            (self._now_ns(), alert_id, ended_ns, json.dumps(list(self._under_way))),
        )

    def _was_told(self, db: sqlite3.Connection, alert_id: str, action: str, since_ns: int) -> bool:
        """Tell whether the receiver of an action waits to hear that an alert is over.

        Args:
            since_ns: when the rule was snoozed.
        """
        row = db.execute(
            "SELECT seq, state FROM deliveries WHERE alert_id = ? AND transition = 'firing' AND"
            " action = ?",
            (alert_id, action),
        ).fetchone()
        if row is not None:
            return row[1] == "done" or row[0] in self._under_way
        row = db.execute(  # an action for ends alone: by when the alert was published
            "SELECT created_ns FROM deliveries WHERE alert_id = ? AND transition = 'firing' AND"
            " action = ?",
            (alert_id, FEED),
        ).fetchone()
        return row is not None and row[0] < since_ns

    def _supersede(self, db: sqlite3.Connection, alert_id: str, action: str) -> bool:
        """Let a resolve stand for a firing that was not delivered and is not under way.

        Not on the feed: programs want both.
        """
        if action == FEED:
            return False
        row = db.execute(
            "SELECT seq FROM deliveries WHERE alert_id = ? AND transition = 'firing' AND"
            " action = ? AND state = 'pending'",
            (alert_id, action),
        ).fetchone()
        if row is None or row[0] in self._under_way:
            return False
        db.execute(
            "UPDATE deliveries SET state = 'superseded', updated_ns = ? WHERE seq = ?",
            (self._now_ns(), row[0]),
        )
        return True


def _note_alert(db: sqlite3.Connection, alert: Alert, state: str, now_ns: int) -> None:
    db.execute(
        "INSERT INTO alerts (id, rule, state, updated_ns) VALUES (?, ?, ?, ?) ON CONFLICT"
        " (id) DO UPDATE SET state = excluded.state, updated_ns = excluded.updated_ns",
        (alert.id, alert.rule, state, now_ns),
    )


def _snooze_at(db: sqlite3.Connection, rule: str, at_ns: int) -> tuple[int, int] | None:
    """Return from when until when a rule is snoozed, None if that is over at `at_ns`."""
    row = db.execute(
        "SELECT since_ns, until_ns FROM snoozes WHERE rule = ? AND until_ns > ?", (rule, at_ns)
    ).fetchone()
    return None if row is None else (row[0], row[1])


def _lost(fired: Notification, now_ns: int) -> Notification:
    """Return that an alert is over of which only its beginning is known any more."""
    ended = {"state": "resolved", "resolved": format_time(now_ns), "reason": "restart"}
    id = f"{fired.alert['id']}.resolved"
    return Notification(id, "resolved", now_ns, dict(fired.alert) | ended)


def _delivery_alert(action: str, lost: str, reason: str, now_ns: int) -> Alert:
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
            "summary": f"{lost}: not delivered by {action}: "
            f"{reason[:MAX_ERROR_CHARACTERS]}; see ast-stream outbox list"
        },
        started_ns=now_ns,
        fired_ns=now_ns,
        resolved_ns=None,
        events=(),
    )
