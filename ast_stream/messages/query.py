"""Queries to a publisher and their answers.

A query is one JSON frame, its answer a JSON frame, for audio with a second one of PCM. The answer
to a query for coverage is `coverage.answer`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from ast_stream.errors import WireError
from ast_stream.messages.audio import AudioBlock, decode_pcm_answer, pcm_bytes
from ast_stream.messages.codec import (
    MAX_SAMPLE_INDEX,
    PROTOCOL_VERSION,
    Body,
    Request,
    Text,
    Time,
    decode_json,
    decode_request,
    encode_json,
    validate,
)
from ast_stream.messages.event import MAX_SEQ, EventMessage, FeedMessage, Position
from ast_stream.messages.status import Health, WorkerStatus
from ast_stream.units import SAMPLE_RATE, format_time

MAX_PAGE_MESSAGES = 1000
MAX_PAGE_BYTES = 1024 * 1024  # small, because a client that does not read keeps pages queued
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_AUDIO_S = 60
_TOO_OLD = "too_old"

_SampleIndex = Annotated[int, Field(ge=0, le=MAX_SAMPLE_INDEX)]
_Moment = Annotated[int, Field(ge=0, le=MAX_SAMPLE_INDEX)] | Annotated[str, Field(max_length=64)]


class ReplayQuery(Request):
    """Request the durable messages after a position; without one, from the oldest stored."""

    op: Literal["replay"] = "replay"
    after: tuple[str, int] | None = None

    @field_validator("after", mode="before")
    @classmethod
    def _is_position(cls, value: object) -> object:
        if value is None:
            return None
        if isinstance(value, list | tuple) and len(value) == 2:
            boot, seq = value
            if isinstance(boot, str) and type(seq) is int and 0 <= seq <= MAX_SEQ:
                return boot, seq
        raise ValueError("expected [boot, seq] or null")


class SnapshotQuery(Request):
    """Ask for streams, open events and status."""

    op: Literal["snapshot"] = "snapshot"


class PingQuery(Request):
    """Ask whether the publisher is alive, and for its position."""

    op: Literal["ping"] = "ping"


class AudioQuery(Request):
    """Ask for audio."""

    op: Literal["audio"] = "audio"
    stream: Annotated[str, Field(max_length=63)]
    epoch: Annotated[str | None, Field(max_length=64)] = None
    """Run of the capture process; None: the present one."""
    start: Annotated[_Moment, Field(alias="from")]
    """Sample index of the epoch, or an RFC 3339 time."""
    stop: Annotated[_Moment, Field(alias="to")]
    """Of the same kind."""


class CoverageQuery(Request):
    """Request the coverage ledger of a period from a worker; without a period, all of it."""

    op: Literal["coverage"] = "coverage"
    since_ns: Annotated[Time | None, Field(alias="from")] = None
    until_ns: Annotated[Time | None, Field(alias="to")] = None


Query = ReplayQuery | SnapshotQuery | PingQuery | AudioQuery | CoverageQuery
_QUERIES: dict[str, type[Query]] = {
    "replay": ReplayQuery,
    "snapshot": SnapshotQuery,
    "ping": PingQuery,
    "audio": AudioQuery,
    "coverage": CoverageQuery,
}


def decode_query(frames: list[bytes]) -> Query:
    """Return a query.

    Raises:
        WireError: it is not one of the queries in the format.
    """
    return decode_request(frames, _QUERIES, "query")


class Answer(Body):
    """An answer of one frame."""

    boot: Annotated[Text, Field(exclude=True)]
    """The publisher's run."""

    def encode(self) -> list[bytes]:
        """Return the frame of the answer."""
        return [_encode_answer(self.to_json(), self.boot)]

    @classmethod
    def decode(cls, frames: list[bytes]) -> Self:
        """Return the answer.

        Raises:
            WireError: it does not follow the format, or the query was refused.
        """
        return cls.from_json(_decode_answer(frames), "answer to a query")


class PingAnswer(Answer):
    """Where a publisher stands."""

    started_ns: Time
    """When its run began."""
    durable_seq: Annotated[int, Field(ge=0, le=MAX_SEQ)]
    """`seq` of its last event or gap, 0 if there is none."""


