"""Messages and records for tests about the history."""

from __future__ import annotations

from typing import Any

from sample_messages import T0_NS, alert, event_message, gap_message

from ast_stream.history.records import ClipRecord, VerdictRecord
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import Content, FeedMessage, Scores16, Stamp
from ast_stream.units import NS_PER_SECOND

SECOND = NS_PER_SECOND


def published(
    content: Content,
    seq: int = 1,
    *,
    boot: str = "b1",
    at_ns: int = T0_NS,
    scores: Scores16 | None = None,
) -> FeedMessage:
    """Return the message as a publisher sends it."""
    return FeedMessage.of(content, Stamp(boot, seq, Moment(at_ns, at_ns), max(0, seq - 1)), scores)


def event(
    id: str = "id1", type: str = "begin", *, seq: int = 1, boot: str = "b1",
    at_ns: int | None = None, **changes: Any,
) -> FeedMessage:  # fmt: skip
    """Return a message about an event, published a second after its onset if not said otherwise."""
    onset_ns = changes.get("onset_ns", T0_NS)
    if type == "end":
        changes = {"offset_ns": onset_ns + 2 * SECOND, "offset_sample": 32_000, "mean": 0.5,
                   "reason": "quiet", "at_sample": 48_000} | changes  # fmt: skip
    content = event_message(id, type, **changes)
    return published(content, seq, boot=boot, at_ns=onset_ns + SECOND if at_ns is None else at_ns)


def whole_event(id: str, onset_ns: int, **changes: Any) -> list[FeedMessage]:
    """Return begin and end of an event."""
    return [event(id, type, onset_ns=onset_ns, **changes) for type in ("begin", "end")]


def gap(start_sample: int = 0, seq: int = 1, **changes: Any) -> FeedMessage:
    """Return a message about a gap."""
    return published(gap_message(start_sample, **changes), seq)


def alert_message(seq: int = 1, *, boot: str = "a1", **changes: Any) -> FeedMessage:
    """Return a message about an alert."""
    return published(alert(**changes), seq, boot=boot)


def clip(event_id: str = "id1", part: int = 0, **changes: Any) -> ClipRecord:
    """Return the record of a clip of eight seconds."""
    fields: dict[str, Any] = {
        "event_id": event_id,
        "part": part,
        "path": f"porch/2023-11-14/{event_id}_{part}.flac",
        "stream": "porch",
        "epoch": "aaaaaaaa",
        "start_sample": 0,
        "stop_sample": 128_000,
        "start_ns": T0_NS,
        "format": "flac",
        "size_bytes": 90_000,
    }
    return ClipRecord(**fields | changes)


def verdict(event_id: str = "id1", verdict: str = "right", **changes: Any) -> VerdictRecord:
    """Return what a person says of an event."""
    fields: dict[str, Any] = {
        "event_id": event_id, "verdict": verdict, "label": None, "by": "anna", "time_ns": T0_NS,
    }  # fmt: skip
    return VerdictRecord(**fields | changes)
