"""The database of the alerts process: engine state, feed position and deliveries, in SQLite.

A commit is on the disk when it returns (WAL with synchronous=FULL): alerts are rare, and losing
one to a power cut is what this file is there to prevent. One process works with it; commands may
look and change rows beside it.

The process that owns it checks all of it at its start. A file that is damaged is kept under
another name, and a new one begins with the rows of it that are certain: those that satisfy the
schema's constraints and, where what they hold was written once, its checksum.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from ast_stream.alerts.notification import Notification
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.errors import AstStreamError, StartupError, WireError
from ast_stream.runtime.database import (
    SIDE_FILES,
    Damage,
    check_database,
    committed,
    expect_database,
    make_tables,
    open_database,
    salvage,
    says_damaged,
    set_aside_database,
    set_aside_unless_file,
    table_columns,
)
from ast_stream.runtime.files import expect_in_place
from ast_stream.runtime.logging import Outage

SCHEMA_VERSION = 2
ENGINE_ASIDE = ".engine-damaged"  # a state of the rules that could not be used
_MAX_TIME_NS = 8 * 10**18  # the year 2223: what is beyond was not written by this program
_MAX_SEQ = 10**15  # more rows are never written: a number beyond leaves none for the next
_MAX_WAIT_NS = 2 * 86400 * 10**9  # between two attempts; a receiver may ask for a day
_WHAT = "the alert database"
_WHAT_TO_DO = "the alerts process sets it aside at its next start and begins anew"
Positions = tuple[str, int] | Mapping[str, tuple[str, int]]
"""Boot and `seq` on a feed; of several feeds, by their names."""

_ENGINE, _POSITION, _SINCE = "engine", "position", "since"
_TIME = f"INTEGER NOT NULL CHECK ({{0}} BETWEEN -{_MAX_TIME_NS} AND {_MAX_TIME_NS})"
_SCHEMA = f"""
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE alerts (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('inactive', 'pending', 'firing', 'recovering', 'resolved')),
    updated_ns {_TIME.format("updated_ns")}, acknowledged_ns INTEGER
) STRICT;
CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT CHECK (seq BETWEEN 1 AND {_MAX_SEQ}),
    alert_id TEXT NOT NULL, transition TEXT NOT NULL CHECK (transition IN ('firing', 'resolved')),
    action TEXT NOT NULL, rule TEXT NOT NULL,
    severity TEXT NOT NULL
        CHECK (severity IN ('informational', 'low', 'medium', 'high', 'critical')),
    payload BLOB NOT NULL, checksum INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN
        ('pending', 'done', 'dead', 'expired', 'dropped', 'superseded', 'snoozed')),
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts BETWEEN 0 AND 1000000), last_error TEXT,
    created_ns {_TIME.format("created_ns")}, updated_ns {_TIME.format("updated_ns")},
    next_ns {_TIME.format("next_ns")}, held_until_ns {_TIME.format("held_until_ns")},
    expires_ns {_TIME.format("expires_ns")},
    UNIQUE (alert_id, transition, action)
) STRICT;
CREATE INDEX deliveries_pending ON deliveries (action, seq) WHERE state = 'pending';
CREATE INDEX deliveries_done ON deliveries (action, updated_ns) WHERE state = 'done';
CREATE INDEX deliveries_lost ON deliveries (action, updated_ns) WHERE state IN ('dead', 'expired');
CREATE TABLE snoozes (
    rule TEXT PRIMARY KEY, since_ns {_TIME.format("since_ns")}, until_ns {_TIME.format("until_ns")}
) STRICT;
CREATE TABLE closed_actions (
    action TEXT PRIMARY KEY, settings TEXT NOT NULL, since_ns {_TIME.format("since_ns")},
    reason TEXT NOT NULL
) STRICT;
"""
logger = logging.getLogger(__name__)


class StoreError(AstStreamError):
    """The database cannot be written or read now: a full disk, a lock held too long.

    Attributes:
        is_damaged: nor will it be later, for what it holds is damaged.
    """

    def __init__(self, text: str, *, is_damaged: bool = False) -> None:
        super().__init__(text)
        self.is_damaged = is_damaged


class Store:
    """One connection to the database, shared by the threads of this process.

    Args:
        must_exist: for commands beside the process that has made and checked it: refuse a file
            that is not there instead of creating it, and leave a damaged one where it is.
        wall_s: the time of day, as the file system has it.

    Attributes:
        outage: where a `StoreError` is reported by whoever continues after it.

    Raises:
        StartupError: it cannot be opened or its folder cannot be written.
    """

    def __init__(
        self, path: Path, *, must_exist: bool = False, wall_s: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self._wall_s = wall_s
        self._lock = threading.RLock()
        self.outage = Outage(logger, f"the alert database {path} is written again")
        if must_exist:
            self._db = self._open_existing()
            return
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._make_room()
            try:
                self._db = self._open(is_checked=True)
            except Damage as damage:
                self._db = self._begin_anew(str(damage))
            self._file = path.stat()
        except (OSError, ValueError) as error:  # a ValueError: a path with NUL in it
            raise StartupError(f"cannot open the alert database {path}: {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside a transaction that is durable on leaving; all or nothing.

        Raises:
            StoreError: it could not be committed; nothing has changed.
        """
        with self._lock:
            try:
                with committed(self._db):
                    yield self._db
                self.outage.worked()
            except sqlite3.Error as error:
                raise self._store_error(error) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection to read from.

        Raises:
            StoreError: it cannot be read.
        """
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._store_error(error) from error

    def expect_in_place(self) -> None:
        """Check that the file that is written to is the one that others find; for its owner.

        Raises:
            RemovedError: it was removed or replaced.
        """
        expect_in_place(self.path, self._file, f"{_WHAT} {self.path}")

    def empty_log(self) -> None:
        """Checkpoint and empty the write-ahead log, so that deleted rows are gone from the disk.

        Somebody who reads for long may keep a part of it; the next time takes that.

        Raises:
            StoreError: it cannot be moved to the file.
        """
        with self.reading() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def delete_aside(self, max_age_s: float) -> None:
        """Delete what was set aside longer ago: it holds alerts like the database."""
        before_s = self._wall_s() - max_age_s
        for path in self.path.parent.glob(f"{escape(self.path.name)}*"):
            is_aside = path.name.endswith(ENGINE_ASIDE) or ".damaged-" in path.name
            with suppress(OSError):  # a folder is not ours, and stays
                if is_aside and path.lstat().st_ctime < before_s:
                    path.unlink()

    def engine_state(self) -> dict[str, Any] | None:
        """Return what `save_progress` stored, None in a new database."""
        state: dict[str, Any] | None = self._read(_ENGINE)
        return state

    def steady_time(self) -> SteadyTime:
        """Return the time by which all times in here are; that of a new database begins now."""
        state = self.engine_state() or {}
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            return SteadyTime(state.get("time"))
        return SteadyTime()

    def position(self) -> Positions | None:
        """Return where on the feed, or on each of several feeds, the stored engine stands."""
        stored = self._read(_POSITION)
        if isinstance(stored, dict):
            return {name: (boot, seq) for name, (boot, seq) in stored.items()}
        return None if stored is None else (stored[0], stored[1])

    def since_ns(self, now_ns: int) -> int:
        """Return when this database was first used: `now_ns` if that is now."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO state VALUES (?, ?, ?)", _state_row(_SINCE, now_ns))
        return int(self._read(_SINCE))

    def forget_engine(self, why: str) -> None:
        """Keep an engine state that cannot be used in a file beside this one, and continue without.

        Args:
            why: it cannot be used, for the log.
        """
        kept = self.path.with_name(self.path.name + ENGINE_ASIDE)
        with self.transaction() as db:
            row = db.execute("SELECT value FROM state WHERE name = ?", (_ENGINE,)).fetchone()
            if row is not None:
                with suppress(OSError):
                    kept.write_text(row[0])
            db.execute("DELETE FROM state WHERE name = ?", (_ENGINE,))
        logger.error(
            "the state of the rules in %s cannot be used (%s): it is kept as %s, and alerts that "
            "went on have ended",
            self.path,
            why,
            kept.name,
        )

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    def _read(self, name: str) -> Any:
        with self.reading() as db:
            row = db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def _store_error(self, error: sqlite3.Error) -> StoreError:
        what = f"the alert database {self.path}: {error}"
        is_damaged = says_damaged(error)
        return StoreError(f"{what}; {_WHAT_TO_DO}" if is_damaged else what, is_damaged=is_damaged)

    def _open_existing(self) -> sqlite3.Connection:
        absent = "the alerts process has not run yet"
        expect_database(self.path, _WHAT, absent, f"; {_WHAT_TO_DO}")
        try:
            return self._open(is_checked=False)
        except Damage as damage:
            raise StartupError(
                f"the alert database {self.path} {damage}; {_WHAT_TO_DO}"
            ) from damage

    def _open(self, *, is_checked: bool) -> sqlite3.Connection:
        """Return a connection to the file, which is made if it is not there.

        Raises:
            Damage: what is in it cannot be used.
            StartupError: it cannot be opened, for another reason.
        """
        return open_database(self.path, _WHAT, lambda db: _prepare(db, is_checked=is_checked))

    def _make_room(self) -> None:
        """Set aside what has the database's name but is not a file: opening it might block."""
        for name in ("", *SIDE_FILES):
            set_aside_unless_file(self.path.with_name(self.path.name + name))
        if _size(self.path) == 0 and not _size(self.path.with_name(f"{self.path.name}-wal")):
            logger.error("the alert database %s is empty: it begins anew", self.path)

    def _begin_anew(self, why: str) -> sqlite3.Connection:
        """Set the damaged file aside, and return a new database with its undamaged rows."""
        kept = set_aside_database(self.path)
        try:
            db = self._open(is_checked=True)
        except Damage as damage:  # of a file that is new: its disk cannot be trusted
            raise StartupError(f"the alert database {self.path} {damage}") from damage
        n_rows = salvage(db, kept, _TABLES, check_row=_check_row, then=_renumber)
        logger.error(
            "the alert database %s %s: it is kept as %s, and a new one begins with %s of its rows",
            self.path,
            why,
            kept.name,
            n_rows,
        )
        return db


