"""Where each slot's stream stands, in samples of its epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NEVER = -1

Samples = npt.NDArray[np.int64]


class Positions:
    """Arrays over slots, shape (n_slots,), int64.

    Attributes:
        context_start: first real sample since start or gap.
        received: end of the audio that came.
        scored_until: windows may end up to here: at `received`, beyond it while a stream ends.
        next_end: end of the next window.
        score_from: windows up to here only fill the context again after a restart.
        first_scored: end of the first window scored since start or gap, or NEVER.
        stride: every how many windows one is scored.
    """

    def __init__(self, hop: int) -> None:
        self.hop = hop
        empty = np.zeros(0, np.int64)
        self.context_start: Samples = empty
        self.received: Samples = empty
        self.scored_until: Samples = empty
        self.next_end: Samples = empty
        self.score_from: Samples = empty
        self.first_scored: Samples = empty
        self.stride: Samples = empty

    def grow(self, n_slots: int) -> None:
        """Make room for `n_slots` slots."""
        for name in (
            "context_start",
            "received",
            "scored_until",
            "next_end",
            "score_from",
            "first_scored",
        ):
            setattr(self, name, _grown(getattr(self, name), n_slots, 0))
        self.stride = _grown(self.stride, n_slots, 1)

    def restart(self, slot: int, start_sample: int) -> None:
        """Begin a context whose first sample is `start_sample`."""
        self.context_start[slot] = start_sample
        self.received[slot] = self.scored_until[slot] = start_sample
        self.next_end[slot] = (start_sample // self.hop + 1) * self.hop
        self.score_from[slot] = NEVER
        self.first_scored[slot] = NEVER

    def decided(self, slot: int) -> int:
        """Return the sample up to which `slot` is decided."""
        last_end = self.next_end[slot] - self.hop
        return int(max(last_end, self.context_start[slot], self.score_from[slot]))

    def hops_waiting(self, slots: Samples) -> Samples:
        """Return how many windows of each slot could be scored; 0 or less for none."""
        waiting: Samples = (self.scored_until[slots] - self.next_end[slots]) // self.hop + 1
        return waiting

    def receive(self, slot: int, n_samples: int) -> None:
        """Note that audio came."""
        self.received[slot] += n_samples
        self.scored_until[slot] = self.received[slot]

    def mark_scored(self, slots: Samples, ends: Samples) -> Samples:
        """Note that windows were scored and return the first scored of each slot."""
        first = self.first_scored[slots]
        first = np.where(first == NEVER, ends, first)
        self.first_scored[slots] = first
        return first


def _grown(array: Samples, n_slots: int, empty: int) -> Samples:
    grown = np.full(n_slots, empty, np.int64)
    grown[: len(array)] = array
    return grown
