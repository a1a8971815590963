"""Decoders of recordings: libsndfile, and FFmpeg's libraries (PyAV, the extra `url`).

libsndfile reads what it knows. FFmpeg reads the rest and goes on where libsndfile stops: behind
damage, and in the second of several streams in one file.
"""

from __future__ import annotations

import ctypes
import functools
import io
import itertools
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from ast_stream.audio.containers import METADATA
from ast_stream.audio.pcm import Floats, Pcm
from ast_stream.units import FULL_SCALE

RATES_HZ = (1_000, 1_000_000)
CHUNK_FRAMES = 8192  # decoded at a time: what damage can cost where PyAV is missing
_JUMP_S = 0.1  # in the time stamps of a container that count as a hole
_MAX_HOLE_S = 600.0  # filled with silence; a longer one is a broken time stamp
_STREAMING_FORMATS = ("mp3", "aac", "ac3", "eac3")  # their times only count frames
_AV_TIME_BASE = 1_000_000
_FLOATS = ("flt", "fltp")
_MAX_PLANES = 7  # of a frame: PyAV counts them to the first that is not there, of eight
_NO_HOLES = (*_STREAMING_FORMATS, "wav", "w64", "aiff", "caf", "au")
_SDS = re.compile(rb"\xf0\x7e.\x01", re.DOTALL)  # what is printed would be among our results
_DEMUXERS = (  # no playlists, no image sequences: a recording must not make us open other files
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,"
    "mpegts,mpc,mpc8,ogg,rm,tak,tta,voc,w64,wav,wv"
)


class DecodeError(Exception):
    """A file that cannot be read or decoded; says why."""


class SnapshotFile(io.RawIOBase):
    """A file as it is when it is opened: of one size, with a repaired header.

    Attributes:
        size: bytes.
        patches: bytes to read in place of others, by their position.
        read_to: where the last read ended.
        error: the first of the system: libsndfile cannot pass it on.

    Raises:
        OSError, ValueError: it is not there, or may not be read.
        DecodeError: it is something else than a file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self.patches: dict[int, bytes] = {}
        self._at = self.read_to = 0
        self._descriptor = -1
        try:  # a FIFO must not wait for its writer
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            found = os.fstat(self._descriptor)
            if stat.S_ISDIR(found.st_mode):
                os.scandir(self._descriptor).close()
            if not stat.S_ISREG(found.st_mode):
                raise DecodeError(f"expected a file, got a {_kind(found.st_mode)}")
        except BaseException:
            self.close()
            raise
        self.size = found.st_size

    def peek(self, at: int, n_bytes: int) -> bytes:
        """Return up to `n_bytes` bytes from `at` on, as they are in the file."""
        if not 0 <= at < self.size:
            return b""
        try:
            return os.pread(self._descriptor, min(n_bytes, self.size - at), at)
        except OSError as error:
            self.error = self.error or error
            return b""

    def unread(self) -> int:
        """Return the bytes after the last one that was read."""
        return self.size - self.read_to

    def has_grown(self) -> bool:
        """Return whether the file has become longer since it was opened."""
        return os.fstat(self._descriptor).st_size > self.size

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that it can be read from anywhere."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position on."""
        view = memoryview(buffer).cast("B")
        data = self.peek(self._at, len(view))
        view[: len(data)] = data
        for at, patch in self.patches.items():
            first, last = max(at, self._at), min(at + len(patch), self._at + len(data))
            if first < last:
                view[first - self._at : last - self._at] = patch[first - at : last - at]
        self._at += len(data)
        self.read_to = self._at
        return len(data)


class Decoder:
    """What both decoders have: rate, channels, number of frames if known, type of samples."""

    rate: int
    n_channels: int
    n_frames: int | None
    dtype: str

    def read(self, n_frames: int) -> Pcm:
        """Return the next frames, fewer only at the end."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the decoder."""


