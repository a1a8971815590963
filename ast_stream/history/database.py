"""The history of a box: events, gaps, alerts, clips and verdicts, in one SQLite database.

One process, the owner, writes the messages of the feeds; the page and commands read concurrently,
and add verdicts. A commit survives a kill. A power cut may lose the last seconds, together with the
positions on the feeds, so that they are replayed. If the disk is full, messages wait in memory and
are counted.

The owner checks the file when it starts. A damaged file is renamed, and the rows that can still be
read are copied to a new one.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Self

from ast_stream.errors import AstStreamError, StartupError, UsageError, WireError
from ast_stream.history import queries
from ast_stream.history.days import Zone
from ast_stream.history.records import (
    AlertQuery,
    AlertRecord,
    ClipRecord,
    EventCount,
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
from ast_stream.history.schema import CHANGES, COUNT_DAYS, SCHEMA, SCHEMA_VERSION
from ast_stream.messages.event import FeedMessage, Position
from ast_stream.runtime.database import (
    SIDE_FILES,
    Damage,
    bring_up_to_date,
    check_tables,
    committed,
    expect_database,
    expect_version,
    make_tables,
    open_database,
    open_read_only,
    salvage,
    says_damaged,
    set_aside_database,
    set_aside_unless_file,
)
from ast_stream.runtime.files import expect_in_place, lock_file, make_folder
from ast_stream.runtime.logging import Outage
from ast_stream.units import NS_PER_SECOND

FILE = "history.sqlite"
MAX_WAITING = 20_000  # messages in memory while the disk cannot be written
WAL_BYTES = 32 * 1024 * 1024  # of the space on disk, reserved for the write-ahead log
_WHAT = "the history"
_WHAT_TO_DO = "the recorder sets it aside at its next start and begins anew"
_MESSAGES_AT_ONCE = 1000  # in one transaction, or tried while the disk is full
_ROWS_AT_ONCE = 500  # deleted in one transaction, which others have to wait for
_STEPS_AT_ONCE = 20
_VACUUMED_PAGES = 2000
_CHECKED_BYTES = 256 * 1024 * 1024  # a larger file is not checked completely
_MAX_TEXT = 10_000  # characters of a person's note
logger = logging.getLogger(__name__)


class _Outdated(Damage):
    """The file is intact, but of an earlier version."""


class HistoryError(AstStreamError):
    """The history cannot be written or read now: a full disk, a long lock, or damage."""


class History:
    """One connection to the history, shared by the threads of this process.

    Args:
        path: of the database, which this process owns: it is created, locked and checked.
        wall_s: wall clock, seconds.

    Attributes:
        figures: counters of messages.
        outage: whether and why it cannot be written.

    Raises:
        StartupError: it cannot be opened, or another process owns it.
    """

    def __init__(self, path: Path, *, wall_s: Callable[[], float] = time.time) -> None:
        self._prepare(path, wall_s)
        try:
            make_folder(path.parent, 0o750)
            lock = path.with_name(f"{path.name}.lock")
            for name in (path.name, *(f"{path.name}{suffix}" for suffix in SIDE_FILES), lock.name):
                set_aside_unless_file(path.with_name(name))
            self._lock_fd = lock_file(lock, f"{_WHAT} {path}")
        except (OSError, ValueError) as error:  # a ValueError: a path with NUL in it
            raise StartupError(f"cannot open {_WHAT} {path}: {error}") from error
        try:
            self._db = self._open_or_begin_anew()
            self._file = path.stat()
        except BaseException:
            os.close(self._lock_fd)
            raise

    @classmethod
    def open_beside(cls, path: Path) -> Self:
        """Open a history that another process owns, for reading and for adding verdicts.

        Raises:
            StartupError: it does not exist, or cannot be used.
        """
        expect_database(path, _WHAT, "the recorder has not run yet")
        history = cls.__new__(cls)
        history._prepare(path, time.time)
        try:
            history._db = open_database(path, _WHAT, _check)
        except _Outdated as outdated:
            raise StartupError(f"{_WHAT} {path} {outdated}") from outdated
        except Damage as damage:
            raise StartupError(f"{_WHAT} {path} {damage}; {_WHAT_TO_DO}") from damage
        return history

    @classmethod
    def open_read_only(cls, path: Path) -> Self:
        """Open a history that another process may own, only for reading.

        Raises:
            StartupError: it does not exist, or cannot be used.
        """
        history = cls.__new__(cls)
        history._prepare(path, time.time)
        history._db = open_read_only(path, _WHAT, _check)
        return history

    def close(self) -> None:
        """Write the messages that wait, if the disk can be written, and close the connection."""
        with self._lock:
            if self._is_owner:
                self.retry()
            self._db.close()
            if self._is_owner:
                os.close(self._lock_fd)

    def expect_in_place(self) -> None:
        """Check that the open file is still the one at its path.

        Raises:
            RemovedError: it was removed or replaced.
        """
        path = self.path
        lock = path.with_name(f"{path.name}.lock")
        for place, file in ((path, self._file), (lock, os.fstat(self._lock_fd))):
            expect_in_place(place, file, f"{_WHAT} {path}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # written by the owner

    def add_message(self, message: FeedMessage) -> bool:
        """Add one message, see `add_messages`."""
        return self.add_messages([message])

    def add_messages(
        self,
        messages: Iterable[FeedMessage],
        positions: Mapping[str, Position] | None = None,
    ) -> bool:
        """Add events, gaps and alerts; other messages are ignored.

        Messages may be repeated and in any order: an event is one row, and its `end` is final.

        Args:
            positions: positions on the feeds after these messages, by feed name; written together
                with the last message.

        Returns:
            Whether everything is written; the rest waits for the next call, or for `retry`.
        """
        with self._lock:
            self._waiting.extend(message for message in messages if message.kind in KINDS)
            while len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self.figures.dropped += 1
            self._positions |= positions or {}
            return self.retry()

    def retry(self) -> bool:
        """Write the messages that wait; return whether none is left."""
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
        """Write the oldest messages that wait, and the positions with the last of them.

        Raises:
            HistoryError: they could not be written, and still wait.
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
        """Return the position on each feed, by its name."""
        with self._reading() as db:
            rows = db.execute("SELECT feed, boot, seq FROM positions").fetchall()
        return {feed: (boot, seq) for feed, boot, seq in rows}

    def add_clip(self, clip: ClipRecord) -> None:
        """Add a clip, or the reason why there is none; replaces that of the same event and part.

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
        """Delete the oldest rows for a short while, if they are too old or too many.

        The verdicts on an event, and the reason why it has no clip, are deleted with it; rows of
        clips are removed together with the files. Must be called each minute, and again at once if
        it returns True.

        Args:
            max_bytes: on disk; a quarter of it, at most `WAL_BYTES`, is reserved for the log.
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
                    # as a script, since `execute` would free the first page only
                    db.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_PAGES})")
                return False
        return True

    def used_bytes(self) -> int:
        """Return how many bytes of the file are in use."""
        with self._reading() as db:
            return _used_bytes(db)

    # written by people

    def add_verdict(self, verdict: VerdictRecord) -> None:
        """Add a person's verdict on an event, durably.

        Raises:
            UsageError: there is no such event, or the verdict `other` has no label.
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

    # queries

    def event(self, event_id: str) -> EventRecord | None:
        """Return an event; None: there is none with this id."""
        with self._reading() as db:
            return queries.event(db, event_id)

    def events(self, query: EventQuery) -> list[EventRecord]:
        """Return a page of events by (onset, id); the next page follows the key of the last one."""
        with self._reading() as db:
            return queries.events(db, query)

    def all_events(self, query: EventQuery) -> Iterator[EventRecord]:
        """Yield all events of a query, page by page."""
        yield from queries.pages(self.events, query)

    def gaps(
        self,
        since_ns: int | None = None,
        until_ns: int | None = None,
        streams: Sequence[str] = (),
        limit: int = 10_000,
    ) -> list[GapRecord]:
        """Return the oldest gaps that begin in a time range."""
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
        """Yield every clip with its event, if that still exists; oldest first."""
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
        bounds_ns: Sequence[int],
        streams: Sequence[str] = (),
        classes: Sequence[str] = (),
        *,
        by_stream: bool = True,
    ) -> list[EventCount]:
        """Return the number of events of each class in consecutive time spans, oldest first.

        Days in the time zone of the recorder's machine, with bounds from `starts_of_days`, and
        whole hours are looked up; for other spans all events are counted.

        Args:
            bounds_ns: ascending; each but the last begins a span, of any length.
            by_stream: count each stream separately; otherwise `EventCount.stream` is empty.
        """
        with self._reading() as db:
            return queries.counts(db, bounds_ns, streams, classes, by_stream=by_stream)

    def names(self) -> tuple[list[str], list[str]]:
        """Return the streams and the classes that have events."""
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
        """Yield the connection inside a transaction.

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
        """Rename the damaged file, and return a new database with the rows that can be read.

        Raises:
            StartupError: it cannot be renamed, or no new one can be created.
        """
        try:
            kept = set_aside_database(self.path)
            db = self._open()
        except (OSError, Damage) as error:  # even the new file is damaged: the disk is faulty
            raise StartupError(f"cannot open {_WHAT} {self.path}: {error}") from error
        n_rows = salvage(db, kept, _TABLES)
        text = "%s %s %s: it is kept as %s, and a new one begins with %s of its rows"
        logger.error(text, _WHAT, self.path, why, kept.name, n_rows)
        return db


