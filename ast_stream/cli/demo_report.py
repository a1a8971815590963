"""Planted against detected: which sounds were found, how exactly, and how soon."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from ast_stream.messages.event import parse_time
from ast_stream.soundscape.scene import Planted
from ast_stream.units import NS_PER_SECOND, samples_to_seconds

SLACK_S = 1.0  # an event of the right class counts if it overlaps the sound within this


@dataclass
class Heard:
    """One event as its messages told it, times in seconds from the start of the scene."""

    id: str
    label: str
    onset_s: float
    offset_s: float | None
    peak: float
    begin: dict[str, Any]

    @classmethod
    def from_begin(cls, body: dict[str, Any]) -> Heard:
        """Return the event that began with the message `body`."""
        onset_s = samples_to_seconds(body["onset_sample"])
        return cls(body["id"], body["label"], onset_s, None, body["peak"], body)

    def hear(self, body: dict[str, Any]) -> None:
        """Take a later message of the same event."""
        self.peak = body["peak"]
        if body["offset_sample"] is not None:
            self.offset_s = samples_to_seconds(body["offset_sample"])


@dataclass(frozen=True)
class Latency:
    """Seconds from the sound's onset to its `begin` message, and where they went."""

    decided_s: float  # audio that had to be heard until a window was sure
    scored_s: float  # from capture of that window's end to its scores
    published_s: float  # from the scores to the feed

    @property
    def total_s(self) -> float:
        """Onset to publish."""
        return self.decided_s + self.scored_s + self.published_s


@dataclass(frozen=True)
class Row:
    """One planted sound and the event that found it, if any."""

    planted: Planted
    heard: Heard | None

    @property
    def onset_error_s(self) -> float | None:
        """Detected minus planted onset."""
        return None if self.heard is None else self.heard.onset_s - self.planted.onset_s

    @property
    def latency(self) -> Latency | None:
        """Where the time from onset to publish went."""
        if self.heard is None:
            return None
        body = self.heard.begin
        captured, scored, published = (
            parse_time(body[key]) / NS_PER_SECOND for key in ("captured", "scored", "published")
        )
        decided_s = samples_to_seconds(body["at_sample"]) - self.planted.onset_s
        return Latency(decided_s, scored - captured, published - scored)


@dataclass(frozen=True)
class Report:
    """All planted sounds, and the events that belong to none of them."""

    rows: list[Row]
    extra: list[Heard]

    @property
    def n_found(self) -> int:
        """Planted sounds that were found."""
        return sum(row.heard is not None for row in self.rows)

    @property
    def is_complete(self) -> bool:
        """Whether every planted sound was found."""
        return self.n_found == len(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "planted": len(self.rows),
            "found": self.n_found,
            "extra": [
                {"label": heard.label, "onset_s": round(heard.onset_s, 3)} for heard in self.extra
            ],
            "sounds": [_row_json(row) for row in self.rows],
            "latency_s": self.latency_summary(),
        }

    def latency_summary(self) -> dict[str, dict[str, float]]:
        """Return p50 and p95 of onset to publish and of its parts, in seconds."""
        found = [row.latency for row in self.rows if row.latency is not None]
        parts = {
            "onset_to_published": [one.total_s for one in found],
            "decided": [one.decided_s for one in found],
            "scored": [one.scored_s for one in found],
            "published": [one.published_s for one in found],
        }
        return {name: _percentiles(values) for name, values in parts.items() if values}


def compare(planted: list[Planted], heard: list[Heard]) -> Report:
    """Match each planted sound with the first unmatched event of its class that overlaps it."""
    rest = sorted(heard, key=lambda one: one.onset_s)
    rows = []
    for sound in planted:
        found = next((one for one in rest if _overlaps(sound, one)), None)
        if found is not None:
            rest.remove(found)
        rows.append(Row(sound, found))
    return Report(rows, rest)


def _overlaps(sound: Planted, heard: Heard) -> bool:
    offset_s = heard.onset_s if heard.offset_s is None else heard.offset_s
    return (
        heard.label == sound.label
        and heard.onset_s <= sound.offset_s + SLACK_S
        and offset_s >= sound.onset_s - SLACK_S
    )


def _percentiles(values: list[float]) -> dict[str, float]:
    p95 = quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
    return {"p50": round(median(values), 3), "p95": round(p95, 3)}


def _row_json(row: Row) -> dict[str, Any]:
    heard, error = row.heard, row.onset_error_s
    return {
        "label": row.planted.label,
        "onset_s": round(row.planted.onset_s, 3),
        "offset_s": round(row.planted.offset_s, 3),
        "detected_onset_s": None if heard is None else round(heard.onset_s, 3),
        "detected_offset_s": None
        if heard is None or heard.offset_s is None
        else round(heard.offset_s, 3),
        "onset_error_s": None if error is None else round(error, 3),
        "peak": None if heard is None else heard.peak,
    }
