"""What this process remembers of how receivers fare; forgotten with it, for it is about now."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ast_stream.alerts.actions.base import Delivered, Failed, Outcome
from ast_stream.alerts.delivery_policy import MAX_PAUSE_S, Route
from ast_stream.units import NS_PER_SECOND


class Receivers:
    """The receivers of all actions.

    Args:
        routes: every action by name.
        now_ns: wall clock, nanoseconds since 1970.
    """

    def __init__(self, routes: Mapping[str, Route], now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._failed_ns: dict[str, deque[int]] = {
            name: deque(maxlen=1 if one.max_per is None else one.max_per[0])
            for name, one in routes.items()
        }
        self._paused_until_ns: dict[str, int] = {}
        self._stranded: dict[str, set[int]] = {}

    def note(self, action: str, seq: int, outcome: Outcome) -> None:
        """Take what came of the delivery `seq`."""
        if isinstance(outcome, Delivered):
            self._stranded.pop(action, None)
            return
        now_ns = self._now_ns()
        self._failed_ns[action].append(now_ns)
        if not isinstance(outcome, Failed):
            return
        if outcome.after_s > 0:
            pause_s = min(outcome.after_s, MAX_PAUSE_S)
            self._paused_until_ns[action] = now_ns + round(pause_s * NS_PER_SECOND)
        elif outcome.is_down:
            self._stranded.setdefault(action, set()).add(seq)

    def failed_ns(self, action: str) -> Sequence[int]:
        """Return when deliveries failed, oldest first, no more than the rate limit asks for."""
        return self._failed_ns[action]

    def pause_s(self, action: str) -> float:
        """Return how long the receiver still wants to be left alone, not longer than we let it."""
        left_s = (self._paused_until_ns.get(action, 0) - self._now_ns()) / NS_PER_SECOND
        return min(max(0.0, left_s), MAX_PAUSE_S)

    def stranded(self, action: str) -> list[int]:
        """Return the deliveries that failed, perhaps, because nothing got there."""
        return sorted(self._stranded.get(action, ()))
