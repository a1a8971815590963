"""Audio blocks from a capture process to a worker, and reads of the ring that keeps them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from ast_stream.errors import WireError
from ast_stream.labels import STREAM_NAME_RULE, is_stream_name
from ast_stream.machine_clock import Moment
from ast_stream.messages.codec import (
    MAX_SAMPLE_INDEX,
    PROTOCOL_VERSION,
    Body,
    Monotonic,
    decode_json,
    encode_json,
    short,
    validate,
)
from ast_stream.messages.pool import Placement
from ast_stream.units import MAX_TIME_NS, SAMPLE_RATE, format_time, parse_time
from ast_stream.urls import check_endpoint

MAX_BLOCK_SAMPLES = 10 * SAMPLE_RATE  # also the most that one ring reply carries
MAX_REASON_CHARACTERS = 64
MAX_DETAIL_CHARACTERS = 512
OPUS_PACKET_SAMPLES = SAMPLE_RATE // 50  # of one packet: 20 ms
MAX_OPUS_PACKET_BYTES = 1275  # RFC 6716
ROUNDING_STEPS = 256  # parts of an int16 step by which a packet is shifted before rounding
EPOCH_PATTERN = r"^[0-9a-f]{8,64}$"
_SAMPLE_BYTES = 2
_PACKET_PREFIX = struct.Struct("<Hb")  # bytes of the packet, rounding

Pcm16 = npt.NDArray[np.int16]
"""Mono samples at 16 kHz, shape (n_samples,)."""

# a peer must not be able to make the worker connect anywhere else than a worker may bind
_Endpoint = Annotated[str, AfterValidator(check_endpoint)]
_Epoch = Annotated[str, Field(pattern=EPOCH_PATTERN)]
_Index = Annotated[int, Field(ge=0, le=MAX_SAMPLE_INDEX)]


class _BlockHeader(Body):
    v: Literal[1]
    epoch: _Epoch
    start: _Index
    rate: Literal[16000]
    samples: Annotated[int, Field(ge=0, le=MAX_BLOCK_SAMPLES)]
    time: Annotated[str, Field(max_length=64)]
    monotonic_ns: Monotonic
    clock: Annotated[str | None, Field(max_length=64)] = None
    ring: _Endpoint | None = None
    gap: Annotated[str | None, Field(max_length=MAX_REASON_CHARACTERS)] = None
    last: bool = False
    state: Annotated[str, Field(max_length=32)] = "listening"
    detail: Annotated[str | None, Field(max_length=MAX_DETAIL_CHARACTERS)] = None
    codec: Literal["opus"] | None = None
    run: _Index | None = None
    crc: Annotated[int, Field(ge=0, lt=2**32)] | None = None


class _ReplyHeader(_BlockHeader):
    id: _Index | None = None
    oldest: _Index
    next: _Index
    acked: _Index
    paced: bool = True
    placement: Placement | None = None


@dataclass(frozen=True)
class OpusPacket:
    """20 ms of sound as Opus, RFC 6716; see `ast_stream.audio.opus`."""

    data: bytes
    rounding: int
    """What is added to decoded samples before they are rounded: 1/256 of an int16 step."""


@dataclass(frozen=True)
class OpusPackets:
    """The samples of a block as Opus."""

    run: int
    """Index of the first sample that the encoder gave: a fresh one, which a decoder must follow
    from there, where one more packet comes before."""
    packets: tuple[OpusPacket, ...]
    crc: int
    """CRC-32 of the samples as PCM, as both sides must have them."""


@dataclass(frozen=True, eq=False)
class AudioBlock:
    """Consecutive samples of one stream."""

    stream: str
    epoch: str
    """Run of the capture process."""
    start_sample: int
    """Index of the first sample since the start of `epoch`."""
    moment: Moment
    """When the first sample was captured."""
    pcm: Pcm16
    ring: str | None = None
    """Endpoint from which missed samples can be read."""
    gap_reason: str | None = None
    """Why samples are missing just before this block; None if none are."""
    is_last: bool = False
    """The source has ended with this block (only sources that can end)."""
    state: str = "listening"
    """How the source is."""
    detail: str | None = None
    """What is wrong with it; None while nothing is."""
    clock: str | None = None
    """Names the monotonic clock of `moment`; None: that of this machine."""
    opus: OpusPackets | None = None
    """The samples as they are sent, None: as PCM. In a block that was received coded `pcm` is
    silence of their number."""

    @property
    def end_sample(self) -> int:
        """Index just after the last sample."""
        return self.start_sample + len(self.pcm)

    def by_clock_of(self, now: Moment) -> AudioBlock:
        """Return this block of another machine with its moment on both clocks of this one.

        Wall clocks of the two are taken to agree; their monotonic clocks have nothing in common.
        """
        wall_ns = self.moment.wall_ns
        return replace(self, clock=None, moment=Moment(wall_ns, wall_ns - now.offset_ns))

    def encode(self) -> list[bytes]:
        """Return the three frames of the block: stream, header, PCM or packets."""
        header, sound = _block_header(self), self.opus
        if sound is None:
            return [self.stream.encode(), encode_json(header), pcm_bytes(self.pcm)]
        header |= {"codec": "opus", "run": sound.run, "crc": sound.crc}
        return [self.stream.encode(), encode_json(header), _packet_bytes(sound.packets)]

    @classmethod
    def decode(cls, frames: list[bytes]) -> AudioBlock:
        """Return the audio block in three frames.

        Raises:
            WireError: the frames do not follow the format.
        """
        if len(frames) != 3:
            raise WireError(f"audio block: expected 3 frames, got {len(frames)}")
        header = validate(_BlockHeader, decode_json(frames[1], "audio block header"), "audio block")
        stream = _stream_name(frames[0])
        if header.codec is None:
            return _to_block(stream, header, frames[2])
        packets = _to_packets(stream, header, frames[2])
        silence = bytes(header.samples * _SAMPLE_BYTES)
        return replace(_to_block(stream, header, silence), opus=packets)


class ReadRequest(Body):
    """Ask a ring for samples; without `start` after the last acknowledged one."""

    v: Literal[1]
    op: Literal["read"]
    stream: str
    epoch: _Epoch | None = None
    """Run of the capture process; None: whichever it is."""
    start: _Index | None = None
    """Index of the first sample."""
    stop: _Index | None = None
    """Index after the last sample; None: all there are."""
    confirms_end: bool = False
    """Whoever reads is the worker, and acknowledges with `last` once an ended source is done with;
    absent: it does not."""
    id: _Index | None = None
    """Number that the answer repeats; None: it has none."""

    def encode(self) -> list[bytes]:
        """Return the frame of the request."""
        return [encode_json(_without_defaults(self.to_json(), confirms_end=False, id=None))]


class AckRequest(Body):
    """Tell a ring that the events of all samples before `stop` are published."""

    v: Literal[1]
    op: Literal["ack"]
    epoch: _Epoch
    stop: _Index
    last: bool = False
    """The source has ended at `stop`, all of it is scored, and its last event has ended; absent:
    that is not known."""

    def encode(self) -> list[bytes]:
        """Return the frame of the request."""
        return [encode_json(_without_defaults(self.to_json(), last=False))]


def _without_defaults(body: dict[str, Any], **defaults: object) -> dict[str, Any]:
    """Return a body without keys whose values are those that they have where they are absent."""
    return {
        name: value
        for name, value in body.items()
        if name not in defaults or value != defaults[name]
    }


def decode_ring_request(frames: list[bytes]) -> ReadRequest | AckRequest:
    """Return a ring request.

    Raises:
        WireError: it is neither a read nor an acknowledgement in the format.
    """
    if len(frames) != 1:
        raise WireError(f"ring request: expected 1 frame, got {len(frames)}")
    body = decode_json(frames[0], "ring request", mends_text=True)
    kind: type[ReadRequest] | type[AckRequest] = (
        AckRequest if body.get("op") == "ack" else ReadRequest
    )
    return validate(kind, body, "ring request")


@dataclass(frozen=True)
class RingReply:
    """The requested samples, as far as the ring holds them, and the state of its source."""

    block: AudioBlock
    oldest: int
    """Index of the oldest sample in the ring."""
    next: int
    """Index after the newest sample."""
    acked: int
    """Index after the last acknowledged sample."""
    state: str = "listening"
    """How the source is: listening, degraded, missing or ended."""
    detail: str | None = None
    """What is wrong with it; None while nothing is."""
    is_paced: bool = True
    """Audio arrives in real time; otherwise as fast as it is acknowledged."""
    placement: Placement | None = None
    """Which worker of a pool has the stream; None: it is in no pool, or audio was asked for."""
    request_id: int | None = None
    """Number of the request; None: it had none."""

    def encode(self) -> list[bytes]:
        """Return the frames of the reply: header, PCM."""
        header = _block_header(self.block) | {
            "stream": self.block.stream,
            "oldest": self.oldest,
            "next": self.next,
            "acked": self.acked,
            "state": self.state,
            "detail": _cut(self.detail, MAX_DETAIL_CHARACTERS),
        }
        if self.request_id is not None:
            header["id"] = self.request_id
        if not self.is_paced:
            header["paced"] = False
        if self.placement is not None:
            header["placement"] = self.placement.to_json()
        return [encode_json(header), pcm_bytes(self.block.pcm)]

    @classmethod
    def decode(cls, frames: list[bytes], stream: str) -> Self:
        """Return the reply of the ring of `stream`.

        Raises:
            RefusedByRingError: the ring refused the request.
            WireError: the frames do not follow the format.
        """
        if not 1 <= len(frames) <= 2:
            raise WireError(f"ring reply: expected 1 or 2 frames, got {len(frames)}")
        body = decode_json(frames[0], "ring reply")
        if "error" in body:
            reason = short(str(body["error"]).encode("utf-8", "replace"))
            number = body.get("id")
            request_id = number if type(number) is int else None
            raise RefusedByRingError(f"ring of {stream} refused: {reason}", request_id)
        if len(frames) != 2:
            raise WireError("ring reply: expected header and PCM, got the header alone")
        header = validate(_ReplyHeader, body, "ring reply")
        return cls(
            block=_to_block(stream, header, frames[1]),
            oldest=header.oldest,
            next=header.next,
            acked=header.acked,
            state=header.state,
            detail=header.detail,
            is_paced=header.paced,
            placement=header.placement,
            request_id=header.id,
        )


class RefusedByRingError(WireError):
    """A ring refused a request.

    Attributes:
        request_id: number of the request; None: it had none, or the ring could not read it.
    """

    def __init__(self, message: str, request_id: int | None) -> None:
        super().__init__(message)
        self.request_id = request_id


class RingRefusal(Body):
    """Why a ring does not answer a request; see the class methods for the cases."""

    v: Literal[1] = PROTOCOL_VERSION
    error: Literal["malformed", "wrong_stream", "wrong_epoch", "not_allowed"]
    detail: str | None = None
    """What is malformed."""
    stream: str | None = None
    """The stream that the ring is of."""
    epoch: str | None = None
    """The run of the capture process that the ring is of."""
    oldest: int | None = None
    """Index of the oldest sample of that epoch."""
    next: int | None = None
    """Index after the newest sample of that epoch."""
    id: int | None = None
    """Number of the request; None: it had none, or could not be read."""

    @classmethod
    def malformed(cls, reason: str) -> Self:
        """Refuse anything that is not a request."""
        return cls(error="malformed", detail=_cut(reason, MAX_DETAIL_CHARACTERS))

    @classmethod
    def wrong_stream(cls, stream: str) -> Self:
        """Refuse a request for another stream than the ring's."""
        return cls(error="wrong_stream", stream=stream)

    @classmethod
    def not_allowed(cls) -> Self:
        """Refuse audio to a client that may not listen."""
        return cls(error="not_allowed")

    @classmethod
    def wrong_epoch(cls, epoch: str, oldest: int, next: int) -> Self:
        """Refuse a request for another epoch than the ring's."""
        return cls(error="wrong_epoch", epoch=epoch, oldest=oldest, next=next)

    def to(self, request: ReadRequest) -> Self:
        """Return the same as the answer to a request."""
        return self.model_copy(update={"id": request.id})

    def encode(self) -> list[bytes]:
        """Return the frame of the refusal."""
        return [encode_json(self.model_dump(exclude_none=True))]


