"""The tables of the history, as docs/reference/history.md describes them."""

from __future__ import annotations

from ast_stream.units import NS_PER_SECOND

SCHEMA_VERSION = 3
HOUR_NS = 3600 * NS_PER_SECOND
_MAX_TIME_NS = 8 * 10**18  # the year 2223: this program never writes later times
_TIME = f"INTEGER NOT NULL CHECK ({{0}} BETWEEN -{_MAX_TIME_NS} AND {_MAX_TIME_NS})"


def day_of(onset_ns: str) -> str:
    """Return the SQL expression of the local day of a time, by the offsets in the table `zone`."""
    return (
        f"date({onset_ns} / {NS_PER_SECOND} + coalesce((SELECT offset_s FROM zone"
        f" WHERE since_ns <= {onset_ns} ORDER BY since_ns DESC LIMIT 1),"
        " (SELECT offset_s FROM zone ORDER BY since_ns LIMIT 1), 0), 'unixepoch')"
    )


def _count(table: str, key: str) -> str:
    # the outer statement decides how conflicts in triggers are resolved, so this avoids them
    return (
        f"INSERT OR IGNORE INTO {table} VALUES ({key}, new.class, new.stream, 0); "
        f"UPDATE {table} SET n_events = n_events + 1"
        f" WHERE ({table[:-1]}, class, stream) = ({key}, new.class, new.stream)"
    )


def _uncount(table: str, key: str) -> str:
    of_old = f"WHERE ({table[:-1]}, class, stream) = ({key}, old.class, old.stream)"
    return (
        f"UPDATE {table} SET n_events = n_events - 1 {of_old}; "
        f"DELETE FROM {table} {of_old} AND n_events < 1"
    )


_COUNTS = """CREATE TABLE zone (since_ns INTEGER PRIMARY KEY, offset_s INTEGER NOT NULL) STRICT;
CREATE TABLE hours (
    hour INTEGER NOT NULL, class TEXT NOT NULL, stream TEXT NOT NULL, n_events INTEGER NOT NULL,
    PRIMARY KEY (hour, class, stream)
) STRICT, WITHOUT ROWID;
CREATE TABLE days (
    day TEXT NOT NULL, class TEXT NOT NULL, stream TEXT NOT NULL, n_events INTEGER NOT NULL,
    PRIMARY KEY (day, class, stream)
) STRICT, WITHOUT ROWID;
"""
_NEW_HOUR, _OLD_HOUR = f"new.onset_ns / {HOUR_NS}", f"old.onset_ns / {HOUR_NS}"
_NEW_DAY, _OLD_DAY = day_of("new.onset_ns"), day_of("old.onset_ns")
_COUNTING = f"""CREATE TRIGGER events_begin AFTER INSERT ON events
    BEGIN {_count("hours", _NEW_HOUR)}; {_count("days", _NEW_DAY)}; END;
CREATE TRIGGER events_go AFTER DELETE ON events
    BEGIN {_uncount("hours", _OLD_HOUR)}; {_uncount("days", _OLD_DAY)}; END;
CREATE TRIGGER events_move AFTER UPDATE OF onset_ns ON events
    WHEN {_OLD_HOUR} != {_NEW_HOUR}
    BEGIN {_count("hours", _NEW_HOUR)}; {_uncount("hours", _OLD_HOUR)}; END;
CREATE TRIGGER events_move_day AFTER UPDATE OF onset_ns ON events
    WHEN {_OLD_DAY} != {_NEW_DAY}
    BEGIN {_count("days", _NEW_DAY)}; {_uncount("days", _OLD_DAY)}; END;
"""
COUNT_DAYS = (
    "DELETE FROM days",
    f"INSERT INTO days SELECT {day_of('onset_ns')}, class, stream, count(*) FROM events"
    " INDEXED BY events_by_time GROUP BY 1, 2, 3",
)
"""Recounts the events of each day, after a change of the time zone."""
_VIEW = """CREATE VIEW all_events AS
    SELECT id, stream, class, label, class_index, epoch, model, labels, state, score, peak, mean,
        watcher_score, verifier_score, datetime(onset_ns / 1000000000, 'unixepoch') AS onset,
        (offset_ns - onset_ns) / 1e9 AS duration_s, onset_ns, offset_ns, onset_sample,
        offset_sample, at_sample, uncertainty_s, duration_reliable, reason, captured_ns, scored_ns,
        published_ns, updated_ns, verdict, has_clip
    FROM events JOIN origins USING (origin)"""
