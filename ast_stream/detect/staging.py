"""PCM that has arrived but is not yet scored: one circular int16 buffer for each slot."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ast_stream.messages import Pcm16


class Staging:
    """Circular buffers over slots, addressed by absolute sample index.

    Args:
        capacity: samples kept for each slot; older ones are overwritten.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._buffer: npt.NDArray[np.int16] = np.zeros((0, capacity), np.int16)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        grown = np.zeros((n_slots, self.capacity), np.int16)
        grown[: len(self._buffer)] = self._buffer
        self._buffer = grown

    def write(self, slot: int, start: int, pcm: Pcm16) -> None:
        """Store samples at their index; at most `capacity` of them."""
        at = start % self.capacity
        head = min(len(pcm), self.capacity - at)
        self._buffer[slot, at : at + head] = pcm[:head]
        self._buffer[slot, : len(pcm) - head] = pcm[head:]

    def clear(self, slot: int) -> None:
        """Fill a slot with silence."""
        self._buffer[slot] = 0

    def read(
        self, slots: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], count: int
    ) -> npt.NDArray[np.int16]:
        """Return `count` samples of each slot from its start, shape (n, count)."""
        places = (starts[:, None] + np.arange(count)) % self.capacity
        samples: npt.NDArray[np.int16] = self._buffer[slots[:, None], places]
        return samples
