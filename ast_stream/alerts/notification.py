"""A notification: one message about one alert, as actions deliver it and the outbox stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from ast_stream.alerts.instances import Transition
from ast_stream.labels import one_line, stable_id
from ast_stream.messages.alert import ACTIVE_STATES, Alert, Severity
from ast_stream.messages.codec import Body, Text, Time, decode_json, encode_json
from ast_stream.units import format_time

Kind = Literal["firing", "resolved", "heartbeat"]


class Notification(Body):
    """One message about one alert, identical at every delivery attempt."""

    id: Text
    """Idempotency key, the same for all actions and attempts."""
    kind: Kind
    """`heartbeat` is not an alert but a sign of life."""
    at_ns: Time
    """Stream time of the transition."""
    event_id: Text | None = None
    """The event that made the difference."""
    combined: bool = False
    """A `resolved` that also stands for a firing which was never delivered."""
    alert: Alert

    @property
    def title(self) -> str:
        """One line: severity, rule, and whether it is over."""
        return title_of(self.alert.severity, self.alert.rule, self.kind)

    @property
    def text(self) -> str:
        """One line for people: the rule's summary, else its group; control characters removed."""
        alert = self.alert
        group = ", ".join(f"{name} {value}" for name, value in alert.group.items())
        words = alert.annotations.get("summary") or group or alert.rule
        began_ns = alert.started_ns if alert.fired_ns is None else alert.fired_ns
        return one_line(f"{words} (from {format_time(began_ns)})" if self.combined else words)

    def encode(self) -> bytes:
        """Return the bytes that the outbox stores."""
        return encode_json(self.to_json())

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Return the notification that `encode` turned into these bytes.

        Raises:
            WireError: the bytes are not a notification.
        """
        what = "notification"
        return cls.from_json(decode_json(payload, what, max_bytes=len(payload)), what)


def notification_of(transition: Transition) -> Notification | None:
    """Return the notification of a transition; None if it is internal to the engine."""
    begins = transition.to_state == "firing" and transition.from_state not in ACTIVE_STATES
    ends = transition.to_state == "resolved" and transition.from_state in ACTIVE_STATES
    if not begins and not ends:
        return None
    kind: Kind = "firing" if begins else "resolved"
    at_ns = transition.alert.fired_ns if begins else transition.alert.resolved_ns
    assert at_ns is not None
    return Notification(
        id=f"{transition.alert.id}.{kind}",
        kind=kind,
        at_ns=at_ns,
        event_id=transition.event_id,
        alert=transition.alert,
    )


def message_alert(
    id: str, *, rule: str, severity: Severity, group: Mapping[str, str], text: str, wall_ns: int
) -> Alert:
    """Return an alert that no rule made.

    Args:
        id: of the alert; alerts with equal ids are delivered once.
        group: what it is about, as the labels that a rule groups by.
    """
    return Alert(
        id=id,
        fingerprint=stable_id(rule, *(f"{name}={value}" for name, value in sorted(group.items()))),
        rule=rule,
        state="firing",
        severity=severity,
        group=dict(group),
        labels={**group, "alert": rule, "severity": severity},
        annotations={"summary": text},
        started_ns=wall_ns,
        fired_ns=wall_ns,
        resolved_ns=None,
        events=(),
    )


def title_of(severity: str, rule: str, kind: str) -> str:
    """Return the line that names a notification."""
    ending = " is over" if kind == "resolved" else ""
    return one_line(f"[{severity}] {rule}{ending}")