def pcm_bytes(pcm: Pcm16) -> bytes:
    """Return samples as on the wire: int16, little-endian."""
    return np.ascontiguousarray(pcm, dtype="<i2").tobytes()


def decode_pcm_answer(body: dict[str, Any], stream: str, pcm: bytes) -> AudioBlock:
    """Return the block in a decoded header and PCM.

    Raises:
        WireError: they do not follow the format.
    """
    return _to_block(stream, validate(_BlockHeader, body, "audio block"), pcm)


def _block_header(block: AudioBlock) -> dict[str, Any]:
    header: dict[str, Any] = {
        "v": PROTOCOL_VERSION,
        "epoch": block.epoch,
        "start": block.start_sample,
        "rate": SAMPLE_RATE,
        "samples": len(block.pcm),
        "time": format_time(block.moment.wall_ns),
        "monotonic_ns": block.moment.monotonic_ns,
        "ring": block.ring,
    }
    if block.clock is not None:
        header["clock"] = block.clock
    if block.gap_reason is not None:
        header["gap"] = _cut(block.gap_reason, MAX_REASON_CHARACTERS)
    if block.is_last:
        header["last"] = True
    if block.detail is not None:
        header["state"] = block.state
        header["detail"] = _cut(block.detail, MAX_DETAIL_CHARACTERS)
    return header


