"""Bytes of the wire formats: audio blocks, ring reads, queries and feed messages; no sockets.

What comes from outside is checked here and refused with a `WireError` that says what is wrong.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ast_stream.errors import WireError
from ast_stream.labels import STREAM_NAME_RULE, is_stream_name
from ast_stream.messages.event import PROTOCOL_VERSION, AudioBlock, Pcm16, format_time, parse_time
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE
from ast_stream.urls import check_endpoint

MAX_HEADER_BYTES = 16_384
MAX_BLOCK_SAMPLES = 10 * SAMPLE_RATE  # also the most that one ring reply carries
MAX_SAMPLE_INDEX = 2**53  # JSON numbers are exact up to here; 17 000 years at 16 kHz
MAX_TIME_NS = 230 * 366 * 86_400 * NS_PER_SECOND  # about the year 2200: far from any overflow
MAX_REASON_CHARACTERS = 64
MAX_DETAIL_CHARACTERS = 512
_EPOCH_PATTERN = r"^[0-9a-f]{8,64}$"
_SAMPLE_BYTES = 2

_Model = TypeVar("_Model", bound=BaseModel)
# a peer must not be able to make the worker connect anywhere else than a worker may bind
Endpoint = Annotated[str, AfterValidator(check_endpoint)]
_Index = Field(ge=0, le=MAX_SAMPLE_INDEX)


class _Header(BaseModel):
    """Common rules: exact types, unknown keys of a newer writer ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    v: Literal[1]


class _BlockHeader(_Header):
    epoch: str = Field(pattern=_EPOCH_PATTERN)
    start: int = _Index
    rate: Literal[16000]
    samples: int = Field(ge=0, le=MAX_BLOCK_SAMPLES)
    time: str = Field(max_length=64)
    ring: Endpoint | None = None
    gap: str | None = Field(default=None, max_length=MAX_REASON_CHARACTERS)
    last: bool = False
    state: str = Field(default="listening", max_length=32)
    detail: str | None = Field(default=None, max_length=MAX_DETAIL_CHARACTERS)


class _ReplyHeader(_BlockHeader):
    oldest: int = _Index
    next: int = _Index
    acked: int = _Index
    paced: bool = True


class ReadRequest(_Header):
    """Ask a ring for samples; without `start` after the last acknowledged one."""

    op: Literal["read"]
    stream: str
    epoch: str | None = Field(default=None, pattern=_EPOCH_PATTERN)
    start: int | None = Field(default=None, ge=0, le=MAX_SAMPLE_INDEX)
    stop: int | None = Field(default=None, ge=0, le=MAX_SAMPLE_INDEX)


class AckRequest(_Header):
    """Tell a ring that the events of all samples before `stop` are published."""

    op: Literal["ack"]
    epoch: str = Field(pattern=_EPOCH_PATTERN)
    stop: int = _Index


@dataclass(frozen=True)
class RingReply:
    """What a ring still holds of the samples asked for, and the state of its source.

    Attributes:
        is_paced: audio comes in real time; otherwise as fast as it is acknowledged.
    """

    block: AudioBlock
    oldest: int
    next: int
    acked: int
    state: str = "listening"
    detail: str | None = None
    is_paced: bool = True


