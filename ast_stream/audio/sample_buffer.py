"""The newest int16 samples of one stream in a circular buffer, addressed by absolute index."""

from __future__ import annotations

import numpy as np

from ast_stream.messages.audio import Pcm16


class SampleBuffer:
    """Keeps the newest `capacity` samples that were appended.

    Args:
        capacity: samples kept; 1 or more.
        start_sample: index of the first sample.
    """

    def __init__(self, capacity: int, start_sample: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1 sample, got {capacity}")
        self.capacity = capacity
        self._pcm: Pcm16 = np.zeros(capacity, np.int16)
        self.restart(start_sample)

    @property
    def oldest(self) -> int:
        """Index of the oldest sample held; `end` if none is."""
        return max(self._start, self._end - self.capacity)

    @property
    def end(self) -> int:
        """Index just after the newest sample."""
        return self._end

    def restart(self, start_sample: int) -> None:
        """Forget everything; the next sample has index `start_sample`."""
        self._start = self._end = start_sample

    def append(self, pcm: Pcm16) -> None:
        """Append samples, shape (n_samples,), int16, overwriting the oldest."""
        self._end += len(pcm)
        kept = pcm[-self.capacity :]
        place = (self._end - len(kept)) % self.capacity
        head = min(len(kept), self.capacity - place)
        self._pcm[place : place + head] = kept[:head]
        self._pcm[: len(kept) - head] = kept[head:]

    def append_silence(self, n_samples: int) -> None:
        """Append `n_samples` zeros, for samples that do not exist."""
        n_written = min(n_samples, self.capacity)
        self._end += n_samples - n_written
        self.append(np.zeros(n_written, np.int16))

    def read(self, start_sample: int, end_sample: int) -> tuple[int, Pcm16]:
        """Return what is held of [start, end): the index of its first sample, and a copy."""
        start = min(max(start_sample, self.oldest), self._end)
        end = max(start, min(end_sample, self._end))
        place = start % self.capacity
        head = self._pcm[place : place + end - start]
        return start, np.concatenate([head, self._pcm[: end - start - len(head)]])
