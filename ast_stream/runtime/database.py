"""SQLite databases that outlive a process: opened, checked, and set aside if they are damaged.

All of them have a write-ahead log, so that others may read while one process writes, and overwrite
what is deleted. What a database cannot do now (a full disk, a lock held too long) is told apart
from damage, which stays.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from ast_stream.errors import StartupError
from ast_stream.runtime.files import reason_of, set_aside

# what checks of rows raise for values, or columns, that are not as they were
_OF_STRANGE_ROWS = (ValueError, TypeError, OverflowError, KeyError)
_BLANKS = re.compile(r"\s*([(),])\s*")
SIDE_FILES = ("-wal", "-shm")
_BUSY_MS = 5000
_MAX_WAL_BYTES = 16 * 1024 * 1024  # what is left of the log after it was long
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# errors that say nothing of what is in the file: another may hold it, the disk is full or broken
_ELSEWHERE = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
)
logger = logging.getLogger(__name__)


class Damage(Exception):
    """The file is there, and what it holds cannot be used; says why."""


def open_database(
    path: Path,
    what: str,
    prepare: Callable[[sqlite3.Connection], None],
    *,
    can_shrink: bool = False,
) -> sqlite3.Connection:
    """Return a connection, for any thread, to a file, which is made if it is not there.

    Args:
        what: the database, as errors name it.
        prepare: makes the tables of a new one, and checks those that are there.
        can_shrink: a new one can give pages that it does not need back to the disk.

    Raises:
        Damage: what is in it cannot be used.
        StartupError: it cannot be opened, for another reason.
    """
    db: sqlite3.Connection | None = None
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        if can_shrink:  # has no effect once there is a table
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute(f"PRAGMA journal_size_limit = {_MAX_WAL_BYTES}")
        db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
        prepare(db)
    # a UnicodeError: SQLite quotes what is damaged in what it says of it
    except (sqlite3.Error, OSError, MemoryError, UnicodeError, Damage) as error:
        if db is not None:
            db.close()
        if isinstance(error, Damage):
            raise
        if isinstance(error, PermissionError) and path.exists():
            raise Damage(f"cannot be read ({error.strerror})") from error
        if isinstance(error, OSError) or _is_elsewhere(path, error):
            raise StartupError(f"cannot open {what} {path}: {error}") from error
        raise Damage(f"is damaged ({error})") from error
    return db


def expect_database(path: Path, what: str, absent: str, what_to_do: str = "") -> None:
    """Refuse a database that is not there, is no file, or that this user may not look at.

    Args:
        what: the database, as errors name it.
        absent: why it may not be there.
        what_to_do: about what is no file.

    Raises:
        StartupError: one of these.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StartupError(f"there is no {path}: {absent}") from error
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot open {what} {path}: {reason_of(error)}") from error
    if not stat.S_ISREG(mode):  # a FIFO would be waited for
        raise StartupError(f"{what} {path} is no file{what_to_do}")


def open_read_only(
    path: Path, what: str, prepare: Callable[[sqlite3.Connection], None]
) -> sqlite3.Connection:
    """Return a connection, for any thread, that only reads, beside the process that writes.

    Args:
        what: the database, as errors name it.
        prepare: checks what is there.

    Raises:
        StartupError: it is not there, or cannot be used.
    """
    expect_database(path, what, f"nothing has been written to {what} yet")
    db: sqlite3.Connection | None = None
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        prepare(db)
    except (sqlite3.Error, OSError, MemoryError, UnicodeError, Damage) as error:
        if db is not None:
            db.close()
        if isinstance(error, Damage):
            raise StartupError(f"{what} {path} {error}") from error
        raise StartupError(f"cannot open {what} {path}: {error}") from error
    return db


def says_damaged(error: sqlite3.Error) -> bool:
    """Return whether an error says that the file is damaged, so that it will not pass."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


@contextmanager
def committed(db: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, or roll it back if something is raised."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextmanager
def reading(db: sqlite3.Connection) -> Iterator[None]:
    """Give all reads inside one consistent snapshot."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def make_tables(db: sqlite3.Connection, schema: str, version: int) -> None:
    """Make the tables of a database that is new.

    Args:
        schema: statements that each end in a semicolon at the end of a line.

    Raises:
        Damage: it is not new, and of another version.
    """
    with committed(db):
        is_new = not db.execute("SELECT 1 FROM sqlite_schema").fetchone()
        if is_new and db.execute("PRAGMA user_version").fetchone()[0] == 0:
            _make(db, schema)
            db.execute(f"PRAGMA user_version = {version}")
        else:
            expect_version(db, version)


