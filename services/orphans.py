"""Events that an earlier run of the worker began and never ended."""

from __future__ import annotations

from typing import Any

from ast_stream.units import samples_to_seconds
from ast_stream.wire.event_log import EventLog
from ast_stream.wire.feed_codec import Position
from ast_stream.wire.query_codec import TooOld

Body = dict[str, Any]


def find_orphans(event_log: EventLog) -> dict[str, Body]:
    """Return the last message of each event without an `end`, by id."""
    last: dict[str, Body] = {}
    after: Position | None = None
    while True:
        page = event_log.replay(after)
        if isinstance(page, TooOld):  # the oldest segment went meanwhile
            after = page.oldest
            continue
        for message in page.messages:
            if message.kind == "event":
                last[message.body["id"]] = message.body
                if message.body["type"] == "end":
                    del last[message.body["id"]]
            after = message.position
        if not page.more:
            return last


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
