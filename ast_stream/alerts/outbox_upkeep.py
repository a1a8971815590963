"""What keeps the outbox in order: actions that are gone, receivers that changed, old rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from ast_stream.alerts.delivery_policy import Route
from ast_stream.units import NS_PER_SECOND

KEPT_S = 30 * 86400  # rows that are over stay so long, against repeats and for people,
MAX_KEPT = 100_000  # but not more than so many
BATCH = 10_000  # rows forgotten at once: meanwhile nothing else can be written
_NOT_ACTIVE = "alert_id NOT IN (SELECT id FROM alerts WHERE state NOT IN ('inactive', 'resolved'))"


def renew_actions(db: sqlite3.Connection, routes: Mapping[str, Route], now_ns: int) -> None:
    """Forget closed actions whose settings have changed; give up rows of actions that are gone."""
    for action, settings in db.execute("SELECT action, settings FROM closed_actions").fetchall():
        if action not in routes or routes[action].settings != settings:
            db.execute("DELETE FROM closed_actions WHERE action = ?", (action,))
    pending = "SELECT DISTINCT action FROM deliveries WHERE state = 'pending'"
    for action in {row[0] for row in db.execute(pending)} - set(routes):
        db.execute(
            "UPDATE deliveries SET state = 'dead', last_error = 'no such action any more',"
            " updated_ns = ? WHERE action = ? AND state = 'pending'",
            (now_ns, action),
        )


def step_clock(db: sqlite3.Connection, step_ns: int) -> None:
    """Move what waits for its time along with a wall clock that was set by `step_ns`."""
    db.execute(
        "UPDATE deliveries SET created_ns = created_ns + ?1, updated_ns = updated_ns + ?1,"
        " next_ns = next_ns + ?1, expires_ns = expires_ns + ?1,"
        " held_until_ns = CASE held_until_ns WHEN 0 THEN 0 ELSE held_until_ns + ?1 END"
        " WHERE state = 'pending'",
        (step_ns,),
    )
    db.execute("UPDATE snoozes SET since_ns = since_ns + ?1, until_ns = until_ns + ?1", (step_ns,))


def prune(db: sqlite3.Connection, now_ns: int, evaluated_ns: int) -> None:
    """Forget what is long over, a batch at a time; never what was told of an alert that fires.

    Args:
        evaluated_ns: up to when alerts are known.
    """
    before_ns = now_ns - KEPT_S * NS_PER_SECOND
    db.execute(
        f"DELETE FROM deliveries WHERE seq IN (SELECT seq FROM deliveries WHERE state <> 'pending'"
        f" AND (updated_ns < ? OR seq <= {_newest_too_many('seq', 'deliveries')}) AND {_NOT_ACTIVE}"
        " ORDER BY seq LIMIT ?)",
        (before_ns, MAX_KEPT, BATCH),
    )
    db.execute(
        "DELETE FROM alerts WHERE rowid IN (SELECT rowid FROM alerts WHERE state IN"
        " ('inactive', 'resolved') AND (updated_ns < ? OR rowid <="
        f" {_newest_too_many('rowid', 'alerts')}) ORDER BY rowid LIMIT ?)",
        (before_ns, MAX_KEPT, BATCH),
    )
    db.execute("DELETE FROM snoozes WHERE until_ns < ?", (min(now_ns, evaluated_ns),))


def _newest_too_many(key: str, table: str) -> str:
    """Return the SQL of the newest `key` beyond a number of rows, NULL if there are no more."""
    return f"(SELECT {key} FROM {table} ORDER BY {key} DESC LIMIT 1 OFFSET ?)"
