"""Queries of the history in SQL; each page of results is read along an index."""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from ast_stream.history.days import Zone
from ast_stream.history.records import (
    AlertQuery,
    AlertRecord,
    ClipRecord,
    EventCount,
    EventQuery,
    EventRecord,
    GapRecord,
    VerdictRecord,
)
from ast_stream.history.rows import (
    ALERT_COLUMNS,
    CLIP_COLUMNS,
    EVENT_COLUMNS,
    GAP_COLUMNS,
    VERDICT_COLUMNS,
    alert_record,
    clip_record,
    event_record,
    gap_record,
    verdict_record,
)
from ast_stream.history.schema import HOUR_NS

_MERGED = 40  # classes or streams whose pages are merged; with more, all events are scanned
_CLIPS_AT_ONCE = 1000
_DAY = timedelta(days=1)


class _Where:
    """Conditions and their values."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self.values: list[Any] = []

    def add(self, condition: str, *values: Any) -> None:
        self.conditions.append(condition)
        self.values += values

    def add_any(self, column: str, wanted: Sequence[str]) -> None:
        """Restrict a column to some values; an empty list does not restrict."""
        if wanted:
            self.add(f"{column} IN ({', '.join('?' * len(wanted))})", *wanted)

    def add_span(self, column: str, since: Any, until: Any) -> None:
        if since is not None:
            self.add(f"{column} >= ?", since)
        if until is not None:
            self.add(f"{column} < ?", until)

    def add_page(self, columns: str, after: tuple[Any, ...] | None, *, newest_first: bool) -> None:
        """Continue after the last row of the previous page."""
        if after is None:
            return
        first = columns.split(", ")[0]
        sign = "<" if newest_first else ">"
        self.add(f"{first} {sign}= ?", after[0])  # lets SQLite use the index
        self.add(f"({columns}) {sign} ({', '.join('?' * len(after))})", *after)

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


def event(db: sqlite3.Connection, event_id: str) -> EventRecord | None:
    """Return an event; None: there is none with this id."""
    row = db.execute(
        f"SELECT {EVENT_COLUMNS} FROM events JOIN origins USING (origin) WHERE id = ?", (event_id,)
    ).fetchone()
    return None if row is None else event_record(row)


def events(db: sqlite3.Connection, query: EventQuery) -> list[EventRecord]:
    """Return a page of events."""
    order = "onset_ns DESC, id DESC" if query.newest_first else "onset_ns, id"
    parts, values = [], []
    for index, wanted in _along(query):
        where = _event_conditions(query, wanted)
        parts.append(
            f"SELECT * FROM (SELECT rowid AS place, onset_ns, id FROM events INDEXED BY {index}"
            f" {where} ORDER BY {order} LIMIT ?)"
        )
        values += [*where.values, query.limit]
    # the index pages of all values are merged, and only the rows of the result are then read
    chosen = f"SELECT place FROM ({' UNION ALL '.join(parts)}) ORDER BY {order} LIMIT ?"
    rows = db.execute(
        f"SELECT {EVENT_COLUMNS} FROM events JOIN origins USING (origin)"
        f" WHERE events.rowid IN ({chosen}) ORDER BY {order}",
        [*values, query.limit],
    )
    return [event_record(row) for row in rows]


def pages(
    read: Callable[[EventQuery], list[EventRecord]], query: EventQuery
) -> Iterator[EventRecord]:
    """Yield the events of all pages."""
    query = replace(query, limit=1000)
    while page := read(query):
        yield from page
        query = replace(query, after=page[-1].key)


def gaps(
    db: sqlite3.Connection,
    since_ns: int | None,
    until_ns: int | None,
    streams: Sequence[str],
    limit: int,
) -> list[GapRecord]:
    """Return the oldest gaps that begin in a time range."""
    where = _Where()
    where.add_span("start_ns", since_ns, until_ns)
    where.add_any("stream", streams)
    rows = db.execute(
        f"SELECT {GAP_COLUMNS} FROM gaps {where} ORDER BY start_ns, stream LIMIT ?",
        [*where.values, limit],
    )
    return [gap_record(row) for row in rows]


def alerts(db: sqlite3.Connection, query: AlertQuery) -> list[AlertRecord]:
    """Return a page of alerts."""
    where = _Where()
    where.add_any("rule", query.rules)
    where.add_any("state", query.states)
    where.add_span("started_ns", query.since_ns, query.until_ns)
    if query.event_id is not None:
        where.add("id IN (SELECT alert_id FROM alert_events WHERE event_id = ?)", query.event_id)
    where.add_page("started_ns, id", query.after, newest_first=query.newest_first)
    order = "started_ns DESC, id DESC" if query.newest_first else "started_ns, id"
    rows = db.execute(
        f"SELECT {ALERT_COLUMNS} FROM alerts {where} ORDER BY {order} LIMIT ?",
        [*where.values, query.limit],
    ).fetchall()
    find = "SELECT event_id FROM alert_events WHERE alert_id = ? ORDER BY place"
    return [alert_record(row, (id for (id,) in db.execute(find, (row[0],)))) for row in rows]


def clips(db: sqlite3.Connection, event_id: str) -> list[ClipRecord]:
    """Return the parts of the recording of an event, in order."""
    rows = db.execute(
        f"SELECT {CLIP_COLUMNS} FROM clips WHERE event_id = ? ORDER BY part", (event_id,)
    )
    return [clip_record(row) for row in rows]


def clip_page(
    db: sqlite3.Connection, after: tuple[int, str, int] | None
) -> list[tuple[ClipRecord, EventRecord | None]]:
    """Return some clips with their events, oldest first."""
    where = _Where()
    where.add_page("start_ns, event_id, part", after, newest_first=False)
    rows = db.execute(
        f"SELECT {CLIP_COLUMNS} FROM clips {where} ORDER BY start_ns, event_id, part LIMIT ?",
        [*where.values, _CLIPS_AT_ONCE],
    ).fetchall()
    return [(clip_record(row), event(db, row[0])) for row in rows]


def verdicts(db: sqlite3.Connection, event_id: str | None) -> list[VerdictRecord]:
    """Return all verdicts, or those on one event, oldest first."""
    where = _Where()
    if event_id is not None:
        where.add("event_id = ?", event_id)
    rows = db.execute(
        f"SELECT {VERDICT_COLUMNS} FROM verdicts {where} ORDER BY number", where.values
    )
    return [verdict_record(row) for row in rows]


def zone(db: sqlite3.Connection) -> Zone:
    """Return the time zone by which events are counted by day."""
    rows = db.execute("SELECT since_ns, offset_s FROM zone ORDER BY since_ns").fetchall()
    return Zone(tuple((since_ns, offset_s) for since_ns, offset_s in rows) or ((0, 0),))


class _Counted(NamedTuple):
    """The table from which spans are counted.

    Attributes:
        bounds: of the spans, in the unit of `column`.
        n: SQL of the count of a row, and of the sum of several.
        is_single: each span is one value of the column.
    """

    table: str
    column: str
    bounds: Sequence[Any]
    n: tuple[str, str]
    is_single: bool


def counts(
    db: sqlite3.Connection,
    bounds_ns: Sequence[int],
    streams: Sequence[str],
    classes: Sequence[str],
    *,
    by_stream: bool,
) -> list[EventCount]:
    """Return the number of events of each class in consecutive time spans."""
    if len(bounds_ns) < 2:
        return []
    table, column, bounds, (n, sum_n), is_single = _counted(zone(db), bounds_ns)
    where = _Where()
    where.add_any("stream", streams)
    where.add_any("class", classes)
    where.add_span(column, bounds[0], bounds[-1])
    stream, place = (
        ("stream", f"{column}, class, stream") if by_stream else ("''", f"{column}, class")
    )
    asked = f"SELECT {column}, {stream}, class,"
    if by_stream and is_single:  # one row each
        question = f"{asked} {n} FROM {table} {where} ORDER BY {place}"
    else:
        question = f"{asked} {sum_n} FROM {table} {where} GROUP BY {place} ORDER BY {place}"
    rows = db.execute(question, where.values)
    if is_single:
        starts = dict(zip(bounds, bounds_ns, strict=True))
        return [EventCount(starts[key], stream, class_, n) for key, stream, class_, n in rows]
    sums: dict[tuple[int, str, str], int] = {}
    for key, stream, class_, n in rows:
        span = bisect_right(bounds, key) - 1, class_, stream
        sums[span] = sums.get(span, 0) + n
    return [
        EventCount(bounds_ns[at], stream, class_, n)
        for (at, class_, stream), n in sorted(sums.items())
    ]


def _counted(own: Zone, bounds_ns: Sequence[int]) -> _Counted:
    """Return the table that has the counts for these bounds in the fewest rows."""
    sums = "n_events", "sum(n_events)"
    if all(map(own.begins_day, bounds_ns)):
        days = [own.date_of(bound) for bound in bounds_ns]
        is_single = all(later - day == _DAY for day, later in pairwise(days))
        return _Counted("days", "day", [day.isoformat() for day in days], sums, is_single)
    if not any(bound % HOUR_NS for bound in bounds_ns):
        hours = [bound // HOUR_NS for bound in bounds_ns]
        is_single = all(later - hour == 1 for hour, later in pairwise(hours))
        return _Counted("hours", "hour", hours, sums, is_single)
    table = "events INDEXED BY events_by_time"
    return _Counted(table, "onset_ns", bounds_ns, ("1", "count(*)"), is_single=False)


def names(db: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """Return the streams and the classes that have events."""
    return _distinct(db, "stream"), _distinct(db, "class")


def _distinct(db: sqlite3.Connection, column: str) -> list[str]:
    # jumps from each value to the next in the index, skipping the events in between
    rows = db.execute(
        f"WITH RECURSIVE found (name) AS (SELECT min({column}) FROM events UNION ALL"
        f" SELECT (SELECT min({column}) FROM events WHERE {column} > name) FROM found"
        " WHERE name IS NOT NULL) SELECT name FROM found WHERE name IS NOT NULL"
    )
    return [name for (name,) in rows]


def _along(query: EventQuery) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """Yield the indexes from which a page is read, each with the value of its first column."""
    if query.has_clip:
        yield "events_recorded", None
    elif query.has_verdict or query.verdicts:
        yield "events_judged", None
    elif 0 < len(query.classes) <= _MERGED:
        for class_ in dict.fromkeys(query.classes):
            yield "events_by_class", ("class", class_)
    elif 0 < len(query.streams) <= _MERGED:
        for stream in dict.fromkeys(query.streams):
            yield "events_by_stream", ("stream", stream)
    else:
        yield "events_by_time", None


def _event_conditions(query: EventQuery, wanted: tuple[str, str] | None) -> _Where:
    where = _Where()
    if wanted is not None:
        where.add(f"{wanted[0]} = ?", wanted[1])
    if wanted is None or wanted[0] != "class":
        where.add_any("class", query.classes)
    if wanted is None or wanted[0] != "stream":
        where.add_any("stream", query.streams)
    where.add_span("onset_ns", query.since_ns, query.until_ns)
    if query.min_score is not None:
        where.add("peak >= ?", query.min_score)
    if query.has_clip is not None:
        where.add(f"has_clip = {int(query.has_clip)}")
    if query.has_verdict or query.verdicts:
        where.add("verdict IS NOT NULL")
    elif query.has_verdict is False:
        where.add("verdict IS NULL")
    where.add_any("verdict", query.verdicts)
    where.add_page("onset_ns, id", query.after, newest_first=query.newest_first)
    return where