def save_progress(
    db: sqlite3.Connection, engine_state: dict[str, Any], position: Positions | None
) -> None:
    """Store engine state and feed position, inside a transaction."""
    rows = [_state_row(_ENGINE, engine_state)]
    if position is not None:
        rows.append(_state_row(_POSITION, position))
    db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", rows)


def delivery_checksum(payload: bytes, *words: str) -> int:
    """Return the checksum of what is never changed in a row of `deliveries`.

    Args:
        words: alert id, transition, action, rule and severity.
    """
    return zlib.crc32("\0".join((*words, "")).encode() + payload)


def _state_row(name: str, value: Any) -> tuple[str, str, int]:
    text = json.dumps(value, separators=(",", ":"))
    return name, text, zlib.crc32(f"{name}\0{text}".encode())


def _prepare(db: sqlite3.Connection, *, is_checked: bool) -> None:
    """Set up a connection, and make the tables of a database that is new."""
    db.execute("PRAGMA synchronous = FULL")
    make_tables(db, _SCHEMA, SCHEMA_VERSION)
    if is_checked:
        _check(db)


def _check(db: sqlite3.Connection) -> None:
    """Check everything in a database.

    Raises:
        Damage: something of it was not written like this.
    """
    check_database(db, _SCHEMA)
    (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
    if not isinstance(last, int) or last > _MAX_SEQ:
        raise Damage("is damaged (the number of the last delivery is none)")
    for table, which in (("state", ""), ("deliveries", "WHERE state = 'pending'")):
        columns = table_columns(db, table)
        for row in db.execute(f"SELECT {', '.join(columns)} FROM {table} {which}"):
            _check_row(table, dict(zip(columns, row, strict=True)))


def _check_row(table: str, fields: dict[str, Any]) -> None:
    """Check what the constraints of the schema do not cover.

    Raises:
        Damage: the row was not written like this.
    """
    if table == "state" and not _is_state(fields):
        raise Damage(f"is damaged (the value of {fields['name']!r} is not what was stored)")
    if table == "deliveries" and not _is_delivery(fields):
        raise Damage(f"is damaged (delivery {fields['seq']} is not what was stored)")


def _is_state(fields: dict[str, Any]) -> bool:
    name, text = fields["name"], fields["value"]
    if zlib.crc32(f"{name}\0{text}".encode(errors="replace")) != fields["checksum"]:
        return False
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    match name, value:
        case ("engine", dict()) | ("position", [str(), int()]):
            return True
        case "position", dict():
            return all(_is_position(position) for position in value.values())
        case "since", int():
            return abs(value) < _MAX_TIME_NS
    return False


def _is_position(value: object) -> bool:
    match value:
        case [str(), int()]:
            return True
    return False


def _is_delivery(fields: dict[str, Any]) -> bool:
    payload = fields["payload"]
    if not isinstance(payload, bytes):
        return False
    words = (fields[name] for name in ("alert_id", "transition", "action", "rule", "severity"))
    if delivery_checksum(payload, *words) != fields["checksum"]:
        return False
    if fields["state"] != "pending":
        return True
    try:
        Notification.decode(payload)
    except WireError:
        return False
    last_ns = max(fields["updated_ns"], fields["created_ns"])
    return bool(fields["next_ns"] <= last_ns + _MAX_WAIT_NS)


def _renumber(db: sqlite3.Connection) -> None:
    """Set the row counter by the rows that are there: refused rows have advanced it."""
    db.execute("UPDATE sqlite_sequence SET seq = coalesce((SELECT max(seq) FROM deliveries), 0)")


_TABLES = ("state", "alerts", "deliveries", "snoozes", "closed_actions")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
