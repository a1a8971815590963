"""Bytes of the query endpoint; no sockets.

A query is one JSON frame, its answer a JSON frame, for audio with a second one of PCM. What comes
from outside is checked here and refused with a `WireError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ast_stream.errors import WireError
from ast_stream.messages.codec import (
    MAX_SAMPLE_INDEX,
    PROTOCOL_VERSION,
    decode_json,
    encode_json,
    short,
    validate,
)
from ast_stream.messages.feed import MAX_SEQ, FeedMessage, Position, logged_message

MAX_PAGE_MESSAGES = 1000
MAX_PAGE_BYTES = 1024 * 1024  # small, because a client that does not read keeps pages queued
MAX_ANSWER_BYTES = 4 * 1024 * 1024
MAX_AUDIO_S = 60
TOO_OLD = "too_old"

_Moment = Annotated[int, Field(ge=0, le=MAX_SAMPLE_INDEX)] | Annotated[str, Field(max_length=64)]


@dataclass(frozen=True, eq=False)
class ReplayPage:
    """Durable messages in the order they were published; `more` are waiting after the last."""

    messages: list[FeedMessage]
    more: bool


@dataclass(frozen=True)
class TooOld:
    """What was asked for is no longer held; `oldest` is, None if nothing is."""

    oldest: Position | None


class _Query(BaseModel):
    """Unknown keys are refused: a mistyped `after` would replay everything."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
    v: Literal[1] = 1


class ReplayQuery(_Query):
    """Ask for the durable messages after a position; without one, from the oldest held."""

    op: Literal["replay"]
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


class SnapshotQuery(_Query):
    """Ask for streams, open events and status."""

    op: Literal["snapshot"]


class PingQuery(_Query):
    """Ask whether the publisher is there, and where it stands."""

    op: Literal["ping"]


class AudioQuery(_Query):
    """Ask for sound; `from` and `to` are sample indices of the epoch or RFC 3339 times."""

    op: Literal["audio"]
    stream: str = Field(max_length=63)
    epoch: str | None = Field(default=None, max_length=64)
    start: _Moment = Field(alias="from")
    stop: _Moment = Field(alias="to")


Query = ReplayQuery | SnapshotQuery | PingQuery | AudioQuery
_QUERIES: dict[str, type[Query]] = {
    "replay": ReplayQuery,
    "snapshot": SnapshotQuery,
    "ping": PingQuery,
    "audio": AudioQuery,
}


def decode_query(frame: bytes) -> Query:
    """Return a query.

    Raises:
        WireError: it is not one of the four queries in the format.
    """
    body = decode_json(frame, "query")
    op = body.get("op")
    kind = _QUERIES.get(op) if isinstance(op, str) else None
    if kind is None:
        raise WireError(
            f"query: op: expected {', '.join(_QUERIES)}, got {short(repr(op).encode())}"
        )
    return validate(kind, body, "query")


def encode_query(op: str, **fields: Any) -> bytes:
    """Return the frame of a query."""
    return encode_json({"v": PROTOCOL_VERSION, "op": op, **fields})


def decode_answer(frames: list[bytes]) -> dict[str, Any]:
    """Return the JSON of an answer to a query.

    Raises:
        WireError: it is not JSON, or the query was refused.
    """
    if not frames:
        raise WireError("answer to a query: expected a JSON frame, got nothing")
    body = decode_json(frames[0], "answer to a query", MAX_ANSWER_BYTES)
    if "error" in body:
        raise WireError(f"the query was refused: {body['error']}")
    return body


def decode_replay(frames: list[bytes]) -> ReplayPage | TooOld:
    """Return the answer to a replay query.

    Raises:
        WireError: it does not follow the format, or the query was refused.
    """
    if frames:
        body = decode_json(frames[0], "answer to a query", MAX_ANSWER_BYTES)
        if body.get("error") == TOO_OLD:
            return TooOld(_oldest(body.get("oldest")))
    body = decode_answer(frames)
    entries, more = body.get("messages"), body.get("more")
    if not isinstance(entries, list) or not isinstance(more, bool):
        raise WireError("replay page: expected 'messages' and 'more', got other keys")
    return ReplayPage([logged_message(entry) for entry in entries], more)


def _oldest(value: object) -> Position | None:
    query = validate(ReplayQuery, {"op": "replay", "after": value}, "oldest of the replay")
    return query.after
