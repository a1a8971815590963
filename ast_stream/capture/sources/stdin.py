"""Standard input: raw PCM or a WAV, at the pace of whoever writes it.

Raw PCM has no mark of its own: taken in the wrong format it is noise that makes events. So what
begins like a file of some format is refused where raw PCM is expected, before a sample is taken.
"""

from __future__ import annotations

import logging
import os
import selectors
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ast_stream.audio.pcm import Pcm
from ast_stream.capture.sources.base import SourceBlock, SourceError
from ast_stream.errors import AudioError, ConfigError, Problem
from ast_stream.settings.streams import MAX_CHANNELS, StdinSource
from ast_stream.units import NS_PER_SECOND

logger = logging.getLogger(__name__)

_WHERE = "standard input"
_S24 = "s24"  # numpy has no such type
_SAMPLE_TYPES = {
    "s16le": "<i2",
    "s16be": ">i2",
    "s24le": _S24,
    "s32le": "<i4",
    "f32le": "<f4",
    "f64le": "<f8",
    "u8": "u1",
}
_SAMPLE_BYTES = {_S24: 3, "u1": 1, "<i2": 2, ">i2": 2, "<i4": 4, "<f4": 4, "<f8": 8}
_BLOCK_S = 0.1
_UNKNOWN_BYTES = 0x7FFF_F000  # programs that write to a pipe put this or more for "until the end"
_WAV = "a WAV file"
_MAX_WAV_HEADER = 1 << 20
_RATES = (1_000, 384_000)
# offset, bytes and name of what files begin with
_MAGIC = (
    (0, b"RIFF", _WAV),
    (0, b"RF64", _WAV),
    (0, b"riff", "a Wave64 file"),
    (0, b"OggS", "an Ogg file"),
    (0, b"fLaC", "a FLAC file"),
    (0, b"ID3", "an MP3 file"),
    (0, b"FORM", "an AIFF file"),
    (0, b"caff", "a CAF file"),
    (0, b".snd", "an AU file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (0, b"FLV\x01", "an FLV file"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "an ASF file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"wvpk", "a WavPack file"),
    (0, b"MAC ", "a Monkey's Audio file"),
    (0, b"\x1f\x8b\x08", "a gzip file"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"#EXTM3U", "a playlist"),
    (4, b"ftyp", "an MP4 file"),
)
_MPEG_KBPS = (
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1, layer III
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5
)
_MPEG_HZ = (44_100, 48_000, 32_000)
_N_FRAMES = 3  # headers in a row that no PCM has by chance
_TS_BYTES = 188