def bring_up_to_date(db: sqlite3.Connection, changes: Mapping[int, Sequence[str]]) -> list[int]:
    """Change a database of an earlier version; return the versions that it has gone through.

    Args:
        changes: by version, the statements that make a database of it one of the next.

    Raises:
        Damage: its tables are not those of its version.
    """
    passed: list[int] = []
    while (version := int(db.execute("PRAGMA user_version").fetchone()[0])) in changes:
        try:
            with committed(db):
                for statement in changes[version]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {version + 1}")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # such as a full disk
                raise
            raise Damage(f"is no database of version {version} ({error})") from error
        passed.append(version)
    return passed


def expect_version(db: sqlite3.Connection, version: int) -> None:
    """Check the version of the schema.

    Raises:
        Damage: it is another.
    """
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found != version:
        raise Damage(f"is of version {found}, where this ast-stream has {version}")


def check_database(db: sqlite3.Connection, schema: str) -> None:
    """Check the structure of all that is in a database.

    Raises:
        Damage: something of it was not written like this.
    """
    (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise Damage(f"is damaged ({' '.join(str(found).split())})")
    check_tables(db, schema)


def check_tables(db: sqlite3.Connection, schema: str) -> None:
    """Check that the tables of a database are those of its schema.

    Raises:
        Damage: they are not.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        _make(fresh, schema)
        query = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
        if _words(fresh.execute(query)) != _words(db.execute(query)):
            raise Damage("is damaged (its tables are not as they were made)")


def _words(rows: Iterable[tuple[str | None, ...]]) -> list[list[str | None]]:
    """Return rows of the schema without blanks that say nothing, as columns added later have."""
    return [
        [None if text is None else _BLANKS.sub(r"\1", " ".join(text.split())) for text in row]
        for row in rows
    ]


def table_columns(db: sqlite3.Connection, table: str) -> list[str]:
    """Return the names of the columns of a table."""
    return [name for (name,) in db.execute("SELECT name FROM pragma_table_info(?)", (table,))]


def salvage(
    db: sqlite3.Connection,
    kept: Path,
    tables: Sequence[str],
    *,
    check_row: Callable[[str, dict[str, Any]], None] = lambda table, row: None,
    then: Callable[[sqlite3.Connection], None] = lambda db: None,
) -> int:
    """Copy the rows of a damaged database that satisfy the schema; return how many there are.

    Args:
        db: new, with its tables.
        kept: the damaged one.
        check_row: called with a table and a row of it; raises for one that is not to be copied.
        then: called in the same transaction.
    """
    n_rows = 0
    if not kept.is_file():
        return 0
    try:
        old = sqlite3.connect(kept, isolation_level=None)
    except sqlite3.Error:
        return 0
    with closing(old):
        old.text_factory = lambda raw: raw.decode(errors="surrogateescape")  # refused below
        with committed(db):
            for table in tables:
                # what is beyond a broken page is not certain, and other tables may be whole
                with suppress(sqlite3.Error, MemoryError, UnicodeError):
                    known = table_columns(old, table)
                    columns = [name for name in table_columns(db, table) if name in known]
                    places = ", ".join("?" * len(columns))
                    insert = (
                        f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({places})"
                    )
                    for row in old.execute(f"SELECT {', '.join(columns)} FROM {table} NOT INDEXED"):
                        with suppress(sqlite3.Error, Damage, *_OF_STRANGE_ROWS):
                            check_row(table, dict(zip(columns, row, strict=True)))
                            n_rows += db.execute(insert, row).rowcount
            then(db)
    return n_rows


def set_aside_unless_file(path: Path) -> None:
    """Rename what is there but is not a file: a folder, or a FIFO that would block."""
    if os.path.lexists(path) and not path.is_file():
        kept = set_aside(path)
        logger.error("%s is no file: it is kept as %s", path, kept.name if kept else "it is")


def set_aside_database(path: Path) -> Path:
    """Rename a database, and the files that belong to it; return where it is now.

    Raises:
        OSError: it cannot be moved.
    """
    kept = set_aside(path)
    if kept is None:
        raise PermissionError(errno.EACCES, "cannot be moved out of the way", str(path))
    for suffix in SIDE_FILES:
        of_kept = kept.with_name(kept.name + suffix)
        try:
            path.with_name(path.name + suffix).replace(of_kept)
        except FileNotFoundError:
            of_kept.unlink(missing_ok=True)  # of what was kept there before
    return kept


def _make(db: sqlite3.Connection, schema: str) -> None:
    for statement in schema.split(";\n"):
        db.execute(statement)


def _is_elsewhere(path: Path, error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_READONLY:  # a damaged header says so, too
        return not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK)
    return code in _ELSEWHERE
