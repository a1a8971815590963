"""Recordings, read from front to back: the one reader for everything that takes a file.

libsndfile reads what it knows; FFmpeg's libraries (PyAV, the extra `url`) read the rest and go on
where libsndfile stops: behind damage, and in the second of several streams in one file. A header
is believed only as far as the file bears it out. Whatever keeps a recording from being read to its
end becomes a sentence with the second it happened at: see `RecordingReader.check`.
"""

from __future__ import annotations

import ctypes
import functools
import io
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from ast_stream.audio.channels import Channels
from ast_stream.audio.containers import METADATA, is_metadata, layout_of
from ast_stream.audio.resampler import Resampler
from ast_stream.audio.source import Pcm, SourceError
from ast_stream.errors import AudioError
from ast_stream.messages.audio import Pcm16
from ast_stream.units import FULL_SCALE

Floats = npt.NDArray[np.float32]

RATES_HZ = (1_000, 1_000_000)
MAX_CHANNELS = 256
CHUNK_FRAMES = 8192  # decoded at a time: what damage can cost where PyAV is missing
SHORT_S = 0.1  # by which a recording may be shorter than its header says: tools round
ABOUT_S = 1.0  # the same behind damage, where times are estimates
JUMP_S = 0.1  # in the time stamps of a container that count as a hole
LONGEST_HOLE_S = 600.0  # filled with silence; a longer one is a broken time stamp
MOST_NAMED = 5  # places of damage in one sentence
READ_ON = "pip install 'ast-stream[url]' for a reader that goes on behind it"

# libsndfile names most formats by their suffix; raw samples have no header to read them by
SNDFILE_SUFFIXES = frozenset(
    f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"
) | {".aif", ".aifc", ".bwf", ".oga", ".opus", ".snd"}
FFMPEG_SUFFIXES = frozenset(
    {".3gp", ".aac", ".ac3", ".amr", ".ape", ".avi", ".m4a", ".m4b", ".mka", ".mkv", ".mov"}
) | {".mp2", ".mp4", ".mpg", ".mts", ".ogv", ".webm", ".wma", ".wv"}
RECORDING_SUFFIXES = SNDFILE_SUFFIXES | FFMPEG_SUFFIXES

_STREAMING_FORMATS = ("mp3", "aac", "ac3", "eac3")  # their times only count frames
_AV_TIME_BASE = 1_000_000
_NO_HOLES = (*_STREAMING_FORMATS, "wav", "w64", "aiff", "caf", "au")
_DEMUXERS = (  # no playlists, no image sequences: a recording must not make us open other files
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,"
    "mpegts,mpc,mpc8,ogg,rm,tak,tta,voc,w64,wav,wv"
)


