"""Blocks from PortAudio's callback to the reading thread: fixed memory, one copy, no waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ast_stream.audio.source import SourceBlock
from ast_stream.units import NS_PER_SECOND


@dataclass
class _Stamp:
    n_frames: int = 0
    captured_ns: int = 0
    monotonic_ns: int = 0
    overflowed: bool = False


class CallbackBlocks:
    """A bounded queue between one callback and one reader.

    Args:
        n_slots: blocks that fit; a reader that is later than that loses the newest.
        block_frames: most frames in one block.

    Attributes:
        n_dropped: frames lost because the reader was too late.
        n_overflows: times PortAudio said that it had lost frames.
    """

    def __init__(
        self,
        n_slots: int,
        block_frames: int,
        n_channels: int,
        rate: int,
        *,
        monotonic_ns: Callable[[], int],
        wall_ns: Callable[[], int],
    ) -> None:
        self._pcm = np.zeros((n_slots, block_frames, n_channels), dtype=np.int16)
        self._bytes = [slot.reshape(-1).data.cast("B") for slot in self._pcm]
        self._stamps = [_Stamp() for _ in range(n_slots)]
        self._frame_bytes = 2 * n_channels
        self._rate = rate
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns
        self._n_put = 0  # written by the callback alone
        self._n_got = 0  # written by the reader alone
        self._is_broken = False  # frames were lost since the last block that was put
        self._ready = threading.Event()
        self._finished = threading.Event()
        self.last_put_ns = monotonic_ns()
        self.n_dropped = 0
        self.n_overflows = 0

    @property
    def finished(self) -> bool:
        """No more blocks will come."""
        return self._finished.is_set()

    def put(self, data: memoryview, n_frames: int, input_overflow: bool) -> None:
        """Copy one block; called by the callback.

        Args:
            data: the interleaved int16 frames, valid during the call only.
            input_overflow: frames were lost before this block.
        """
        monotonic_ns, wall_ns = self._monotonic_ns(), self._wall_ns()
        self.last_put_ns = monotonic_ns
        self.n_overflows += input_overflow
        if self._n_put - self._n_got == len(self._stamps):
            self.n_dropped += n_frames
            self._is_broken = True
            return
        slot = self._n_put % len(self._stamps)
        self._bytes[slot][: n_frames * self._frame_bytes] = data
        age_ns = n_frames * NS_PER_SECOND // self._rate
        stamp = self._stamps[slot]
        stamp.n_frames = n_frames
        stamp.captured_ns = wall_ns - age_ns
        stamp.monotonic_ns = monotonic_ns - age_ns
        stamp.overflowed = input_overflow or self._is_broken
        self._is_broken = False
        self._n_put += 1
        self._ready.set()

    def finish(self) -> None:
        """Let the reader know that no more will come; called by the finished callback."""
        self._finished.set()
        self._ready.set()

    def get(self, timeout_s: float) -> SourceBlock | None:
        """Return the oldest block, or None if none came in time or none will."""
        if self._n_got == self._n_put:
            if self.finished or not self._ready.wait(timeout_s):
                return None
            self._ready.clear()
            if self._n_got == self._n_put:
                return None
        slot = self._n_got % len(self._stamps)
        stamp = self._stamps[slot]
        block = SourceBlock(
            pcm=self._pcm[slot, : stamp.n_frames].copy(),
            rate=self._rate,
            captured_ns=stamp.captured_ns,
            monotonic_ns=stamp.monotonic_ns,
            overflowed=stamp.overflowed,
        )
        self._n_got += 1
        return block
