"""The wall time of sample indices of one epoch, as it came with the blocks.

The clock of a capture process decides when samples were captured; this one only remembers it, as
straight lines that each begin at an anchor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ast_stream.machine_clock import Moment
from ast_stream.units import MAX_TIME_NS, NS_PER_SECOND, SAMPLE_RATE, samples_to_ns

_TOLERANCE_NS = 2_000


class Anchor(NamedTuple):
    """Where a line begins: a sample, and when it was captured on both clocks of the machine."""

    sample: int
    wall_ns: int
    monotonic_ns: int


@dataclass
class SampleClock:
    """Converts between sample indices and nanoseconds since 1970.

    A new anchor is kept only where the capture clock was really re-anchored, so that the time of
    a sample does not depend on how the audio was cut into blocks.

    Attributes:
        anchors: where each line begins, oldest first.
    """

    anchors: list[Anchor] = field(default_factory=list)

    MAX_ANCHORS = 256

    @classmethod
    def from_start(cls, time_ns: int) -> SampleClock:
        """Return the clock of a recording whose first sample has this wall time."""
        return cls([Anchor(0, time_ns, time_ns)])

    def observe(self, sample: int, moment: Moment) -> None:
        """Learn when `sample` was captured."""
        if self.anchors:
            known = self.moment(sample)
            wall_error_ns = abs(known.wall_ns - moment.wall_ns)
            if max(wall_error_ns, abs(known.monotonic_ns - moment.monotonic_ns)) <= _TOLERANCE_NS:
                return
        self.anchors.append(Anchor(sample, moment.wall_ns, moment.monotonic_ns))
        self.anchors.sort()
        del self.anchors[: -self.MAX_ANCHORS]

    def moment(self, sample: int) -> Moment:
        """Return when `sample` was captured (before the first anchor: extrapolated)."""
        anchor = self._anchor_before(lambda anchor: anchor.sample <= sample)
        return Moment(anchor.wall_ns, anchor.monotonic_ns).after(
            samples_to_ns(sample - anchor.sample)
        )

    def time_ns(self, sample: int, seen_from: Moment | None = None) -> int:
        """Return the wall time of `sample`, one that can be written.

        Anchors and samples come from other boxes: however far apart they are, no message about
        them may end a worker.

        Args:
            seen_from: by the wall clock as it is set then; None: as it was set at the sample.
        """
        moment = self.moment(sample)
        time_ns = moment.wall_ns if seen_from is None else moment.seen_from(seen_from)
        return min(max(0, time_ns), MAX_TIME_NS)

    def sample_at(self, time_ns: int) -> int:
        """Return the index of the sample at a wall time, at least 0."""
        anchor = self._anchor_before(lambda anchor: anchor.wall_ns <= time_ns)
        elapsed = round((time_ns - anchor.wall_ns) * SAMPLE_RATE / NS_PER_SECOND)
        return max(0, anchor.sample + elapsed)

    def _anchor_before(self, is_before: Callable[[Anchor], bool]) -> Anchor:
        return next(filter(is_before, reversed(self.anchors)), self.anchors[0])
