"""Messages of the feed as a worker and an alerts process send them, for tests about their way."""

from __future__ import annotations

from typing import Any

from ast_stream.labels import slug
from ast_stream.messages.alert import Alert
from ast_stream.messages.event import EventMessage, GapMessage, ScoresHeader
from ast_stream.messages.fleet import BoxReport, ClockReport, StreamReport, WorkerReport
from ast_stream.messages.levels import LevelsMessage
from ast_stream.messages.spectrogram import SpectrogramHeader
from ast_stream.messages.status import (
    AlertsStatus,
    FailingAction,
    ForwardStatus,
    Health,
    OutputStatus,
    RecorderStatus,
    WorkerFacts,
    WorkerStatus,
)

STREAM, EPOCH = "porch", "aaaaaaaa"
T0_NS = 1_700_000_000_000_000_000
FACTS = WorkerFacts(
    model="sha256:tiny", device="cpu", precision="fp32", attention="math", window_s=1.0, torch="0"
)
FAILING = FailingAction(action="p", waiting=1, attempts=3, lost=False, error="no route")


def event_message(id: str = "id1", type: str = "begin", **changes: Any) -> EventMessage:
    """Return a message about a bark on the porch."""
    fields: dict[str, Any] = {
        "id": id,
        "type": type,
        "stream": STREAM,
        "label": "Bark",
        "score": 0.8,
        "peak": 0.9,
        "onset_ns": T0_NS,
        "onset_sample": 0,
        "at_sample": 16_000,
        "epoch": EPOCH,
        "captured_ns": T0_NS,
    }
    fields |= changes
    return EventMessage(**{"class_": slug(fields["label"])} | fields)


def gap_message(start_sample: int = 0, **changes: Any) -> GapMessage:
    """Return a gap of one second on the porch."""
    fields: dict[str, Any] = {
        "stream": STREAM,
        "epoch": EPOCH,
        "start_sample": start_sample,
        "samples": 16_000,
        "duration_s": 1.0,
        "reason": "overflow",
    }
    return GapMessage(**fields | changes)


def scores_header() -> ScoresHeader:
    """Return what goes before the scores of the porch."""
    return ScoresHeader(stream=STREAM, epoch=EPOCH, end_sample=16_000, time_ns=T0_NS)


def spectrogram_header(frames: int = 2) -> SpectrogramHeader:
    """Return what goes before levels of the porch."""
    return SpectrogramHeader(
        stream=STREAM, epoch=EPOCH, start_sample=16_000, time_ns=T0_NS, frames=frames
    )


def levels_message(start_sample: int = 16_000, **changes: Any) -> LevelsMessage:
    """Return the levels of a calibrated second on the porch."""
    fields: dict[str, Any] = {
        "stream": STREAM,
        "epoch": EPOCH,
        "start_sample": start_sample,
        "time_ns": T0_NS,
        "calibrated": True,
        "third_octaves": {"25": 30.0, "1000": 51.5},
        **{"laeq": 55.0, "laf_max": 60.0, "laf_min": 50.0, "l10": 58.0, "l50": 54.0, "l90": 51.0},
    }
    return LevelsMessage(**fields | changes)


def health(stream: str = STREAM, **changes: Any) -> Health:
    """Return the health of a stream that is listened to."""
    return Health(**{"stream": stream, "state": "listening"} | changes)


def worker_status(**changes: Any) -> WorkerStatus:
    """Return the status of a worker that has nothing to do."""
    fields: dict[str, Any] = {
        "streams": [STREAM],
        "windows_per_s": 0.0,
        "lag_s": None,
        "uptime_s": 0.0,
        "disk": None,
        "counters": {},
    }
    return WorkerStatus(**dict(FACTS) | fields | changes)


def alerts_status(**changes: Any) -> AlertsStatus:
    """Return the status of an alerts process that has nothing to do."""
    fields: dict[str, Any] = {
        "n_rules": 1,
        "hears_worker": True,
        "pending": 0,
        "disk": None,
        "failing": [],
        "pending_by_action": {},
    }
    return AlertsStatus(**fields | changes)


def forward_status(**changes: Any) -> ForwardStatus:
    """Return the status of a forwarder whose broker is away."""
    output = OutputStatus(
        name="centre",
        kind="nats",
        is_connected=False,
        waiting=12,
        oldest_s=73.5,
        sent=4711,
        bytes=3_500_000,
        lost=0,
        reconnects=1,
        duplicates=0,
        error="output centre: nats://centre:4222: Connection refused",
        disk=None,
    )
    fields: dict[str, Any] = {"hears_workers": True, "outputs": [output], "disk": None}
    return ForwardStatus(**fields | changes)


def recorder_status(**changes: Any) -> RecorderStatus:
    """Return the status of a recorder that has nothing to do."""
    fields: dict[str, Any] = {
        "hears_workers": True,
        "clips": 2,
        "clip_bytes": 3 * 1024 * 1024,
        "events": 0,
        "waiting": 0,
        "disk": None,
        "counters": {"clips_missing": 0},
    }
    return RecorderStatus(**fields | changes)


def alert(**changes: Any) -> Alert:
    """Return an alert that fires because of a bark on the porch."""
    fields: dict[str, Any] = {
        "id": "a1",
        "fingerprint": "f1",
        "rule": "dog",
        "state": "firing",
        "severity": "medium",
        "group": {"stream": STREAM},
        "labels": {"stream": STREAM, "severity": "medium"},
        "annotations": {"summary": "Dog on the porch"},
        "started_ns": T0_NS,
        "fired_ns": T0_NS,
        "resolved_ns": None,
        "events": ("id1",),
    }
    return Alert(**fields | changes)


def box_report(**changes: Any) -> BoxReport:
    """Return the report of a box that is well."""
    fields: dict[str, Any] = {
        "site": "farm",
        "box": "barn",
        "version": "0.1.0",
        "boot": "ab" * 8,
        "time_ns": T0_NS,
        "checkpoint": "bundled",
        "clock": ClockReport(is_synchronised=True),
        "workers": [
            WorkerReport(
                boot="cd" * 8, model="sha256:tiny", device="cpu", precision="fp32", lag_s=0.4
            )
        ],
        "streams": [
            StreamReport(stream=STREAM, state="listening", hop_s=0.5, heard=1.0, accounted_s=3600.0)
        ],
        "streams_total": 1,
        "problems": [],
    }
    return BoxReport(**fields | changes)
