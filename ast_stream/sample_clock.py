"""Wall time of sample indices of one epoch, as it came with the blocks.

The clock of a capture process decides when samples were captured; this one only remembers it, as
straight lines that each begin at an anchor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns

_TOLERANCE_NS = 2_000


@dataclass
class SampleClock:
    """Converts between sample indices and nanoseconds since 1970.

    A new anchor is kept only where the capture clock was really re-anchored, so that the time of
    a sample does not depend on how the audio was cut into blocks.

    Attributes:
        anchors: sample and wall time where each line begins, oldest first.
    """

    anchors: list[tuple[int, int]] = field(default_factory=list)

    MAX_ANCHORS = 256

    def observe(self, sample: int, time_ns: int) -> None:
        """Learn that `sample` was captured at `time_ns`."""
        if self.anchors and abs(self.time_ns(sample) - time_ns) <= _TOLERANCE_NS:
            return
        self.anchors.append((sample, time_ns))
        self.anchors.sort()
        del self.anchors[: -self.MAX_ANCHORS]

    def time_ns(self, sample: int) -> int:
        """Return the wall time of `sample` (before the first anchor: extrapolated)."""
        lines = (anchor for anchor in reversed(self.anchors) if anchor[0] <= sample)
        anchor_sample, anchor_ns = next(lines, self.anchors[0])
        return anchor_ns + samples_to_ns(sample - anchor_sample)

    def sample_at(self, time_ns: int) -> int:
        """Return the index of the sample at a wall time, at least 0."""
        lines = (anchor for anchor in reversed(self.anchors) if anchor[1] <= time_ns)
        anchor_sample, anchor_ns = next(lines, self.anchors[0])
        elapsed = round((time_ns - anchor_ns) * SAMPLE_RATE / NS_PER_SECOND)
        return max(0, anchor_sample + elapsed)