class _SequentialFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file read from front to back.

    soundfile seeks after every read, which libsndfile 1.2 does wrongly in mp3 files: read in
    blocks they come out damaged. It does not seek in what it takes for a pipe.
    """

    def seekable(self) -> bool:
        """Return that it is not, so that reading does not seek."""
        return False


class SndfileDecoder(Decoder):
    """libsndfile."""

    def __init__(self, file: SnapshotFile) -> None:
        file.seek(0)
        if _SDS.match(file.peek(0, 4)):
            raise DecodeError("a sample dump of MIDI, of which libsndfile prints what is wrong")
        try:
            with _quiet_c_library():
                self._file = _SequentialFile(file)
        except soundfile.SoundFileError as error:
            raise DecodeError(_reason(error)) from error
        self._is_mp3 = self._file.format == "MP3"
        self.rate = int(self._file.samplerate)
        self.n_channels = int(self._file.channels)
        self.dtype = "int16" if self._file.subtype == "PCM_16" else "float32"
        # more than 50 years at 48 kHz, or more than 64 frames for a bit of the file
        n_frames = int(self._file.frames)
        self.n_frames = n_frames if n_frames < min(2**46, 512 * max(1, file.size)) else None

    def read(self, n_frames: int) -> Pcm:
        """Return the next frames.

        Raises:
            DecodeError: it is damaged here.
        """
        try:
            with _quiet_c_library() if self._is_mp3 else nullcontext():
                pcm: Pcm = self._file.read(n_frames, dtype=self.dtype, always_2d=True)
        except soundfile.SoundFileError as error:
            raise DecodeError(_reason(error)) from error
        return pcm

    def close(self) -> None:
        """Free the decoder."""
        self._file.close()


class FfmpegDecoder(Decoder):
    """FFmpeg's libraries.

    Args:
        problems: where damage is noted.
        instead_of: decoder whose format to keep; None: the file's own.
        n_known: frames in that format that are known already, with what is wrong in them.
    """

    dtype = "float32"

    def __init__(
        self,
        file: SnapshotFile,
        problems: list[str],
        instead_of: Decoder | None = None,
        n_known: int = 0,
    ) -> None:
        try:
            self._av = pyav()
        except ImportError as error:
            raise DecodeError("PyAV is not installed") from error
        file.seek(0)
        self._file = file
        self._ready: list[Floats] = []
        self._problems = problems
        self._errors = decoding_errors(self._av)
        options = {"format_whitelist": _DEMUXERS}
        try:
            self._container = self._av.open(file, mode="r", options=options)
        except self._errors as error:
            raise DecodeError(_reason(error)) from error
        try:
            self._begin(instead_of, n_known)
        except BaseException:
            self._container.close()
            raise

    def read(self, n_frames: int) -> Pcm:
        """Return the next frames; what was lost before them is silence."""
        n_have = sum(len(part) for part in self._ready)
        while n_have < n_frames and (part := next(self._converted, None)) is not None:
            self._ready.append(part)
            n_have += len(part)
        joined = np.concatenate([np.zeros((0, self.n_channels), np.float32), *self._ready])
        pcm, self._ready = joined[:n_frames], [joined[n_frames:]]
        if self.dtype == "int16":
            scaled = np.clip(np.rint(pcm * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
            return np.asarray(scaled, np.int16)
        return np.asarray(pcm, np.float32)

    def close(self) -> None:
        """Free the decoder."""
        self._container.close()

    def _begin(self, instead_of: Decoder | None, n_known: int) -> None:
        if not self._container.streams.audio:
            raise DecodeError("it has no audio track")
        self._stream = self._container.streams.audio[0]
        self._format = str(self._container.format.name).split(",")[0]
        self.n_frames = None
        self._silent_until_s = 0.0  # what is wrong before is known already
        if instead_of is not None:
            self._silent_until_s = n_known / instead_of.rate
        decoded = self._decoded()
        first = next(decoded, None)
        if first is None:
            raise DecodeError("its sound cannot be decoded")
        native = first[1], first[0].shape[1]
        self.n_frames = self._declared_frames(native[0])
        self.rate, self.n_channels = native
        if instead_of is not None:
            self.rate, self.n_channels = instead_of.rate, instead_of.n_channels
            self.dtype = instead_of.dtype
        parts: Iterator[tuple[Floats, int]] = itertools.chain([first], decoded)
        if n_known:
            parts = _dropped(parts, round(n_known * native[0] / self.rate))
            following = next(parts, None)
            if following is None:
                raise DecodeError("nothing follows")
            parts = itertools.chain([following], parts)
        self._converted = _in_format(parts, self.rate, self.n_channels)
        self._ready = []

    def _declared_frames(self, rate: int) -> int | None:
        """Return the length by the header, where the container has one and it is of the sound."""
        if self._format in (*_STREAMING_FORMATS, "ogg", "mpegts", "mpeg"):
            return None
        length: int | None = self._stream.duration
        if length is not None:
            return round(length * float(self._stream.time_base) * rate)
        length = self._container.duration
        if length is not None and not self._container.streams.video:
            return round(length / _AV_TIME_BASE * rate)
        return None

    def _decoded(self) -> Iterator[tuple[Floats, int]]:
        """Yield decoded sound with its rate, and silence for what was lost."""
        first_s: float | None = None
        time_s, n_bytes, n_packets, n_bad_bytes = 0.0, 0, 0, 0
        to_floats = FrameConverter()
        for packet in self._packets():
            try:
                frames = packet.decode()
            except self._errors:
                if not bytes(memoryview(packet)[:16]).startswith(METADATA):
                    n_bad_bytes += packet.size
                continue
            n_bytes, n_packets = n_bytes + packet.size, n_packets + bool(packet.size)
            for frame in frames:
                rate = frame.sample_rate
                stamp_s = None if frame.pts is None else float(frame.pts * frame.time_base)
                if stamp_s is None and self._format == "flac":
                    n_bad_bytes += 1  # a frame that does not know its place is none
                    continue
                if first_s is None:
                    first_s = stamp_s
                lost_s = 0.0
                if stamp_s is not None and first_s is not None:
                    lost_s = stamp_s - first_s - time_s
                if self._format in _STREAMING_FORMATS:
                    n_lost = round(n_bad_bytes * n_packets / max(1, n_bytes))
                    lost_s = n_lost * frame.samples / rate if n_bad_bytes else 0.0
                elif self._format in _NO_HOLES or lost_s < -_JUMP_S or lost_s > _MAX_HOLE_S:
                    first_s = None if stamp_s is None else stamp_s - time_s  # another stream
                    lost_s = 0.0
                is_hole = lost_s > _JUMP_S
                if n_bad_bytes or (is_hole and self._format in ("ogg", "flac")):
                    self._note(time_s, lost_s)
                if n_bad_bytes or is_hole:
                    yield from _silence(lost_s, rate, frame.layout.nb_channels)
                    time_s += max(0.0, lost_s)
                n_bad_bytes = 0
                pcm = np.ascontiguousarray(to_floats(frame))
                yield pcm, rate
                time_s += len(pcm) / rate
        if (
            n_bad_bytes and self.n_frames is None
        ):  # else its end is missing, which is reported anyway
            self._note(time_s, 0.0)

    def _packets(self) -> Iterator[Any]:
        """Yield the packets of the sound; what ends them before the end of the file is noted."""
        try:
            yield from self._container.demux(self._stream)
        except self._av.error.EOFError:
            return
        except self._errors as error:
            if self._file.error is None:
                self._problems.append(f"damaged, what follows cannot be read ({_reason(error)})")

    def _note(self, time_s: float, lost_s: float) -> None:
        if time_s >= self._silent_until_s - _JUMP_S:
            what = f" ({lost_s:.2f} s lost, silence in their place)" if lost_s > 0.005 else ""
            self._problems.append(f"damaged at {time_s:.2f} s{what}; read on behind it")


class FrameConverter:
    """Frames of FFmpeg as arrays of float32, shape (n_frames, n_channels), own memory.

    Channels that FFmpeg keeps apart lie one behind the other in memory, as it has them. Rate and
    channels are kept: FFmpeg's own downmix to mono would add 3 dB.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._convert: Any = None

    def __call__(self, frame: Any) -> Floats:
        """Return the samples of a frame, whose format may differ from that before."""
        n_channels = frame.layout.nb_channels
        if frame.format.name in _FLOATS and n_channels <= _MAX_PLANES:
            # a converter would be threads and memory for a copy
            if not frame.format.is_planar:
                return np.asarray(frame.to_ndarray().reshape(-1, n_channels), np.float32)
            planes = np.empty((n_channels, frame.samples), np.float32)
            for plane, samples in zip(planes, frame.planes, strict=True):
                plane[:] = np.frombuffer(samples, np.float32, frame.samples)
            return planes.T
        key = (frame.format.name, frame.layout.name, frame.sample_rate)
        if key != self._key:
            # packed: behind eight planes PyAV reads other memory
            self._key, self._convert = key, pyav().AudioResampler(format="flt")
        frame.pts = None
        arrays = [
            packed.to_ndarray().reshape(-1, packed.layout.nb_channels)
            for packed in self._convert.resample(frame)
        ]
        if not arrays:
            return np.zeros((0, n_channels), np.float32)
        return np.ascontiguousarray(np.concatenate(arrays), dtype=np.float32)


