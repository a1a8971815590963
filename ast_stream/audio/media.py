"""Recordings, read by libsndfile: wav, flac, ogg, mp3; in real time or as fast as possible."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from ast_stream.audio.source import Pcm, SourceBlock, SourceError
from ast_stream.errors import AudioError
from ast_stream.settings.schema import FileSource
from ast_stream.units import NS_PER_SECOND


class Pace:
    """Hands out moments of a source's own time, in real time or at once.

    Args:
        is_realtime: a block is due when its last sample would have been heard.
    """

    def __init__(
        self,
        is_realtime: bool,
        *,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        wall_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.is_realtime = is_realtime
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._sleep = sleep
        self._began: tuple[int, int] | None = None

    def begin(self) -> None:
        """Start the source's time."""
        self._began = self._monotonic_ns(), self._wall_ns()

    def times_ns(self, elapsed_ns: int) -> tuple[int, int]:
        """Return (monotonic, wall) time of a moment `elapsed_ns` after the beginning."""
        assert self._began is not None, "times before begin"
        return self._began[0] + elapsed_ns, self._began[1] + elapsed_ns

    def wait(self, elapsed_ns: int, timeout_s: float) -> bool:
        """Wait for a moment of the source's time; False if it is further than `timeout_s`."""
        if not self.is_realtime:
            return True
        remaining_s = (self.times_ns(elapsed_ns)[0] - self._monotonic_ns()) / NS_PER_SECOND
        if remaining_s > 0:
            self._sleep(min(remaining_s, timeout_s))
        return remaining_s <= timeout_s


class SequentialFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A recording read from front to back.

    soundfile seeks after every read, which libsndfile 1.2 does wrongly in mp3 files: read in
    blocks they come out damaged. It does not seek in what it takes for a pipe.
    """

    def seekable(self) -> bool:
        """Say that it is not, so that reading does not seek."""
        return False


class Recording:
    """A finite source: one file, once or for ever.

    The sample index runs on from one round of a loop to the next. A file that is not there yet
    is worth another try; one that is no recording, or is damaged, is not.
    """

    is_live = False

    def __init__(self, settings: FileSource, pace: Pace | None = None) -> None:
        self._settings = settings
        self._pace = pace or Pace(settings.pace == "realtime")
        self._file: SequentialFile | None = None
        self._dtype = "float32"
        self._block_frames = 1
        self._n_frames_out = 0
        self._pending: SourceBlock | None = None

    @property
    def is_paced(self) -> bool:
        """Blocks come in real time."""
        return self._pace.is_realtime

    @property
    def rate(self) -> int:
        """Frames per second of the open file."""
        assert self._file is not None, "rate before open"
        return int(self._file.samplerate)

    @property
    def duration_s(self) -> float:
        """Length of the open file."""
        assert self._file is not None, "duration before open"
        return float(self._file.frames / self._file.samplerate)

    def open(self) -> None:
        """Open the file.

        Raises:
            CaptureError: it is not there, or may not be read.
            AudioError: it is no recording, or holds no samples.
        """
        path = Path(self._settings.path)
        try:
            path.open("rb").close()
        except OSError as error:
            raise SourceError("file_absent", f"cannot read {path}: {error.strerror}") from error
        try:
            self._file = SequentialFile(os.fsencode(path))  # names need not be UTF-8
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{path}: expected wav, flac, ogg or mp3: {error}") from error
        if self._settings.loop and self._file.frames == 0:
            raise AudioError(f"{path}: expected samples to repeat, got none")
        self._dtype = "int16" if self._file.subtype == "PCM_16" else "float32"
        self._block_frames = max(1, round(self._settings.block_s * self._file.samplerate))
        self._n_frames_out, self._pending = 0, None
        self._pace.begin()

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return the next block when it is due; the last one has `is_last` and may be empty.

        Raises:
            AudioError: the file is damaged from here on.
        """
        assert self._file is not None, "read before open"
        if self._pending is None:
            self._pending = self._next_block(self._file)
        block = self._pending
        end_ns = self._elapsed_ns(self._n_frames_out + len(block.pcm), block.rate)
        if not self._pace.wait(end_ns, timeout_s):
            return None
        self._n_frames_out += len(block.pcm)
        self._pending = None
        return block

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_block(self, file: SequentialFile) -> SourceBlock:
        pcm = self._read_frames(file, self._block_frames)
        while self._settings.loop and len(pcm) < self._block_frames:
            file.seek(0)  # the start is the one place that is right in every format
            more = self._read_frames(file, self._block_frames - len(pcm))
            if len(more) == 0:
                raise AudioError(f"{self._settings.path}: expected samples to repeat, got none")
            pcm = np.concatenate([pcm, more])
        times = self._pace.times_ns(self._elapsed_ns(self._n_frames_out, file.samplerate))
        is_last = len(pcm) < self._block_frames
        return SourceBlock(pcm, file.samplerate, times[1], times[0], is_last=is_last)

    def _read_frames(self, file: SequentialFile, n_frames: int) -> Pcm:
        try:
            pcm: Pcm = file.read(n_frames, dtype=self._dtype, always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self._settings.path}: damaged: {error}") from error
        return pcm

    @staticmethod
    def _elapsed_ns(n_frames: int, rate: int) -> int:
        return n_frames * NS_PER_SECOND // rate
