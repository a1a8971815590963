"""Recordings as sources of sound; in real time or as fast as possible."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import numpy as np

from ast_stream.audio.pcm import Pcm
from ast_stream.audio.recording import RecordingAbsentError, RecordingReader
from ast_stream.capture.sources.base import SourceBlock, SourceError
from ast_stream.errors import AudioError
from ast_stream.settings.streams import FileSource
from ast_stream.units import NS_PER_SECOND


class Pace:
    """The time of a source that makes its own: in real time, or as fast as it is read.

    Args:
        is_realtime: a block is due when its last sample would have been recorded.
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


class FilePlayer:
    """A finite source: one file, once or for ever.

    The sample index continues from one round of a loop to the next. A file that is not there yet
    is worth another try; one that is not a recording is not. If not all of it could be read, that
    is raised after its last sample.
    """

    is_live = False

    def __init__(self, settings: FileSource, pace: Pace | None = None) -> None:
        self._settings = settings
        self._pace = pace or Pace(settings.pace == "realtime")
        self._reader: RecordingReader | None = None
        self._block_frames = 1
        self._n_frames_out = 0
        self._pending: SourceBlock | None = None

    @property
    def is_paced(self) -> bool:
        """Blocks come in real time."""
        return self._pace.is_realtime

    def open(self) -> None:
        """Open the file.

        Raises:
            CaptureError: it is not there, or may not be read.
            AudioError: it is no recording, or holds no samples.
        """
        try:
            self._reader = reader = RecordingReader(self._settings.path)
        except RecordingAbsentError as error:
            text = f"cannot read {self._settings.path}: {error.text}"
            raise SourceError("file_absent", text) from error
        if self._settings.loop and reader.duration_s == 0:
            raise AudioError(f"{self._settings.path}: expected samples to repeat, got none")
        self._block_frames = max(1, round(self._settings.block_s * reader.rate))
        self._n_frames_out, self._pending = 0, None
        self._pace.begin()

    def read(self, timeout_s: float) -> SourceBlock | None:
        """Return the next block when it is due; the last one has `is_last` and may be empty.

        Raises:
            AudioError: not all of the file could be read; what could has been returned.
        """
        assert self._reader is not None, "read before open"
        if self._pending is None:
            self._pending = self._next_block(self._reader)
        block = self._pending
        end_ns = self._elapsed_ns(self._n_frames_out + len(block.pcm), block.rate)
        if not self._pace.wait(end_ns, timeout_s):
            return None
        self._n_frames_out += len(block.pcm)
        self._pending = None
        return block

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _next_block(self, reader: RecordingReader) -> SourceBlock:
        pcm = reader.read(self._block_frames)
        while self._settings.loop and len(pcm) < self._block_frames:
            reader.check()
            reader.rewind()
            more = reader.read(self._block_frames - len(pcm))
            if len(more) == 0:
                raise AudioError(f"{self._settings.path}: expected samples to repeat, got none")
            pcm = cast(Pcm, np.concatenate([pcm, more]))
        times = self._pace.times_ns(self._elapsed_ns(self._n_frames_out, reader.rate))
        is_last = len(pcm) < self._block_frames
        if is_last and len(pcm) == 0:
            reader.check()
        is_last = is_last and not reader.problems  # those come with the next call
        return SourceBlock(pcm, reader.rate, times[1], times[0], is_last=is_last)

    @staticmethod
    def _elapsed_ns(n_frames: int, rate: int) -> int:
        return n_frames * NS_PER_SECOND // rate