class RecordingError(AudioError):
    """A recording that cannot be read, or not to its end.

    Attributes:
        text: what is wrong, without the name of the file.
    """

    def __init__(self, path: Path | str, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.text = text


class RecordingAbsentError(RecordingError):
    """There is no such file, or it may not be read."""


class RecordingReader:
    """One recording, decoded as it is read; memory does not grow with its length.

    What is behind damage is read where the decoder finds its way again; what was lost is silence,
    so that times stay right.

    Attributes:
        rate, n_channels: of all samples.
        dtype: int16 where the file holds just that, else float32.
        duration_s: length as the header says; None where it does not, or cannot be right.
        problems: what kept it from being whole, so far.

    Raises:
        RecordingAbsentError: no such file, or it may not be read.
        RecordingError: it is no recording that can be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.problems: list[str] = []
        self._file = _Snapshot(self.path)
        self._layout = layout_of(self._file)
        self._file.patches = self._layout.patches
        self._n_read = 0
        self._first_not_finite_s: float | None = None
        self._decoder: _Decoder | None = None
        try:
            self._decoder = self._first_decoder()
            self.rate, self.n_channels = self._decoder.rate, self._decoder.n_channels
            self.dtype = self._decoder.dtype
            _check_format(self.path, self.rate, self.n_channels)
        except BaseException:
            self.close()
            raise
        n_frames = self._decoder.n_frames
        self.duration_s = None if n_frames is None else n_frames / self.rate
        self._is_ended = False

    def __enter__(self) -> RecordingReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position_s(self) -> float:
        """Seconds read so far."""
        return self._n_read / self.rate

    def read(self, n_frames: int) -> Pcm:
        """Return the next frames, shape (n_frames, n_channels); fewer only at the end.

        Raises:
            RecordingError: the disk, or the network share, gave an error.
        """
        parts: list[Pcm] = []
        n_missing = n_frames
        while n_missing > 0 and not self._is_ended:
            part = self._read_chunk(min(n_missing, CHUNK_FRAMES))
            parts.append(part)
            n_missing -= len(part)
        if not parts:
            return self._nothing()
        return parts[0] if len(parts) == 1 else cast(Pcm, np.concatenate(parts))

    def rewind(self) -> None:
        """Go back to the first frame of the same file."""
        assert self._decoder is not None, "rewind after close"
        self._decoder.close()
        self._decoder = None
        self._decoder = self._first_decoder()
        self._n_read, self._is_ended = 0, False

    def check(self) -> None:
        """Speak up if what was read to the end is not the whole recording.

        Raises:
            RecordingError: every problem, each with the second it was met at.
        """
        if self.problems:
            more = len(self.problems) - MOST_NAMED
            also = [f"and {more} more such places"] if more > 0 else []
            raise RecordingError(self.path, "; ".join(self.problems[:MOST_NAMED] + also))

    def close(self) -> None:
        """Close the file."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self._file.close()

    def _first_decoder(self) -> _Decoder:
        if self._layout.is_chained or self._layout.damage:
            with suppress(_AvError):
                return self._av_decoder()
        try:
            return _SndfileDecoder(self._file)
        except soundfile.SoundFileError as error:
            self._raise_io()
            return self._decoder_of_the_rest(_reason(error))

    def _av_decoder(self, n_known: int = 0) -> _AvDecoder:
        if _pyav() is None:
            raise _AvError("PyAV is not installed")
        return _AvDecoder(self._file, self.problems, self._decoder, n_known)

    def _decoder_of_the_rest(self, reason: str) -> _Decoder:
        """Return FFmpeg's decoder for what libsndfile does not know."""
        if self._file.size == 0:
            raise RecordingError(self.path, "expected a recording, got an empty file")
        known = "expected wav, flac, ogg or mp3"
        if _pyav() is None:
            also = "m4a, video and others need pip install 'ast-stream[url]'"
            raise RecordingError(self.path, f"{known}: {reason}; {also}")
        try:
            return self._av_decoder()
        except _AvError as error:
            self._raise_io()
            text = f"{known}, or what FFmpeg reads: {reason}; {error}"
            if missing := self._layout.n_bytes_missing:
                text = f"its end is missing: {missing} more bytes are promised ({error})"
            raise RecordingError(self.path, text) from error

    def _read_chunk(self, n_frames: int) -> Pcm:
        assert self._decoder is not None, "read after close"
        try:
            pcm = self._decoder.read(n_frames)
        except soundfile.SoundFileError as error:
            self._raise_io()
            return self._read_on(_reason(error), n_frames)
        self._raise_io()
        n_before = self._n_read
        pcm = self._counted(pcm)
        if self._n_read - n_before < n_frames and not self._has_more():
            self._end()
        return pcm

    def _counted(self, pcm: Pcm) -> Pcm:
        """Count frames that go out; samples that are no numbers become silence, and a problem."""
        if pcm.dtype == np.float32 and not (is_finite := np.isfinite(pcm)).all():
            if self._first_not_finite_s is None:
                first = int(np.flatnonzero(~is_finite.all(axis=1))[0])
                self._first_not_finite_s = (self._n_read + first) / self.rate
                self.problems.append(
                    "expected finite samples, got NaN or infinity "
                    f"from {self._first_not_finite_s:.2f} s on"
                )
            pcm = np.where(is_finite, pcm, np.float32(0))
        self._n_read += len(pcm)
        return pcm

    def _has_more(self) -> bool:
        """Tell whether libsndfile left something that FFmpeg goes on with."""
        if not isinstance(self._decoder, _SndfileDecoder) or self._layout.has_data_chunk:
            return False
        return self._n_bytes_left() > 0 and self._switch()

    def _n_bytes_left(self) -> int:
        """Return the bytes that libsndfile left unread and that are no metadata."""
        if self._layout.has_data_chunk:
            return self._layout.n_bytes_behind
        left = self._file.unread()
        return 0 if is_metadata(self._file, self._file.size - left) else left

    def _read_on(self, reason: str, n_frames: int) -> Pcm:
        """Continue behind a place that libsndfile stopped at, or end there."""
        n_problems = len(self.problems)
        at = f"damaged at {self.position_s:.2f} s"
        if self._switch():
            pcm = self._read_chunk(n_frames)
            is_whole = self._is_ended and self.duration_s and self._missing_s() <= SHORT_S
            if len(self.problems) == n_problems and not is_whole:  # it may have met but a tag
                self.problems.append(f"{at} ({reason}); read on behind it")
            return pcm
        if self._file.unread() == 0 and self._missing_s() > SHORT_S:
            self._end()  # not damaged, but cut off
        else:
            how = "" if _pyav() else f"; {READ_ON}"
            self.problems.append(f"{at}, what follows was not read ({reason}){how}")
            self._is_ended = True
        return self._nothing()

    def _nothing(self) -> Pcm:
        return cast(Pcm, np.zeros((0, self.n_channels), self.dtype))

    def _switch(self) -> bool:
        """Let FFmpeg go on behind the frames read so far; False if it cannot."""
        n_problems = len(self.problems)
        read_to = self._file.read_to
        try:
            following = self._av_decoder(self._n_read)
        except _AvError:
            del self.problems[n_problems:]
            self._file.read_to = read_to
            return False
        assert self._decoder is not None
        self._decoder.close()
        self._decoder = following
        return True

    def _missing_s(self) -> float:
        """Return by how much what was read is shorter than the header says."""
        if self._layout.promised_share is not None:
            return self.position_s * (self._layout.promised_share - 1)
        return 0.0 if self.duration_s is None else self.duration_s - self.position_s

    def _end(self) -> None:
        """Compare what was read with what header and file promised."""
        self._is_ended = True
        read_s, missing_s = self.position_s, self._missing_s()
        left = self._n_bytes_left() if isinstance(self._decoder, _SndfileDecoder) else 0
        if self._layout.damage and not self.problems:
            self.problems += self._layout.damage
            if isinstance(self._decoder, _SndfileDecoder) and missing_s > SHORT_S:
                how = "" if _pyav() else f"; {READ_ON}"
                self.problems.append(f"{missing_s:.2f} s are lost, what follows is too early{how}")
        elif self._layout.n_bytes_missing and missing_s <= SHORT_S and not self.problems:
            self.problems.append(
                f"its end is missing: read to {read_s:.2f} s, "
                f"{self._layout.n_bytes_missing} more bytes are promised"
            )
        elif missing_s > (ABOUT_S if self.problems else SHORT_S):
            self.problems.append(
                f"expected {read_s + missing_s:.2f} s, as its header says, got {read_s:.2f} s: "
                "its end is missing"
            )
        elif left:
            how = "" if _pyav() else f"; {READ_ON}"
            self.problems.append(
                f"read to {read_s:.2f} s, where it ends by its header, but {left} bytes "
                f"that are no metadata follow{how}"
            )
        if self._file.has_grown():
            self.problems.append(f"it grew while it was read: read to {read_s:.2f} s only")

    def _raise_io(self) -> None:
        if self._file.error is not None:
            where = f" beyond {self.position_s:.2f} s" if self._n_read else ""
            text = f"cannot be read{where}: {self._file.error.strerror}"
            raise RecordingError(self.path, text) from self._file.error


def read_mono(
    path: str | os.PathLike[str],
    on_read: Callable[[RecordingReader], None] | None = None,
    block_s: float = 1.0,
    channels: Channels | None = None,
) -> Iterator[Pcm16]:
    """Yield a recording as blocks of mono int16 at 16 kHz.

    Args:
        on_read: called after each block with the reader.
        channels: takes what is heard of each block; None: all channels are averaged.

    Raises:
        RecordingError: it cannot be read, or, after its last block, not all of it could.
    """
    with RecordingReader(path) as reader:
        resampler = Resampler(reader.rate)
        n_frames = max(1, round(block_s * reader.rate))
        while len(pcm := reader.read(n_frames)):
            yield resampler.push(_heard(path, channels, pcm, reader.rate))
            if on_read is not None:
                on_read(reader)
        yield resampler.flush()
        reader.check()


def _heard(path: str | os.PathLike[str], channels: Channels | None, pcm: Pcm, rate: int) -> Pcm:
    if channels is None:
        return pcm
    try:
        return channels.take(pcm, rate)
    except SourceError as error:
        raise RecordingError(os.fspath(path), str(error)) from error


def recording_duration_s(path: str | os.PathLike[str]) -> float:
    """Return the length of a recording; one whose header does not say is read through.

    Raises:
        RecordingError: it cannot be read.
    """
    with RecordingReader(path) as reader:
        if reader.duration_s is not None:
            return reader.duration_s
        while len(reader.read(reader.rate)):
            pass
        return reader.position_s


def recordings_in(folder: Path) -> list[Path]:
    """Return the recordings in a folder and its sub-folders, by name.

    What has the suffix of a recording is among them, also where it cannot be read, and what begins
    like one: the reader says what is wrong with it. Hidden files and folders are left out.
    Symbolic links are followed, each folder once.
    """
    return sorted(_walk(folder, set()))


def is_recording(path: Path) -> bool:
    """Tell whether a file has the suffix of a recording, or begins like one."""
    if path.suffix.lower() in RECORDING_SUFFIXES:
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _begins_like_one(file.read(16))
    except OSError:
        return False


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        where = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError:
        yield folder  # the reader says why it cannot be read
        return
    if (where.st_dev, where.st_ino) in seen:
        return
    seen.add((where.st_dev, where.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, seen)
        elif is_recording(entry):
            yield entry


def _begins_like_one(head: bytes) -> bool:
    if head[:4] in (b"fLaC", b"OggS", b"caff", b".snd", b"wvpk", b"MAC ", b"\x1aE\xdf\xa3"):
        return True
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return head[8:12] in (b"WAVE", b"AVI ")
    if head[:4] == b"FORM":
        return head[8:12] in (b"AIFF", b"AIFC")
    if head[:3] == b"ID3" or head[4:8] == b"ftyp" or head[:4] == b"riff":
        return head[8:12] not in (b"heic", b"avif", b"mif1", b"crx ")  # pictures in such a box
    is_layer_3 = len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return is_layer_3 and head[1] & 0x18 != 0x08 and 0x10 <= head[2] < 0xF0


class _Snapshot(io.RawIOBase):
    """A file as it is when it is opened: of one size, with a repaired header.

    Attributes:
        size: bytes.
        patches: bytes to read in place of others, by their position.
        read_to: where the last read ended.
        error: the first that the system gave: libsndfile cannot hand it on.
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
        except (OSError, ValueError) as error:
            self.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise RecordingAbsentError(path, reason) from error
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise RecordingError(path, f"expected a file, got a {_kind(found.st_mode)}")

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
        """Return the bytes behind the last that was read."""
        return self.size - self.read_to

    def has_grown(self) -> bool:
        """Tell whether the file has become longer since it was opened."""
        return os.fstat(self._descriptor).st_size > self.size

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read from anywhere."""
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


class _Decoder:
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
        """Say that it is not, so that reading does not seek."""
        return False


class _SndfileDecoder(_Decoder):
    def __init__(self, file: _Snapshot) -> None:
        file.seek(0)
        with _quiet_c_library():
            self._file = _SequentialFile(file)
        self._is_mp3 = self._file.format == "MP3"
        self.rate = int(self._file.samplerate)
        self.n_channels = int(self._file.channels)
        self.dtype = "int16" if self._file.subtype == "PCM_16" else "float32"
        # more than 50 years at 48 kHz, or more than 64 frames for a bit of the file
        n_frames = int(self._file.frames)
        self.n_frames = n_frames if n_frames < min(2**46, 512 * max(1, file.size)) else None

    def read(self, n_frames: int) -> Pcm:
        if not self._is_mp3:
            return self._read(n_frames)
        with _quiet_c_library():
            return self._read(n_frames)

    def close(self) -> None:
        self._file.close()

    def _read(self, n_frames: int) -> Pcm:
        pcm: Pcm = self._file.read(n_frames, dtype=self.dtype, always_2d=True)
        return pcm


class _AvError(Exception):
    """FFmpeg cannot read it; says why."""


class _AvDecoder(_Decoder):
    """FFmpeg's libraries.

    Args:
        problems: where damage is noted.
        instead_of: decoder whose format to keep; None: the file's own.
        n_known: frames in that format that are known already, with what is wrong in them.
    """

    dtype = "float32"

    def __init__(
        self,
        file: _Snapshot,
        problems: list[str],
        instead_of: _Decoder | None = None,
        n_known: int = 0,
    ) -> None:
        self._av = _pyav()
        assert self._av is not None
        file.seek(0)
        self._file = file
        self._ready: list[Floats] = []
        self._problems = problems
        self._errors = (self._av.error.FFmpegError, OSError, ValueError, EOFError)
        options = {"format_whitelist": _DEMUXERS}
        try:
            self._container = self._av.open(file, mode="r", options=options)
        except self._errors as error:
            raise _AvError(_reason(error)) from error
        try:
            self._begin(instead_of, n_known)
        except BaseException:
            self._container.close()
            raise

    def read(self, n_frames: int) -> Pcm:
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
        self._container.close()

    def _begin(self, instead_of: _Decoder | None, n_known: int) -> None:
        if not self._container.streams.audio:
            raise _AvError("it has no audio track")
        self._stream = self._container.streams.audio[0]
        self._format = str(self._container.format.name).split(",")[0]
        self.n_frames = None
        self._silent_until_s = 0.0  # what is wrong before is known already
        if instead_of is not None:
            self._silent_until_s = n_known / instead_of.rate
        decoded = self._decoded()
        first = next(decoded, None)
        if first is None:
            raise _AvError("its sound cannot be decoded")
        native = first[1], first[0].shape[1]
        self.n_frames = self._promised_frames(native[0])
        self.rate, self.n_channels = native
        if instead_of is not None:
            self.rate, self.n_channels = instead_of.rate, instead_of.n_channels
            self.dtype = instead_of.dtype
        parts: Iterator[tuple[Floats, int]] = itertools.chain([first], decoded)
        if n_known:
            parts = _dropped(parts, round(n_known * native[0] / self.rate))
            following = next(parts, None)
            if following is None:
                raise _AvError("nothing follows")
            parts = itertools.chain([following], parts)
        self._converted = _in_format(parts, self.rate, self.n_channels)
        self._ready = []

    def _promised_frames(self, rate: int) -> int | None:
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
        to_floats = _ToFloats(self._av)
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
                elif self._format in _NO_HOLES or lost_s < -JUMP_S or lost_s > LONGEST_HOLE_S:
                    first_s = None if stamp_s is None else stamp_s - time_s  # another stream
                    lost_s = 0.0
                is_hole = lost_s > JUMP_S
                if n_bad_bytes or (is_hole and self._format in ("ogg", "flac")):
                    self._note(time_s, lost_s)
                if n_bad_bytes or is_hole:
                    yield from _silence(lost_s, rate, frame.layout.nb_channels)
                    time_s += max(0.0, lost_s)
                n_bad_bytes = 0
                pcm = to_floats(frame)
                yield pcm, rate
                time_s += len(pcm) / rate
        if n_bad_bytes and self.n_frames is None:  # else its end is missing, which is told anyway
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
        if time_s >= self._silent_until_s - JUMP_S:
            what = f" ({lost_s:.2f} s lost, silence in their place)" if lost_s > 0.005 else ""
            self._problems.append(f"damaged at {time_s:.2f} s{what}; read on behind it")


class _ToFloats:
    """Frames of FFmpeg as arrays of float32, shape (n_frames, n_channels).

    Rate and channels are kept: FFmpeg's own downmix to mono would add 3 dB.
    """

    def __init__(self, av: Any) -> None:
        self._av = av
        self._key: tuple[object, ...] = ()
        self._convert: Any = None

    def __call__(self, frame: Any) -> Floats:
        key = (frame.format.name, frame.layout.name, frame.sample_rate)
        if key != self._key:
            self._key, self._convert = key, self._av.AudioResampler(format="fltp")
        frame.pts = None
        arrays = [one.to_ndarray().T for one in self._convert.resample(frame)]
        if not arrays:
            return np.zeros((0, frame.layout.nb_channels), np.float32)
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


def _check_format(path: Path, rate: int, n_channels: int) -> None:
    least, most = RATES_HZ
    if not least <= rate <= most:
        raise RecordingError(path, f"expected a rate of {least} to {most} Hz, got {rate} Hz")
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise RecordingError(path, f"expected 1 to {MAX_CHANNELS} channels, got {n_channels}")


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


def _pyav() -> Any:
    """Return PyAV, or None where it is not installed."""
    try:
        import av
        import av.error
        import av.logging
    except ImportError:
        return None
    av.logging.set_level(av.logging.PANIC)  # what matters comes as an exception
    return av


_c_library_lock = threading.Lock()


@contextmanager
def _quiet_c_library() -> Iterator[None]:
    """Let libmpg123 complain to nobody: it writes to C's `stderr` whatever it meets in a file.

    Only the C library's own stream is exchanged: what Python and other threads write by
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
