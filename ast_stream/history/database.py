"""The history of a box: events, gaps, alerts, clips and verdicts, in one SQLite database.

One process writes what the feeds say; the page and commands read beside it, and add verdicts. A
commit survives a kill; a power cut may take the last seconds, and where the writer stands on the
feeds with them, so that they are replayed. A full disk stops nobody: what comes meanwhile waits in
memory, and is counted.

The process that owns it checks it at its start. A file that is damaged is kept under another name,
and a new one begins with the rows of it that can be read.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Literal, Self

from ast_stream.errors import AstStreamError, StartupError, UsageError, WireError
from ast_stream.history import queries
from ast_stream.history.records import (
    AlertQuery,
    AlertRecord,
    ClipRecord,
    Count,
    EventQuery,
    EventRecord,
    Figures,
    GapRecord,
    VerdictRecord,
)
from ast_stream.history.rows import (
    CLIP_COLUMNS,
    KINDS,
    VERDICT_COLUMNS,
    set_verdict,
    write_message,
)
from ast_stream.history.schema import SCHEMA, SCHEMA_VERSION
from ast_stream.messages.event import FeedMessage, Position
from ast_stream.runtime.database import (
    SIDE_FILES,
    Damage,
    check_tables,
    committed,
    expect_version,
    make_tables,
    open_database,
    open_read_only,
    says_damaged,
    set_aside_database,
    set_aside_unless_file,
    table_columns,
)
from ast_stream.runtime.files import lock_file
from ast_stream.runtime.logging import Outage
from ast_stream.units import NS_PER_SECOND

FILE = "history.sqlite"
MAX_WAITING = 20_000  # messages in memory while the disk takes none
WAL_BYTES = 32 * 1024 * 1024  # of the bytes on disk, left for the write-ahead log
_WHAT = "the history"
_WHAT_TO_DO = "the recorder sets it aside at its next start and begins anew"
_MESSAGES_AT_ONCE = 1000  # written in one transaction, or tried where the disk is full
_ROWS_AT_ONCE = 500  # deleted in one transaction: others wait for it
_STEPS_AT_ONCE = 20
_VACUUMED_PAGES = 2000
_CHECKED_BYTES = 256 * 1024 * 1024  # of a larger file only what is used is read
_MAX_TEXT = 10_000  # characters that a person may write
logger = logging.getLogger(__name__)


class HistoryError(AstStreamError):
    """The history cannot be written or read now: a full disk, a lock held too long, damage."""


class History:
    """One connection to the history, shared by the threads of this process.

    Args:
        path: of the database, which this process owns: it is made, locked and checked.
        wall_s: the time of day.

    Attributes:
        figures: what happened to messages on their way into it.
        outage: reports while it cannot be written.

    Raises:
        StartupError: it cannot be opened, or another process owns it.
    """

    def __init__(self, path: Path, *, wall_s: Callable[[], float] = time.time) -> None:
        self._prepare(path, wall_s)
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            lock = path.with_name(f"{path.name}.lock")
            for name in (path.name, *(f"{path.name}{suffix}" for suffix in SIDE_FILES), lock.name):
                set_aside_unless_file(path.with_name(name))
            self._lock_fd = lock_file(lock, f"{_WHAT} {path}")
        except (OSError, ValueError) as error:  # a ValueError: a path with NUL in it
            raise StartupError(f"cannot open {_WHAT} {path}: {error}") from error
        try:
            self._db = self._open_or_begin_anew()
        except BaseException:
            os.close(self._lock_fd)
            raise

    @classmethod
    def open_beside(cls, path: Path) -> Self:
        """Open a history that another process owns, to read and to add verdicts.

        Raises:
            StartupError: it is not there, or cannot be used.
        """
        if not path.is_file():
            raise StartupError(f"there is no {path}: the recorder has not run yet")
        history = cls.__new__(cls)
        history._prepare(path, time.time)
        try:
            history._db = open_database(path, _WHAT, _check)
        except Damage as damage:
            raise StartupError(f"{_WHAT} {path} {damage}; {_WHAT_TO_DO}") from damage
        return history

    @classmethod
    def open_read_only(cls, path: Path) -> Self:
        """Open a history that another process may own, only to read.

        Raises:
            StartupError: it is not there, or cannot be used.
        """
        history = cls.__new__(cls)
        history._prepare(path, time.time)
        history._db = open_read_only(path, _WHAT, _check)
        return history

    def close(self) -> None:
        """Write what waits, if the disk takes it, and close the connection."""
        with self._lock:
            if self._is_owner:
                self.retry()
            self._db.close()
            if self._is_owner:
                os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # what the owner writes

    def add_message(self, message: FeedMessage) -> bool:
        """Add one message, see `add_messages`."""
        return self.add_messages([message])

    def add_messages(
        self,
        messages: Iterable[FeedMessage],
        positions: Mapping[str, Position] | None = None,
    ) -> bool:
        """Add events, gaps and alerts; other messages are passed over.

        They may come again and in any order: an event is one row, of which the `end` is the last
        word.

        Args:
            positions: where each feed, by its name, has been read to with these messages; written
                with the last of them.

        Returns:
            Whether all is written; else it waits, and is written with the next ones, or `retry`.
        """
        with self._lock:
            self._waiting.extend(message for message in messages if message.kind in KINDS)
            while len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self.figures.dropped += 1
            self._positions |= positions or {}
            return self.retry()

    def retry(self) -> bool:
        """Write what waits; return whether nothing does any more."""
        with self._lock:
            try:
                while self._waiting or self._positions:
                    self._write_some()
                    self.outage.worked()
            except HistoryError as error:
                self.figures.write_errors += 1
                self.outage.failed("%s", error)
            self.figures.waiting = len(self._waiting)
            return not self._waiting and not self._positions

    def _write_some(self) -> None:
        """Write the oldest messages that wait, with the last of them the positions.

        Raises:
            HistoryError: they could not be written, and wait.
        """
        messages = list(islice(self._waiting, _MESSAGES_AT_ONCE))
        positions = self._positions if len(messages) == len(self._waiting) else {}
        n_malformed = 0
        with self._transaction() as db:
            for message in messages:
                try:
                    write_message(db, message)
                except (WireError, OverflowError, UnicodeError):
                    n_malformed += 1
            db.executemany(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                [(feed, *position) for feed, position in positions.items()],
            )
        self.figures.malformed += n_malformed
        self.figures.written += len(messages) - n_malformed
        for _ in messages:
            self._waiting.popleft()
        positions.clear()

    def positions(self) -> dict[str, Position]:
        """Return where each feed has been read to, by its name."""
        with self._reading() as db:
            rows = db.execute("SELECT feed, boot, seq FROM positions").fetchall()
        return {feed: (boot, seq) for feed, boot, seq in rows}

    def add_clip(self, clip: ClipRecord) -> None:
        """Add a clip, or why there is none, in the place of one of the same event and part.

        Raises:
            HistoryError: it could not be written.
        """
        with self._transaction() as db:
            db.execute(
                f"INSERT OR REPLACE INTO clips ({CLIP_COLUMNS})"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                tuple(vars(clip).values()),
            )
            if clip.path:
                db.execute("UPDATE events SET has_clip = 1 WHERE id = ?", (clip.event_id,))

    def remove_clips(self, paths: Iterable[str]) -> int:
        """Remove the clips with these paths; return how many there were.

        Raises:
            HistoryError: it could not be written; nothing has changed.
        """
        n_removed = 0
        with self._transaction() as db:
            for path in paths:
                ids = db.execute("SELECT event_id FROM clips WHERE path = ?", (path,)).fetchall()
                n_removed += db.execute("DELETE FROM clips WHERE path = ?", (path,)).rowcount
                db.executemany(
                    "UPDATE events SET has_clip = 0 WHERE id = ?"
                    " AND id NOT IN (SELECT event_id FROM clips WHERE path != '')",
                    ids,
                )
        return n_removed

    def prune(self, max_bytes: int, max_age_s: float | None = None) -> bool:
        """Delete what is too old or too much, oldest first, for a short while.

        With an event go its verdicts, and why it has no clip; clips are removed by whoever removes
        their files. To be called each minute, and again at once if it returns True.

        Args:
            max_bytes: on disk, of which a quarter, at most `WAL_BYTES`, is left for the log.
            max_age_s: since the sound began; None: not by age.

        Returns:
            Whether there is more to delete.

        Raises:
            HistoryError: it could not be written.
        """
        before_ns = -(2**62)
        if max_age_s is not None:
            before_ns = int((self._wall_s() - max_age_s) * NS_PER_SECOND)
        for _ in range(_STEPS_AT_ONCE):
            with self._transaction() as db:
                is_too_large = _used_bytes(db) > max_bytes - min(WAL_BYTES, max_bytes // 4)
                n_deleted = _delete_oldest(db, None if is_too_large else before_ns)
            if n_deleted == 0:
                with self._reading() as db:
                    # as a script, for `execute` would give back the first page only
                    db.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_PAGES})")
                return False
        return True

    def used_bytes(self) -> int:
        """Return how many bytes of the file hold something."""
        with self._reading() as db:
            return _used_bytes(db)

    # what a person adds

    def add_verdict(self, verdict: VerdictRecord) -> None:
        """Add what a person says of an event; it survives a power cut when this returns.

        Raises:
            UsageError: there is no such event, or `other` comes without its label.
            HistoryError: it could not be written.
        """
        if (verdict.verdict == "other") != bool(verdict.label):
            got = repr(verdict.label) if verdict.label else "none"
            raise UsageError(
                f"verdict {verdict.verdict}: expected a label with 'other' only, got {got}"
            )
        if max(map(len, (verdict.label or "", verdict.note, verdict.by))) > _MAX_TEXT:
            raise UsageError(f"verdict: expected texts of at most {_MAX_TEXT} characters")
        with self._lock:
            with self._reading() as db:
                db.execute("PRAGMA synchronous = FULL")
            try:
                with self._transaction() as db:
                    find = "SELECT 1 FROM events WHERE id = ?"
                    if db.execute(find, (verdict.event_id,)).fetchone() is None:
                        raise UsageError(
                            f"verdict: expected the id of an event, got {verdict.event_id!r}"
                        )
                    db.execute(
                        f"INSERT INTO verdicts ({VERDICT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
                        tuple(vars(verdict).values()),
                    )
                    set_verdict(db, verdict.event_id)
            finally:
                with self._reading() as db:
                    db.execute("PRAGMA synchronous = NORMAL")

    # what is asked

    def event(self, event_id: str) -> EventRecord | None:
        """Return one event, None if it is not there."""
        with self._reading() as db:
            return queries.event(db, event_id)

    def events(self, query: EventQuery) -> list[EventRecord]:
        """Return a page of events in order of (onset, id); the next is after the last one's key."""
        with self._reading() as db:
            return queries.events(db, query)

    def all_events(self, query: EventQuery) -> Iterator[EventRecord]:
        """Yield all events that are asked for, page after page."""
        yield from queries.pages(self.events, query)

    def gaps(
        self,
        since_ns: int | None = None,
        until_ns: int | None = None,
        streams: Sequence[str] = (),
        limit: int = 10_000,
    ) -> list[GapRecord]:
        """Return the oldest gaps that begin between two moments."""
        with self._reading() as db:
            return queries.gaps(db, since_ns, until_ns, streams, limit)

    def alerts(self, query: AlertQuery) -> list[AlertRecord]:
        """Return a page of alerts in order of (start, id)."""
        with self._reading() as db:
            return queries.alerts(db, query)

    def clips(self, event_id: str) -> list[ClipRecord]:
        """Return the parts of the recording of an event, in order."""
        with self._reading() as db:
            return queries.clips(db, event_id)

    def all_clips(self) -> Iterator[tuple[ClipRecord, EventRecord | None]]:
        """Yield every clip with its event, if that is still known; oldest first."""
        after: tuple[int, str, int] | None = None
        while True:
            with self._reading() as db:
                page = queries.clip_page(db, after)
            yield from page
            if not page:
                return
            clip = page[-1][0]
            after = (clip.start_ns, clip.event_id, clip.part)

    def verdicts(self, event_id: str | None = None) -> list[VerdictRecord]:
        """Return all verdicts, or those on one event, oldest first."""
        with self._reading() as db:
            return queries.verdicts(db, event_id)

    def counts(
        self,
        by: Literal["hour", "day"],
        since_ns: int,
        until_ns: int,
        streams: Sequence[str] = (),
        classes: Sequence[str] = (),
        utc_offset_s: int = 0,
    ) -> list[Count]:
        """Return how many events began in each hour or day, by stream and class, oldest first.

        Whole hours are looked up; where `since_ns`, `until_ns` or the place's days do not begin
        with one, all events between are counted.

        Args:
            utc_offset_s: of the place whose days are meant.
        """
        with self._reading() as db:
            return queries.counts(db, by, since_ns, until_ns, streams, classes, utc_offset_s)

    def names(self) -> tuple[list[str], list[str]]:
        """Return the streams, and the classes, of which there are events."""
        with self._reading() as db:
            return queries.names(db)

    def _prepare(self, path: Path, wall_s: Callable[[], float]) -> None:
        self.path = path
        self.figures = Figures()
        self.outage = Outage(logger, f"{_WHAT} {path} is written again")
        self._wall_s = wall_s
        self._lock = threading.RLock()
        self._lock_fd = -1
        self._waiting: deque[FeedMessage] = deque()
        self._positions: dict[str, Position] = {}

    @property
    def _is_owner(self) -> bool:
        return self._lock_fd >= 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside a transaction; all or nothing.

        Raises:
            HistoryError: it could not be committed; nothing has changed.
        """
        with self._reading() as db, committed(db):
            yield db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> HistoryError:
        text = f"{_WHAT} {self.path}: {error}"
        if not says_damaged(error):
            return HistoryError(text)
        if not self._is_owner:
            return HistoryError(f"{text}; {_WHAT_TO_DO}")
        self._db.close()
        self._db = self._begin_anew(f"is damaged ({error})")
        return HistoryError(text)

    def _open_or_begin_anew(self) -> sqlite3.Connection:
        try:
            return self._open()
        except Damage as damage:
            return self._begin_anew(str(damage))

    def _open(self) -> sqlite3.Connection:
        return open_database(self.path, _WHAT, _make_and_check, can_shrink=True)

    def _begin_anew(self, why: str) -> sqlite3.Connection:
        """Set the damaged file aside, and return a new database with what can be read of it.

        Raises:
            StartupError: it cannot be moved, or a new one not be made.
        """
        try:
            kept = set_aside_database(self.path)
            db = self._open()
        except (OSError, Damage) as error:  # of a file that is new: its disk cannot be trusted
            raise StartupError(f"cannot open {_WHAT} {self.path}: {error}") from error
        n_rows = _salvage(db, kept)
        text = "%s %s %s: it is kept as %s, and a new one begins with %s of its rows"
        logger.error(text, _WHAT, self.path, why, kept.name, n_rows)
        return db


def _check(db: sqlite3.Connection) -> None:
    """Check that these are the tables of this version.

    Raises:
        Damage: they are not.
    """
    expect_version(db, SCHEMA_VERSION)
    check_tables(db, SCHEMA)


def _make_and_check(db: sqlite3.Connection) -> None:
    """Make the tables of a database that is new, or check one that is not.

    Raises:
        Damage: it cannot be used.
    """
    db.execute("PRAGMA synchronous = NORMAL")
    make_tables(db, SCHEMA, SCHEMA_VERSION)
    check_tables(db, SCHEMA)
    if _used_bytes(db) <= _CHECKED_BYTES:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise Damage(f"is damaged ({' '.join(str(found).split())})")
    db.execute("DELETE FROM origins WHERE origin NOT IN (SELECT origin FROM events)")


def _used_bytes(db: sqlite3.Connection) -> int:
    found = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES)
    n_pages, n_free, page_bytes = found
    return int((n_pages - n_free) * page_bytes)


_SIZES = ("page_count", "freelist_count", "page_size")


def _delete_oldest(db: sqlite3.Connection, before_ns: int | None) -> int:
    """Delete some of the oldest rows, inside a transaction; return how many.

    Args:
        before_ns: only what is older than this; None: whatever is the oldest.
    """
    where = "" if before_ns is None else f"WHERE onset_ns < {before_ns}"
    rows = db.execute(
        f"SELECT rowid, id, onset_ns FROM events {where} ORDER BY onset_ns LIMIT {_ROWS_AT_ONCE}"
    ).fetchall()
    db.executemany("DELETE FROM verdicts WHERE event_id = ?", [(id,) for _, id, _ in rows])
    db.executemany(
        "DELETE FROM clips WHERE event_id = ? AND path = ''", [(id,) for _, id, _ in rows]
    )
    db.executemany("DELETE FROM events WHERE rowid = ?", [(rowid,) for rowid, _, _ in rows])
    if before_ns is None:  # what else is as old as the events
        before_ns = rows[-1][2] + 1 if rows else 2**62
    n_deleted = len(rows)
    n_deleted += db.execute(
        "DELETE FROM gaps WHERE (stream, epoch, start_sample) IN (SELECT stream, epoch,"
        f" start_sample FROM gaps WHERE start_ns < ? ORDER BY start_ns LIMIT {_ROWS_AT_ONCE})",
        (before_ns,),
    ).rowcount
    n_deleted += db.execute(
        "DELETE FROM alerts WHERE id IN (SELECT id FROM alerts WHERE started_ns < ?"
        f" ORDER BY started_ns LIMIT {_ROWS_AT_ONCE})",
        (before_ns,),
    ).rowcount
    return n_deleted


def _salvage(db: sqlite3.Connection, kept: Path) -> int:
    """Copy the rows of a damaged database that satisfy the schema; return how many there are."""
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
            for table in _TABLES:
                columns = table_columns(db, table)
                insert = f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(columns))})"
                # what is beyond a broken page is not certain, and other tables may be whole
                with suppress(sqlite3.Error, MemoryError, UnicodeError):
                    for row in old.execute(f"SELECT {', '.join(columns)} FROM {table} NOT INDEXED"):
                        with suppress(sqlite3.IntegrityError, UnicodeError, OverflowError):
                            n_rows += db.execute(insert, row).rowcount
    return n_rows


_TABLES = (
    "origins", "events", "gaps", "alerts", "alert_events", "clips", "verdicts", "positions",
)  # fmt: skip
