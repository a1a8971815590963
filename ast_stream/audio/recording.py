"""Recordings read from front to back: the one reader for everything that takes a file.

A header is believed only as far as the file bears it out. Whatever keeps a recording from being
read to its end becomes a sentence with the second it happened at: see `RecordingReader.check`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np

from ast_stream.audio.containers import is_metadata, layout_of
from ast_stream.audio.decoders import (
    CHUNK_FRAMES,
    RATES_HZ,
    DecodeError,
    Decoder,
    FfmpegDecoder,
    SnapshotFile,
    SndfileDecoder,
    has_pyav,
)
from ast_stream.audio.pcm import ChannelSelector, Pcm, Resampler
from ast_stream.errors import AudioError
from ast_stream.messages.audio import Pcm16

MAX_CHANNELS = 256
SHORT_S = 0.1  # by which a recording may be shorter than its header says: tools round
ABOUT_S = 1.0  # the same behind damage, where times are estimates
MAX_NAMED = 5  # places of damage in one sentence
READ_ON = "pip install 'ast-stream[url]' for a reader that continues after it"


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
        self._file = _opened(self.path)
        self._layout = layout_of(self._file)
        self._file.patches = self._layout.patches
        self._n_read = 0
        self._first_not_finite_s: float | None = None
        self._decoder: Decoder | None = None
        try:
            self._decoder = self._first_decoder()
            self.rate, self.n_channels = self._decoder.rate, self._decoder.n_channels
            self.dtype = self._decoder.dtype
            _check_format(self.path, self.rate, self.n_channels)
            if self._layout.contradiction is not None:
                raise RecordingError(self.path, self._layout.contradiction)
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
        """Raise if what was read to the end is not the whole recording.

        Raises:
            RecordingError: every problem, each with the second it was met at.
        """
        if self.problems:
            more = len(self.problems) - MAX_NAMED
            also = [f"and {more} more such places"] if more > 0 else []
            raise RecordingError(self.path, "; ".join(self.problems[:MAX_NAMED] + also))

    def close(self) -> None:
        """Close the file."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self._file.close()

    def _first_decoder(self) -> Decoder:
        if self._layout.is_chained or self._layout.damage:
            with suppress(DecodeError):
                return self._ffmpeg_decoder()
        try:
            return SndfileDecoder(self._file)
        except DecodeError as error:
            self._raise_io()
            return self._decoder_of_the_rest(str(error))

    def _ffmpeg_decoder(self, n_known: int = 0) -> FfmpegDecoder:
        return FfmpegDecoder(self._file, self.problems, self._decoder, n_known)

    def _decoder_of_the_rest(self, reason: str) -> Decoder:
        """Return FFmpeg's decoder for what libsndfile does not know."""
        if self._file.size == 0:
            raise RecordingError(self.path, "expected a recording, got an empty file")
        known = "expected wav, flac, ogg or mp3"
        if not has_pyav():
            also = "m4a, video and others need pip install 'ast-stream[url]'"
            raise RecordingError(self.path, f"{known}: {reason}; {also}")
        try:
            return self._ffmpeg_decoder()
        except DecodeError as error:
            self._raise_io()
            text = f"{known}, or what FFmpeg reads: {reason}; {error}"
            if missing := self._layout.n_bytes_missing:
                text = f"its end is missing: {missing} more bytes are promised ({error})"
            raise RecordingError(self.path, text) from error

    def _read_chunk(self, n_frames: int) -> Pcm:
        assert self._decoder is not None, "read after close"
        try:
            pcm = self._decoder.read(n_frames)
        except DecodeError as error:
            self._raise_io()
            return self._read_on(str(error), n_frames)
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
        """Return whether libsndfile stopped before the end, so that FFmpeg has to continue."""
        if not isinstance(self._decoder, SndfileDecoder) or self._layout.has_data_chunk:
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
            how = "" if has_pyav() else f"; {READ_ON}"
            self.problems.append(f"{at}, what follows was not read ({reason}){how}")
            self._is_ended = True
        return self._nothing()

    def _nothing(self) -> Pcm:
        return cast(Pcm, np.zeros((0, self.n_channels), self.dtype))

    def _switch(self) -> bool:
        """Continue with FFmpeg behind the frames read so far; return False if it cannot."""
        n_problems = len(self.problems)
        read_to = self._file.read_to
        try:
            following = self._ffmpeg_decoder(self._n_read)
        except DecodeError:
            del self.problems[n_problems:]
            self._file.read_to = read_to
            return False
        assert self._decoder is not None
        self._decoder.close()
        self._decoder = following
        return True

    def _missing_s(self) -> float:
        """Return by how much what was read is shorter than the header says."""
        if self._layout.declared_ratio is not None:
            return self.position_s * (self._layout.declared_ratio - 1)
        return 0.0 if self.duration_s is None else self.duration_s - self.position_s

    def _end(self) -> None:
        """Compare what was read with what header and file declared."""
        self._is_ended = True
        read_s, missing_s = self.position_s, self._missing_s()
        left = self._n_bytes_left() if isinstance(self._decoder, SndfileDecoder) else 0
        if self._layout.damage and not self.problems:
            self.problems += self._layout.damage
            if isinstance(self._decoder, SndfileDecoder) and missing_s > SHORT_S:
                how = "" if has_pyav() else f"; {READ_ON}"
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
            how = "" if has_pyav() else f"; {READ_ON}"
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
    channels: ChannelSelector | None = None,
) -> Iterator[Pcm16]:
    """Yield a recording as blocks of mono int16 at 16 kHz.

    Args:
        on_read: called after each block with the reader.
        channels: selects the channel of each block; None: all channels are averaged.

    Raises:
        RecordingError: it cannot be read, or, after its last block, not all of it could.
    """
    with RecordingReader(path) as reader:
        resampler = Resampler(reader.rate)
        n_frames = max(1, round(block_s * reader.rate))
        while len(pcm := reader.read(n_frames)):
            yield resampler.push(_selected(path, channels, pcm, reader.rate))
            if on_read is not None:
                on_read(reader)
        yield resampler.flush()
        reader.check()


def _selected(
    path: str | os.PathLike[str], channels: ChannelSelector | None, pcm: Pcm, rate: int
) -> Pcm:
    if channels is None:
        return pcm
    try:
        return channels.select(pcm, rate)
    except AudioError as error:
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


def _check_format(path: Path, rate: int, n_channels: int) -> None:
    lowest, highest = RATES_HZ
    if not lowest <= rate <= highest:
        raise RecordingError(path, f"expected a rate of {lowest} to {highest} Hz, got {rate} Hz")
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise RecordingError(path, f"expected 1 to {MAX_CHANNELS} channels, got {n_channels}")


def _opened(path: Path) -> SnapshotFile:
    try:
        return SnapshotFile(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordingAbsentError(path, reason) from error
    except DecodeError as error:
        raise RecordingError(path, str(error)) from error
