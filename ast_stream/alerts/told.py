"""What feed bodies say that rules ask for; what is no such body is told apart, never raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ast_stream.messages import parse_time


@dataclass(frozen=True)
class Told:
    """What an event body says that rules ask for."""

    id: str
    type: str
    stream: str
    labels: dict[str, str]
    slug: str
    label: str
    peak: float
    onset_ns: int
    offset_ns: int | None
    at_ns: int
    onset: str


def labels_of(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the stream that a body is about."""
    return {str(name): str(value) for name, value in (body.get("labels") or {}).items()}


def read_event(body: Mapping[str, Any]) -> Told | None:
    """Return what an event body says, None if it is not one."""
    try:
        offset = body.get("offset")
        return Told(
            id=str(body["id"]),
            type=body["type"],
            stream=str(body["stream"]),
            labels=labels_of(body),
            slug=str(body["class"]),
            label=str(body["label"]),
            peak=float(body["peak"]),
            onset_ns=parse_time(body["onset"]),
            offset_ns=None if offset is None else parse_time(offset),
            at_ns=parse_time(body["captured"]),
            onset=body["onset"],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