def _check(db: sqlite3.Connection) -> None:
    """Check that these are the tables of this version.

    Raises:
        Damage: they are not.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version in CHANGES:
        raise _Outdated(
            f"is of version {version}, and is brought up to date when the recorder starts: run "
            "`ast-stream record`, or `ast-stream run`"
        )
    expect_version(db, SCHEMA_VERSION)
    check_tables(db, SCHEMA)


def _make_and_check(db: sqlite3.Connection) -> None:
    """Create the tables of a new database, or check an existing one.

    Raises:
        Damage: it cannot be used.
    """
    db.execute("PRAGMA synchronous = NORMAL")
    for version in bring_up_to_date(db, CHANGES):
        logger.info("%s of version %s is brought up to date", _WHAT, version)
    make_tables(db, SCHEMA, SCHEMA_VERSION)
    check_tables(db, SCHEMA)
    if _used_bytes(db) <= _CHECKED_BYTES:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise Damage(f"is damaged ({' '.join(str(found).split())})")
    db.execute("DELETE FROM origins WHERE origin NOT IN (SELECT origin FROM events)")
    _follow_zone(db, Zone.here())


def _follow_zone(db: sqlite3.Connection, here: Zone) -> None:
    """Recount events by day, if the time zone of the machine has changed."""
    if queries.zone(db) == here and db.execute("SELECT 1 FROM zone").fetchone() is not None:
        return
    with committed(db):
        db.execute("DELETE FROM zone")
        db.executemany("INSERT INTO zone VALUES (?, ?)", here.offsets)
        for statement in COUNT_DAYS:
            db.execute(statement)


def _used_bytes(db: sqlite3.Connection) -> int:
    found = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES)
    n_pages, n_free, page_bytes = found
    return int((n_pages - n_free) * page_bytes)


_SIZES = ("page_count", "freelist_count", "page_size")


def _delete_oldest(db: sqlite3.Connection, before_ns: int | None) -> int:
    """Delete some of the oldest rows, inside a transaction; return how many.

    Args:
        before_ns: only rows older than this; None: the oldest ones.
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
    if before_ns is None:  # also other rows that are as old as the events
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


_TABLES = (
    "origins", "events", "gaps", "alerts", "alert_events", "clips", "verdicts", "positions",
)  # fmt: skip
