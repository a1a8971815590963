"""The database of the alerts process: engine state, feed position and deliveries, in SQLite.

A commit is on the disk when it returns (WAL with synchronous=FULL): alerts are rare, and losing
one to a power cut is what this file is there to prevent. One process works with it; commands may
look and change rows beside it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ast_stream.errors import AstStreamError, StartupError

SCHEMA_VERSION = 1
_BUSY_MS = 5000
_MAX_WAL_BYTES = 16 * 1024 * 1024  # what is left of the log after it was long
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_WHAT_TO_DO = "move it and its -wal away to begin anew: what waits in it is lost"
_ENGINE, _POSITION, _SINCE = "engine", "position", "since"
_SCHEMA = """
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE alerts (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, state TEXT NOT NULL, updated_ns INTEGER NOT NULL,
    acknowledged_ns INTEGER
) STRICT;
CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    alert_id TEXT NOT NULL, transition TEXT NOT NULL, action TEXT NOT NULL,
    rule TEXT NOT NULL, severity TEXT NOT NULL, payload BLOB NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, last_error TEXT,
    created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
    next_ns INTEGER NOT NULL, held_until_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL,
    UNIQUE (alert_id, transition, action)
) STRICT;
CREATE INDEX deliveries_pending ON deliveries (action, seq) WHERE state = 'pending';
CREATE INDEX deliveries_done ON deliveries (action, updated_ns) WHERE state = 'done';
CREATE TABLE snoozes (rule TEXT PRIMARY KEY, until_ns INTEGER NOT NULL) STRICT;
CREATE TABLE closed_actions (
    action TEXT PRIMARY KEY, settings TEXT NOT NULL, since_ns INTEGER NOT NULL, reason TEXT NOT NULL
) STRICT;
"""


class StoreError(AstStreamError):
    """The database cannot be written or read now: a full disk, a lock held too long."""


class Store:
    """One connection to the database, shared by the threads of this process.

    Args:
        must_exist: for commands beside the process that has made and checked it: refuse a file
            that is not there instead of creating it.

    Raises:
        StartupError: not a database, a damaged one, of a newer version, or its folder cannot be
            written.
    """

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        if must_exist and not path.exists():
            raise StartupError(f"there is no {path}: the alerts process has not run yet")
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StartupError(f"cannot open the alert database {path}: {error}") from error
        try:
            self._prepare(is_new_to_us=not must_exist)
        except sqlite3.Error as error:
            self._db.close()
            raise StartupError(self._words(error)) from error
        except StoreError as error:
            self._db.close()
            raise StartupError(str(error)) from error
        except StartupError:
            self._db.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside a transaction that is durable on leaving; all or nothing.

        Raises:
            StoreError: it could not be committed; nothing has changed.
        """
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise StoreError(self._words(error)) from error

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
                raise StoreError(self._words(error)) from error

    def engine_state(self) -> dict[str, Any] | None:
        """Return what `save` stored, None in a new database."""
        state: dict[str, Any] | None = self._read(_ENGINE)
        return state

    def position(self) -> tuple[str, int] | None:
        """Return where on the feed the stored engine stands."""
        stored = self._read(_POSITION)
        return None if stored is None else (stored[0], stored[1])

    def since_ns(self, now_ns: int) -> int:
        """Return when this database was first used: `now_ns` if that is now."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO state VALUES (?, ?)", (_SINCE, str(now_ns)))
        return int(self._read(_SINCE))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    def _read(self, name: str) -> Any:
        with self.reading() as db:
            row = db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def _words(self, error: sqlite3.Error) -> str:
        what = f"the alert database {self.path}: {error}"
        is_damaged = getattr(error, "sqlite_errorcode", None) in _DAMAGED
        return f"{what}; {_WHAT_TO_DO}" if is_damaged else what

    def _prepare(self, *, is_new_to_us: bool) -> None:
        self._db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute(f"PRAGMA journal_size_limit = {_MAX_WAL_BYTES}")
        if is_new_to_us:
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                text = f"the alert database {self.path} is damaged ({found}); {_WHAT_TO_DO}"
                raise StartupError(" ".join(text.split()))
        with self.transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StartupError(
                    f"the alert database {self.path}: expected version {SCHEMA_VERSION}, got "
                    f"{version}, of a newer ast-stream"
                )
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def save_progress(
    db: sqlite3.Connection, engine_state: dict[str, Any], position: tuple[str, int] | None
) -> None:
    """Store engine state and feed position, inside a transaction."""
    rows = [(_ENGINE, json.dumps(engine_state, separators=(",", ":")))]
    if position is not None:
        rows.append((_POSITION, json.dumps(position)))
    db.executemany("INSERT OR REPLACE INTO state (name, value) VALUES (?, ?)", rows)
