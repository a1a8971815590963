"""The words of alerting: alerts, their transitions, and what an engine offers to who delivers.

All times are stream times in nanoseconds since 1970: when the sound was captured, not when a
message about it was read. An engine has no clock of its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

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
        suppressed: firings held back since the last alert of this fingerprint.
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
        actions: who is to be told, by the name of an action; empty but for a firing that is new
            (from inactive or pending) and for resolved. Each action's `on` chooses among these.
        event_id: the event that made the difference; None for timers and health.
    """

    alert: Alert
    from_state: AlertState
    to_state: AlertState
    at_ns: int
    actions: tuple[str, ...] = ()
    event_id: str | None = None


@dataclass(frozen=True)
class DetectionTiming:
    """How late the detector tells of sounds; rules reason about sounds, not about messages.

    Attributes:
        latency_ns: an event's begin comes at most this long after its onset, once a window is full.
        smear_ns: while an event is open, its sound is only sure to have lasted until this long
            before now: a window of W still shows a sound that ended nearly W ago, and the end is
            told when the hold has passed.
        classes: by slug, latency and smear of classes for which they are known; the others, and
            rules about any class, go by the first two.
    """

    latency_ns: int = 0
    smear_ns: int = 0
    classes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, window_s: float, hop_s: float, *, confirm_s: float = 0.75, hold_s: float = 0.75
    ) -> DetectionTiming:
        """Return the timing of windows of `window_s` every `hop_s`, with rises as unmeasured."""
        rise_s = min(0.5, window_s / 4)
        return cls(
            latency_ns=seconds_to_ns(rise_s + hop_s / 2 + confirm_s),
            smear_ns=seconds_to_ns(window_s - rise_s + hop_s + hold_s),
        )

    def of_classes(self, slugs: Iterable[str] | None) -> DetectionTiming:
        """Return the largest of some classes; None: any class."""
        found = [] if slugs is None else [self.classes.get(one) for one in slugs]
        known = [one for one in found if one is not None]
        if not known or len(known) < len(found):
            return DetectionTiming(self.latency_ns, self.smear_ns)
        return DetectionTiming(max(one[0] for one in known), max(one[1] for one in known))


@dataclass
class EngineCounters:
    """What an engine did, for metrics; reset with the process."""

    events: int = 0
    fired: dict[str, int] = field(default_factory=dict)
    suppressed: dict[str, int] = field(default_factory=dict)  # by reason
    held_back: dict[str, dict[str, int]] = field(default_factory=dict)  # by rule and reason
    flaps: int = 0
    lost_ends: int = 0  # events that never ended on the feed
    malformed: int = 0  # bodies that are not what they should be


class AlertEngine(Protocol):
    """What who delivers needs of `engine.Engine`.

    Every method that returns transitions has changed the state: store `export()` and the
    deliveries of the transitions in one transaction, together with the position on the feed.
    `Engine(rules, state, now_ns=…, timing=…)` continues from an exported state (None: new).
    """

    @property
    def next_deadline_ns(self) -> int | None:
        """Stream time of the next timer: call `advance` then; None: nothing to wait for."""

    def resume(self) -> list[Transition]:
        """Return what the construction itself changed; call once, before anything else."""

    def on_event(self, body: dict[str, Any]) -> list[Transition]:
        """Take an event body; timers due before it are run first."""

    def on_health(self, body: dict[str, Any]) -> list[Transition]:
        """Take a health body."""

    def on_gap(self, body: dict[str, Any]) -> list[Transition]:
        """Take a gap body."""

    def advance(self, to_ns: int) -> list[Transition]:
        """Run the timers up to `to_ns`, up to which all messages must have been given."""

    def export(self) -> dict[str, Any]:
        """Return the state as JSON values."""
