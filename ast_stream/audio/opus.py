"""Opus on the wire: 16 kHz mono in packets of 20 ms, encoded by libopus (PyAV, extra `url`).

Both sides decode a packet to the same int16 samples, bit for bit, with any build of the decoder.
Decoders differ in the last bits of their floats, so rounding could give different neighbours. The
encoder, which decodes what it sends, therefore shifts each packet by a fraction of an int16 step at
which no sample is near a tie, and sends the shift along.

The encoder is reset every `RUN_S` and after each gap; a receiver that joins later or has missed a
packet decodes from the next reset on. The encoding depends only on the samples, never on the
network. A run starts with one packet that is decoded only to settle the codec; each further packet
gives the original samples at their own indices.

Sources: RFC 6716 for packets, libopus for `restricted_lowdelay`, which is CELT only: at 48 kHz, as
FFmpeg decodes, every third sample equals the output of a decoder at 16 kHz.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ast_stream.audio.decoders import decoding_errors, pyav
from ast_stream.audio.pcm import Floats, SampleBuffer
from ast_stream.errors import StartupError, WireError
from ast_stream.messages.audio import (
    OPUS_PACKET_SAMPLES,
    ROUNDING_STEPS,
    AudioBlock,
    OpusPacket,
    Pcm16,
    pcm_bytes,
)
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, seconds_to_samples

APPLICATION = "lowdelay"  # of libopus: CELT only; docs/design/opus.md compares it with "audio"
RUN_S = 2.0  # after at most this time, a receiver that has missed a packet decodes again
MISSING = "Opus needs PyAV with libopus: pip install 'ast-stream[url]'"

_RUN_SAMPLES = seconds_to_samples(RUN_S)
_AT_ONCE = SAMPLE_RATE  # samples taken in at a time
_DECODED_HZ = 48_000  # the only rate of FFmpeg's libopus
_EVERY = _DECODED_HZ // SAMPLE_RATE
_PRE_SKIP = slice(10, 12)  # of `OpusHead`, RFC 7845 section 5.1: samples at 48 kHz
_STEREO, _FRAMES = 0b100, 0b011  # in the first byte of a packet, RFC 6716 section 3.1

Values = npt.NDArray[np.float64]
"""Samples as decoded, in int16 steps, shape (n_samples,)."""


@dataclass(frozen=True, eq=False)
class CodedSamples:
    """The next samples as every decoder outputs them, with their packets.

    Attributes:
        pcm: shape (n_samples,), int16; 320, or fewer before a gap.
        packets: one, or two at the start of a run.
        begins_run: the encoder was reset before these samples.
    """

    pcm: Pcm16
    packets: tuple[OpusPacket, ...]
    begins_run: bool


class OpusEncoder:
    """Samples in, packets and their decoded samples out, delayed by up to 22.5 ms.

    Args:
        bit_rate: bits per second that packets have on average.

    Raises:
        StartupError: there is no libopus.
    """

    def __init__(self, bit_rate: int) -> None:
        self._bit_rate = bit_rate
        self._packer = _Packer(bit_rate)  # found missing now, and not at the first sample
        self._pcm = SampleBuffer(2 * _AT_ONCE)
        self._next = 0  # first sample that is not out yet
        self._fed = 0  # first sample that the encoder has not seen
        self._run_begins = self._run_ends = 0
        self._is_in_run = False

    def push(self, pcm: Pcm16) -> list[CodedSamples]:
        """Return what can be decoded now.

        Args:
            pcm: shape (n_samples,), int16; continues what was pushed before.
        """
        coded = []
        for start in range(0, len(pcm), _AT_ONCE):
            self._pcm.append(pcm[start : start + _AT_ONCE])
            coded += self._encode()
        return coded

    def flush(self) -> list[CodedSamples]:
        """Return what is still owed; the next sample begins a run, and need not follow."""
        coded, n_owed = [], self._pcm.end - self._next
        if n_owed:  # the encoder looks ahead, and there is nothing ahead
            n_padded = -n_owed % OPUS_PACKET_SAMPLES
            self._pcm.append_silence(n_padded + self._packer.lookahead)
            coded = self._encode()
            coded[-1] = replace(coded[-1], pcm=coded[-1].pcm[: OPUS_PACKET_SAMPLES - n_padded])
        self._pcm.restart(0)
        self._next = 0
        self._is_in_run = False
        return coded

    def _encode(self) -> list[CodedSamples]:
        coded: list[CodedSamples] = []
        while True:
            if not self._is_in_run or self._next >= self._run_ends:
                self._begin_run()
            first = self._next == self._run_begins
            if not self._has(2 if first else 1):
                return coded
            packets = [] if not first else [self._packer.pack(self._take())[0]]
            packet, pcm = self._packer.pack(self._take())
            coded.append(CodedSamples(pcm, (*packets, packet), first))
            self._next += OPUS_PACKET_SAMPLES

    def _begin_run(self) -> None:
        """Begin with a packet before the next sample: codec and ear settle in it."""
        self._packer = _Packer(self._bit_rate)
        self._is_in_run = True
        self._run_begins = self._next
        self._run_ends = self._next + _RUN_SAMPLES
        self._fed = self._next - OPUS_PACKET_SAMPLES + self._packer.lookahead

    def _has(self, n_packets: int) -> bool:
        return self._pcm.end >= self._fed + n_packets * OPUS_PACKET_SAMPLES

    def _take(self) -> Pcm16:
        """Return the input of the next packet; before the first sample there is silence."""
        end = self._fed + OPUS_PACKET_SAMPLES
        _, pcm = self._pcm.read(self._fed, end)
        self._fed = end
        n_before = OPUS_PACKET_SAMPLES - len(pcm)
        return pcm if n_before == 0 else np.concatenate([np.zeros(n_before, np.int16), pcm])


class OpusReader:
    """Decodes the blocks of one stream, as far as it is in step with their encoder."""

    def __init__(self) -> None:
        self._decoder: PacketDecoder | None = None  # None: out of step, until a run begins
        self._expected: tuple[str, int, int] = ("", 0, 0)  # epoch, run, first sample

    def read(self, block: AudioBlock) -> Pcm16 | None:
        """Return the samples of a coded block, None if what they follow was missed.

        Raises:
            DifferentSamplesError: they are not those of the encoder; the next block may be.
            WireError: it is no Opus of this kind.
            StartupError: there is no libopus.
        """
        opus = block.opus
        if opus is None:
            raise ValueError("expected a block coded by Opus")
        place = (block.epoch, opus.run, block.start_sample)
        if block.epoch == self._expected[0] and place < self._expected:
            return None  # late: what follows it was read already
        if block.start_sample == opus.run:
            self._decoder = PacketDecoder()
        elif self._decoder is None or place != self._expected:
            self._decoder = None
            return None
        decoder, self._decoder = self._decoder, None
        decoded = np.empty((len(opus.packets), OPUS_PACKET_SAMPLES), np.float32)
        for row, packet in zip(decoded, opus.packets, strict=True):
            row[:] = decoder.checked(packet.data)
        rounding = np.array([[packet.rounding] for packet in opus.packets])
        n_before = OPUS_PACKET_SAMPLES if block.start_sample == opus.run else 0
        pcm = rounded(in_steps(decoded), rounding).reshape(-1)[n_before:][: len(block.pcm)]
        if len(block.pcm) % OPUS_PACKET_SAMPLES == 0:  # else the run is over
            self._decoder = decoder
            self._expected = (block.epoch, opus.run, block.end_sample)
        if (crc := checksum(pcm)) != opus.crc:
            raise DifferentSamplesError(
                f"Opus: expected the samples of the encoder (CRC-32 {opus.crc:08x}), got {crc:08x}"
            )
        return pcm


class DifferentSamplesError(WireError):
    """Packets that decode to other samples here than where they were made."""


def checksum(pcm: Pcm16) -> int:
    """Return the CRC-32 of samples as they are on the wire."""
    return zlib.crc32(pcm_bytes(pcm))


def check_libopus() -> None:
    """Find out whether streams can be coded and decoded here.

    Raises:
        StartupError: there is no libopus.
    """
    _Packer(24_000)
    PacketDecoder()


class _Packer:
    """One encoder of libopus, with the decoder that gives what receivers will decode.

    Attributes:
        lookahead: samples that the encoder sees beyond those which a packet gives.
    """

    def __init__(self, bit_rate: int) -> None:
        self._decoder = PacketDecoder()
        self._av = pyav()
        try:
            context = self._av.CodecContext.create("libopus", "w")
        except (self._av.error.FFmpegError, ValueError) as error:
            raise StartupError(MISSING) from error
        context.sample_rate = SAMPLE_RATE
        context.layout = "mono"
        context.format = "s16"
        context.bit_rate = bit_rate
        context.time_base = Fraction(1, SAMPLE_RATE)
        context.options = {"application": APPLICATION, "frame_duration": "20", "vbr": "on"}
        context.open()
        self._context = context
        self._pts = 0
        self.lookahead = int.from_bytes(context.extradata[_PRE_SKIP], "little") // _EVERY

    def pack(self, pcm: Pcm16) -> tuple[OpusPacket, Pcm16]:
        """Return the packet of the next 320 samples, and what it decodes to."""
        frame = self._av.AudioFrame.from_ndarray(pcm[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = self._pts
        self._pts += OPUS_PACKET_SAMPLES
        (packet,) = self._context.encode(frame)
        data = bytes(packet)
        values = in_steps(self._decoder.decode(data))
        rounding = safe_rounding(values)
        return OpusPacket(data, rounding), rounded(values, rounding)


class PacketDecoder:
    """One run of a decoder.

    Args:
        codec: `libopus`, or `opus`, FFmpeg's own, which shares no code with it.

    Raises:
        StartupError: there is none.
    """

    def __init__(self, codec: str = "libopus") -> None:
        try:
            self._av = pyav()
            context = self._av.CodecContext.create(codec, "r")
        except (ImportError, ValueError) as error:
            raise StartupError(MISSING) from error
        context.sample_rate = _DECODED_HZ
        context.layout = "mono"
        context.thread_count = 1
        if codec == "libopus":  # the other gives floats anyway
            context.options = {"request_sample_fmt": "flt"}
        context.open()
        self._context = context
        self._errors = decoding_errors(self._av)

    def checked(self, data: bytes) -> Floats:
        """Return the 320 samples of the next packet, as somebody sent it.

        Raises:
            WireError: it is no Opus of this kind.
        """
        if not is_packet(data):
            raise WireError("Opus packet: expected one frame of 20 ms in mono")
        return self.decode(data)

    def decode(self, data: bytes) -> Floats:
        """Return the 320 samples of the next packet, float32, 1 for full scale.

        Raises:
            WireError: they cannot be decoded.
        """
        try:
            frames = self._context.decode(self._av.Packet(data))
        except self._errors as error:
            raise WireError(f"Opus packet: cannot be decoded: {error}") from error
        if len(frames) != 1 or frames[0].samples != OPUS_PACKET_SAMPLES * _EVERY:
            raise WireError("Opus packet: expected 20 ms of sound, got another length")
        plane = frames[0].planes[0]
        return np.frombuffer(plane, np.float32, OPUS_PACKET_SAMPLES * _EVERY)[::_EVERY]


def is_packet(data: bytes) -> bool:
    """Return whether a packet is one frame of 20 ms in mono, by its first byte."""
    config, rest = data[0] >> 3, data[0] & (_STEREO | _FRAMES)
    if rest:
        return False
    if config < 12:  # SILK
        return config % 4 == 1
    return config % 2 == 1 if config < 16 else config % 4 == 3  # hybrid, CELT


def in_steps(decoded: Floats) -> Values:
    """Return decoded samples of any shape in steps of int16, not rounded; 0 for what is none."""
    values = decoded.astype(np.float64) * FULL_SCALE
    return np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)


def safe_rounding(values: Values) -> int:
    """Return what to add before rounding, in `ROUNDING_STEPS` of a step, so that no tie is near.

    Half of the widest interval without any fractional part, of 320 samples, is a hundredth of a
    step; decoders differ by less.
    """
    fractions = np.sort(values - np.floor(values))
    following = np.append(fractions[1:], fractions[0] + 1)
    widest = int(np.argmax(following - fractions))
    tie = (fractions[widest] + following[widest]) / 2  # values there go up or down
    shift = float(1 - tie) % 1 - 0.5
    return min(ROUNDING_STEPS // 2 - 1, max(-ROUNDING_STEPS // 2, round(shift * ROUNDING_STEPS)))


def rounded(values: Values, rounding: int | npt.NDArray[np.int64]) -> Pcm16:
    """Return int16 samples, rounded after a shift by `rounding`, which has a shape like theirs."""
    whole = np.floor(values + (0.5 + rounding / ROUNDING_STEPS))
    return np.clip(whole, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def joined(coded: Sequence[CodedSamples]) -> Pcm16:
    """Return the samples of several parts in a row; there is at least one."""
    return np.concatenate([part.pcm for part in coded])
