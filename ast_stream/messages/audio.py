"""Bytes of the wire formats: audio blocks, ring reads, queries and feed messages; no sockets.

What comes from outside is checked here and refused with a `WireError` that says what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ast_stream.errors import WireError
from ast_stream.labels import STREAM_NAME_RULE, is_stream_name
from ast_stream.messages.codec import (
    MAX_SAMPLE_INDEX,
    MAX_TIME_NS,
    PROTOCOL_VERSION,
    decode_json,
    encode_json,
    short,
    validate,
)
from ast_stream.units import SAMPLE_RATE, format_time, parse_time
from ast_stream.urls import check_endpoint

MAX_BLOCK_SAMPLES = 10 * SAMPLE_RATE  # also the most that one ring reply carries
MAX_REASON_CHARACTERS = 64
MAX_DETAIL_CHARACTERS = 512
_EPOCH_PATTERN = r"^[0-9a-f]{8,64}$"
_SAMPLE_BYTES = 2

Pcm16 = npt.NDArray[np.int16]

# a peer must not be able to make the worker connect anywhere else than a worker may bind
Endpoint = Annotated[str, AfterValidator(check_endpoint)]
_Index = Field(ge=0, le=MAX_SAMPLE_INDEX)


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
