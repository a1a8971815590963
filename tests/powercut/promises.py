"""What a box has told anyone is true after a power cut: checked with the code that reopens it."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from busy_minute import LEDGER_SIZES, LOG_SIZES, SETTINGS, Alerts, held

from ast_stream.alerts.notification import Notification
from ast_stream.coverage.ledger import CoverageLedger, read_spans
from ast_stream.coverage.spans import Span, merged
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import BOOT_TOPIC, FeedMessage, Position
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import DeduplicatingPublisher, FeedPublisher, SyncedFirst
from ast_stream.transport.requester import Requester
from ast_stream.worker.journal import JournalFile

N_CLASSES = 3
NEW_BOOT = "f" * 16
_Row = tuple[str, str, str]


@dataclass
class Told:
    """What the box had told until a moment, from its marks.

    Attributes:
        sent: durable messages on the feed, in their order.
        n_synced: how many of them were sent before the save that last acknowledged audio.
        acked: epoch and sample up to which audio was acknowledged, by stream.
        committed: rows that the outbox has taken.
        delivered: rows that a receiver has.
        heard: what was added to the ledger.
        n_ledgered: how many of that before it was last saved.
    """

    sent: list[tuple[Position, dict[str, Any]]] = field(default_factory=list)
    n_synced: int = 0
    acked: dict[str, tuple[str, int]] = field(default_factory=dict)
    committed: set[_Row] = field(default_factory=set)
    delivered: set[_Row] = field(default_factory=set)
    heard: list[Span] = field(default_factory=list)
    n_ledgered: int = 0
    _n_sent_at_save: int = 0

    def note(self, mark: dict[str, Any]) -> None:
        """Add a mark."""
        ((kind, value),) = mark.items()
        match kind:
            case "sent":
                self.sent.append(((value[0], value[1]), value[2]))
            case "acked":
                self.acked[value[0]] = (value[1], value[2])
                self.n_synced = self._n_sent_at_save
            case "committed":
                self.committed |= {tuple(row) for row in value}  # type: ignore[misc]
            case "delivered":
                self.delivered.add(tuple(value))  # type: ignore[arg-type]
            case "heard":
                self.heard.append(Span.from_json(value, "span"))
            case "ledgered":
                self.n_ledgered, self._n_sent_at_save = len(self.heard), len(self.sent)


class Silence:
    """A feed that nobody reads."""

    def send(self, frames: list[bytes]) -> bool:
        return True

    def has_reader(self, topic: bytes) -> bool:
        return False

    def readers(self, topic: bytes) -> list[Requester]:
        return []


def broken(folder: Path, told: Told, now_ns: int, *, syncs_first: bool) -> list[str]:
    """Return which promises the files of a box break, each as a sentence.

    Args:
        folder: as the power cut left it; changed by this.
        now_ns: when the box starts again.
        syncs_first: each event was promised, and not begins alone and what was before the last
            acknowledgement.
    """
    found = []
    found += _ledger(folder, told)
    found += _journal(folder, told)
    found += _event_log(folder, told, now_ns, syncs_first=syncs_first)
    found += _alerts(folder, told, now_ns, syncs_first=syncs_first)
    return found


def _event_log(folder: Path, told: Told, now_ns: int, *, syncs_first: bool) -> list[str]:
    found = []
    log = _open_log(folder)
    messages = held(log)
    by_position = {message.position: message.body for message in messages}
    if len(by_position) != len(messages):
        found.append("event log: a position is there twice")
    for position, body in told.sent:
        if by_position.get(position, body) != body:
            found.append(f"event log: {position} has another content than was sent")
    n_promised = len(told.sent) if syncs_first else told.n_synced
    promised = [position for position, _ in told.sent[:n_promised]]
    kept = [position for position in promised if position in by_position]
    lost = promised[len(promised) - len(kept) :] != kept
    if lost or (len(kept) < len(promised) and not _is_full(folder)):
        missing = [position for position in promised if position not in by_position]
        found.append(f"event log: {len(missing)} promised messages are lost, last {missing[-1]}")
    if syncs_first:
        found += _holes(messages, {position for position, _ in told.sent})
    begun = {body["id"] for _, body in told.sent if body.get("type") == "begin"}
    unknown = begun - {message.body["id"] for message in _events(messages, "begin")}
    if unknown and not _is_full(folder):
        found.append(f"event log: {len(unknown)} events have begun for subscribers alone")
    synced_first: SyncedFirst = "each event" if syncs_first else "begins"
    feed = FeedPublisher(
        Silence(), log, NEW_BOOT, lambda: _moment(now_ns), synced_first=synced_first
    )
    publisher = DeduplicatingPublisher(feed, log, "model", lambda: _moment(now_ns))
    for stream in publisher.orphaned_streams:
        publisher.end_orphans(stream)
    feed.flush()
    log.close()
    log = _open_log(folder)
    messages = held(log)
    log.close()
    ends = Counter(message.body["id"] for message in _events(messages, "end"))
    for message in _events(messages, "begin"):
        if ends[message.body["id"]] != 1:
            found.append(f"event log: {message.body['id']} has {ends[message.body['id']]} ends")
    sent_ends = {body["id"] for _, body in told.sent[:n_promised] if body.get("type") == "end"}
    for message in _events(messages, "end"):
        if message.position[0] == NEW_BOOT and message.body["id"] in sent_ends:
            found.append(f"event log: {message.body['id']} was told to end, and ends again")
    return found


def _open_log(folder: Path) -> EventLog:
    return EventLog(folder / "events", spare=folder / "unlogged.jsonl", **LOG_SIZES)


def _is_full(folder: Path) -> bool:
    """Return whether the log has had to forget its oldest segment."""
    return not (folder / "events" / "events-000000000001.jsonl").exists()


def _holes(messages: list[FeedMessage], sent: set[Position]) -> list[str]:
    """Return where messages are missing before one that was sent.

    Those that were not may survive in part: nobody has been told of what they lack.
    """
    found = []
    for before, after in itertools.pairwise(messages):
        is_next = before.position[0] == after.position[0] and after.topic != BOOT_TOPIC
        if is_next and after.position in sent and before.position != after.position_before:
            found.append(f"event log: a hole between {before.position} and {after.position}")
    return found


def _events(messages: list[FeedMessage], kind: str) -> list[FeedMessage]:
    return [message for message in messages if message.body.get("type") == kind]


def _ledger(folder: Path, told: Told) -> list[str]:
    found = []
    truth = _by_sample(merged(told.heard))
    claimed = _ledger_spans(folder)
    found += [f"ledger: claims {span}" for span in claimed if not _is_within(span, truth)]
    ledger = CoverageLedger(folder / "coverage", folder / "unwritten.jsonl", **LEDGER_SIZES)
    ledger.close()
    again = _ledger_spans(folder)
    if _seconds(again) < _seconds(claimed):
        found.append("ledger: opening it lost spans")
    kept = _by_sample(again)
    last: dict[str, Span] = {span.stream: span for span in merged(told.heard[: told.n_ledgered])}
    for span in merged(told.heard[: told.n_ledgered]):
        if span != last[span.stream] and not _is_within(span, kept):
            found.append(f"ledger: {span} was written, and is lost")
    return found


def _ledger_spans(folder: Path) -> list[Span]:
    spans = read_spans(folder / "coverage", folder / "unwritten-coverage.jsonl")
    return [span for of_stream in spans.values() for span in of_stream]


def _by_sample(spans: list[Span]) -> dict[tuple[str, str, str], list[tuple[int, int]]]:
    ranges: dict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)
    for span in spans:
        place = ranges[span.stream, span.epoch, span.kind]
        if place and place[-1][1] == span.start_sample:
            place[-1] = (place[-1][0], span.stop_sample)
        else:
            place.append((span.start_sample, span.stop_sample))
    return ranges


def _is_within(span: Span, ranges: dict[tuple[str, str, str], list[tuple[int, int]]]) -> bool:
    of_kind = ranges.get((span.stream, span.epoch, span.kind), [])
    return any(start <= span.start_sample and span.stop_sample <= stop for start, stop in of_kind)


def _seconds(spans: list[Span]) -> int:
    return sum(span.samples for span in spans)


def _journal(folder: Path, told: Told) -> list[str]:
    path = folder / "journal.json"
    found = []
    for stream, record in JournalFile(path, SETTINGS, N_CLASSES).load().items():
        epoch, stop = told.acked.get(stream, ("", 0))
        if record.epoch == epoch and record.position < stop:
            found.append(f"journal: {stream} goes on at {record.position}, {stop} is acknowledged")
    return found


def _alerts(folder: Path, told: Told, now_ns: int, *, syncs_first: bool) -> list[str]:
    found = []
    delivered = set(told.delivered)

    def mark(what: dict[str, Any]) -> None:
        if "delivered" in what:
            delivered.add(tuple(what["delivered"]))

    alerts = Alerts(folder, lambda: now_ns, mark)
    rows = alerts.rows()
    found += [f"outbox: {row} was taken, and is lost" for row in told.committed - rows.keys()]
    for row, state in rows.items():
        if state == "done" and row not in told.delivered:
            found.append(f"outbox: {row} counts as delivered, and nobody has it")
    log = _open_log(folder)
    messages = held(log, after=alerts.feed.position)
    log.close()
    alerts.feed.waiting += [message for message in messages if message.topic != BOOT_TOPIC]
    alerts.turn()
    alerts.deliver()
    rows = alerts.rows()
    found += [f"outbox: {row} is not delivered" for row in rows if rows[row] == "pending"]
    for alert_id, kind, action in told.committed - delivered:
        state = rows.get((alert_id, kind, action), "lost")
        if state != "superseded" or (alert_id, "resolved", action) not in delivered:
            found.append(f"outbox: {kind} of {alert_id} by {action} was taken, and nobody gets it")
    found += _alerts_of(alerts, messages, is_complete=syncs_first)
    alerts.close()
    return found


def _alerts_of(alerts: Alerts, messages: list[FeedMessage], *, is_complete: bool) -> list[str]:
    """Return which events have no alert or two, and which alerts go on though all events ended."""
    found = []
    first_events: dict[str, str] = {}
    with alerts.store.reading() as db:
        for alert_id, payload in db.execute("SELECT alert_id, payload FROM deliveries"):
            event_id = Notification.decode(payload).alert.events[0]
            if first_events.setdefault(event_id, alert_id) != alert_id:
                found.append(f"alerts: event {event_id} has two")
        query = "SELECT id FROM alerts WHERE state NOT IN ('inactive', 'resolved')"
        active = [alert_id for (alert_id,) in db.execute(query)]
    if is_complete:
        found += [f"alerts: {alert_id} goes on for ever" for alert_id in active]
    for message in _events(messages, "begin"):
        if message.body["id"] not in first_events:
            found.append(f"alerts: event {message.body['id']} has none")
    return found


def _moment(now_ns: int) -> Moment:
    return Moment(now_ns, now_ns)
