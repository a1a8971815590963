"""What the stages and processes tell each other: blocks in, events and gaps out.

Positions are sample indices at 16 kHz since the start of a capture process (its epoch); wall
time is attached once, at capture, in nanoseconds since 1970 UTC.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ast_stream.labels import slug
from ast_stream.sample_clock import SampleClock
from ast_stream.units import samples_to_seconds

PROTOCOL_VERSION = 1

EventType = Literal["begin", "update", "end"]
EndReason = Literal["quiet", "gap", "stream_lost", "max_duration", "shutdown", "restart"]
StreamState = Literal["listening", "warming", "gated", "missing", "degraded"]
Pcm16 = npt.NDArray[np.int16]

_EPOCH_1970 = datetime(1970, 1, 1, tzinfo=UTC)


def format_time(time_ns: int) -> str:
    """Return nanoseconds since 1970 as RFC 3339 UTC with microseconds, e.g. `…T10:00:30.200000Z`.

    >>> format_time(1_500_000_000)
    '1970-01-01T00:00:01.500000Z'
    """
    moment = _EPOCH_1970 + timedelta(microseconds=round(time_ns / 1000))
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def parse_time(text: str) -> int:
    """Return an RFC 3339 time with offset as nanoseconds since 1970.

    Raises:
        ValueError: if `text` is not such a time.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no offset from UTC; expected e.g. a final 'Z'")
    return (moment - _EPOCH_1970) // timedelta(microseconds=1) * 1000


@dataclass(frozen=True, eq=False)
class AudioBlock:
    """Consecutive samples of one stream.

    Attributes:
        start_sample: index of the first sample since the start of `epoch`.
        time_ns: wall time of the first sample.
        pcm: mono samples at 16 kHz, shape (n_samples,), int16.
        ring: endpoint where missed samples can be read, or None.
        gap_reason: why samples are missing just before this block, or None.
        is_last: the source has ended with this block (only sources that can end).
        state, detail: how the source is, and what is wrong with it or None.
    """

    stream: str
    epoch: str
    start_sample: int
    time_ns: int
    pcm: Pcm16
    ring: str | None = None
    gap_reason: str | None = None
    is_last: bool = False
    state: str = "listening"
    detail: str | None = None

    @property
    def end_sample(self) -> int:
        """Index just after the last sample."""
        return self.start_sample + len(self.pcm)


def event_id(stream: str, epoch: str, index: int, first_sample: int) -> str:
    """Return the id that an event has wherever and however often it is derived.

    Args:
        first_sample: end of the first window above the onset threshold.
    """
    key = f"{stream}\n{epoch}\n{index}\n{first_sample}".encode()
    digest = hashlib.blake2b(key, digest_size=15).digest()
    return base64.b32encode(digest).decode().lower()


@dataclass(frozen=True)
class Event:
    """One sound of one class on one stream, as known when it began, lasts or has ended.

    Attributes:
        score: score of the deciding window, in [0, 1].
        peak: highest score so far.
        mean: mean score while active; set when the event has ended.
        onset_sample, offset_sample: start and end of the sound, not of the window.
        uncertainty_s: half-width of the interval that holds the onset.
        at_sample: end of the window that decided this message.
    """

    type: EventType
    id: str
    stream: str
    epoch: str
    index: int
    label: str
    score: float
    peak: float
    mean: float | None
    onset_sample: int
    offset_sample: int | None
    uncertainty_s: float
    at_sample: int
    reason: EndReason | None = None
    duration_reliable: bool = True

    @property
    def slug(self) -> str:
        """The class name used in topics."""
        return slug(self.label)

    @property
    def duration_s(self) -> float | None:
        """Seconds from onset to offset, None until the event has ended."""
        if self.offset_sample is None:
            return None
        return samples_to_seconds(self.offset_sample - self.onset_sample)


@dataclass(frozen=True)
class Gap:
    """Samples that are lost for good: `samples` from `start_sample` on."""

    stream: str
    epoch: str
    start_sample: int
    samples: int
    reason: str


@dataclass(frozen=True)
class Scores:
    """Scores of one window: shape (n_classes,), float32, for the window ending at `end_sample`."""

    stream: str
    epoch: str
    end_sample: int
    scores: npt.NDArray[np.float32]


def event_topic(class_slug: str, stream: str) -> str:
    """Return `event/<class>/<stream>/`."""
    return f"event/{class_slug}/{stream}/"


def stream_topic(kind: Literal["scores", "health", "gap"], stream: str) -> str:
    """Return `<kind>/<stream>/`."""
    return f"{kind}/{stream}/"


WORKER_STATUS_TOPIC = "status/worker/"
SOURCE_ENDED = "the source has ended"  # detail of the health of a stream that is over
ALERTS_STATUS_TOPIC = "status/alerts/"  # on the alerts process's own feed


def event_body(
    event: Event,
    clock: SampleClock,
    *,
    labels: Mapping[str, str],
    audio_end: int,
    scored_ns: int,
    model: str,
) -> dict[str, Any]:
    """Return the feed body of `event`, still without `boot`, `seq` and `published`.

    Args:
        audio_end: end of the audio known; the last windows of a recording reach beyond it.
        scored_ns: wall time at which the deciding window was scored.
    """

    def at(sample: int | None) -> str | None:
        return None if sample is None else format_time(clock.time_ns(sample))

    return {
        "v": PROTOCOL_VERSION,
        "id": event.id,
        "type": event.type,
        "stream": event.stream,
        "labels": dict(labels),
        "class": event.slug,
        "label": event.label,
        "index": event.index,
        "score": round(event.score, 4),
        "peak": round(event.peak, 4),
        "mean": None if event.mean is None else round(event.mean, 4),
        "onset": at(event.onset_sample),
        "offset": at(event.offset_sample),
        "duration_s": event.duration_s,
        "duration_reliable": event.duration_reliable,
        "uncertainty_s": round(event.uncertainty_s, 4),
        "onset_sample": event.onset_sample,
        "offset_sample": event.offset_sample,
        "at_sample": event.at_sample,
        "epoch": event.epoch,
        "reason": event.reason,
        "captured": at(min(event.at_sample, audio_end)),
        "scored": format_time(scored_ns),
        "model": model,
    }
