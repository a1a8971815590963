"""The wall clock of this box, and whether it was set, as against a clock that only goes forward."""

from __future__ import annotations

from collections.abc import Callable

from ast_stream.alerts.told import STEP_NS
from ast_stream.units import NS_PER_SECOND


class ClockWatch:
    """Watches the wall clock.

    Args:
        now_ns: wall clock; now_s: a clock that only goes forward.
    """

    def __init__(self, now_ns: Callable[[], int], now_s: Callable[[], float]) -> None:
        self._now_ns = now_ns
        self._now_s = now_s
        self._apart_ns = self._followed_ns = self._look()

    def now_ns(self) -> int:
        """Return the wall time as it would be without the steps that were not followed yet."""
        return round(self._now_s() * NS_PER_SECOND) + self._followed_ns

    def follow(self) -> None:
        """Let `now_ns` make the steps that `step_ns` has told of."""
        self._followed_ns = self._apart_ns

    def step_ns(self) -> int:
        """Return by how much it was set since the last call, 0 if by less than anybody notices."""
        apart_ns = self._look()
        step_ns = apart_ns - self._apart_ns
        if abs(step_ns) <= STEP_NS:
            return 0
        self._apart_ns = apart_ns
        return step_ns

    def _look(self) -> int:
        return self._now_ns() - round(self._now_s() * NS_PER_SECOND)
