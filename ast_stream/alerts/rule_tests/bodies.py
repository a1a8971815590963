"""What the detector would publish of the sounds and levels in a rule test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ast_stream.alerts.model import DetectionTiming, stable_id
from ast_stream.alerts.rule_tests.schema import TestEvent, TestHealth
from ast_stream.labels import slug
from ast_stream.messages.codec import PROTOCOL_VERSION
from ast_stream.units import NS_PER_SECOND, format_time

UPDATE_NS = NS_PER_SECOND

Body = dict[str, Any]


def event_bodies(
    event: TestEvent,
    number: int,
    start: int,
    timing: DetectionTiming,
    streams: dict[str, dict[str, str]],
) -> Iterator[tuple[int, Body]]:
    """Yield stream time and body of one sound's begin, an update each second, and end."""
    onset = start + event.at
    offset = None if event.dur is None else onset + event.dur
    begin_at = onset + timing.latency_ns
    end_at = None if offset is None else max(begin_at, offset + timing.smear_ns)
    times = [("begin", begin_at)]
    last = begin_at if end_at is None else end_at
    times += [("update", at) for at in range(begin_at + UPDATE_NS, last, UPDATE_NS)]
    times += [] if end_at is None else [("end", end_at)]
    for kind, at_ns in times:
        if kind not in event.lost:
            yield (
                at_ns,
                {
                    "v": PROTOCOL_VERSION,
                    "id": event.id or stable_id("rule-test", str(number)),
                    "type": kind,
                    "stream": event.stream,
                    "labels": streams[event.stream],
                    "class": slug(event.class_),
                    "label": event.class_,
                    "score": event.score,
                    "peak": event.score,
                    "onset": format_time(onset),
                    "offset": format_time(offset) if kind == "end" and offset else None,
                    "captured": format_time(at_ns),
                },
            )


def health_bodies(
    health: TestHealth, start: int, streams: dict[str, dict[str, str]]
) -> Iterator[tuple[int, Body]]:
    """Yield stream time and body of a health message each second."""
    for offset in range(0, health.dur + 1, NS_PER_SECOND):
        at_ns = start + health.at + offset
        yield (
            at_ns,
            {
                "stream": health.stream,
                "labels": streams[health.stream],
                "state": health.state,
                "level_dbfs": health.level_dbfs,
                "published": format_time(at_ns),
            },
        )
