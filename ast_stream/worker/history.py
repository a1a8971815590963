"""The worker's copy of the last minute of each stream, for clips of what was heard."""

from __future__ import annotations

import numpy as np

from ast_stream.messages.event import Pcm16


class PcmHistory:
    """The newest samples of one stream, addressed by sample index; holes read as silence.

    Args:
        capacity: samples kept.
    """

    def __init__(self, capacity: int) -> None:
        self._buffer: Pcm16 = np.zeros(capacity, np.int16)
        self._start = 0
        self._stop = 0

    @property
    def oldest(self) -> int:
        """Index of the oldest sample kept."""
        return max(self._start, self._stop - len(self._buffer))

    @property
    def stop(self) -> int:
        """Index after the newest sample."""
        return self._stop

    def restart(self, start_sample: int) -> None:
        """Forget everything; the next sample has index `start_sample`."""
        self._start = self._stop = start_sample

    def write(self, start_sample: int, pcm: Pcm16) -> None:
        """Take samples at or behind `stop`; a hole before them becomes silence."""
        hole = min(max(0, start_sample - self._stop), len(self._buffer))
        self._put(start_sample - hole, np.zeros(hole, np.int16))
        newest = pcm[-len(self._buffer) :]
        self._put(start_sample + len(pcm) - len(newest), newest)
        self._stop = start_sample + len(pcm)

    def read(self, start_sample: int, stop_sample: int) -> tuple[int, Pcm16]:
        """Return what is kept of [start, stop): the index of its first sample, and a copy."""
        start = min(max(start_sample, self.oldest), self._stop)
        stop = max(start, min(stop_sample, self._stop))
        return start, self._buffer.take(np.arange(start, stop), mode="wrap")

    def _put(self, start: int, pcm: Pcm16) -> None:
        if len(pcm):
            self._buffer.put(np.arange(start, start + len(pcm)), pcm, mode="wrap")
