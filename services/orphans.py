"""Events that an earlier run of the worker began and never ended."""

from __future__ import annotations

from typing import Any

from ast_stream.units import samples_to_seconds
from ast_stream.wire.event_log import EventLog

Body = dict[str, Any]


def find_orphans(event_log: EventLog) -> dict[str, Body]:
    """Return the last message of each event that had no `end` when the log was opened, by id."""
    return {body["id"]: body for body in event_log.open_events()}


def ended_by_restart(body: Body) -> Body:
    """Return the `end` of an orphan: it is known to have lasted until its last message."""
    offset_sample = max(body["at_sample"], body["onset_sample"])
    return body | {
        "type": "end",
        "mean": body["score"],
        "offset": body["captured"],
        "offset_sample": offset_sample,
        "duration_s": samples_to_seconds(offset_sample - body["onset_sample"]),
        "duration_reliable": False,
        "reason": "restart",
    }
