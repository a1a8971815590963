"""One message about one alert, as every action delivers it and as the outbox stores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ast_stream.alerts.transitions import Transition
from ast_stream.messages.alert import ACTIVE_STATES
from ast_stream.units import format_time, parse_time

Kind = Literal["firing", "resolved", "heartbeat"]

MAX_TEXT_CHARACTERS = 1000


@dataclass(frozen=True)
class Notification:
    """One message about one alert, identical at every delivery attempt.

    Attributes:
        id: idempotency key, the same for all actions and attempts.
        kind: `heartbeat` is not an alert but a sign of life.
        at_ns: stream time of the transition.
        alert: body of the alert, as on the feed.
        is_combined: a `resolved` that also stands for a firing which was never delivered.
    """

    id: str
    kind: Kind
    at_ns: int
    alert: Mapping[str, Any]
    event_id: str | None = None
    is_combined: bool = False

    @property
    def rule(self) -> str:
        """Name of the rule."""
        return str(self.alert["rule"])

    @property
    def severity(self) -> str:
        """Severity of the alert."""
        return str(self.alert["severity"])

    @property
    def title(self) -> str:
        """One line: severity, rule, and whether it is over."""
        return title_of(self.severity, self.rule, self.kind)

    @property
    def text(self) -> str:
        """One line for people: the rule's summary, else its group; control characters removed."""
        annotations, group = self.alert.get("annotations", {}), self.alert.get("group", {})
        words = annotations.get("summary") or ", ".join(f"{k} {v}" for k, v in group.items())
        since = f" (from {self.alert['fired']})" if self.is_combined else ""
        return one_line(f"{words or self.rule}{since}")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, as programs receive it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "at": format_time(self.at_ns),
            "event_id": self.event_id,
            "combined": self.is_combined,
            "alert": dict(self.alert),
        }

    def encode(self) -> bytes:
        """Return the bytes that the outbox stores."""
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode(
            errors="replace"
        )

    @classmethod
    def decode(cls, payload: bytes) -> Notification:
        """Return the notification that `encode` turned into these bytes.

        Raises:
            ValueError: the bytes are not a notification.
        """
        try:
            data = json.loads(payload)
            return cls(
                id=data["id"],
                kind=data["kind"],
                at_ns=parse_time(data["at"]),
                alert=dict(data["alert"]),
                event_id=data["event_id"],
                is_combined=data["combined"],
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a notification: {type(error).__name__}") from error


def title_of(severity: str, rule: str, kind: str) -> str:
    """Return the line that names a notification."""
    ending = " is over" if kind == "resolved" else ""
    return one_line(f"[{severity}] {rule}{ending}")


def notification_of(transition: Transition) -> Notification | None:
    """Return the notification of a transition; None if it is internal to the engine."""
    begins = transition.to_state == "firing" and transition.from_state not in ACTIVE_STATES
    ends = transition.to_state == "resolved" and transition.from_state in ACTIVE_STATES
    if not begins and not ends:
        return None
    kind: Kind = "firing" if begins else "resolved"
    alert = transition.alert
    return Notification(
        f"{alert.id}.{kind}", kind, transition.at_ns, alert.to_json(), transition.event_id
    )


def one_line(text: str) -> str:
    """Return `text` on one line, without control and format characters, shortened."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(kept.split())[:MAX_TEXT_CHARACTERS]