def encode_json(body: dict[str, Any]) -> bytes:
    """Return compact UTF-8 JSON; NaN and infinity are our own bug and raise ValueError."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def decode_json(frame: bytes, what: str, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """Return a JSON object from outside of at most `max_bytes`.

    Raises:
        WireError: not UTF-8, not JSON, not an object, NaN or infinity, or too long.
    """
    if len(frame) > max_bytes:
        raise WireError(f"{what}: expected at most {max_bytes} bytes, got {len(frame)}")
    try:
        # decoded first: json itself would also take UTF-16 and UTF-32
        value = json.loads(
            frame.decode(), parse_constant=_refuse_number, parse_float=_finite_number
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what}: expected a JSON object, got {short(frame)}: {error}") from error
    if not isinstance(value, dict):
        raise WireError(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


def encode_block(block: AudioBlock) -> list[bytes]:
    """Return the three frames of an audio block: stream, header, PCM."""
    return [block.stream.encode(), encode_json(_block_header(block)), _pcm_bytes(block.pcm)]


def decode_block(frames: list[bytes]) -> AudioBlock:
    """Return the audio block in three frames.

    Raises:
        WireError: the frames do not follow the format.
    """
    if len(frames) != 3:
        raise WireError(f"audio block: expected 3 frames, got {len(frames)}")
    header = validate(_BlockHeader, decode_json(frames[1], "audio block header"), "audio block")
    return _to_block(_stream_name(frames[0]), header, frames[2])


def decode_ring_request(frame: bytes) -> ReadRequest | AckRequest:
    """Return a ring request.

    Raises:
        WireError: it is neither a read nor an acknowledgement in the format.
    """
    body = decode_json(frame, "ring request")
    kind: type[ReadRequest] | type[AckRequest] = (
        AckRequest if body.get("op") == "ack" else ReadRequest
    )
    return validate(kind, body, "ring request")


def encode_request(request: ReadRequest | AckRequest) -> bytes:
    """Return the frame of a ring request."""
    return encode_json(request.model_dump())


def encode_ring_reply(reply: RingReply) -> list[bytes]:
    """Return the frames of a ring reply: header, PCM."""
    header = _block_header(reply.block) | {
        "stream": reply.block.stream,
        "oldest": reply.oldest,
        "next": reply.next,
        "acked": reply.acked,
        "state": reply.state,
        # cut here: the other side refuses a longer one, and the audio with it
        "detail": None if reply.detail is None else reply.detail[:MAX_DETAIL_CHARACTERS],
    }
    if not reply.is_paced:
        header["paced"] = False
    return [encode_json(header), _pcm_bytes(reply.block.pcm)]


def encode_error(text: str, **facts: Any) -> bytes:
    """Return the single frame that refuses a request."""
    return encode_json({"v": PROTOCOL_VERSION, "error": text, **facts})


def decode_ring_reply(frames: list[bytes], stream: str) -> RingReply:
    """Return the reply of the ring of `stream`.

    Raises:
        WireError: the ring refused the request, or the frames do not follow the format.
    """
    if not 1 <= len(frames) <= 2:
        raise WireError(f"ring reply: expected 1 or 2 frames, got {len(frames)}")
    body = decode_json(frames[0], "ring reply")
    if "error" in body:
        raise WireError(
            f"ring of {stream} refused: {short(str(body['error']).encode('utf-8', 'replace'))}"
        )
    if len(frames) != 2:
        raise WireError("ring reply: expected header and PCM, got the header alone")
    header = validate(_ReplyHeader, body, "ring reply")
    return RingReply(
        block=_to_block(stream, header, frames[1]),
        oldest=header.oldest,
        next=header.next,
        acked=header.acked,
        state=header.state,
        detail=header.detail,
        is_paced=header.paced,
    )


def _block_header(block: AudioBlock) -> dict[str, Any]:
    header: dict[str, Any] = {
        "v": PROTOCOL_VERSION,
        "epoch": block.epoch,
        "start": block.start_sample,
        "rate": SAMPLE_RATE,
        "samples": len(block.pcm),
        "time": format_time(block.time_ns),
        "ring": block.ring,
    }
    if block.gap_reason is not None:
        header["gap"] = block.gap_reason[:MAX_REASON_CHARACTERS]
    if block.is_last:
        header["last"] = True
    if block.detail is not None:
        header["state"] = block.state
        # cut here: the other side refuses a longer one, and the audio with it
        header["detail"] = block.detail[:MAX_DETAIL_CHARACTERS]
    return header


def _to_block(stream: str, header: _BlockHeader, pcm: bytes) -> AudioBlock:
    if len(pcm) != header.samples * _SAMPLE_BYTES:
        raise WireError(
            f"audio block of {stream}: expected {header.samples * _SAMPLE_BYTES} bytes of PCM "
            f"for {header.samples} samples, got {len(pcm)}"
        )
    try:
        time_ns = parse_time(header.time)
    except (ValueError, OverflowError) as error:
        raise WireError(f"audio block of {stream}: time: {error}") from error
    if not 0 <= time_ns <= MAX_TIME_NS:
        raise WireError(f"audio block of {stream}: time: expected 1970 to 2200, got {header.time}")
    return AudioBlock(
        stream=stream,
        epoch=header.epoch,
        start_sample=header.start,
        time_ns=time_ns,
        pcm=np.frombuffer(pcm, dtype="<i2").astype(np.int16, copy=False),
        ring=header.ring,
        gap_reason=header.gap,
        is_last=header.last,
        state=header.state,
        detail=header.detail,
    )


def validate(kind: type[_Model], body: dict[str, Any], what: str) -> _Model:
    """Return `body` as a model.

    Raises:
        WireError: it does not follow the model; names the first field at fault.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = short(repr(first.get("input")).encode())
        raise WireError(f"{what}: {where}: {first['msg']}, got {got}") from error


def _stream_name(frame: bytes) -> str:
    try:
        name = frame.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"stream name: expected UTF-8, got {short(frame)}") from error
    if not is_stream_name(name):
        raise WireError(f"stream name: expected {STREAM_NAME_RULE}, got {short(frame)}")
    return name


def _pcm_bytes(pcm: Pcm16) -> bytes:
    return np.ascontiguousarray(pcm, dtype="<i2").tobytes()


def _refuse_number(text: str) -> float:
    raise ValueError(f"{short(text.encode())} is not a finite number")


def _finite_number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


def short(frame: bytes) -> str:
    """Return the beginning of bytes from outside, safe to print."""
    text = frame[:60].decode(errors="backslashreplace")
    return repr(text) + ("…" if len(frame) > 60 else "")
