"""Events, gaps and scores: as the detector and the intake give them, and as the feed carries them.

Positions are sample indices at 16 kHz since the start of a capture process (its epoch). The feed
adds wall time, which was attached once, at capture.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ast_stream.labels import slug
from ast_stream.messages.codec import PROTOCOL_VERSION, Body, Text, Time
from ast_stream.sample_clock import SampleClock
from ast_stream.units import samples_to_seconds

EventType = Literal["begin", "update", "end"]
EndReason = Literal["quiet", "gap", "stream_lost", "max_duration", "shutdown", "restart"]

_SCORE_DIGITS = 4


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

    def outside(self, ranges: Iterable[tuple[int, int]]) -> list[Gap]:
        """Return the parts of this gap that are in none of the half-open ranges of samples."""
        parts = []
        start, stop = self.start_sample, self.start_sample + self.samples
        for known_start, known_stop in sorted(ranges):
            if start < min(known_start, stop):
                parts.append(
                    replace(self, start_sample=start, samples=min(known_start, stop) - start)
                )
            start = max(start, known_stop)
        if start < stop:
            parts.append(replace(self, start_sample=start, samples=stop - start))
        return parts


@dataclass(frozen=True)
class Scores:
    """Scores of one window: shape (n_classes,), float32, for the window ending at `end_sample`."""

    stream: str
    epoch: str
    end_sample: int
    scores: npt.NDArray[np.float32]


Identity: TypeAlias = tuple[str, ...]
"""What is the same if the same audio is derived again.

Of an event its id, type and `at_sample`; of a gap the word gap, its stream, epoch and start.
"""


def event_identity(event_id: str, event_type: str, at_sample: object) -> Identity:
    """Return the identity of an event message."""
    return event_id, event_type, str(at_sample)


def gap_identity(stream: str, epoch: str, start_sample: object) -> Identity:
    """Return the identity of a gap message."""
    return "gap", stream, epoch, str(start_sample)


class FeedBody(Body):
    """What every body on the feed may say besides its own fields."""

    published_ns: Annotated[Time | None, Field(exclude=True)] = None
    """When it was published; the publisher writes it. None in bodies that were not."""


class EventMessage(FeedBody):
    """An event on the feed. Fields with a default may be absent in bodies written by hand."""

    v: Literal[1] = PROTOCOL_VERSION
    id: Text
    """The same from begin to end, and if the event is derived again after a crash."""
    type: EventType
    stream: Text
    labels: dict[Text, Text] = Field(default_factory=dict)
    """Of the stream, as configured."""
    class_: Text
    """Slug of the label, as in topics."""
    label: Text
    index: int | None = None
    """Of the class in the model's output."""
    score: float
    """Of the deciding window, in [0, 1]."""
    peak: float
    """Highest score so far, in [0, 1]."""
    mean: float | None = None
    """Mean score while active, in [0, 1]; set in `end`."""
    onset_ns: Time
    """Start of the sound."""
    offset_ns: Time | None = None
    """End of the sound; set in `end`."""
    duration_s: float | None = None
    """Seconds from onset to offset; set in `end`."""
    duration_reliable: bool = True
    """False where the end of the sound was not observed."""
    uncertainty_s: float | None = None
    """Half-width in seconds of the interval that holds the onset."""
    onset_sample: int | None = None
    """Sample index of the onset in `epoch`."""
    offset_sample: int | None = None
    """Sample index of the offset; set in `end`."""
    at_sample: int | None = None
    """Sample index of the end of the deciding window."""
    epoch: Text | None = None
    """Run of the capture process."""
    reason: Text | None = None
    """Why the event ended; set in `end`."""
    captured_ns: Time
    """When the last sample of the deciding window was captured."""
    scored_ns: Time | None = None
    """When the deciding window was scored."""
    model: Text | None = None
    """Hash of the checkpoint."""

    @classmethod
    def of(
        cls,
        event: Event,
        clock: SampleClock,
        *,
        labels: Mapping[str, str],
        audio_end: int,
        scored_ns: int,
        model: str,
    ) -> Self:
        """Return the message about `event`.

        Args:
            audio_end: end of the audio known; the last windows of a recording reach beyond it.
            scored_ns: wall time at which the deciding window was scored.
        """
        offset_sample = event.offset_sample
        return cls(
            id=event.id,
            type=event.type,
            stream=event.stream,
            labels=dict(labels),
            class_=event.slug,
            label=event.label,
            index=event.index,
            score=round(event.score, _SCORE_DIGITS),
            peak=round(event.peak, _SCORE_DIGITS),
            mean=None if event.mean is None else round(event.mean, _SCORE_DIGITS),
            onset_ns=clock.time_ns(event.onset_sample),
            offset_ns=None if offset_sample is None else clock.time_ns(offset_sample),
            duration_s=event.duration_s,
            duration_reliable=event.duration_reliable,
            uncertainty_s=round(event.uncertainty_s, _SCORE_DIGITS),
            onset_sample=event.onset_sample,
            offset_sample=offset_sample,
            at_sample=event.at_sample,
            epoch=event.epoch,
            reason=event.reason,
            captured_ns=clock.time_ns(min(event.at_sample, audio_end)),
            scored_ns=scored_ns,
            model=model,
        )

    @property
    def identity(self) -> Identity:
        """What is the same if the same audio is derived again."""
        return event_identity(self.id, self.type, self.at_sample)

    @property
    def topic(self) -> str:
        """`event/<class>/<stream>/`."""
        return f"event/{self.class_}/{self.stream}/"

    @classmethod
    def from_json(cls, body: Mapping[str, Any], what: str = "event") -> Self:
        """Return the event in a body; without a `score` it is as good as its peak."""
        if "score" not in body and "peak" in body:
            body = {**body, "score": body["peak"]}
        return super().from_json(body, what)

    def ended_by_restart(self) -> Self:
        """Return the `end` of an event of which this is the last message.

        The sound is known to have lasted until then.
        """
        onset = self.onset_sample or 0
        offset = max(self.at_sample or 0, onset)
        ending: dict[str, object] = {
            "type": "end",
            "mean": self.score,
            "offset_ns": self.captured_ns,
            "offset_sample": offset,
            "duration_s": samples_to_seconds(offset - onset),
            "duration_reliable": False,
            "reason": "restart",
        }
        return self.model_copy(update=ending)