# epoch, model and labels are the same in thousands of events, so they have a table of their own
SCHEMA = f"""
CREATE TABLE origins (
    origin INTEGER PRIMARY KEY, epoch TEXT NOT NULL, model TEXT NOT NULL, labels TEXT NOT NULL,
    UNIQUE (epoch, model, labels)
) STRICT;
CREATE TABLE events (
    id TEXT PRIMARY KEY, stream TEXT NOT NULL, class TEXT NOT NULL, label TEXT NOT NULL,
    class_index INTEGER, origin INTEGER NOT NULL REFERENCES origins,
    state TEXT NOT NULL CHECK (state IN ('begin', 'update', 'end')),
    onset_ns {_TIME.format("onset_ns")}, offset_ns INTEGER,
    onset_sample INTEGER, offset_sample INTEGER, at_sample INTEGER, uncertainty_s REAL,
    duration_reliable INTEGER NOT NULL CHECK (duration_reliable IN (0, 1)), reason TEXT,
    score REAL NOT NULL, peak REAL NOT NULL, mean REAL, watcher_score REAL,
    captured_ns INTEGER, scored_ns INTEGER, published_ns INTEGER,
    updated_ns {_TIME.format("updated_ns")},
    verdict TEXT CHECK (verdict IN ('right', 'wrong', 'other', 'unsure')),
    has_clip INTEGER NOT NULL DEFAULT 0 CHECK (has_clip IN (0, 1)), verifier_score REAL
) STRICT;
CREATE INDEX events_by_time ON events (onset_ns, stream, class);
CREATE INDEX events_by_class ON events (class, onset_ns, stream);
CREATE INDEX events_by_stream ON events (stream, onset_ns, class);
CREATE INDEX events_judged ON events (onset_ns, verdict) WHERE verdict IS NOT NULL;
CREATE INDEX events_recorded ON events (onset_ns, verdict) WHERE has_clip = 1;
{_COUNTS}{_COUNTING}CREATE TABLE gaps (
    stream TEXT NOT NULL, epoch TEXT NOT NULL, start_sample INTEGER NOT NULL,
    samples INTEGER NOT NULL CHECK (samples >= 0), start_ns {_TIME.format("start_ns")},
    is_time_known INTEGER NOT NULL CHECK (is_time_known IN (0, 1)), reason TEXT NOT NULL,
    PRIMARY KEY (stream, epoch, start_sample)
) STRICT, WITHOUT ROWID;
CREATE INDEX gaps_by_time ON gaps (start_ns, stream);
CREATE TABLE alerts (
    id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, rule TEXT NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('inactive', 'pending', 'firing', 'recovering', 'resolved')),
    severity TEXT NOT NULL
        CHECK (severity IN ('informational', 'low', 'medium', 'high', 'critical')),
    group_labels TEXT NOT NULL, labels TEXT NOT NULL, annotations TEXT NOT NULL,
    started_ns {_TIME.format("started_ns")}, fired_ns INTEGER, resolved_ns INTEGER,
    suppressed INTEGER NOT NULL, reason TEXT, updated_ns {_TIME.format("updated_ns")},
    boot TEXT NOT NULL, seq INTEGER NOT NULL, best TEXT
) STRICT;
CREATE INDEX alerts_by_time ON alerts (started_ns);
CREATE TABLE alert_events (
    alert_id TEXT NOT NULL REFERENCES alerts ON DELETE CASCADE, place INTEGER NOT NULL,
    event_id TEXT NOT NULL, PRIMARY KEY (alert_id, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX alert_events_by_event ON alert_events (event_id);
CREATE TABLE clips (
    event_id TEXT NOT NULL, part INTEGER NOT NULL, path TEXT NOT NULL, stream TEXT NOT NULL,
    epoch TEXT NOT NULL, start_sample INTEGER NOT NULL, stop_sample INTEGER NOT NULL,
    start_ns {_TIME.format("start_ns")}, format TEXT NOT NULL, size_bytes INTEGER NOT NULL,
    note TEXT NOT NULL, PRIMARY KEY (event_id, part)
) STRICT;
CREATE INDEX clips_by_path ON clips (path);
CREATE INDEX clips_by_time ON clips (start_ns);
CREATE TABLE verdicts (
    number INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('right', 'wrong', 'other', 'unsure')),
    label TEXT, by TEXT NOT NULL, time_ns {_TIME.format("time_ns")}, note TEXT NOT NULL
) STRICT;
CREATE INDEX verdicts_by_event ON verdicts (event_id, number);
CREATE TABLE positions (feed TEXT PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL) STRICT;
{_VIEW}"""


def _statements(text: str) -> list[str]:
    return [statement for statement in text.split(";\n") if statement]


CHANGES = {
    1: (
        "ALTER TABLE events ADD COLUMN verifier_score REAL",
        "ALTER TABLE alerts ADD COLUMN best TEXT",
        "DROP VIEW all_events",
        _VIEW,
    ),
    2: (
        *(f"DROP TRIGGER events_{name}" for name in ("begin", "go", "move")),
        "DROP TABLE hours",
        *_statements(_COUNTS + _COUNTING),
        f"INSERT INTO hours SELECT onset_ns / {HOUR_NS}, class, stream, count(*) FROM events"
        " INDEXED BY events_by_time GROUP BY 1, 2, 3",
        *COUNT_DAYS,
    ),
}
"""The statements that migrate a database from each version to the next."""
