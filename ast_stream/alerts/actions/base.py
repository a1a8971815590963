"""What is told (a notification), who tells it (an action), and what came of it (an outcome)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ast_stream.alerts.model import ACTIVE_STATES, Transition
from ast_stream.errors import StartupError
from ast_stream.messages.event import format_time, parse_time
from ast_stream.runtime.files import DamagedFileError, read_bounded

Kind = Literal["firing", "resolved", "heartbeat"]

MAX_TEXT_CHARACTERS = 1000
MAX_SECRET_BYTES = 64 * 1024


@dataclass(frozen=True)
class Notification:
    """One message about one alert, the same at every attempt to deliver it.

    Attributes:
        id: the same for all actions and attempts; receivers leave out what they have seen.
        kind: `heartbeat` is no alert but a sign of life.
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
        """Return it as JSON values, as programs get it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "at": format_time(self.at_ns),
            "event_id": self.event_id,
            "combined": self.is_combined,
            "alert": dict(self.alert),
        }

    def encode(self) -> bytes:
        """Return the bytes that the outbox keeps."""
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode(
            errors="replace"
        )

    @classmethod
    def decode(cls, payload: bytes) -> Notification:
        """Return what `encode` was called on.

        Raises:
            ValueError: it was called on nothing that gives this.
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
    """Return what is to be told of a transition; None for those that are the engine's own."""
    begins = transition.to_state == "firing" and transition.from_state not in ACTIVE_STATES
    ends = transition.to_state == "resolved" and transition.from_state in ACTIVE_STATES
    if not begins and not ends:
        return None
    kind: Kind = "firing" if begins else "resolved"
    alert = transition.alert
    return Notification(
        f"{alert.id}.{kind}", kind, transition.at_ns, alert.body(), transition.event_id
    )


@dataclass(frozen=True)
class Delivered:
    """The receiver has it."""


@dataclass(frozen=True)
class Failed:
    """Worth another try.

    Attributes:
        after_s: seconds that the receiver asked to be left alone for.
        is_down: it may be that nothing gets there now, whatever is sent.
    """

    reason: str
    after_s: float = 0.0
    is_down: bool = False


@dataclass(frozen=True)
class Refused:
    """Trying again will not help.

    Attributes:
        is_closed: nor will anything else that is sent there.
    """

    reason: str
    is_closed: bool = False


Outcome = Delivered | Failed | Refused


class ActionRunner(Protocol):
    """Delivers notifications, by a few threads at once; may block a while."""

    def deliver(self, notification: Notification) -> Outcome:
        """Deliver one notification within the action's own time limit; never raises."""

    def close(self) -> None:
        """Let go of connections."""


def one_line(text: str) -> str:
    """Return `text` without line breaks, control and format characters, and not too long."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(kept.split())[:MAX_TEXT_CHARACTERS]


def read_secret(what: str, file: str | None, variable: str | None) -> str | None:
    """Return the text in a file or environment variable, None if neither is named.

    Raises:
        StartupError: it is not there; the text itself is never shown.
    """
    if file is not None:
        try:
            return read_bounded(Path(file), MAX_SECRET_BYTES).decode().rstrip()
        except (OSError, DamagedFileError, ValueError) as error:
            reason = "not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
            reason = error.strerror or reason if isinstance(error, OSError) else reason
            raise StartupError(f"{what}: cannot read {file}: {reason}") from error
    if variable is not None:
        value = os.environ.get(variable)
        if not value:
            raise StartupError(f"{what}: expected the environment variable {variable}, got none")
        return value.rstrip()
    return None
