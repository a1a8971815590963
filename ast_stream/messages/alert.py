"""Alerts: what the alerts process publishes and delivers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, SerializerFunctionWrapHandler, model_serializer

from ast_stream.messages.codec import PROTOCOL_VERSION, FeedBody, Text, Time

Severity = Literal["informational", "low", "medium", "high", "critical"]
AlertState = Literal["inactive", "pending", "firing", "recovering", "resolved"]
ACTIVE_STATES: tuple[AlertState, ...] = ("firing", "recovering")


class Alert(FeedBody):
    """One alert as of one moment; times are stream times: when the sound was captured."""

    v: Literal[1] = PROTOCOL_VERSION
    id: Text
    """The same from pending to resolved, and again after a restart: it is made of rule, group
    labels and the event that began it."""
    fingerprint: Text
    """The same for every alert of this rule and these group labels."""
    rule: Text
    state: AlertState
    severity: Severity
    group: dict[Text, Text]
    """Values of the rule's `group_by`."""
    labels: dict[Text, Text]
    """Of the rule's group in the file, of the rule, and `group`."""
    annotations: dict[Text, Text]
    """Rendered; values in them are inert."""
    started_ns: Time
    """When the sound that began it began (or was missed, for absence)."""
    fired_ns: Time | None
    resolved_ns: Time | None
    events: Annotated[tuple[Text, ...], Field(strict=False), PlainSerializer(list)]
    """Ids of the events that caused it, oldest first."""
    suppressed: int = 0
    """Firings suppressed since the last alert of this fingerprint."""
    reason: Text | None = None
    """Why it ended: quiet, restart, rule_changed or stream_removed; None until then."""
    best: Text | None = None
    """Of `same_sound`: id of the event whose microphone heard the sound best; else absent."""
    streams: Annotated[tuple[Text, ...], Field(strict=False), PlainSerializer(list)] = ()
    """Of `same_sound`: streams that heard the sound, the first one first; else absent."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, to_json: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = to_json(self)
        for name in ("best", "streams"):
            if not body.get(name):
                body.pop(name, None)
        return body

    @property
    def topic(self) -> str:
        """`alert/<severity>/<rule>/`."""
        return f"alert/{self.severity}/{self.rule}/"
