"""Alerts and transitions as the engine makes them, for tests of what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ast_stream.alerts.instances import Transition
from ast_stream.alerts.notification import Notification, notification_of
from ast_stream.alerts.store import Store
from ast_stream.messages.alert import Alert, Severity
from ast_stream.settings.alerts import ActionSection
from ast_stream.units import NS_PER_SECOND

T0_NS = 1_800_000_000 * NS_PER_SECOND


def alert(id: str = "a1", **changes: Any) -> Alert:
    """Return an alert that fires."""
    fields: dict[str, Any] = {
        "id": id,
        "fingerprint": "f1",
        "rule": "dog",
        "state": "firing",
        "severity": "medium",
        "group": {"stream": "porch"},
        "labels": {"stream": "porch", "alert": "dog", "severity": "medium"},
        "annotations": {"summary": "Dog on porch"},
        "started_ns": T0_NS,
        "fired_ns": T0_NS,
        "resolved_ns": None,
        "events": ("e1",),
    }
    return Alert(**fields | changes)


def firing(id: str = "a1", *actions: str, severity: Severity = "medium") -> Transition:
    """Return the transition to firing, delivered by `actions`."""
    return Transition(
        alert(id, severity=severity), "inactive", "firing", T0_NS, actions, event_id="e1"
    )


def resolved(id: str = "a1", *actions: str) -> Transition:
    """Return the transition to resolved."""
    ended = alert(id, state="resolved", resolved_ns=T0_NS + NS_PER_SECOND, reason="quiet")
    return Transition(ended, "firing", "resolved", T0_NS + NS_PER_SECOND, actions)


def notification(id: str = "a1", transition: Transition | None = None) -> Notification:
    """Return the notification of a firing alert."""
    message = notification_of(transition or firing(id))
    assert message is not None
    return message


def action_settings(
    *on: Literal["firing", "resolved"], max: int = 1_000_000, per_s: float = 60.0
) -> ActionSection:
    """Return what all actions have; it delivers both kinds unless they are named."""
    kinds = list(on) or ["firing", "resolved"]
    return ActionSection.model_validate({"on": kinds, "rate_limit": {"max": max, "per_s": per_s}})


def states(store: Store) -> dict[tuple[str, str, str], str]:
    """Return the state of each delivery by alert, transition and action."""
    with store.reading() as db:
        rows = db.execute("SELECT alert_id, transition, action, state FROM deliveries")
        return {(row[0], row[1], row[2]): row[3] for row in rows}


def state_file(folder: Path) -> Path:
    """Return the path of a database."""
    return folder / "alerts.sqlite"