@dataclass(frozen=True)
class PcmFormat:
    """What the bytes of a stream of PCM are.

    Attributes:
        sample_type: of numpy, or `s24`.
        n_bytes: of all samples; None: until the end.
        header_bytes: before the first sample.
    """

    sample_type: str
    rate: int
    channels: int
    n_bytes: int | None = None
    header_bytes: int = 0

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of each channel."""
        return _SAMPLE_BYTES[self.sample_type] * self.channels


class StandardInput:
    """A finite source of PCM from a file descriptor.

    It is read no faster than the worker takes it, so that a recording piped in is not lost: its
    writer waits. Bytes of an incomplete frame at the end are dropped.

    Attributes:
        n_bytes_dropped: bytes at the end that made no whole frame.
    """

    is_live = False
    is_paced = False

    def __init__(
        self,
        settings: StdinSource,
        descriptor: int | None = None,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._descriptor = descriptor
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._format: PcmFormat | None = None  # None until enough has come to know it
        self._rest = b""
        self._began: tuple[int, int] | None = None
        self._n_frames = 0
        self.n_bytes_dropped = 0

    def open(self) -> None:
        """Take the descriptor.

        Raises:
            CaptureError: standard input is closed.
        """
        if self._descriptor is None:
            try:
                self._descriptor = sys.stdin.fileno()
            except (AttributeError, OSError, ValueError) as error:
                raise SourceError("stdin_closed", "standard input is closed") from error

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return what has come, or None if nothing came within `timeout_s`.

        Raises:
            ConfigError: it is not in the format that the settings name.
            AudioError: a WAV that ends before the end that its header names.
        """
        assert self._descriptor is not None, "read before open"
        if not _is_readable(self._descriptor, timeout_s):
            return None
        data = os.read(self._descriptor, self._block_bytes())
        is_end = not data
        data = self._rest + data
        if self._format is None:
            self._format = self._recognise(data, is_end=is_end)
            if self._format is None:
                self._rest = data
                return None
            data = data[self._format.header_bytes :]
        return self._cut(self._format, data, is_end=is_end)

    def close(self) -> None:
        """Leave the descriptor open: it is the process's own."""

    def _block_bytes(self) -> int:
        pcm_format = self._format or self._raw_format()
        return pcm_format.frame_bytes * max(1, round(_BLOCK_S * pcm_format.rate))

    def _raw_format(self) -> PcmFormat:
        settings = self._settings
        return PcmFormat(
            _SAMPLE_TYPES.get(settings.format, "<i2"), settings.rate, settings.channels
        )

    def _recognise(self, head: bytes, *, is_end: bool) -> PcmFormat | None:
        """Return the format of a stream from its first bytes; None: more are needed."""
        if self._settings.format == "wav":
            if is_end and not head:
                return self._raw_format()  # nothing at all is no sound, but no mistake either
            pcm_format = wav_format(head)
            if pcm_format is None and is_end:
                raise AudioError(f"{_WHERE} ended in the header of a WAV, after {len(head)} bytes")
            if pcm_format is not None:
                kind = f"{pcm_format.sample_type.strip('<')}, {pcm_format.rate} Hz"
                logger.info("%s is a WAV: %s, channels: %d", _WHERE, kind, pcm_format.channels)
            return pcm_format
        found = container_of(head, is_end=is_end)
        if found is None:
            return None
        if found:
            name = self._settings.format
            hint = "set format: wav, or " if found == _WAV else ""
            raise _unfit(
                f"begins with {_shown(head)}",
                f"{found}, and raw PCM is expected (format: {name}); {hint}send raw PCM "
                f"(ffmpeg -f {name}, arecord -t raw)",
            )
        return self._raw_format()

    def _cut(self, pcm_format: PcmFormat, data: bytes, *, is_end: bool) -> SourceBlock | None:
        """Return the whole frames of what has come, and keep the rest."""
        missing = None
        if pcm_format.n_bytes is not None:
            missing = pcm_format.n_bytes - self._n_frames * pcm_format.frame_bytes
            data = data[:missing]  # a WAV may have more behind its samples
            is_end = is_end or len(data) == missing
        whole = len(data) - len(data) % pcm_format.frame_bytes
        self._rest = data[whole:]
        if is_end:
            self.n_bytes_dropped, self._rest = len(self._rest), b""
            if missing is not None and whole < missing - missing % pcm_format.frame_bytes:
                self._raise_cut_short(pcm_format, whole)
            if self.n_bytes_dropped:
                logger.warning(
                    "%s ended in the middle of a sample: %d bytes dropped",
                    _WHERE,
                    self.n_bytes_dropped,
                )
        elif whole == 0:
            return None
        return self._block(pcm_format, data[:whole], is_end)

    def _raise_cut_short(self, pcm_format: PcmFormat, n_bytes: int) -> None:
        assert pcm_format.n_bytes is not None
        bytes_per_s = pcm_format.frame_bytes * pcm_format.rate
        got_s = self._n_frames / pcm_format.rate + n_bytes / bytes_per_s
        raise AudioError(
            f"{_WHERE} ended after {got_s:.1f} s: its WAV header says "
            f"{pcm_format.n_bytes / bytes_per_s:.1f} s"
        )

    def _block(self, pcm_format: PcmFormat, data: bytes, is_last: bool) -> SourceBlock:
        if self._began is None:
            self._began = self._monotonic_ns(), self._wall_ns()
        elapsed_ns = self._n_frames * NS_PER_SECOND // pcm_format.rate
        pcm = decoded(data, pcm_format)
        self._n_frames += len(pcm)
        return SourceBlock(
            pcm=pcm,
            rate=pcm_format.rate,
            captured_ns=self._began[1] + elapsed_ns,
            monotonic_ns=self._began[0] + elapsed_ns,
            is_last=is_last,
        )


def decoded(data: bytes, pcm_format: PcmFormat) -> Pcm:
    """Return whole frames as int16, or as float32 in [-1, 1], shape (n_frames, n_channels)."""
    if pcm_format.sample_type == _S24:
        wide = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = wide.view("<i4").reshape(-1, pcm_format.channels)
    else:
        samples = np.frombuffer(data, pcm_format.sample_type).reshape(-1, pcm_format.channels)
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if kind == "f":
        return samples.astype(np.float32)
    if kind == "u":
        return (samples.astype(np.int16) - 128) * np.int16(256)
    if size == 2:
        return samples.astype(np.int16)
    return samples.astype(np.float32) / np.float32(2**31)


