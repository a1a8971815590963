"""What decides when a delivery goes out and how long it is worth trying: routes and limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ast_stream.units import NS_PER_SECOND

FEED = "feed"  # the action that publishes: it gets everything, and is never snoozed
BACKOFF_S = (2.0, 10.0, 60.0, 300.0, 900.0, 3600.0)
EXPIRY_S = {
    "informational": 3600,
    "low": 3600,
    "medium": 3600,
    "high": 6 * 3600,
    "critical": 24 * 3600,
}
MAX_PAUSE_S = 60.0  # what the answer to one row can ask of all others of its action
MAX_ERROR_CHARACTERS = 300
URGENT = ("critical", "high")
SEVERITY_RANK = (  # SQL: 0 is the most severe
    "CASE severity WHEN 'critical' THEN 0 WHEN 'high' THEN 1 WHEN 'medium' THEN 2"
    " WHEN 'low' THEN 3 ELSE 4 END"
)
_HOUR_S = 3600


@dataclass(frozen=True)
class Route:
    """What one action takes.

    Attributes:
        on: kinds of notifications.
        max_per: at most so many deliveries in so many seconds; None: no limit.
        settings: identifies the action's settings: a closed action is tried again when changed.
    """

    on: frozenset[str]
    max_per: tuple[int, float] | None = None
    settings: str = ""


def expiry_ns(severity: str) -> int:
    """Return how long an alert of this severity is worth telling, in nanoseconds."""
    return EXPIRY_S.get(severity, _HOUR_S) * NS_PER_SECOND


def backoff_s(n_failed: int, jitter: Callable[[], float]) -> float:
    """Return the wait before the next attempt, with full jitter.

    Args:
        n_failed: attempts that failed before the last one.
        jitter: returns a number in [0, 1).
    """
    return BACKOFF_S[min(n_failed, len(BACKOFF_S) - 1)] * jitter()
