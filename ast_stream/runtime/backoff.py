"""Delays between attempts that keep failing."""

from __future__ import annotations

import math


class Backoff:
    """Doubling delays: each is twice the one before, up to a limit.

    Args:
        first_s: delay after the first failure.
        max_s: longest delay.
        healthy_s: a run that lasted so long counts as a success, see `after_run`.
    """

    def __init__(self, first_s: float, max_s: float, healthy_s: float = math.inf) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._healthy_s = healthy_s
        self._next_s = first_s

    @property
    def delay_s(self) -> float:
        """The delay that `next_s` would return."""
        return min(self._next_s, self._max_s)

    def next_s(self, max_s: float | None = None) -> float:
        """Return the delay after one more failure.

        Args:
            max_s: longest delay after this failure; None: as given when built.
        """
        delay_s = min(self._next_s, self._max_s if max_s is None else max_s)
        self._next_s = 2 * delay_s
        return delay_s

    def after_run(self, ran_s: float, max_s: float | None = None) -> float:
        """Return the delay, see `next_s`, after the failure of what ran for `ran_s` seconds."""
        if ran_s >= self._healthy_s:
            self.reset()
        return self.next_s(max_s)

    def reset(self) -> None:
        """Begin with the first delay again, after a success."""
        self._next_s = self._first_s