def wav_format(head: bytes) -> PcmFormat | None:
    """Return the format of a WAV from its first bytes; None: more are needed.

    Raises:
        ConfigError: it is no WAV, or not one of plain PCM.
    """
    if len(head) >= 12 and (head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE"):
        raise _unfit(f"begins with {_shown(head)}", "a WAV is expected (format: wav)")
    at, sizes, format_chunk = 12, 0, b""
    while at + 8 <= len(head):
        name, size = head[at : at + 4], int(struct.unpack_from("<I", head, at + 4)[0])
        at += 8
        if name == b"data":
            if not format_chunk:
                raise _unfit("is a WAV", "a `fmt ` chunk is expected before its samples, got none")
            if head[:4] == b"RF64":
                n_bytes = sizes if 0 < sizes < 1 << 62 else None
            else:
                n_bytes = size if 0 < size < _UNKNOWN_BYTES else None
            return _layout_of(format_chunk, n_bytes, at)
        if at + size > len(head):
            break
        if name == b"fmt ":
            format_chunk = head[at : at + size]
        elif name == b"ds64" and size >= 16:
            sizes = int(struct.unpack_from("<Q", head, at + 8)[0])
        at += size + size % 2
    if len(head) > _MAX_WAV_HEADER or at > _MAX_WAV_HEADER:
        raise _unfit(
            "is a WAV", f"samples are expected in its first {_MAX_WAV_HEADER} bytes, got none"
        )
    return None


def _layout_of(chunk: bytes, n_bytes: int | None, header_bytes: int) -> PcmFormat:
    if len(chunk) < 16:
        raise _unfit(
            "is a WAV", f"a `fmt ` chunk of 16 bytes or more is expected, got {len(chunk)}"
        )
    tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == 0xFFFE and len(chunk) >= 26:
        tag = int(struct.unpack_from("<H", chunk, 24)[0])
    types = {
        (1, 8): "u1",
        (1, 16): "<i2",
        (1, 24): _S24,
        (1, 32): "<i4",
        (3, 32): "<f4",
        (3, 64): "<f8",
    }
    sample_type = types.get((tag, bits))
    if sample_type is None or align != channels * bits // 8:
        raise _unfit(
            f"is a WAV of encoding {tag:#06x} with {bits} bits in {align} bytes for {channels} "
            f"channels",
            "PCM of 8, 16, 24 or 32 bits, or float of 32 or 64, is expected",
        )
    if not (1 <= channels <= MAX_CHANNELS and _RATES[0] <= rate <= _RATES[1]):
        raise _unfit(
            f"is a WAV of {channels} channels at {rate} Hz",
            f"1 to {MAX_CHANNELS} channels at {_RATES[0]} to {_RATES[1]} Hz are expected",
        )
    return PcmFormat(sample_type, rate, channels, n_bytes, header_bytes)


def container_of(head: bytes, *, is_end: bool) -> str | None:
    """Return the kind of file that bytes begin like, "" for none; None: more bytes are needed."""
    may_be = False
    for offset, magic, name in _MAGIC:
        part = head[offset : offset + len(magic)]
        if part == magic:
            return name
        may_be = may_be or (magic.startswith(part) and (offset == 0 or head[:2] == b"\0\0"))
    for frame_bytes, name in (
        (_mp3_frame_bytes, "an MP3 stream"),
        (_adts_frame_bytes, "an AAC stream"),
        (_ts_packet_bytes, "an MPEG transport stream"),
    ):
        is_so = head[:1] in (b"\xff", b"G") and _frames(head, frame_bytes)
        if is_so:
            return name
        may_be = may_be or is_so is None
    return None if may_be and not is_end else ""


def _frames(head: bytes, frame_bytes: Callable[[bytes], int]) -> bool | None:
    """Return whether bytes are frames in a row, by the lengths in their headers; None: maybe."""
    at = 0
    for _ in range(_N_FRAMES):
        if at + 6 > len(head):
            return None
        size = frame_bytes(head[at : at + 6])
        if size == 0:
            return False
        at += size
    return True


def _mp3_frame_bytes(header: bytes) -> int:
    sync, rates = header[0] << 8 | header[1], header[2]
    version, layer = sync >> 3 & 3, sync >> 1 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5; 1: III
    kbps, hz = rates >> 4, rates >> 2 & 3
    if sync & 0xFFE0 != 0xFFE0 or version == 1 or layer != 1 or kbps in (0, 15) or hz == 3:
        return 0
    is_first = version == 3
    rate = _MPEG_HZ[hz] >> (0 if is_first else 1 if version == 2 else 2)
    bits = _MPEG_KBPS[0 if is_first else 1][kbps - 1] * 1_000
    return (144 if is_first else 72) * bits // rate + (rates >> 1 & 1)


def _adts_frame_bytes(header: bytes) -> int:
    size = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    is_adts = header[0] == 0xFF and header[1] & 0xF6 == 0xF0
    return size if is_adts and size >= 7 else 0


def _ts_packet_bytes(header: bytes) -> int:
    return _TS_BYTES if header[0] == 0x47 else 0


def _shown(head: bytes) -> str:
    """Return the first bytes as text if they are letters, else as hexadecimal numbers."""
    first = head[:4]
    text = first.decode("ascii", "replace")
    return text if text.isascii() and text.isprintable() else first.hex(" ")


def _unfit(what: str, expected: str) -> ConfigError:
    return ConfigError([Problem(f"{_WHERE} {what}", None, "", expected)])


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(descriptor, selectors.EVENT_READ)
        except PermissionError:
            return True  # a regular file: epoll refuses it, reading never waits
        return bool(selector.select(timeout_s))
