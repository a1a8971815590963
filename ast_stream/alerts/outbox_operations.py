"""Operations on the outbox while the process runs: list, retry, drop, acknowledge, snooze.

Everything here raises `StoreError` if the database cannot be read or written.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ast_stream.alerts.delivery_schedule import FEED, expiry_ns
from ast_stream.alerts.notification import message_alert
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.outbox_rows import end_rows
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.alerts.store import Store
from ast_stream.errors import UsageError
from ast_stream.labels import stable_id
from ast_stream.messages.alert import Severity
from ast_stream.units import NS_PER_SECOND

STATES = ("pending", "done", "dead", "expired", "dropped", "superseded", "snoozed")
_HOUR_NS = 3600 * NS_PER_SECOND
RETRIED = ("dead", "expired", "dropped")
_COLUMNS = "seq, alert_id, rule, severity, transition, action, state, attempts, last_error"


@dataclass(frozen=True)
class OutboxRow:
    """One delivery as operators see it; times are steady time."""

    seq: int
    alert_id: str
    rule: str
    severity: str
    transition: str
    action: str
    state: str
    attempts: int
    last_error: str | None
    created_ns: int
    next_ns: int
    expires_ns: int


def rows(
    store: Store,
    states: Sequence[str] = (),
    action: str | None = None,
    limit: int = 100,
) -> list[OutboxRow]:
    """Return deliveries, newest first; without `states`: of all states.

    Raises:
        UsageError: a state that does not exist.
    """
    for state in states:
        if state not in STATES:
            raise UsageError(f"state: expected one of {', '.join(STATES)}, got {state!r}")
    marks = ", ".join("?" * len(states))
    query = (
        f"SELECT {_COLUMNS}, created_ns, MAX(next_ns, held_until_ns), expires_ns FROM deliveries"
        f" WHERE (? OR state IN ({marks})) AND (? IS NULL OR action = ?)"
        " ORDER BY seq DESC LIMIT ?"
    )
    with store.reading() as db:
        found = db.execute(query, (not states, *states, action, action, limit)).fetchall()
    return [OutboxRow(*row) for row in found]


def retry(store: Store, seqs: Sequence[int], now_ns: int, action: str | None = None) -> int:
    """Retry deliveries that were given up; their expiry starts again.

    Args:
        seqs: which ones; empty: all that were given up, of `action` if that is named.

    Returns:
        How many there are.
    """
    with store.transaction() as db:
        chosen = _chosen(db, seqs, action, RETRIED)
        for seq, severity in chosen:
            db.execute(
                "UPDATE deliveries SET state = 'pending', attempts = 0, next_ns = ?,"
                " held_until_ns = 0, expires_ns = ?, updated_ns = ? WHERE seq = ?",
                (now_ns, now_ns + expiry_ns(severity), now_ns, seq),
            )
            db.execute(
                "DELETE FROM closed_actions WHERE action ="
                " (SELECT action FROM deliveries WHERE seq = ?)",
                (seq,),
            )
    return len(chosen)


def drop(store: Store, seqs: Sequence[int], now_ns: int, action: str | None = None) -> int:
    """Drop these pending deliveries; none named: all pending ones (of `action`)."""
    with store.transaction() as db:
        chosen = _chosen(db, seqs, action, ("pending",))
        for seq, _ in chosen:
            end_rows(db, "dropped", now_ns, "seq = ?", seq, reason="dropped by hand")
    return len(chosen)


def acknowledge(store: Store, alert_id: str, now_ns: int, by: str) -> int:
    """Mark an alert as acknowledged, and drop deliveries of its firing that are pending.

    Args:
        alert_id: the id, or a beginning of it that only one alert has.

    Returns:
        How many deliveries were dropped.

    Raises:
        UsageError: no alert or several begin like that.
    """
    with store.transaction() as db:
        full_id = _find_alert(db, alert_id)
        db.execute("UPDATE alerts SET acknowledged_ns = ? WHERE id = ?", (now_ns, full_id))
        firing = "alert_id = ? AND transition = 'firing' AND action <> ?"
        reason = f"acknowledged by {by}"
        return len(end_rows(db, "dropped", now_ns, firing, full_id, FEED, reason=reason))


def snooze(store: Store, rule: str, until_ns: int, now_ns: int) -> int:
    """Hold back the notifications of a rule until then; what still fires then is sent.

    A time in the past ends the snooze. The feed gets everything all the same.

    Returns:
        How many waiting deliveries are held back.
    """
    with store.transaction() as db:
        if until_ns <= now_ns:
            # not forgotten at once: what is evaluated later may have happened before
            db.execute(
                "UPDATE snoozes SET until_ns = ? WHERE rule = ? AND until_ns > ?",
                (now_ns, rule, now_ns),
            )
            changed = db.execute(
                "UPDATE deliveries SET held_until_ns = ?1,"
                " expires_ns = expires_ns - (held_until_ns - ?1)"  # which it was given for this
                " WHERE rule = ?2 AND state = 'pending' AND held_until_ns > ?1",
                (now_ns, rule),
            )
            return changed.rowcount
        db.execute(
            "INSERT INTO snoozes VALUES (?, ?, ?) ON CONFLICT (rule) DO UPDATE SET"
            " since_ns = CASE WHEN until_ns > ?2 THEN since_ns ELSE ?2 END,"
            " until_ns = excluded.until_ns",
            (rule, now_ns, until_ns),
        )
        changed = db.execute(
            "UPDATE deliveries SET expires_ns = expires_ns + ? - MAX(held_until_ns, ?),"
            " held_until_ns = ? WHERE rule = ? AND state = 'pending' AND action <> ?",
            (until_ns, now_ns, until_ns, rule, FEED),
        )
    return changed.rowcount


def send(
    store: Store,
    actions: Sequence[str],
    *,
    rule: str,
    severity: Severity,
    about: Mapping[str, str],
    text: str,
    time: SteadyTime,
) -> bool:
    """Write an alert for these actions, as if the rule `rule` had fired.

    Args:
        about: what it is about, as the labels that a rule groups by; the same `rule` and `about`
            are sent once an hour. Empty: always.

    Returns:
        Whether it is sent: False if it was within this hour.
    """
    now_ns = time.now_ns()
    hour_or_now = now_ns // _HOUR_NS if about else now_ns
    parts = [f"{name}={value}" for name, value in sorted(about.items())]
    alert = message_alert(
        stable_id(rule, *parts, str(hour_or_now)),
        rule=rule,
        severity=severity,
        group=about,
        text=text,
        wall_ns=time.wall_ns(now_ns),
    )
    with store.transaction() as db:
        outbox = Outbox(store, {}, lambda: now_ns, wall_ns=time.wall_ns)
        return outbox.announce(db, alert, actions)


def snoozes(store: Store, now_ns: int) -> list[tuple[str, int]]:
    """Return the rules that are snoozed now, and until when."""
    with store.reading() as db:
        query = "SELECT rule, until_ns FROM snoozes WHERE until_ns > ? ORDER BY rule"
        return [(row[0], row[1]) for row in db.execute(query, (now_ns,))]


@dataclass(frozen=True)
class ActiveAlert:
    """An alert that is not over; times are steady time."""

    id: str
    rule: str
    state: str
    updated_ns: int
    acknowledged_ns: int | None


def active(store: Store, limit: int = 100) -> list[ActiveAlert]:
    """Return the alerts that fire, newest first."""
    with store.reading() as db:
        query = (
            "SELECT id, rule, state, updated_ns, acknowledged_ns FROM alerts"
            " WHERE state IN ('firing', 'recovering') ORDER BY updated_ns DESC LIMIT ?"
        )
        return [ActiveAlert(*row) for row in db.execute(query, (limit,))]


def known_rules(store: Store) -> list[str]:
    """Return the names of rules that have alerted."""
    with store.reading() as db:
        return [row[0] for row in db.execute("SELECT DISTINCT rule FROM alerts ORDER BY rule")]


def known_actions(store: Store) -> list[str]:
    """Return the names of actions that have deliveries."""
    with store.reading() as db:
        return [row[0] for row in db.execute("SELECT DISTINCT action FROM deliveries")]


def _chosen(
    db: sqlite3.Connection, seqs: Sequence[int], action: str | None, states: Sequence[str]
) -> list[tuple[int, str]]:
    marks = ", ".join("?" * len(states))
    query = f"SELECT seq, severity FROM deliveries WHERE state IN ({marks})"
    found = db.execute(
        f"{query} AND (? IS NULL OR action = ?) AND (? OR seq IN (SELECT value FROM json_each(?)))",
        (*states, action, action, not seqs, json.dumps(list(seqs))),
    ).fetchall()
    left = sorted(set(seqs) - {row[0] for row in found})
    if left:
        raise UsageError(
            f"expected deliveries that are {' or '.join(states)}, got "
            f"{', '.join(str(seq) for seq in left)}"
        )
    return found


def _find_alert(db: sqlite3.Connection, start: str) -> str:
    query = "SELECT id FROM alerts WHERE substr(id, 1, ?) = ? ORDER BY id LIMIT 5"
    found = [str(row[0]) for row in db.execute(query, (len(start), start))]
    if start in found:
        return start
    if len(found) != 1:
        got = f"{start!r}, which {len(found)} begin with" if found else f"unknown {start!r}"
        raise UsageError(f"expected the id of one alert, got {got}")
    return found[0]