def _silence(duration_s: float, rate: int, n_channels: int) -> Iterator[tuple[Floats, int]]:
    n_left = round(max(0.0, duration_s) * rate)
    while n_left > 0:
        n_frames = min(n_left, CHUNK_FRAMES)
        yield np.zeros((n_frames, n_channels), np.float32), rate
        n_left -= n_frames


def _dropped(parts: Iterator[tuple[Floats, int]], n_frames: int) -> Iterator[tuple[Floats, int]]:
    """Yield what follows the first `n_frames`."""
    for pcm, rate in parts:
        if len(pcm) > n_frames:
            yield pcm[n_frames:], rate
        n_frames = max(0, n_frames - len(pcm))


def _in_format(parts: Iterator[tuple[Floats, int]], rate: int, n_channels: int) -> Iterator[Floats]:
    """Yield all parts at one rate and with one number of channels: streams in a row may differ."""
    resample: Any = None
    from_rate = rate
    for pcm, part_rate in parts:
        if pcm.shape[1] != n_channels:
            pcm = np.repeat(pcm.mean(axis=1, keepdims=True, dtype=np.float32), n_channels, axis=1)
        if part_rate != from_rate:
            if resample is not None:
                yield resample.resample_chunk(np.zeros((0, n_channels), np.float32), last=True)
            from_rate, resample = part_rate, None
            if part_rate != rate and RATES_HZ[0] <= part_rate <= RATES_HZ[1]:
                resample = soxr.ResampleStream(part_rate, rate, n_channels, dtype="float32")
        yield pcm if resample is None else resample.resample_chunk(pcm)
    if resample is not None:
        yield resample.resample_chunk(np.zeros((0, n_channels), np.float32), last=True)


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "FIFO"
    if stat.S_ISDIR(mode):
        return "folder"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _reason(error: BaseException) -> str:
    """Return a library's reason without the object that it was given."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(text).removeprefix("Error : ").strip().rstrip(".") or type(error).__name__


def has_pyav() -> bool:
    """Return whether PyAV is installed."""
    try:
        pyav()
    except ImportError:
        return False
    return True


def pyav() -> Any:
    """Return PyAV.

    Raises:
        ImportError: it is not installed.
    """
    import av
    import av.error
    import av.logging

    av.logging.set_level(av.logging.PANIC)  # what matters comes as an exception
    return av


def decoding_errors(av: Any) -> tuple[type[Exception], ...]:
    """Return what PyAV raises for what it cannot read or decode.

    ValueError comes where a stream changes its format, IndexError where one begins on the way.
    """
    return (av.error.FFmpegError, OSError, ValueError, EOFError, IndexError)


_c_library_lock = threading.Lock()


@contextmanager
def _quiet_c_library() -> Iterator[None]:
    """Silence libmpg123, which writes to C's `stderr` whatever it meets in a file.

    Only the C library's own stream is replaced: what Python and other threads write by
    descriptor 2 still arrives.
    """
    stream, nowhere = _c_stderr()
    if stream is None:
        yield
        return
    with _c_library_lock:
        before, stream.value = stream.value, nowhere
        try:
            yield
        finally:
            stream.value = before


@functools.cache
def _c_stderr() -> tuple[ctypes.c_void_p | None, int | None]:
    """Return glibc's variable `stderr` and a stream that goes nowhere; None without glibc."""
    library = ctypes.CDLL(None)
    try:
        _ = library.gnu_get_libc_version  # elsewhere `stderr` is a constant
        stream = ctypes.c_void_p.in_dll(library, "stderr")
    except (AttributeError, ValueError):
        return None, None
    library.fopen.restype = ctypes.c_void_p
    return stream, library.fopen(os.fsencode(os.devnull), b"w")
