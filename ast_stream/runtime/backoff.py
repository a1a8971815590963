"""Delays between attempts that keep failing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable


class Backoff:
    """Doubling delays: each is twice the one before, up to a limit.

    Args:
        first_s: delay after the first failure.
        max_s: longest delay.
        healthy_s: a run that lasted so long counts as a success, see `after_run`.
        jitter: part of a delay, 0 to 1, by which it is longer or shorter at random: many that have
            lost the same thing at the same moment do not come back together.
        random_unit: a number in [0, 1).
    """

    def __init__(
        self,
        first_s: float,
        max_s: float,
        healthy_s: float = math.inf,
        *,
        jitter: float = 0.0,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._healthy_s = healthy_s
        self._next_s = first_s
        self._jitter = jitter
        self._random_unit = random_unit

    @property
    def delay_s(self) -> float:
        """The delay that `next_s` would return, without jitter."""
        return min(self._next_s, self._max_s)

    def next_s(self, max_s: float | None = None) -> float:
        """Return the delay after one more failure.

        Args:
            max_s: longest delay after this failure; None: as given when built.
        """
        delay_s = min(self._next_s, self._max_s if max_s is None else max_s)
        self._next_s = 2 * delay_s
        return self.jittered_s(delay_s)

    def jittered_s(self, delay_s: float) -> float:
        """Return another delay with the same jitter."""
        return delay_s * (1 + self._jitter * (2 * self._random_unit() - 1))

    def after_run(self, ran_s: float, max_s: float | None = None) -> float:
        """Return the delay, see `next_s`, after the failure of what ran for `ran_s` seconds."""
        if ran_s >= self._healthy_s:
            self.reset()
        return self.next_s(max_s)

    def reset(self) -> None:
        """Begin with the first delay again, after a success."""
        self._next_s = self._first_s
