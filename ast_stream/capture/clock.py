"""Sample index to wall time: straight lines, restarted only when the clocks have drifted apart.

Blocks arrive late by a varying delay and never early, so the lower envelope of (arrival time
minus samples / rate) over the last minute shows when samples were really captured. The time of a
sample is read off the current line alone: it does not depend on how audio was cut into blocks.
Lines run on the monotonic clock; a step of the wall clock shows as one clean step of the line.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, ns_to_samples, samples_to_ns

ENVELOPE_S = 60  # how far back arrivals are compared
SETTLE_S = 10  # first comparison after an anchor: the first blocks of a device come irregularly
STEP_NS = 20_000_000  # drift that is worth a step, about one block's jitter
_BUCKET_NS = NS_PER_SECOND  # arrivals of one second are kept as their earliest
_NS_PER_US = 1000


@dataclass(frozen=True)
class _Arrival:
    """The least delayed block of one second, relative to the line."""

    sample: int
    monotonic_ns: int
    delay_ns: int


@dataclass
class _State:
    sample: int = 0
    wall_ns: int = 0
    monotonic_ns: int = 0
    wall_offset_ns: int = 0  # wall minus monotonic clock, as last seen
    compare_ns: int = 0  # monotonic time of the next comparison
    arrivals: deque[_Arrival] = field(default_factory=lambda: deque(maxlen=ENVELOPE_S))


class CaptureClock:
    """The wall time of each sample of one stream, at 16 kHz."""

    def __init__(self) -> None:
        self._state = _State()

    def anchor(self, sample: int, monotonic_ns: int, wall_ns: int) -> None:
        """Begin a line: `sample` was captured at these times (wall time is cut to whole us)."""
        self._state = _State(
            sample=sample,
            wall_ns=wall_ns // _NS_PER_US * _NS_PER_US,
            monotonic_ns=monotonic_ns,
            wall_offset_ns=wall_ns - monotonic_ns,
            compare_ns=monotonic_ns + SETTLE_S * NS_PER_SECOND,
        )

    def observe(self, sample: int, monotonic_ns: int, wall_ns: int) -> None:
        """Note that `sample` seems to have been captured at these times, or a little before."""
        state = self._state
        state.wall_offset_ns = wall_ns - monotonic_ns
        arrival = _Arrival(sample, monotonic_ns, monotonic_ns - self.monotonic_ns(sample))
        newest = state.arrivals[-1] if state.arrivals else None
        if newest is None or newest.monotonic_ns // _BUCKET_NS != monotonic_ns // _BUCKET_NS:
            state.arrivals.append(arrival)
        elif arrival.delay_ns < newest.delay_ns:
            state.arrivals[-1] = arrival

    def step_ns(self, sample: int) -> int:
        """Begin a new line at `sample` if the clocks have drifted apart.

        Returns:
            How much later (or, negative, earlier) `sample` is now; 0 if nothing changed.
        """
        state = self._state
        if not state.arrivals or state.arrivals[-1].monotonic_ns < state.compare_ns:
            return 0
        state.compare_ns = state.arrivals[-1].monotonic_ns + SETTLE_S * NS_PER_SECOND
        monotonic_ns = self.monotonic_ns(sample) + min(
            arrival.delay_ns for arrival in state.arrivals
        )
        wall_ns = monotonic_ns + state.wall_offset_ns
        step_ns = wall_ns - self.time_ns(sample)
        if abs(step_ns) <= STEP_NS:
            return 0
        self.anchor(sample, monotonic_ns, wall_ns)
        return step_ns

    def time_ns(self, sample: int) -> int:
        """Return the wall time of `sample`, nanoseconds since 1970."""
        return self._state.wall_ns + samples_to_ns(sample - self._state.sample)

    def monotonic_ns(self, sample: int) -> int:
        """Return the monotonic time of `sample`."""
        return self._state.monotonic_ns + samples_to_ns(sample - self._state.sample)

    def samples_until(self, sample: int, monotonic_ns: int) -> int:
        """Return how many samples lie between `sample` and a later moment; 0 if it is earlier."""
        return max(0, ns_to_samples(monotonic_ns - self.monotonic_ns(sample)))

    def rate_hz(self) -> float | None:
        """Return the device's rate, scaled to 16 kHz, fitted over the last minute; None if new."""
        arrivals = self._state.arrivals
        if len(arrivals) < 2 or arrivals[-1].sample - arrivals[0].sample < SETTLE_S * SAMPLE_RATE:
            return None
        mean_sample = sum(arrival.sample for arrival in arrivals) / len(arrivals)
        mean_ns = sum(arrival.monotonic_ns for arrival in arrivals) / len(arrivals)
        spread = sum((arrival.sample - mean_sample) ** 2 for arrival in arrivals)
        ns_per_sample = (
            sum(
                (arrival.sample - mean_sample) * (arrival.monotonic_ns - mean_ns)
                for arrival in arrivals
            )
            / spread
        )
        return NS_PER_SECOND / ns_per_sample
