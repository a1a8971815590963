"""PCM that has arrived but is not yet scored: one circular int16 buffer for each slot."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ast_stream.messages.audio import Pcm16


class Staging:
    """Circular buffers over slots, addressed by absolute sample index.

    Samples from `first` of a slot on are needed by a window that is not scored yet; a write that
    would overwrite one of them is refused.

    Args:
        capacity: samples kept for each slot.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._buffer: npt.NDArray[np.int16] = np.zeros((0, capacity), np.int16)
        self._first: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        grown = np.zeros((n_slots, self.capacity), np.int16)
        grown[: len(self._buffer)] = self._buffer
        self._buffer = grown
        self._first = np.pad(self._first, (0, n_slots - len(self._first)))

    def room(self, slot: int, start: int) -> int:
        """Return how many samples can be written from sample `start` on."""
        return self.capacity - (start - int(self._first[slot]))

    def write(self, slot: int, start: int, pcm: Pcm16) -> None:
        """Store samples at their index.

        Raises:
            ValueError: samples that are still needed would be overwritten.
        """
        if len(pcm) > self.room(slot, start):
            raise ValueError(
                f"slot {slot}: expected at most {self.room(slot, start)} samples at {start}, "
                f"got {len(pcm)}: samples from {self._first[slot]} on are not scored yet"
            )
        at = start % self.capacity
        head = min(len(pcm), self.capacity - at)
        self._buffer[slot, at : at + head] = pcm[:head]
        self._buffer[slot, : len(pcm) - head] = pcm[head:]

    def restart(self, slot: int, first: int) -> None:
        """Fill a slot with silence; samples from `first` on will be needed."""
        self._buffer[slot] = 0
        self._first[slot] = first

    def release(self, slots: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> None:
        """Samples before `first`, shape (n,), of `slots`, shape (n,), are not needed any more."""
        self._first[slots] = first

    def read(
        self, slots: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], count: int
    ) -> npt.NDArray[np.int16]:
        """Return `count` samples of each slot from its start, shape (n, count).

        Raises:
            ValueError: samples that were released may be overwritten by now.
        """
        if (starts < self._first[slots]).any():
            raise ValueError("staging: samples that were released are not there any more")
        places = (starts[:, None] + np.arange(count)) % self.capacity
        samples: npt.NDArray[np.int16] = self._buffer[slots[:, None], places]
        return samples
