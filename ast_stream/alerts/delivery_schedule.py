"""When a delivery goes out: most severe first, rate limits, back-off, and receivers in trouble."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ast_stream.alerts.actions.base import Delivered, Failed, Outcome
from ast_stream.settings.alerts import FEED_ACTION, ActionSection
from ast_stream.units import NS_PER_SECOND, seconds_to_ns

FEED = FEED_ACTION  # publishes; it delivers everything at any rate and is never snoozed
BACKOFF_S = (2.0, 10.0, 60.0, 300.0, 900.0, 3600.0)
EXPIRY_S = {
    "informational": 3600,
    "low": 3600,
    "medium": 3600,
    "high": 6 * 3600,
    "critical": 24 * 3600,
}
MAX_PAUSE_S = 60.0  # what a receiver's answer can impose on all deliveries of its action


def expiry_ns(severity: str) -> int:
    """Return for how long an alert of this severity is worth delivering, in nanoseconds."""
    return EXPIRY_S.get(severity, EXPIRY_S["low"]) * NS_PER_SECOND


def backoff_s(n_failed: int, jitter: Callable[[], float]) -> float:
    """Return the wait before the next attempt, with full jitter.

    Args:
        n_failed: attempts that failed before the last one.
        jitter: returns a number in [0, 1).
    """
    return BACKOFF_S[min(n_failed, len(BACKOFF_S) - 1)] * jitter()


class Receivers:
    """How the receivers of all actions have fared lately; forgotten with the process.

    Args:
        actions: settings of every action by name.
        now_ns: wall clock, nanoseconds since 1970.
    """

    def __init__(self, actions: Mapping[str, ActionSection], now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._failed_ns: dict[str, deque[int]] = {
            name: deque(maxlen=action.rate_limit.max) for name, action in actions.items()
        }
        self._paused_until_ns: dict[str, int] = {}
        self._unreachable: dict[str, set[int]] = {}

    def note(self, action: str, seq: int, outcome: Outcome) -> None:
        """Note the outcome of the delivery `seq`."""
        if isinstance(outcome, Delivered):
            self._unreachable.pop(action, None)
            return
        now_ns = self._now_ns()
        self._failed_ns[action].append(now_ns)
        if not isinstance(outcome, Failed):
            return
        if outcome.after_s > 0:
            pause_s = min(outcome.after_s, MAX_PAUSE_S)
            self._paused_until_ns[action] = now_ns + seconds_to_ns(pause_s)
        elif outcome.is_down:
            self._unreachable.setdefault(action, set()).add(seq)

    def failed_ns(self, action: str) -> Sequence[int]:
        """Return when deliveries failed, oldest first, no more than the rate limit asks for."""
        return self._failed_ns[action]

    def pause_s(self, action: str) -> float:
        """Return for how long the receiver asked to be left alone, up to the limit."""
        left_s = (self._paused_until_ns.get(action, 0) - self._now_ns()) / NS_PER_SECOND
        return min(max(0.0, left_s), MAX_PAUSE_S)

    def unreachable(self, action: str) -> list[int]:
        """Return the deliveries that may have failed only because the receiver was down."""
        return sorted(self._unreachable.get(action, ()))
