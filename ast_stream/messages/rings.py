"""Messages between a capture process and a worker on another box: a stream and its ring.

The capture process connects (DEALER), the worker is bound (ROUTER). A message of the capture
process is a `Hello`, with the journal record of the stream as a second frame, a `Release` or a
`Stay`, or the answer to a request. The worker sends requests and acknowledgements, which are those
of `messages.audio`, and what it thinks of the stream.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field

from ast_stream.errors import WireError
from ast_stream.labels import STREAM_NAME_RULE, is_stream_name
from ast_stream.messages.audio import EPOCH_PATTERN, AckRequest
from ast_stream.messages.codec import (
    MAX_SAMPLE_INDEX,
    Body,
    Text,
    decode_json,
    encode_json,
    validate,
)

MAX_LABELS = 64
MAX_RECORD_BYTES = 128 * 1024  # of a journal record, compressed
MAX_NAME_CHARACTERS = 160
MAX_TERM = 2**53
_MAX_HELLO_BYTES = 96 * 1024  # its labels may be long
REQUEST, REPLY = b"request", b"reply"  # first frames; what follows is of `messages.audio`
ACK = b"ack"
TAG_BYTES = 8

_Short = Annotated[Text, Field(max_length=256)]


def _stream_name(name: str) -> str:
    if not is_stream_name(name):
        raise ValueError(f"expected {STREAM_NAME_RULE}")
    return name


class _Message(Body):
    """Messages of either side; the other side refuses unknown ones."""

    v: Literal[1] = 1

    def encode(self) -> list[bytes]:
        """Return the frame of the message."""
        return [encode_json(self.to_json())]


class Hello(_Message):
    """A capture process has this stream for the worker, or would have it: sent again and again."""

    op: Literal["hello", "offer"]
    """hello: the worker is to take the stream; offer: asks whether it would."""
    stream: Annotated[str, AfterValidator(_stream_name)]
    epoch: Annotated[str, Field(pattern=EPOCH_PATTERN)]
    """Run of the source."""
    term: Annotated[int, Field(ge=0, le=MAX_TERM)] = 0
    """Number of the worker in that epoch, counted by the capture process."""
    owner: Annotated[str | None, Field(max_length=MAX_NAME_CHARACTERS)] = None
    """Worker and run whose acknowledgement was accepted last; None: none in this epoch"""
    labels: Annotated[dict[_Short, _Short], Field(max_length=MAX_LABELS)] = Field(
        default_factory=dict
    )
    calibration_db: Annotated[float | None, Field(ge=-1000, le=1000)] = None
    ring_s: Annotated[float, Field(gt=0, le=3600)] = 90.0
    """Seconds of audio that the ring keeps."""
    oldest: Annotated[int, Field(ge=0, le=MAX_SAMPLE_INDEX)] = 0
    next: Annotated[int, Field(ge=0, le=MAX_SAMPLE_INDEX)] = 0
    acked: Annotated[int, Field(ge=0, le=MAX_SAMPLE_INDEX)] = 0
    keeps_record: bool = False
    """The capture process keeps the stream's journal record, for the worker after this one."""

    @property
    def owner_name(self) -> str | None:
        """Name of the worker that acknowledged last."""
        return None if self.owner is None else self.owner.rpartition("/")[0]


class Release(_Message):
    """The worker is to let go of the stream: another one will have it."""

    op: Literal["release"] = "release"


class Stay(_Message):
    """The reply to `Leaving`: there is no other worker for the stream."""

    op: Literal["stay"] = "stay"


class Accepted(_Message):
    """The worker has the stream, or would take it; the reply to each `Hello`."""

    op: Literal["accepted"] = "accepted"
    worker: Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
    """Worker and run of it."""
    is_offer: bool = False


class Refused(_Message):
    """The worker does not take the stream."""

    op: Literal["refused"] = "refused"
    reason: Literal["full", "leaving", "not_allowed", "taken", "malformed"]
    detail: Annotated[Text | None, Field(max_length=512)] = None


class Released(_Message):
    """The worker has let go of the stream; its last acknowledgement came before this."""

    op: Literal["released"] = "released"


class Leaving(_Message):
    """The worker is about to end: another one should have the stream."""

    op: Literal["leaving"] = "leaving"


OfCapture = Hello | Release | Stay
OfWorker = Accepted | Refused | Released | Leaving
_OF_CAPTURE: dict[str, type[OfCapture]] = {
    "hello": Hello,
    "offer": Hello,
    "release": Release,
    "stay": Stay,
}
_OF_WORKER: dict[str, type[OfWorker]] = {
    "accepted": Accepted,
    "refused": Refused,
    "released": Released,
    "leaving": Leaving,
}


def decode_of_capture(frames: list[bytes]) -> tuple[OfCapture, bytes | None]:
    """Return a capture process's message, and the journal record that came with it.

    Raises:
        WireError: it does not follow the format.
    """
    if not 1 <= len(frames) <= 2:
        raise WireError(f"ring connection: expected 1 or 2 frames, got {len(frames)}")
    body = decode_json(frames[0], "ring connection", _MAX_HELLO_BYTES)
    kind = _OF_CAPTURE.get(str(body.get("op")))
    if kind is None:
        raise WireError(f"ring connection: expected {', '.join(_OF_CAPTURE)}, got another op")
    record = frames[1] if len(frames) == 2 else None
    if record is not None and len(record) > MAX_RECORD_BYTES:
        raise WireError(f"journal record: expected at most {MAX_RECORD_BYTES} bytes, got more")
    return validate(kind, body, "ring connection"), record


def decode_of_worker(frames: list[bytes]) -> OfWorker:
    """Return a worker's message.

    Raises:
        WireError: it does not follow the format.
    """
    if len(frames) != 1:
        raise WireError(f"ring connection: expected 1 frame, got {len(frames)}")
    body = decode_json(frames[0], "ring connection")
    kind = _OF_WORKER.get(str(body.get("op")))
    if kind is None:
        raise WireError(f"ring connection: expected {', '.join(_OF_WORKER)}, got another op")
    return validate(kind, body, "ring connection")


class RecordedAck:
    """An acknowledgement that may bring the journal record of the stream."""

    def __init__(self, request: AckRequest, record: bytes | None = None) -> None:
        self.request = request
        self.record = record

    def encode(self) -> list[bytes]:
        """Return the frames: what it is, the acknowledgement, and the record if there is one."""
        frames = [ACK, *self.request.encode()]
        return frames if self.record is None else [*frames, self.record]

    @classmethod
    def decode(cls, frames: list[bytes]) -> Self:
        """Return the acknowledgement in frames.

        Raises:
            WireError: they do not follow the format.
        """
        if not 2 <= len(frames) <= 3 or frames[0] != ACK:
            raise WireError("acknowledgement: expected 2 or 3 frames, got something else")
        record = frames[2] if len(frames) == 3 else None
        if record is not None and len(record) > MAX_RECORD_BYTES:
            raise WireError(f"journal record: expected at most {MAX_RECORD_BYTES} bytes, got more")
        body = decode_json(frames[1], "acknowledgement")
        return cls(validate(AckRequest, body, "acknowledgement"), record)
