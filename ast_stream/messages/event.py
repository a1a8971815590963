"""Events, gaps and scores: as the detector and capture produce them, and as messages of the feed.

Positions are sample indices at 16 kHz since the start of a capture process (its epoch). The feed
adds wall time, which was attached once, at capture, and around every body a stamp by which readers
know what they missed. A feed message is topic · JSON body, and for `scores/` and `spectrogram/` a
third frame of float16 and uint8. A line of the log is one JSON object with topic and body, and a
checksum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from ast_stream.errors import WireError
from ast_stream.labels import slug, stable_id, stream_topic
from ast_stream.machine_clock import CLOCK_ID, Moment
from ast_stream.messages.alert import Alert
from ast_stream.messages.codec import (
    PROTOCOL_VERSION,
    Body,
    FeedBody,
    SampleIndex,
    Seconds,
    Text,
    Time,
    add_checksum,
    decode_json,
    encode_json,
    has_checksum,
    short,
    validate,
)
from ast_stream.messages.levels import LevelsMessage
from ast_stream.messages.spectrogram import (
    Spectrogram8,
    SpectrogramHeader,
    decode_spectrogram,
    encode_spectrogram,
)
from ast_stream.messages.status import (
    ALERTS_STATUS_TOPIC,
    FORWARD_STATUS_TOPIC,
    RECORDER_STATUS_TOPIC,
    WORKER_STATUS_TOPIC,
    AlertsStatus,
    ForwardStatus,
    Health,
    RecorderStatus,
    WorkerStatus,
)
from ast_stream.sample_clock import SampleClock
from ast_stream.units import format_time, parse_time, samples_to_seconds

EventType = Literal["begin", "update", "end"]
EndReason = Literal["quiet", "gap", "stream_lost", "max_duration", "shutdown", "restart"]

_SCORE_DIGITS = 4

MAX_TOPIC_BYTES = 512
MAX_BODY_BYTES = 256 * 1024
MAX_LINE_BYTES = MAX_BODY_BYTES + 1024  # of the log: topic and checksum around the body
MAX_SEQ = 2**53  # JSON numbers are exact up to here
DURABLE_TOPICS = ("event/", "gap/")  # logged on disk and replayed on request
BOOT_TOPIC = "boot/"  # in the log and in replays only: here a run of the publisher begins
_SCORES_DTYPE = "float16"

Scores16 = npt.NDArray[np.float16]
"""Scores of one window, shape (n_classes,), in [0, 1]."""

Position: TypeAlias = tuple[str, int]
"""A boot and the `seq` of one of its messages."""


def event_id(stream: str, epoch: str, index: int, first_sample: int) -> str:
    """Return the id that an event has wherever and however often it is derived.

    Args:
        first_sample: end of the first window above the onset threshold.
    """
    return stable_id(stream, epoch, str(index), str(first_sample))


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
        watcher_score: what the small model of a cascade gave the class in that window; None without
            a cascade, where it does not know the class, and where no window decided.
        verifier_score: that the event is right, in [0, 1], by the verifier of its class when it
            began; None without one.
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
    watcher_score: float | None = None
    verifier_score: float | None = None

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

    @property
    def stop_sample(self) -> int:
        """Sample after the last lost one."""
        return self.start_sample + self.samples

    def between(self, start: int, stop: int) -> Gap:
        """Return the gap with other ends; empty if `stop` is not after `start`."""
        return replace(self, start_sample=start, samples=max(0, stop - start))

    def divided(self, known: Iterable[Gap]) -> Iterator[tuple[Gap, bool]]:
        """Yield the parts of this gap in order, and whether each lies in one of `known`.

        Those that do have the reason that is known.
        """
        at = self.start_sample
        for gap in sorted(known, key=lambda gap: gap.start_sample):
            start, stop = (
                min(gap.start_sample, self.stop_sample),
                min(gap.stop_sample, self.stop_sample),
            )
            if at < start:
                yield replace(self, start_sample=at, samples=start - at), False
            at = max(at, start)
            if at < stop:
                yield replace(self, start_sample=at, samples=stop - at, reason=gap.reason), True
                at = stop
        if at < self.stop_sample:
            yield replace(self, start_sample=at, samples=self.stop_sample - at), False


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
    duration_s: Seconds | None = None
    """Seconds from onset to offset; set in `end`."""
    duration_reliable: bool = True
    """False if the end of the sound was not observed."""
    uncertainty_s: Seconds | None = None
    """Half-width in seconds of the interval that holds the onset."""
    onset_sample: SampleIndex | None = None
    """Sample index of the onset in `epoch`."""
    offset_sample: SampleIndex | None = None
    """Sample index of the offset; set in `end`."""
    at_sample: SampleIndex | None = None
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
    watcher_score: float | None = None
    """Of the small model of a cascade, for the class in the deciding window, in [0, 1]; absent
    without a cascade, where it does not know the class, and where no window decided."""
    verifier_score: float | None = None
    """That the event is right, in [0, 1], by the verifier of its class when it began; absent
    without one."""

    @classmethod
    def of(
        cls,
        event: Event,
        clock: SampleClock,
        *,
        labels: Mapping[str, str],
        audio_end: int,
        scored: Moment,
        model: str,
    ) -> Self:
        """Return the message about `event`.

        Args:
            audio_end: end of the audio known; the last windows of a recording reach beyond it.
            scored: when the deciding window was scored; all times are by the wall clock as it
                was set then.
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
            mean=_rounded(event.mean),
            onset_ns=clock.time_ns(event.onset_sample, scored),
            offset_ns=None if offset_sample is None else clock.time_ns(offset_sample, scored),
            duration_s=event.duration_s,
            duration_reliable=event.duration_reliable,
            uncertainty_s=round(event.uncertainty_s, _SCORE_DIGITS),
            onset_sample=event.onset_sample,
            offset_sample=offset_sample,
            at_sample=event.at_sample,
            epoch=event.epoch,
            reason=event.reason,
            captured_ns=clock.time_ns(min(event.at_sample, audio_end), scored),
            scored_ns=scored.wall_ns,
            model=model,
            watcher_score=_rounded(event.watcher_score),
            verifier_score=_rounded(event.verifier_score),
        )

    @model_serializer(mode="wrap")
    def _without_nothing(self, to_json: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = to_json(self)
        for name in ("watcher_score", "verifier_score"):
            if body.get(name) is None:  # nor where somebody asks for some of the fields alone
                body.pop(name, None)
        return body

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

    def moved(self, by_ns: int) -> Self:
        """Return the message with all times of the sound moved by a duration."""
        offset_ns = None if self.offset_ns is None else self.offset_ns + by_ns
        times = {"onset_ns": self.onset_ns + by_ns, "offset_ns": offset_ns}
        return self.model_copy(update=times | {"captured_ns": self.captured_ns + by_ns})

    def ended_by_restart(self, now: Moment) -> Self:
        """Return the `end` of an event whose last message this is.

        The sound is known to have lasted until then.

        Args:
            now: when that is published.
        """
        if (published := self.published) is not None and self.clock == CLOCK_ID:
            set_by_ns = published.seen_from(now) - published.wall_ns
            return self.moved(set_by_ns)._ended()
        return self._ended()

    def _ended(self) -> Self:
        onset = self.onset_sample or 0
        offset = max(self.at_sample or 0, onset)
        ending: dict[str, object] = {
            "type": "end",
            "mean": self.score,
            "watcher_score": None,
            "offset_ns": self.captured_ns,
            "offset_sample": offset,
            "duration_s": samples_to_seconds(offset - onset),
            "duration_reliable": False,
            "reason": "restart",
        }
        return self.model_copy(update=ending)


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, _SCORE_DIGITS)


