"""Alerts and their transitions between states.

All times are stream times in nanoseconds since 1970: when the sound was captured, not when a
message about it was read. An engine has no clock of its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ast_stream.messages.codec import PROTOCOL_VERSION
from ast_stream.units import NS_PER_SECOND, format_time

Severity = Literal["informational", "low", "medium", "high", "critical"]
AlertState = Literal["inactive", "pending", "firing", "recovering", "resolved"]
SEVERITIES: tuple[Severity, ...] = ("informational", "low", "medium", "high", "critical")
ACTIVE_STATES: tuple[AlertState, ...] = ("firing", "recovering")
MAX_CAUSES = 64  # event ids an alert names; the newest are left out


def stable_id(*parts: str) -> str:
    """Return a short id that is the same for the same parts, whenever and wherever."""
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=15).digest()
    return base64.b32encode(digest).decode().lower()


def seconds_to_ns(seconds: float) -> int:
    """Return seconds as the nearest nanosecond."""
    return round(seconds * NS_PER_SECOND)


@dataclass(frozen=True)
class Alert:
    """One alert as of one moment.

    Attributes:
        id: the same from pending to resolved, and again after a restart: it is made of rule,
            group labels and the event that began it.
        fingerprint: the same for every alert of this rule and these group labels.
        group: values of the rule's `group_by`.
        labels: labels of the rule's group in the file, of the rule and `group`, with `severity`.
        annotations: rendered; values in them are inert (see `templates`).
        started_ns: when the sound that began it began (or was missed, for absence).
        fired_ns, resolved_ns: None until then.
        events: ids of the events that caused it, oldest first.
        suppressed: firings suppressed since the last alert of this fingerprint.
        reason: why it ended: quiet, restart or rule_changed; None until then.
    """

    id: str
    fingerprint: str
    rule: str
    state: AlertState
    severity: Severity
    group: Mapping[str, str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    started_ns: int
    fired_ns: int | None
    resolved_ns: int | None
    events: tuple[str, ...]
    suppressed: int = 0
    reason: str | None = None

    @property
    def topic(self) -> str:
        """`alert/<severity>/<rule>/`."""
        return f"alert/{self.severity}/{self.rule}/"

    def body(self) -> dict[str, Any]:
        """Return the feed body, still without `boot` and `seq`."""

        def at(time_ns: int | None) -> str | None:
            return None if time_ns is None else format_time(time_ns)

        return {
            "v": PROTOCOL_VERSION,
            "id": self.id,
            "fingerprint": self.fingerprint,
            "rule": self.rule,
            "state": self.state,
            "severity": self.severity,
            "group": dict(self.group),
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
            "started": at(self.started_ns),
            "fired": at(self.fired_ns),
            "resolved": at(self.resolved_ns),
            "events": list(self.events),
            "suppressed": self.suppressed,
            "reason": self.reason,
        }


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
