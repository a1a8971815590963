"""Bytes of the feed and of its log; no sockets.

A feed message is topic · JSON body, and for `scores/` a third frame of float16. A line of the log
is one JSON object with both, and a checksum. What comes from outside is checked and refused with
a `WireError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from ast_stream.errors import WireError
from ast_stream.messages.codec import decode_json, encode_json, short, validate
from ast_stream.messages.event import Gap
from ast_stream.runtime.files import add_checksum, has_checksum
from ast_stream.units import format_time, samples_to_seconds

MAX_TOPIC_BYTES = 512
MAX_BODY_BYTES = 256 * 1024
MAX_LINE_BYTES = MAX_BODY_BYTES + 1024  # of the log: topic and checksum around the body
DURABLE_TOPICS = ("event/", "gap/")  # logged on disk and replayed on request
BOOT_TOPIC = "boot/"  # in the log and in replays only: here a run of the publisher begins
SCORES_DTYPE = "float16"

Scores16 = npt.NDArray[np.float16]
Position: TypeAlias = tuple[str, int]
"""A boot and the `seq` of one of its messages."""

MAX_SEQ = 2**53  # JSON numbers are exact up to here
_BOOT_PATTERN = r"^[0-9A-Za-z_-]{1,64}$"
_Seq = Annotated[int, Field(ge=0, le=MAX_SEQ)]


@dataclass(frozen=True, eq=False)
class FeedMessage:
    """One message of the feed.

    Attributes:
        body: as on the wire; has at least `v`, `boot` and `seq`.
        scores: shape (n_classes,), float16, in [0, 1], only with topics `scores/`.
    """

    topic: str
    body: dict[str, Any]
    scores: Scores16 | None = None

    @property
    def kind(self) -> str:
        """First word of the topic: event, gap, scores, health, status, alert."""
        return self.topic.split("/", 1)[0]

    @property
    def position(self) -> Position:
        """Boot and seq of this message."""
        return self.body["boot"], self.body["seq"]

    @property
    def is_durable(self) -> bool:
        """Whether the publisher logs it and can repeat it."""
        return "previous" in self.body


class _FeedBody(BaseModel):
    """What every body has; all other keys pass."""

    model_config = ConfigDict(strict=True, frozen=True)
    v: Literal[1]
    boot: str = Field(pattern=_BOOT_PATTERN)
    seq: _Seq
    previous: _Seq = 0
    durable_seq: _Seq = 0


class _ScoresBody(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)
    dtype: Literal["float16"]
    shape: list[Annotated[int, Field(ge=0, le=100_000)]] = Field(min_length=1, max_length=1)


def encode_message(topic: str, body: dict[str, Any], scores: Scores16 | None = None) -> list[bytes]:
    """Return the frames of a feed message; for scores the body gains `dtype` and `shape`."""
    if scores is None:
        return [topic.encode(), encode_json(body)]
    described = body | {"dtype": SCORES_DTYPE, "shape": list(scores.shape)}
    payload = np.ascontiguousarray(scores, dtype="<f2").tobytes()
    return [topic.encode(), encode_json(described), payload]


def decode_message(frames: list[bytes]) -> FeedMessage:
    """Return the feed message in two or three frames.

    Raises:
        WireError: the frames do not follow the format.
    """
    if not 2 <= len(frames) <= 3:
        raise WireError(f"feed message: expected 2 or 3 frames, got {len(frames)}")
    topic = _decode_topic(frames[0])
    body = decode_json(frames[1], f"feed message {topic}", MAX_BODY_BYTES)
    message = _checked_message(topic, body)
    if len(frames) == 2:
        return message
    described = validate(_ScoresBody, body, f"feed message {topic}")
    n_bytes = described.shape[0] * np.dtype("<f2").itemsize
    if len(frames[2]) != n_bytes:
        raise WireError(
            f"feed message {topic}: expected {n_bytes} bytes of scores, got {len(frames[2])}"
        )
    scores = np.frombuffer(frames[2], dtype="<f2").astype(np.float16, copy=False)
    return FeedMessage(topic, body, scores)


def gap_body(gap: Gap, time_ns: int | None) -> dict[str, Any]:
    """Return the feed body of a gap, still without `boot` and `seq`.

    Args:
        time_ns: wall time of its first sample, None if not known.
    """
    return {
        "stream": gap.stream,
        "epoch": gap.epoch,
        "start": gap.start_sample,
        "samples": gap.samples,
        "duration_s": samples_to_seconds(gap.samples),
        "reason": gap.reason,
        "time": None if time_ns is None else format_time(time_ns),
    }


def encode_line(message: FeedMessage) -> bytes:
    """Return the line of the event log that holds `message`: JSON that begins with its CRC-32."""
    return add_checksum(encode_json({"topic": message.topic, "body": message.body}))


def decode_line(line: bytes) -> FeedMessage:
    """Return the message in one line of the event log.

    Raises:
        WireError: the line is damaged.
    """
    if not has_checksum(line):
        raise WireError(f"event log line: expected another checksum, got {short(line)}")
    return logged_message(decode_json(line, "event log line", MAX_LINE_BYTES))


def logged_message(entry: object) -> FeedMessage:
    """Return the durable message in a decoded line of the log or entry of a replay page.

    Raises:
        WireError: it does not follow the format.
    """
    match entry:
        case {"topic": str(topic), "body": dict(body)}:
            message = _checked_message(topic, body)
        case _:
            raise WireError("logged message: expected 'topic' and 'body', got something else")
    if not message.is_durable:
        raise WireError(f"logged message {topic}: expected 'previous', got a body without it")
    return message


def _checked_message(topic: str, body: dict[str, Any]) -> FeedMessage:
    validate(_FeedBody, body, f"feed message {short(topic.encode())}")
    return FeedMessage(topic, body)


def _decode_topic(frame: bytes) -> str:
    try:
        topic = frame.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"topic: expected UTF-8, got {short(frame)}") from error
    if len(frame) > MAX_TOPIC_BYTES or not topic.endswith("/"):
        raise WireError(f"topic: expected a short name ending in '/', got {short(frame)}")
    return topic
