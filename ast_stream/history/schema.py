"""The tables of the history, as docs/reference/history.md describes them."""

from __future__ import annotations

from ast_stream.units import NS_PER_SECOND

SCHEMA_VERSION = 1
HOUR_NS = 3600 * NS_PER_SECOND
_MAX_TIME_NS = 8 * 10**18  # the year 2223: what is beyond was not written by this program
_TIME = f"INTEGER NOT NULL CHECK ({{0}} BETWEEN -{_MAX_TIME_NS} AND {_MAX_TIME_NS})"

# outer statements decide what becomes of conflicts in triggers, so these make none
_COUNT = (
    f"INSERT OR IGNORE INTO hours VALUES (new.onset_ns / {HOUR_NS}, new.stream, new.class, 0); "
    "UPDATE hours SET n_events = n_events + 1 WHERE (hour, stream, class)"
    f" = (new.onset_ns / {HOUR_NS}, new.stream, new.class)"
)
_UNCOUNT = (
    "UPDATE hours SET n_events = n_events - 1 WHERE (hour, stream, class)"
    f" = (old.onset_ns / {HOUR_NS}, old.stream, old.class); "
    "DELETE FROM hours WHERE (hour, stream, class)"
    f" = (old.onset_ns / {HOUR_NS}, old.stream, old.class) AND n_events < 1"
)
# epoch, model and labels are the same in thousands of events: a row of their own for all of them
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
    has_clip INTEGER NOT NULL DEFAULT 0 CHECK (has_clip IN (0, 1))
) STRICT;
CREATE INDEX events_by_time ON events (onset_ns, stream, class);
CREATE INDEX events_by_class ON events (class, onset_ns, stream);
CREATE INDEX events_by_stream ON events (stream, onset_ns, class);
CREATE INDEX events_judged ON events (onset_ns, verdict) WHERE verdict IS NOT NULL;
CREATE INDEX events_recorded ON events (onset_ns, verdict) WHERE has_clip = 1;
CREATE TABLE hours (
    hour INTEGER NOT NULL, stream TEXT NOT NULL, class TEXT NOT NULL, n_events INTEGER NOT NULL,
    PRIMARY KEY (hour, stream, class)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER events_begin AFTER INSERT ON events BEGIN {_COUNT}; END;
CREATE TRIGGER events_go AFTER DELETE ON events BEGIN {_UNCOUNT}; END;
CREATE TRIGGER events_move AFTER UPDATE OF onset_ns ON events
    WHEN old.onset_ns / {HOUR_NS} != new.onset_ns / {HOUR_NS} BEGIN {_COUNT}; {_UNCOUNT}; END;
CREATE TABLE gaps (
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
    boot TEXT NOT NULL, seq INTEGER NOT NULL
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
CREATE VIEW all_events AS
    SELECT id, stream, class, label, class_index, epoch, model, labels, state, score, peak, mean,
        watcher_score, datetime(onset_ns / 1000000000, 'unixepoch') AS onset,
        (offset_ns - onset_ns) / 1e9 AS duration_s, onset_ns, offset_ns, onset_sample,
        offset_sample, at_sample, uncertainty_s, duration_reliable, reason, captured_ns, scored_ns,
        published_ns, updated_ns, verdict, has_clip
    FROM events JOIN origins USING (origin)
"""