class GapMessage(FeedBody):
    """A gap on the feed: audio that is lost for good."""

    stream: Text
    epoch: Text
    """Run of the capture process."""
    start_sample: Annotated[int, Field(alias="start")]
    """Sample index of the first lost sample."""
    samples: int
    """How many samples are lost."""
    duration_s: float
    """The same in seconds."""
    reason: Text
    """Why, e.g. `overflow`, `device_lost`, `ring_overrun`."""
    time_ns: Time | None = None
    """Wall time of the first lost sample, None if not known."""

    @classmethod
    def of(cls, gap: Gap, time_ns: int | None) -> Self:
        """Return the message about `gap`.

        Args:
            time_ns: wall time of its first sample, None if not known.
        """
        return cls(
            stream=gap.stream,
            epoch=gap.epoch,
            start_sample=gap.start_sample,
            samples=gap.samples,
            duration_s=samples_to_seconds(gap.samples),
            reason=gap.reason,
            time_ns=time_ns,
        )

    @property
    def identity(self) -> Identity:
        """What is the same if the same audio is derived again."""
        return gap_identity(self.stream, self.epoch, self.start_sample)

    @property
    def topic(self) -> str:
        """`gap/<stream>/`."""
        return f"gap/{self.stream}/"


class ScoresHeader(FeedBody):
    """The body of scores of one window on the feed; the scores are a frame of their own."""

    stream: Text
    epoch: Text
    """Run of the capture process."""
    end_sample: int
    """Sample index of the end of the window."""
    time_ns: Time
    """Wall time of that sample."""

    @property
    def topic(self) -> str:
        """`scores/<stream>/`."""
        return f"scores/{self.stream}/"
