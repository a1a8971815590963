"""What the engine reads from feed bodies; a body that is not one is reported, never raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ast_stream.units import parse_time


@dataclass(frozen=True)
class EventReading:
    """What an event body says that rules ask for.

    Attributes:
        score, peak: of the window that the body is about, and the highest so far.
        at_sample, published_ns: None in bodies that are written by hand.
    """

    id: str
    type: str
    stream: str
    labels: dict[str, str]
    class_: str
    label: str
    score: float
    peak: float
    onset_ns: int
    offset_ns: int | None
    captured_ns: int
    epoch: str
    at_sample: int | None
    onset_sample: int | None
    offset_sample: int | None
    published_ns: int | None


def labels_of(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the stream that a body is about."""
    labels = body.get("labels") or {}
    return {text_of(name): text_of(value) for name, value in labels.items()}


def text_of(value: Any) -> str:
    """Return a value as text that can be written down: JSON can have halves of characters."""
    return str(value).encode(errors="replace").decode()


def read_event(body: Mapping[str, Any]) -> EventReading | None:
    """Return what an event body says, None if it is not one."""
    try:
        published, offset = body.get("published"), body.get("offset")
        return EventReading(
            id=text_of(body["id"]),
            type=body["type"],
            stream=text_of(body["stream"]),
            labels=labels_of(body),
            class_=text_of(body["class"]),
            label=text_of(body["label"]),
            score=float(body.get("score", body["peak"])),
            peak=float(body["peak"]),
            onset_ns=parse_time(body["onset"]),
            offset_ns=None if offset is None else parse_time(offset),
            captured_ns=parse_time(body["captured"]),
            epoch=str(body.get("epoch")),
            at_sample=body.get("at_sample"),
            onset_sample=body.get("onset_sample"),
            offset_sample=body.get("offset_sample"),
            published_ns=None if published is None else parse_time(published),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
