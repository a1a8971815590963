"""Alerts and their transitions between states.

Times are stream times in nanoseconds: when the sound was captured, not when a message about it was
read, as steady time (`clock`). Only those in an `Alert` are wall times. An engine has no clock of
its own.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from ast_stream.messages.alert import Alert, AlertState
from ast_stream.units import NS_PER_SECOND

MAX_CAUSES = 64  # event ids an alert names; the newest are left out


def stable_id(*parts: str) -> str:
    """Return a short id that is the same for the same parts, whenever and wherever."""
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=15).digest()
    return base64.b32encode(digest).decode().lower()


def seconds_to_ns(seconds: float) -> int:
    """Return seconds as the nearest nanosecond."""
    return round(seconds * NS_PER_SECOND)


@dataclass(frozen=True)
class Transition:
    """An alert that passed from one state to another.

    Attributes:
        alert: as of after the transition.
        at_ns: stream time of the transition.
        actions: names of the actions to deliver it by; empty except for a new firing (from inactive
            or pending) and for resolved. Each action's `on` chooses among these.
        event_id: the event that made the difference; None for timers and health.
    """

    alert: Alert
    from_state: AlertState
    to_state: AlertState
    at_ns: int
    actions: tuple[str, ...] = ()
    event_id: str | None = None

    @property
    def is_announced(self) -> bool:
        """Whether it is news: a new firing or a resolution, not a recovery that relapsed."""
        is_new = self.to_state == "firing" and self.from_state != "recovering"
        return is_new or self.to_state == "resolved"


@dataclass
class EngineCounters:
    """What an engine did, for metrics; reset with the process."""

    events: int = 0
    fired: dict[str, int] = field(default_factory=dict)
    suppressed: dict[str, int] = field(default_factory=dict)  # by reason
    suppressed_by_rule: dict[str, dict[str, int]] = field(default_factory=dict)  # and reason
    flaps: int = 0
    lost_ends: int = 0  # events that never ended on the feed
    malformed: int = 0  # bodies that are not what they should be