class GapMessage(FeedBody):
    """A gap on the feed: audio that is lost for good."""

    stream: Text
    epoch: Text
    """Run of the capture process."""
    start_sample: Annotated[SampleIndex, Field(alias="start")]
    """Sample index of the first lost sample."""
    samples: SampleIndex
    """How many samples are lost."""
    duration_s: Seconds
    """The same in seconds."""
    reason: Text
    """Why, e.g. `overflow`, `device_lost`, `ring_overrun`, `overload`."""
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
    def gap(self) -> Gap:
        """The gap that the message is about."""
        return Gap(self.stream, self.epoch, self.start_sample, self.samples, self.reason)

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
    end_sample: SampleIndex
    """Sample index of the end of the window."""
    time_ns: Time
    """Wall time of that sample."""

    @property
    def topic(self) -> str:
        """`scores/<stream>/`."""
        return stream_topic("scores", self.stream)


Content: TypeAlias = (
    EventMessage
    | GapMessage
    | ScoresHeader
    | SpectrogramHeader
    | LevelsMessage
    | Health
    | WorkerStatus
    | AlertsStatus
    | RecorderStatus
    | ForwardStatus
    | Alert
)

_Seq = Annotated[int, Field(ge=0, le=MAX_SEQ)]


class _StampedBody(Body):
    """What every body has; all other keys pass."""

    v: Literal[1]
    boot: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
    seq: _Seq
    previous: _Seq = 0
    durable_seq: _Seq = 0


class _ScoresShape(Body):
    dtype: Literal["float16"]
    shape: Annotated[
        list[Annotated[int, Field(ge=0, le=100_000)]], Field(min_length=1, max_length=1)
    ]


