"""The questions that a history answers, as SQL; each page is read along an index."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from ast_stream.history.records import (
    AlertQuery,
    AlertRecord,
    ClipRecord,
    Count,
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
from ast_stream.units import NS_PER_SECOND

_MERGED = 40  # classes or streams whose pages are merged; of more, all events are looked through
_CLIPS_AT_ONCE = 1000
_STEP_NS = {"hour": HOUR_NS, "day": 24 * HOUR_NS}


class _Where:
    """Conditions and their values."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self.values: list[Any] = []

    def add(self, condition: str, *values: Any) -> None:
        self.conditions.append(condition)
        self.values += values

    def add_any(self, column: str, wanted: Sequence[str]) -> None:
        """Restrict a column to some values; none restrict nothing."""
        if wanted:
            self.add(f"{column} IN ({', '.join('?' * len(wanted))})", *wanted)

    def add_span(self, column: str, since_ns: int | None, until_ns: int | None) -> None:
        if since_ns is not None:
            self.add(f"{column} >= ?", since_ns)
        if until_ns is not None:
            self.add(f"{column} < ?", until_ns)

    def add_page(self, columns: str, after: tuple[Any, ...] | None, *, newest_first: bool) -> None:
        """Continue behind the last row of the page before."""
        if after is None:
            return
        first = columns.split(", ")[0]
        sign = "<" if newest_first else ">"
        self.add(f"{first} {sign}= ?", after[0])  # this one is looked up in the index
        self.add(f"({columns}) {sign} ({', '.join('?' * len(after))})", *after)

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


def event(db: sqlite3.Connection, event_id: str) -> EventRecord | None:
    """Return one event, None if it is not there."""
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
    # the pages of all parts are merged, and only what is on the merged one is read from the table
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
    """Return the oldest gaps that begin between two moments."""
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


def counts(
    db: sqlite3.Connection,
    by: Literal["hour", "day"],
    since_ns: int,
    until_ns: int,
    streams: Sequence[str],
    classes: Sequence[str],
    utc_offset_s: int,
) -> list[Count]:
    """Return how many events began in each hour or day, by stream and class, oldest first."""
    step_ns, shift_ns = _STEP_NS[by], utc_offset_s * NS_PER_SECOND
    by_hour = shift_ns % HOUR_NS == since_ns % HOUR_NS == until_ns % HOUR_NS == 0
    where = _Where()
    where.add_any("stream", streams)
    where.add_any("class", classes)
    if by_hour and by == "hour":
        where.add_span("hour", since_ns // HOUR_NS, until_ns // HOUR_NS)
        question = f"SELECT hour, stream, class, n_events FROM hours {where} ORDER BY 1, 2, 3"
        shift_ns = 0
    elif by_hour:
        where.add_span("hour", since_ns // HOUR_NS, until_ns // HOUR_NS)
        question = (
            f"SELECT (hour + {shift_ns // HOUR_NS}) / 24, stream, class, sum(n_events) FROM hours"
            f" {where} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )
    else:  # hours that are not whole are counted
        where.add_span("onset_ns", since_ns, until_ns)
        question = (
            f"SELECT (onset_ns + {shift_ns}) / {step_ns}, stream, class, count(*) FROM events"
            f" INDEXED BY events_by_time {where} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )
    return [
        Count(number * step_ns - shift_ns, stream, class_, n)
        for number, stream, class_, n in db.execute(question, where.values)
    ]


def names(db: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """Return the streams, and the classes, of which there are events."""
    return _distinct(db, "stream"), _distinct(db, "class")


def _distinct(db: sqlite3.Connection, column: str) -> list[str]:
    # from each value to the next along the index, without the events in between
    rows = db.execute(
        f"WITH RECURSIVE found (name) AS (SELECT min({column}) FROM events UNION ALL"
        f" SELECT (SELECT min({column}) FROM events WHERE {column} > name) FROM found"
        " WHERE name IS NOT NULL) SELECT name FROM found WHERE name IS NOT NULL"
    )
    return [name for (name,) in rows]


def _along(query: EventQuery) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """Yield the indexes along which a page is read, and the value of their first column."""
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