class Snapshot(Answer):
    """How everything is now."""

    streams: list[Health]
    events: list[EventMessage]
    """Events that are open, as their last message would be."""
    status: WorkerStatus


class _Withheld(Body):
    withheld: list[Annotated[list[_SampleIndex], Field(min_length=2, max_length=2)]]


@dataclass(frozen=True, eq=False)
class AudioAnswer:
    """The part of the requested audio that is held."""

    block: AudioBlock
    boot: str
    """The publisher's run."""
    withheld: list[tuple[int, int]] | None = None
    """Samples that are silence because somebody may talk, each range from one index to before
    another; None where nobody looked."""

    def encode(self) -> list[bytes]:
        """Return the frames of the answer: header, PCM."""
        block = self.block
        header = {
            "stream": block.stream,
            "epoch": block.epoch,
            "start": block.start_sample,
            "rate": SAMPLE_RATE,
            "samples": len(block.pcm),
            "time": format_time(block.moment.wall_ns),
            "monotonic_ns": block.moment.monotonic_ns,
        }
        if self.withheld is not None:
            header["withheld"] = self.withheld
        return [_encode_answer(header, self.boot), pcm_bytes(block.pcm)]

    @classmethod
    def decode(cls, frames: list[bytes]) -> Self:
        """Return the answer.

        Raises:
            WireError: it does not follow the format, or the query was refused.
        """
        body = _decode_answer(frames)
        if len(frames) != 2:
            raise WireError(f"audio: expected header and PCM, got {len(frames)} frames")
        block = decode_pcm_answer(body, str(body.get("stream")), frames[1])
        withheld = None
        if "withheld" in body:
            ranges = validate(_Withheld, body, "audio").withheld
            withheld = [(start, stop) for start, stop in ranges]
        return cls(block, str(body.get("boot")), withheld)


@dataclass(frozen=True, eq=False)
class ReplayPage:
    """Durable messages in the order they were published; `more` are waiting after the last."""

    messages: list[FeedMessage]
    more: bool

    def encode(self, boot: str) -> list[bytes]:
        """Return the frame of the answer of a publisher's run."""
        entries = [message.to_entry() for message in self.messages]
        return [_encode_answer({"messages": entries, "more": self.more}, boot)]


@dataclass(frozen=True)
class TooOld:
    """What was requested is no longer stored."""

    oldest: Position | None
    """Position after which everything is stored; None if nothing is."""

    def encode(self) -> list[bytes]:
        """Return the frame of the answer."""
        return [_encode_refusal(_TOO_OLD, oldest=self.oldest)]


def decode_replay(frames: list[bytes]) -> ReplayPage | TooOld:
    """Return the answer to a replay query.

    Raises:
        WireError: it does not follow the format, or the query was refused.
    """
    if frames:
        body = _json_of(frames[0])
        if body.get("error") == _TOO_OLD:
            return TooOld(_oldest(body.get("oldest")))
    body = _decode_answer(frames)
    entries, more = body.get("messages"), body.get("more")
    if not isinstance(entries, list) or not isinstance(more, bool):
        raise WireError("replay page: expected 'messages' and 'more', got other keys")
    return ReplayPage([FeedMessage.from_entry(entry) for entry in entries], more)


def refuse_query(reason: str) -> list[bytes]:
    """Return the frame that refuses a query; `reason` is a sentence."""
    return [_encode_refusal(reason)]


def _encode_answer(body: dict[str, Any], boot: str) -> bytes:
    return encode_json(body | {"v": PROTOCOL_VERSION, "boot": boot})


def _encode_refusal(error: str, **facts: Any) -> bytes:
    return encode_json({"v": PROTOCOL_VERSION, "error": error, **facts})


def _decode_answer(frames: list[bytes]) -> dict[str, Any]:
    if not frames:
        raise WireError("answer to a query: expected a JSON frame, got nothing")
    body = _json_of(frames[0])
    if "error" in body:
        raise WireError(f"the query was refused: {body['error']}")
    return body


def _json_of(frame: bytes) -> dict[str, Any]:
    return decode_json(frame, "answer to a query", MAX_ANSWER_BYTES, mends_text=True)


def _oldest(value: object) -> Position | None:
    query = validate(ReplayQuery, {"op": "replay", "after": value}, "oldest of the replay")
    return query.after
