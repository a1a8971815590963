"""Audio of one stream, shared by overlapping events: fetched once, and cut into clips."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ast_stream.messages.audio import Pcm16

Range = tuple[int, int]
"""A half-open range of sample indices."""


@dataclass(frozen=True)
class Hole:
    """Samples that are silence in a clip because they were not available.

    Attributes:
        reason: a sentence, or the reason of a gap of the feed.
    """

    start: int
    stop: int
    reason: str


@dataclass(frozen=True, eq=False)
class CutAudio:
    """The held audio of a span.

    Attributes:
        start: index of the first sample.
        holes: missing samples, in order.
        withheld: samples that are silence because somebody may be talking, in order.
    """

    start: int
    pcm: Pcm16
    holes: list[Hole]
    withheld: list[Range]

    @property
    def stop(self) -> int:
        """Index after the last sample."""
        return self.start + len(self.pcm)

    @property
    def has_sound(self) -> bool:
        """Whether any of it was available."""
        n_silent, at = 0, self.start
        ranges = [(hole.start, hole.stop) for hole in self.holes] + self.withheld
        for start, stop in sorted(ranges):
            n_silent += max(0, stop - max(start, at))
            at = max(at, stop)
        return n_silent < len(self.pcm)


class HeldAudio:
    """Consecutive samples of one epoch of a stream, which can grow at both ends.

    Args:
        start: index of the first sample wanted.

    Attributes:
        start, end: the held samples, half-open.
    """

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self._chunks: deque[Pcm16] = deque()
        self._holes: list[Hole] = []
        self._withheld: list[Range] = []

    def append(self, pcm: Pcm16, withheld: Iterable[Range] = ()) -> None:
        """Add the next samples, shape (n_samples,), int16."""
        self._withheld += withheld
        self.end += len(pcm)
        if len(pcm):
            self._chunks.append(pcm)

    def prepend(self, pcm: Pcm16, withheld: Iterable[Range] = ()) -> None:
        """Add samples before the first, shape (n_samples,), int16."""
        self._withheld += withheld
        self.start -= len(pcm)
        if len(pcm):
            self._chunks.appendleft(pcm)

    def append_hole(self, stop: int, reason: str) -> None:
        """Add silence up to `stop`, exclusive, where no audio is available."""
        self._holes.append(Hole(self.end, stop, reason))
        self.append(np.zeros(stop - self.end, np.int16))

    def prepend_hole(self, start: int, reason: str) -> None:
        """Add silence from `start` on, where no audio is available."""
        self._holes.append(Hole(start, self.start, reason))
        self.prepend(np.zeros(self.start - start, np.int16))

    def note(self, hole: Hole) -> None:
        """Record lost samples, such as a gap of the feed."""
        if hole not in self._holes:
            self._holes.append(hole)

    def cut(self, start: int, stop: int) -> CutAudio:
        """Return a copy of the held audio of a span."""
        start = min(max(start, self.start), self.end)
        stop = max(start, min(stop, self.end))
        parts: list[Pcm16] = [np.zeros(0, np.int16)]
        at = self.start
        for chunk in self._chunks:
            first, last = max(start - at, 0), min(stop - at, len(chunk))
            if first < last:
                parts.append(chunk[first:last])
            at += len(chunk)
        pcm = np.concatenate(parts)
        holes = [
            Hole(*within, hole.reason)
            for hole in sorted(self._holes, key=lambda hole: hole.start)
            for within in _within([(hole.start, hole.stop)], start, stop)
        ]
        for hole in holes:
            pcm[hole.start - start : hole.stop - start] = 0
        return CutAudio(start, pcm, holes, list(_within(sorted(self._withheld), start, stop)))

    def forget(self, before: int) -> None:
        """Release samples that are no longer needed, in whole chunks."""
        while self._chunks and self.start + len(self._chunks[0]) <= before:
            self.start += len(self._chunks.popleft())
        self._withheld = [span for span in self._withheld if span[1] > self.start]
        self._holes = [hole for hole in self._holes if hole.stop > self.start]


def _within(ranges: Iterable[Range], start: int, stop: int) -> Iterator[Range]:
    """Yield the parts of ranges that lie in a span."""
    for first, last in ranges:
        if max(first, start) < min(last, stop):
            yield max(first, start), min(last, stop)
