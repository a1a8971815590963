"""What a rule file may say: frozen models as for the configuration; durations become nanoseconds.

A kind of trigger is one module of `triggers`, and is named here. References between parts of the
file (windows, classes, actions) are checked in `compile`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ast_stream.alerts.rules.field_types import (
    DURATION_PATTERN,
    Duration,
    NameList,
    Names,
    OptionalNameList,
    PositiveDuration,
    RuleSection,
    as_list,
)
from ast_stream.alerts.rules.match import EventMatch
from ast_stream.alerts.rules.windows import WindowSettings
from ast_stream.alerts.triggers.absent import Absent, AbsentFor
from ast_stream.alerts.triggers.base import Trigger
from ast_stream.alerts.triggers.count import Count, CountWithin
from ast_stream.alerts.triggers.coverage import CoverageBelow, LowCoverage
from ast_stream.alerts.triggers.duration import ForDuration
from ast_stream.alerts.triggers.level import Level, LevelFor
from ast_stream.alerts.triggers.same_sound import SameSound, SameSoundTrigger
from ast_stream.alerts.triggers.sequence import Sequence, SequenceWithin
from ast_stream.messages.alert import Severity
from ast_stream.units import NS_PER_SECOND

RULE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


KINDS: tuple[type[Trigger], ...] = (
    ForDuration, CountWithin, SameSoundTrigger, SequenceWithin, AbsentFor, LevelFor, CoverageBelow,
)  # fmt: skip
"""In the order in which messages list them; a rule without any has the plain `Trigger`."""


class RuleSettings(RuleSection):
    """One rule: exactly one trigger, and what becomes of it."""

    alert: str = Field(
        pattern=RULE_NAME,
        description="a name of lower-case letters, digits, '-' and '_', at most 63",
    )
    match: EventMatch | None = Field(
        default=None,
        description="which events; with `for`, `count` or `same_sound` the events that count",
    )
    for_: PositiveDuration | None = Field(
        default=None, alias="for", description="fires when `match` has sounded for that long"
    )
    tolerate: Duration = Field(
        default=0, description="pauses of up to this do not end the sound; they do not count for it"
    )
    count: Count | None = Field(
        default=None, description="fires when `match` has had so many onsets within a time"
    )
    same_sound: SameSound | None = Field(
        default=None, description="fires once for a `match` that several streams hear"
    )
    sequence: Sequence | None = Field(
        default=None, description="fires when sounds follow each other in order"
    )
    absent: Absent | None = Field(
        default=None, description="fires when a sound has been absent for a time"
    )
    level: Level | None = Field(
        default=None, description="fires on the level or the absence of a stream"
    )
    coverage: LowCoverage | None = Field(
        default=None, description="fires when too little of a stream was heard in a period"
    )
    group_by: NameList | None = Field(
        default=None,
        description="one alert for each value of these: stream, class (as in topics), label (of "
        "the class, as people read it), or names of labels of streams",
    )
    when: Names | None = Field(default=None, description="only in these windows of time")
    unless: Names | None = Field(default=None, description="not in these windows of time")
    keep_firing_for: Duration | None = Field(
        default=None, description="the alert resolves only after that long without its cause"
    )
    cooldown: Duration | None = Field(
        default=None,
        description="no new alert for that long after one has ended; further firings are counted",
    )
    severity: Severity | None = Field(default=None, description="decides topic, urgency and expiry")
    limit: int = Field(default=64, ge=1, le=10_000, description="alerts of this rule at a time")
    labels: dict[str, str] = Field(
        default_factory=dict, description="added to the labels of the alert"
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="texts of the notification, by name; {{ … }} is filled in"
    )
    actions: OptionalNameList = Field(
        default=None, description="of the configuration; null: the group's, or the file's default"
    )

    @property
    def kinds(self) -> list[type[Trigger]]:
        """The kinds of triggers that it has; a valid rule has at most one."""
        return [kind for kind in KINDS if kind.given(self) is not None]

    @property
    def trigger(self) -> type[Trigger]:
        """The kind of trigger that a valid rule has."""
        return next(iter(self.kinds), Trigger)


class Defaults(RuleSection):
    """What holds for rules that say nothing else."""

    timezone: str | None = Field(default=None, description="of `windows`, e.g. Europe/Paris")
    severity: Severity = Field(default="medium", description="of rules without `severity`")
    cooldown: Duration = Field(default=0, description="of rules without `cooldown`")
    keep_firing_for: Duration = Field(default=0, description="of rules without `keep_firing_for`")
    group_by: NameList = Field(
        default_factory=lambda: ["stream"],
        description="of rules without `group_by`; [stream] if left out",
    )
    actions: OptionalNameList = Field(
        default=None, description="of rules and groups without `actions`"
    )
    resume_window: PositiveDuration = Field(
        default=3600 * NS_PER_SECOND, description="alerts continue after a pause of at most this"
    )


class Group(RuleSection):
    """Rules that share labels."""

    name: str = Field(min_length=1, max_length=100, description="shown in messages about the file")
    labels: dict[str, str] = Field(
        default_factory=dict, description="added to the labels of its alerts"
    )
    actions: OptionalNameList = Field(default=None, description="of rules without `actions`")
    rules: list[RuleSettings] = Field(min_length=1, description="the rules")


class Selector(RuleSection):
    """Alerts by name or severity; all keys given must hold."""

    alert: Names | None = Field(default=None, description="names of rules")
    severity: Annotated[list[Severity], BeforeValidator(as_list)] | None = Field(
        default=None, description="severities"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Selector:
        if self.alert is None and self.severity is None:
            raise ValueError("expected 'alert' or 'severity', got neither")
        return self


class Inhibit(RuleSection):
    """While a source alert is active, target alerts with equal labels do not fire."""

    source: Selector = Field(description="alerts that keep others from firing")
    target: Selector = Field(description="alerts that do not fire meanwhile")
    equal: NameList = Field(default_factory=list, description="labels that must be equal in both")


class RuleFile(RuleSection):
    """A whole rule file; only `groups` has no default."""

    version: Literal[1] = Field(default=1, description="of this format; there is only 1")
    defaults: Defaults = Field(default=Defaults(), description="for rules that say nothing else")
    ontology: str | None = Field(default=None, description="AudioSet's ontology.json or alike")
    classes: dict[str, Names] = Field(default_factory=dict, description="your groups of classes")
    windows: dict[str, WindowSettings] = Field(
        default_factory=dict, description="windows of time, by the name that rules use"
    )
    groups: list[Group] = Field(min_length=1, description="groups of rules")
    inhibit: list[Inhibit] = Field(
        default_factory=list, description="which alerts keep others from firing"
    )


def rule_file_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a rule file, durations as text."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RuleFile.model_json_schema(),
        "title": "Alert rules of ast-stream",
    }
    for section in (schema, *schema["$defs"].values()):
        for field in section.get("properties", {}).values():
            if field.get("pattern") == DURATION_PATTERN and isinstance(field.get("default"), int):
                field["default"] = f"{field['default'] / NS_PER_SECOND:g}s"
    return schema
