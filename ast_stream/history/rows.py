"""Writes feed messages to the database, and reads its rows as records."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from ast_stream.history.records import (
    AlertRecord,
    ClipRecord,
    EventRecord,
    GapRecord,
    VerdictRecord,
)
from ast_stream.messages.alert import Alert
from ast_stream.messages.event import EventMessage, FeedMessage, GapMessage
from ast_stream.units import NS_PER_SECOND

KINDS = ("event", "gap", "alert")
"""First words of the topics that are stored in the history."""

# a long event is published each second; its row is updated less often
_UPDATE_EVERY_NS = 10 * NS_PER_SECOND

EVENT_COLUMNS = (
    "id, stream, class, label, class_index, state, score, peak, mean, onset_ns, offset_ns, "
    "onset_sample, offset_sample, at_sample, uncertainty_s, duration_reliable, reason, "
    "watcher_score, verifier_score, captured_ns, scored_ns, published_ns, updated_ns, epoch, "
    "model, labels, verdict, has_clip"
)
GAP_COLUMNS = "stream, epoch, start_sample, samples, start_ns, is_time_known, reason"
ALERT_COLUMNS = (
    "id, fingerprint, rule, state, severity, group_labels, labels, annotations, started_ns, "
    "fired_ns, resolved_ns, suppressed, reason, updated_ns, best"
)
CLIP_COLUMNS = (
    "event_id, part, path, stream, epoch, start_sample, stop_sample, start_ns, format, "
    "size_bytes, note"
)
VERDICT_COLUMNS = "event_id, verdict, label, by, time_ns, note"

_RELIABLE = EVENT_COLUMNS.split(", ").index("duration_reliable")

_INSERT_EVENT = """
INSERT INTO events (id, stream, class, label, class_index, origin, state, onset_ns, offset_ns,
    onset_sample, offset_sample, at_sample, uncertainty_s, duration_reliable, reason, score, peak,
    mean, watcher_score, verifier_score, captured_ns, scored_ns, published_ns, updated_ns)
VALUES (:id, :stream, :class, :label, :class_index, :origin, :state, :onset_ns, :offset_ns,
    :onset_sample, :offset_sample, :at_sample, :uncertainty_s, :duration_reliable, :reason, :score,
    :peak, :mean, :watcher_score, :verifier_score, :captured_ns, :scored_ns, :published_ns,
    :updated_ns)
ON CONFLICT (id) DO NOTHING
"""
_SET_BEGIN = """
UPDATE events SET score = :score, watcher_score = :watcher_score,
    verifier_score = :verifier_score, captured_ns = :captured_ns,
    scored_ns = :scored_ns, published_ns = :published_ns
WHERE id = :id AND published_ns IS NULL
"""
_SET_UPDATE = f"""
UPDATE events SET state = 'update', peak = max(peak, :peak), at_sample = :at_sample,
    updated_ns = :updated_ns
WHERE id = :id AND state != 'end' AND coalesce(at_sample <= :at_sample, 1)
    AND (peak < :peak OR updated_ns + {_UPDATE_EVERY_NS} <= :updated_ns)
"""
_SET_END = """
UPDATE events SET state = 'end', peak = max(peak, :peak), mean = :mean,
    onset_ns = :onset_ns, offset_ns = :offset_ns, onset_sample = :onset_sample,
    offset_sample = :offset_sample, at_sample = :at_sample, reason = :reason,
    uncertainty_s = :uncertainty_s, duration_reliable = :duration_reliable,
    updated_ns = :updated_ns
WHERE id = :id AND state != 'end'
"""

_CHANGE_ALERT = """
ON CONFLICT (id) DO UPDATE SET state = excluded.state, annotations = excluded.annotations,
    fired_ns = excluded.fired_ns, resolved_ns = excluded.resolved_ns,
    suppressed = excluded.suppressed, reason = excluded.reason, updated_ns = excluded.updated_ns,
    boot = excluded.boot, seq = excluded.seq, best = excluded.best
