"""What anyone could know of a recorder is true after a power cut, and its files agree."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from busy_minute import held
from clocks import FakeSeconds
from promises import NEW_BOOT, Silence
from recorded_minute import LOG_SIZES, SOUND, RecorderBox, Worker, scores_at
from sample_messages import STREAM, T0_NS

from ast_stream.history.database import FILE, History
from ast_stream.history.records import EventQuery
from ast_stream.history.score_log import ScoreReader
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import BOOT_TOPIC, Position
from ast_stream.recorder.fetcher import ABSENT_S, IDLE_S
from ast_stream.recorder.folder import WAITING
from ast_stream.recorder.loop import ONLY_FEED
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import DeduplicatingPublisher, FeedPublisher
from ast_stream.units import seconds_to_ns

RESTARTED_S = 600.0


@dataclass
class Known:
    """What could be known until a moment, from the marks of the recorder.

    Attributes:
        sent: durable messages on the feed, in their order.
        named: events of which there was an alert.
        judged: verdicts that were confirmed to whoever gave them: event and verdict.
        shown: clips of which the history said that they are kept, and still are.
        deleted: clips that had to go by the limits, before the power cut or after it.
    """

    sent: list[tuple[Position, dict[str, Any]]] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    judged: list[tuple[str, str]] = field(default_factory=list)
    shown: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)

    def note(self, mark: dict[str, Any]) -> None:
        """Add a mark."""
        ((kind, value),) = mark.items()
        match kind:
            case "sent":
                self.sent.append(((value[0], value[1]), value[2]))
            case "named":
                self.named.append(value)
            case "judged":
                self.judged.append((value[0], value[1]))
            case "shown":
                self.shown.add(value)
            case "deleted":
                self.shown.discard(value)
                self.deleted.add(value)


def broken(folder: Path, known: Known) -> list[str]:
    """Return which promises the files of a recorder break, each as a sentence.

    Args:
        folder: as the power cut left it; changed by this.
    """
    clock, known = FakeSeconds(RESTARTED_S), replace(known, deleted=set(known.deleted))
    log = _end_what_is_open(folder, T0_NS + seconds_to_ns(RESTARTED_S))
    box = RecorderBox(
        folder, Worker(has_sound=False), clock, lambda mark: known.deleted.update(mark.values())
    )
    box.outbox.named = known.named
    missed = held(log, box.history.positions().get(ONLY_FEED))
    box.feed.waiting = [message for message in missed if message.topic != BOOT_TOPIC]
    log.close()
    for _ in range(round((IDLE_S + ABSENT_S) / 5) + 8):
        clock.now_s += 5.0
        box.recorder.step()
    box.stop()
    found = [f"{path.name} was set aside" for path in folder.rglob("*damaged*")]
    with History.open_read_only(folder / "history" / FILE) as history:
        found += _history(history, known)
        found += _clips(history, folder / "clips", known)
    found += _counts(folder / "history" / FILE)
    found += _scores(folder / "scores")
    return found


def _end_what_is_open(folder: Path, now_ns: int) -> EventLog:
    """Do with the log of the worker what its next start does."""
    log = EventLog(folder / "events", **LOG_SIZES)

    def now() -> Moment:
        return Moment(now_ns, now_ns)

    feed = FeedPublisher(Silence(), log, NEW_BOOT, now, synced_first="each event")
    publisher = DeduplicatingPublisher(feed, log, "model", now)
    for stream in publisher.orphaned_streams:
        publisher.end_orphans(stream)
    feed.flush()
    return log


def _history(history: History, known: Known) -> list[str]:
    found = []
    events = {event.id: event for event in history.all_events(EventQuery())}
    for position, body in known.sent:
        if "id" in body and (event := events.get(body["id"])) is None:
            found.append(f"history: the event {body['id']} of {position} is lost")
        elif body.get("type") == "end" and event is not None and event.reason != body["reason"]:
            found.append(f"history: {body['id']} did not end as was said")
    found += [f"history: {event.id} goes on for ever" for event in events.values() if event.is_open]
    gaps = {gap.start_sample for gap in history.gaps()}
    lost = {body["start"] for _, body in known.sent if "samples" in body} - gaps
    found += [f"history: the gap at {start} is lost" for start in sorted(lost)]
    judged = [(one.event_id, one.verdict) for one in history.verdicts()]
    if judged[: len(known.judged)] != known.judged:
        found.append(f"history: of the verdicts {known.judged} there are {judged}")
    newest: dict[str, str] = dict(judged)  # type: ignore[arg-type]
    for event in events.values():
        if event.verdict != newest.get(event.id):
            found.append(f"history: {event.id} counts as {event.verdict}")
        has_gone = any(f"_{event.id}." in path for path in known.deleted)
        if event.label == "Bark" and not history.clips(event.id) and not has_gone:
            found.append(f"clips: {event.id} has none, and nobody says why")
        if event.has_clip != any(clip.path for clip in history.clips(event.id)):
            found.append(f"history: {event.id} says of its clip what is not so")
    return found


def _clips(history: History, folder: Path, known: Known) -> list[str]:
    rows = {clip.path: clip for clip, _ in history.all_clips() if clip.path}
    names = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }
    kept = {name for name in names if name.endswith(".flac") and not name.startswith(WAITING)}
    found = [
        f"clips: {path} was shown, and is gone"
        for path in sorted(known.shown - known.deleted - kept)
    ]
    found += [f"clips: the history knows {path}, which is not there" for path in rows.keys() - kept]
    found += [f"clips: the history does not know {path}" for path in kept - rows.keys()]
    sheets = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    clips = {name.removesuffix(".flac") for name in names if name.endswith(".flac")}
    found += [f"clips: {name} is without sound or sheet" for name in sheets ^ clips]
    left = [name for name in names if not name.endswith((".json", ".flac"))]
    found += [f"clips: {name} is left over" for name in left]
    for path, clip in rows.items():
        if path in kept:
            pcm, _ = soundfile.read(folder / path, dtype="int16")
            if not np.array_equal(pcm, SOUND[clip.start_sample : clip.stop_sample]):
                found.append(f"clips: {path} is not what was heard")
    return found


def _counts(file: Path) -> list[str]:
    """Compare what is counted as events come and go with the events."""
    found = []
    with closing(sqlite3.connect(file)) as db:
        there = dict(db.execute("SELECT class, count(*) FROM events GROUP BY 1"))
        for table in ("hours", "days"):
            counted = dict(db.execute(f"SELECT class, sum(n_events) FROM {table} GROUP BY 1"))
            if counted != there:
                found.append(f"history: {table} counts {counted} of {there}")
    return found


def _scores(folder: Path) -> list[str]:
    for span in ScoreReader(folder).read(STREAM, 0, 2**62):
        for end, row in zip(span.ends.tolist(), span.scores, strict=True):
            if row.tobytes() != scores_at(end).tobytes():
                return [f"scores: those at {end} are not what was published"]
    return []