def _cut(text: str | None, n_characters: int) -> str | None:
    """Shorten a text: the other side refuses a longer one, and the audio with it."""
    return None if text is None else text[:n_characters]


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
        moment=Moment(time_ns, header.monotonic_ns),
        pcm=np.frombuffer(pcm, dtype="<i2").astype(np.int16, copy=False),
        ring=header.ring,
        clock=header.clock,
        gap_reason=header.gap,
        is_last=header.last,
        state=header.state,
        detail=header.detail,
    )


def _packet_bytes(packets: Sequence[OpusPacket]) -> bytes:
    return b"".join(
        _PACKET_PREFIX.pack(len(packet.data), packet.rounding) + packet.data for packet in packets
    )


def _to_packets(stream: str, header: _BlockHeader, frame: bytes) -> OpusPackets:
    what = f"audio block of {stream}"
    if header.run is None or header.crc is None or header.samples == 0:
        raise WireError(f"{what}: expected run, crc and samples with a codec")
    since_run = header.start - header.run
    if since_run < 0 or since_run % OPUS_PACKET_SAMPLES:
        raise WireError(f"{what}: expected a start at whole packets of its run, got {since_run}")
    n_packets = -(-header.samples // OPUS_PACKET_SAMPLES) + (since_run == 0)
    packets: list[OpusPacket] = []
    at = 0
    while at < len(frame) and len(packets) < n_packets:
        end = at + _PACKET_PREFIX.size
        n_bytes, rounding = _PACKET_PREFIX.unpack(frame[at:end].ljust(_PACKET_PREFIX.size, b"\0"))
        at, data = end + n_bytes, frame[end : end + n_bytes]
        if not 1 <= n_bytes <= MAX_OPUS_PACKET_BYTES or len(data) != n_bytes:
            raise WireError(f"{what}: expected packets of 1 to {MAX_OPUS_PACKET_BYTES} bytes")
        packets.append(OpusPacket(data, rounding))
    if len(packets) != n_packets or at != len(frame):
        raise WireError(
            f"{what}: expected {n_packets} packets for {header.samples} samples, got {len(frame)} "
            "bytes that are not"
        )
    return OpusPackets(header.run, tuple(packets), header.crc)


def _stream_name(frame: bytes) -> str:
    try:
        name = frame.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"stream name: expected UTF-8, got {short(frame)}") from error
    if not is_stream_name(name):
        raise WireError(f"stream name: expected {STREAM_NAME_RULE}, got {short(frame)}")
    return name
