"""The last minutes of one stream: int16 samples by absolute index, with holes remembered.

The ring is the truth about what was heard: a block that could not be sent stays here and is
asked for later. A hole costs no room, so that a long loss does not push out audio that nobody
has read yet.
"""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass

import numpy as np

from ast_stream.messages.event import Pcm16
from ast_stream.units import FRAME_SHIFT, samples_to_ns

OVERWRITTEN = "overwritten"  # gap reason: asked for too late, newer audio has taken the room


@dataclass(frozen=True)
class _Segment:
    """Consecutive samples on one straight line of time."""

    start: int  # absolute index of the first sample
    written: int  # samples ever written before it: its place in the buffer, unwrapped
    time_ns: int
    gap_reason: str | None  # why samples are missing just before it


@dataclass(frozen=True, eq=False)
class RingSlice:
    """Consecutive samples from the ring, none across a hole or a step of the clock.

    Attributes:
        start_sample: absolute index of the first sample.
        time_ns: wall time of the first sample, None if nothing was ever written.
        pcm: shape (n_samples,), int16, own memory.
        gap_reason: why there is nothing just before it, or None.
    """

    start_sample: int
    time_ns: int | None
    pcm: Pcm16
    gap_reason: str | None

    @property
    def end_sample(self) -> int:
        """Index just after the last sample."""
        return self.start_sample + len(self.pcm)


class Ring:
    """The newest `capacity` samples, for one writer and many readers in different threads.

    Args:
        capacity: samples kept; 1 or more.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1 sample, got {capacity}")
        self.capacity = capacity
        self._pcm = np.zeros(capacity, dtype=np.int16)
        self._segments: list[_Segment] = []
        self._written = 0  # samples ever written
        self._next = 0
        self._acked = 0
        self._hole_reason: str | None = None  # of the hole that ends at `next`
        self._changed = threading.Condition()

    @property
    def next(self) -> int:
        """Index that the next sample will have."""
        with self._changed:
            return self._next

    @property
    def oldest(self) -> int:
        """Index of the oldest sample held; `next` if none is."""
        with self._changed:
            return self._begin_of(0) if self._segments else self._next

    @property
    def acked(self) -> int:
        """All samples before this index are done with."""
        with self._changed:
            return self._acked

    def write(self, pcm: Pcm16, time_ns: int) -> None:
        """Append samples, overwriting the oldest.

        Args:
            pcm: shape (n_samples,), int16; may be empty.
            time_ns: wall time of the first one; where it is not the straight continuation of
                the samples before, slices will not cross this point.
        """
        if len(pcm) == 0:
            return
        with self._changed:
            if self._hole_reason is not None or self._time_of(self._next) != time_ns:
                segment = _Segment(self._next, self._written, time_ns, self._hole_reason)
                self._segments.append(segment)
                self._hole_reason = None
            self._store(pcm)
            self._next += len(pcm)
            self._forget_overwritten()
            self._changed.notify_all()

    def skip(self, n_samples: int, reason: str) -> int:
        """Count samples that do not exist; return how many.

        Args:
            n_samples: taken as the nearest multiple of 160, at least 160, so that a hole always
                shows and never moves the 10 ms grid of the frames.
        """
        n_skipped = max(1, round(n_samples / FRAME_SHIFT)) * FRAME_SHIFT
        with self._changed:
            self._next += n_skipped
            self._hole_reason = self._hole_reason or reason
            self._changed.notify_all()
        return n_skipped

    def read(self, start: int, stop: int, max_samples: int) -> RingSlice:
        """Return the first samples held at or after `start`.

        The slice ends at `stop`, at the next hole or step of the clock, or after `max_samples`,
        whichever comes first. With nothing before `stop` it is empty and starts where audio goes
        on, or at `next`.
        """
        with self._changed:
            index = bisect.bisect_right(self._segments, start, key=lambda segment: segment.start)
            index = max(0, index - 1)  # the segment that holds `start`, if one does
            while index < len(self._segments) and self._end_of(index) <= start:
                index += 1
            if index == len(self._segments):
                time_ns = self._time_of(self._next)
                return RingSlice(self._next, time_ns, _nothing(), self._hole_reason)
            begin = max(start, self._begin_of(index))
            end = max(begin, min(stop, self._end_of(index), begin + max_samples))
            segment = self._segments[index]
            time_ns = segment.time_ns + samples_to_ns(begin - segment.start)
            place = segment.written + begin - segment.start
            reason = self._reason_before(index, start, begin)
            return RingSlice(begin, time_ns, self._load(place, end - begin), reason)

    def ack(self, stop: int) -> bool:
        """Learn that all samples before `stop` are done with; False if that cannot be.

        The cursor only moves forward, and never beyond `next`.
        """
        with self._changed:
            if not self._acked <= stop <= self._next:
                return False
            self._acked = stop
            self._changed.notify_all()
            return True

    def wait_written(self, beyond: int, timeout_s: float) -> bool:
        """Wait until `next` is greater than `beyond`; tell whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next > beyond, timeout_s)

    def wait_acked(self, n_samples: int, timeout_s: float) -> bool:
        """Wait until at most `n_samples` are not acknowledged; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next - self._acked <= n_samples, timeout_s)

    def _time_of(self, sample: int) -> int | None:
        """Wall time of a sample at or after the start of the newest segment."""
        if not self._segments:
            return None
        newest = self._segments[-1]
        return newest.time_ns + samples_to_ns(sample - newest.start)

    def _end_of(self, index: int) -> int:
        segment = self._segments[index]
        is_newest = index + 1 == len(self._segments)
        written = self._written if is_newest else self._segments[index + 1].written
        return segment.start + written - segment.written

    def _begin_of(self, index: int) -> int:
        """First sample of a segment that is not overwritten yet."""
        segment = self._segments[index]
        return segment.start + max(0, self._written - self.capacity - segment.written)

    def _reason_before(self, index: int, start: int, begin: int) -> str | None:
        segment = self._segments[index]
        if begin == segment.start and segment.gap_reason is not None:
            return segment.gap_reason
        return OVERWRITTEN if start < begin else None

    def _store(self, pcm: Pcm16) -> None:
        kept = pcm[-self.capacity :]
        self._written += len(pcm)
        place = (self._written - len(kept)) % self.capacity
        head = min(len(kept), self.capacity - place)
        self._pcm[place : place + head] = kept[:head]
        self._pcm[: len(kept) - head] = kept[head:]

    def _load(self, written: int, n_samples: int) -> Pcm16:
        place = written % self.capacity
        head = self._pcm[place : place + n_samples]
        return np.concatenate([head, self._pcm[: n_samples - len(head)]])

    def _forget_overwritten(self) -> None:
        held_from = self._written - self.capacity
        while len(self._segments) > 1 and self._segments[1].written <= held_from:
            del self._segments[0]


def _nothing() -> Pcm16:
    return np.zeros(0, dtype=np.int16)