_STAMP_KEYS = frozenset(
    {"stream", "published", "monotonic_ns", "clock", *_StampedBody.model_fields}
)


@dataclass(frozen=True)
class Stamp:
    """Who published a message, when, and its place in the order of the feed."""

    boot: str
    """The publisher's run."""
    seq: int
    """Number of the message in that run, without gaps, from 1."""
    published: Moment
    """On the clocks of this machine."""
    previous: int | None = None
    """Of events and gaps: `seq` of the previous one, 0 for the first."""
    durable_seq: int | None = None
    """Of status and health: `seq` of the last event or gap."""


@dataclass(frozen=True, eq=False)
class FeedMessage:
    """One message of the feed.

    Attributes:
        body: as on the wire; has at least `v`, `boot` and `seq`.
        scores: shape (n_classes,), float16, in [0, 1], only with topics `scores/`.
        spectrogram: levels of shape (frames, mels), only with topics `spectrogram/`.
    """

    topic: str
    body: dict[str, Any]
    scores: Scores16 | None = None
    spectrogram: Spectrogram8 | None = None

    @classmethod
    def of(
        cls,
        content: Content,
        stamp: Stamp,
        scores: Scores16 | None = None,
        spectrogram: Spectrogram8 | None = None,
    ) -> Self:
        """Return the message that publishes `content`."""
        body = content.to_json()
        if stamp.previous is not None:
            body["previous"] = stamp.previous
        if stamp.durable_seq is not None:
            body["durable_seq"] = stamp.durable_seq
        body |= {
            "v": PROTOCOL_VERSION,
            "boot": stamp.boot,
            "seq": stamp.seq,
            "published": format_time(stamp.published.wall_ns),
            "monotonic_ns": stamp.published.monotonic_ns,
            "clock": CLOCK_ID,
        }
        return cls(content.topic, body, scores, spectrogram)

    @classmethod
    def start_of(cls, boot: str) -> Self:
        """Return the line that marks the start of a publisher's run in the log."""
        body = {"v": PROTOCOL_VERSION, "boot": boot, "seq": 0, "previous": 0}
        return cls(BOOT_TOPIC, body)

    @property
    def kind(self) -> str:
        """First word of the topic, such as event."""
        return self.topic.split("/", 1)[0]

    @property
    def position(self) -> Position:
        """Boot and seq of this message."""
        return self.body["boot"], self.body["seq"]

    @property
    def position_before(self) -> Position | None:
        """Where a reader of everything stands before this message, None if it does not say."""
        seq = self.body.get("previous", self.body.get("durable_seq"))
        return None if seq is None else (self.body["boot"], seq)

    @property
    def published_ns(self) -> int | None:
        """When it was published, nanoseconds since 1970; None if it does not say."""
        try:
            return parse_time(self.body["published"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    @property
    def stream(self) -> str | None:
        """The stream that it is about, None if it is about none."""
        stream = self.body.get("stream")
        return stream if isinstance(stream, str) else None

    @property
    def class_(self) -> str | None:
        """Slug of the class that an event is about, None if it is about none."""
        class_ = self.body.get("class")
        return class_ if isinstance(class_, str) else None

    @property
    def is_durable(self) -> bool:
        """Whether the publisher logs it and can repeat it."""
        return "previous" in self.body

    @property
    def identity(self) -> Identity | None:
        """Identity that duplicates share; None for messages that are never derived again."""
        match self.kind, self.body:
            case "event", {"id": identity, "type": kind, "at_sample": at_sample}:
                return event_identity(str(identity), str(kind), at_sample)
            case "gap", {"stream": stream, "epoch": epoch, "start": start}:
                return gap_identity(str(stream), str(epoch), start)
        return None

    @property
    def epoch_of_stream(self) -> tuple[str, str] | None:
        """The stream and epoch that an event or gap is about, None for others."""
        match self.body:
            case {"stream": str(stream), "epoch": str(epoch)}:
                return stream, epoch
        return None

    @property
    def at_sample(self) -> int | None:
        """Sample index at which an event was decided, None for others."""
        at_sample = self.body.get("at_sample")
        return at_sample if isinstance(at_sample, int) else None

    @property
    def facts(self) -> dict[str, Any]:
        """The body without the publisher's identity and the position on the feed."""
        return {key: value for key, value in self.body.items() if key not in _STAMP_KEYS}

    def content(self) -> Content:
        """Return the body as the class of its topic.

        Raises:
            WireError: it does not follow the format, or the topic is none of this program.
        """
        kind: type[Content] | None = _CONTENTS.get(self.topic) or _CONTENTS.get(self.kind)
        if kind is None:
            raise WireError(f"feed message {short(self.topic.encode())}: the topic is not known")
        return kind.from_json(self.body, f"feed message {short(self.topic.encode())}")

    def encode(self) -> list[bytes]:
        """Return the frames of the message; with scores the body gains `dtype` and `shape`."""
        if self.spectrogram is not None:
            levels = encode_spectrogram(self.spectrogram)
            return [self.topic.encode(), encode_json(self.body), levels]
        if self.scores is None:
            return [self.topic.encode(), encode_json(self.body)]
        body = self.body | {"dtype": _SCORES_DTYPE, "shape": list(self.scores.shape)}
        payload = np.ascontiguousarray(self.scores, dtype="<f2").tobytes()
        return [self.topic.encode(), encode_json(body), payload]

    @classmethod
    def decode(cls, frames: list[bytes]) -> Self:
        """Return the feed message in two or three frames.

        Raises:
            WireError: the frames do not follow the format.
        """
        if not 2 <= len(frames) <= 3:
            raise WireError(f"feed message: expected 2 or 3 frames, got {len(frames)}")
        topic = _decode_topic(frames[0])
        what = f"feed message {short(topic.encode())}"
        body = decode_json(frames[1], what, MAX_BODY_BYTES, mends_text=True)
        _check_stamp(topic, body)
        if len(frames) == 2:
            return cls(topic, body)
        if topic.startswith("spectrogram/"):
            return cls(topic, body, spectrogram=decode_spectrogram(body, frames[2], what))
        return cls(topic, body, _decode_scores(topic, body, frames[2]))

    def to_entry(self) -> dict[str, Any]:
        """Return the message as in a page of a replay or a line of the log."""
        return {"topic": self.topic, "body": self.body}

    @classmethod
    def from_entry(cls, entry: object) -> Self:
        """Return the durable message in a decoded line of the log or entry of a replay page.

        Raises:
            WireError: it does not follow the format.
        """
        match entry:
            case {"topic": str(topic), "body": dict(body)}:
                _check_stamp(topic, body)
            case _:
                raise WireError("logged message: expected 'topic' and 'body', got something else")
        message = cls(topic, body)
        if not message.is_durable:
            shown = short(topic.encode())
            raise WireError(f"logged message {shown}: expected 'previous', got a body without it")
        return message

    def encode_line(self) -> bytes:
        """Return the line of the event log: JSON that begins with its CRC-32."""
        return add_checksum(encode_json(self.to_entry()))

    @classmethod
    def decode_line(cls, line: bytes) -> Self:
        """Return the message in one line of the event log.

        Raises:
            WireError: the line is damaged.
        """
        if not has_checksum(line):
            raise WireError(f"event log line: expected another checksum, got {short(line)}")
        entry = decode_json(line, "event log line", MAX_LINE_BYTES, mends_text=True)
        return cls.from_entry(entry)


_CONTENTS: dict[str, type[Content]] = {  # by topic, or by its first word
    "event": EventMessage,
    "gap": GapMessage,
    "scores": ScoresHeader,
    "spectrogram": SpectrogramHeader,
    "levels": LevelsMessage,
    "health": Health,
    "alert": Alert,
    WORKER_STATUS_TOPIC: WorkerStatus,
    ALERTS_STATUS_TOPIC: AlertsStatus,
    RECORDER_STATUS_TOPIC: RecorderStatus,
    FORWARD_STATUS_TOPIC: ForwardStatus,
}


def content_without_topic(
    body: Mapping[str, Any],
) -> EventMessage | GapMessage | Health | LevelsMessage:
    """Return an event, gap, health or levels whose topic is not known, by a field that only it has.

    Raises:
        WireError: it does not follow the format.
    """
    if "laeq" in body:
        return LevelsMessage.from_json(body, "levels")
    if "samples" in body:
        return GapMessage.from_json(body, "gap")
    return (
        Health.from_json(body, "health") if "level_dbfs" in body else EventMessage.from_json(body)
    )


def _check_stamp(topic: str, body: dict[str, Any]) -> None:
    validate(_StampedBody, body, f"feed message {short(topic.encode())}")


def _decode_topic(frame: bytes) -> str:
    try:
        topic = frame.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"topic: expected UTF-8, got {short(frame)}") from error
    if len(frame) > MAX_TOPIC_BYTES or not topic.endswith("/"):
        raise WireError(f"topic: expected a short name ending in '/', got {short(frame)}")
    return topic


def _decode_scores(topic: str, body: dict[str, Any], payload: bytes) -> Scores16:
    what = f"feed message {short(topic.encode())}"
    n_scores = validate(_ScoresShape, body, what).shape[0]
    n_bytes = n_scores * np.dtype("<f2").itemsize
    if len(payload) != n_bytes:
        raise WireError(f"{what}: expected {n_bytes} bytes of scores, got {len(payload)}")
    return np.frombuffer(payload, dtype="<f2").astype(np.float16, copy=False)
