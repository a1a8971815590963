"""What the stages and processes tell each other: blocks in, events and gaps out.

Positions are sample indices at 16 kHz since the start of a capture process (its epoch); wall
time is attached once, at capture, in nanoseconds since 1970 UTC.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ast_stream.labels import slug
from ast_stream.messages.codec import PROTOCOL_VERSION
from ast_stream.sample_clock import SampleClock
from ast_stream.units import format_time, samples_to_seconds

EventType = Literal["begin", "update", "end"]
EndReason = Literal["quiet", "gap", "stream_lost", "max_duration", "shutdown", "restart"]
StreamState = Literal["listening", "warming", "gated", "missing", "degraded"]


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