WHERE state != 'resolved' AND (boot != excluded.boot OR seq < excluded.seq)
"""


def write_message(db: sqlite3.Connection, message: FeedMessage) -> None:
    """Store a message, inside a transaction; a repeated message changes nothing.

    Raises:
        WireError: it does not follow the format.
    """
    match message.content():
        case EventMessage() as event:
            _write_event(db, event, message.published_ns or event.captured_ns)
        case GapMessage() as gap:
            _write_gap(db, gap, message.published_ns or 0)
        case Alert() as alert:
            _write_alert(db, alert, message)


def event_record(row: Sequence[Any]) -> EventRecord:
    """Return the record of a row of `EVENT_COLUMNS`."""
    fields = list(row)
    fields[_RELIABLE] = bool(fields[_RELIABLE])
    epoch, model, labels, verdict, has_clip = fields[-5:]
    fields[-5:] = epoch or None, model or None, _words(labels), verdict, bool(has_clip)
    return EventRecord(*fields)


def gap_record(row: Sequence[Any]) -> GapRecord:
    """Return the record of a row of `GAP_COLUMNS`."""
    stream, epoch, start_sample, samples, start_ns, is_time_known, reason = row
    return GapRecord(stream, epoch, start_sample, samples, start_ns, bool(is_time_known), reason)


def alert_record(row: Sequence[Any], events: Iterable[str]) -> AlertRecord:
    """Return the record of a row of `ALERT_COLUMNS` and the ids of its events."""
    id, fingerprint, rule, state, severity, group, labels, annotations, *times = row
    started_ns, fired_ns, resolved_ns, suppressed, reason, updated_ns, best = times
    words = _words(group), _words(labels), _words(annotations)
    return AlertRecord(
        id, fingerprint, rule, state, severity, *words,
        started_ns, fired_ns, resolved_ns, tuple(events), suppressed, reason, updated_ns, best,
    )  # fmt: skip


def clip_record(row: Sequence[Any]) -> ClipRecord:
    """Return the record of a row of `CLIP_COLUMNS`."""
    return ClipRecord(*row)


def verdict_record(row: Sequence[Any]) -> VerdictRecord:
    """Return the record of a row of `VERDICT_COLUMNS`."""
    return VerdictRecord(*row)


def _write_event(db: sqlite3.Connection, event: EventMessage, updated_ns: int) -> None:
    is_begin = event.type == "begin"
    row: dict[str, Any] = {
        "id": event.id,
        "stream": event.stream,
        "class": event.class_,
        "label": event.label,
        "class_index": event.index,
        "state": event.type,
        "onset_ns": event.onset_ns,
        "offset_ns": event.offset_ns,
        "onset_sample": event.onset_sample,
        "offset_sample": event.offset_sample,
        "at_sample": event.at_sample,
        "uncertainty_s": event.uncertainty_s,
        "duration_reliable": int(event.duration_reliable),
        "reason": event.reason,
        "score": event.score,
        "peak": event.peak,
        "mean": event.mean,
        "watcher_score": event.watcher_score,
        "verifier_score": event.verifier_score,
        "captured_ns": event.captured_ns if is_begin else None,
        "scored_ns": event.scored_ns if is_begin else None,
        "published_ns": updated_ns if is_begin else None,
        "updated_ns": updated_ns,
    }
    change = {"begin": _SET_BEGIN, "update": _SET_UPDATE, "end": _SET_END}[event.type]
    if db.execute(change, row).rowcount or _has_event(db, event.id):
        return
    row["origin"] = _origin(db, event)
    db.execute(_INSERT_EVENT, row)
    _note_what_came_before(db, event.id)


def _has_event(db: sqlite3.Connection, event_id: str) -> bool:
    return db.execute("SELECT 1 FROM events WHERE id = ?", (event_id,)).fetchone() is not None


def _origin(db: sqlite3.Connection, event: EventMessage) -> int:
    origin = event.epoch or "", event.model or "", _json(event.labels)
    db.execute("INSERT OR IGNORE INTO origins (epoch, model, labels) VALUES (?, ?, ?)", origin)
    (number,) = db.execute(
        "SELECT origin FROM origins WHERE (epoch, model, labels) = (?, ?, ?)", origin
    ).fetchone()
    return int(number)


def _note_what_came_before(db: sqlite3.Connection, event_id: str) -> None:
    """Update a new row from the clip and the verdict that were written before it."""
    db.execute(
        "UPDATE events SET has_clip = 1 WHERE id = ?"
        " AND id IN (SELECT event_id FROM clips WHERE path != '')",
        (event_id,),
    )
    set_verdict(db, event_id)


def set_verdict(db: sqlite3.Connection, event_id: str) -> None:
    """Update the row of an event from its newest verdict."""
    db.execute(
        "UPDATE events SET verdict = (SELECT verdict FROM verdicts WHERE event_id = events.id"
        " ORDER BY number DESC LIMIT 1)"
        " WHERE id = ? AND id IN (SELECT event_id FROM verdicts)",
        (event_id,),
    )


def _write_gap(db: sqlite3.Connection, gap: GapMessage, published_ns: int) -> None:
    known = gap.time_ns is not None
    start_ns = gap.time_ns if gap.time_ns is not None else published_ns
    db.execute(
        f"INSERT INTO gaps ({GAP_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET samples = max(samples, excluded.samples)",
        (gap.stream, gap.epoch, gap.start_sample, gap.samples, start_ns, int(known), gap.reason),
    )


def _write_alert(db: sqlite3.Connection, alert: Alert, message: FeedMessage) -> None:
    boot, seq = message.position
    values = (
        alert.id, alert.fingerprint, alert.rule, alert.state, alert.severity, _json(alert.group),
        _json(alert.labels), _json(alert.annotations), alert.started_ns, alert.fired_ns,
        alert.resolved_ns, alert.suppressed, alert.reason,
        message.published_ns or alert.started_ns, alert.best, boot, seq,
    )  # fmt: skip
    changed = db.execute(
        f"INSERT INTO alerts ({ALERT_COLUMNS}, boot, seq)"
        f" VALUES ({', '.join('?' * len(values))}) {_CHANGE_ALERT}",
        values,
    ).rowcount
    if changed:
        db.execute("DELETE FROM alert_events WHERE alert_id = ?", (alert.id,))
        db.executemany(
            "INSERT INTO alert_events (alert_id, place, event_id) VALUES (?, ?, ?)",
            [(alert.id, place, event_id) for place, event_id in enumerate(alert.events)],
        )


def _json(words: dict[str, str]) -> str:
    return json.dumps(words, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def _words(text: str) -> dict[str, str]:
    """Return the key-value pairs in a column; empty if they are damaged."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
