"""What a rule file may say: frozen models as for the configuration; durations become nanoseconds.

Cross-references (windows, classes, actions) and the meaning of names are checked in `rules`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from ast_stream.alerts.model import Severity
from ast_stream.settings.section import Section
from ast_stream.units import NS_PER_SECOND

RULE_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
MAX_COUNT = 1000
MIN_MISSING_NS = 3 * NS_PER_SECOND
_LIST_RULE = "one name or a list of names"
_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[dhms]))+\Z")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_MAX_DURATION_MS = 366 * 86_400_000


def parse_duration(value: Any) -> int:
    """Return a duration such as `30s`, `1h30m` or `250ms` in nanoseconds.

    Raises:
        ValueError: it has no unit, or is longer than a year.
    """
    if not isinstance(value, str) or _DURATION.match(value) is None:
        shown = f"'{value}'" if isinstance(value, str) else repr(value)
        raise ValueError(f"expected a duration such as 30s, 5m or 1h30m, got {shown}")
    milliseconds = sum(float(number) * _UNITS_MS[unit] for number, unit in _PART.findall(value))
    if milliseconds > _MAX_DURATION_MS:
        raise ValueError(f"expected at most 366d, got '{value}'")
    return round(milliseconds * (NS_PER_SECOND // 1000))


def _positive_duration(value: Any) -> int:
    duration_ns = parse_duration(value)
    if duration_ns == 0:
        raise ValueError(f"expected more than 0s, got '{value}'")
    return duration_ns


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# the JSON Schema describes what is written in a file, not what it becomes
_DURATION_PATTERN = "^" + _DURATION.pattern.replace(r"\Z", "$")
_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": _DURATION_PATTERN})
_ONE_OR_MORE: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
}

Duration = Annotated[int, BeforeValidator(parse_duration), _DURATION_SCHEMA]
PositiveDuration = Annotated[int, BeforeValidator(_positive_duration), _DURATION_SCHEMA]
NameList = Annotated[list[str], BeforeValidator(_as_list), WithJsonSchema(_ONE_OR_MORE)]
Names = Annotated[
    list[str], BeforeValidator(_as_list), Field(min_length=1), WithJsonSchema(_ONE_OR_MORE)
]
Actions = Annotated[
    list[str] | None,
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [*_ONE_OR_MORE["anyOf"], {"type": "null"}]}),
]


class RuleSection(Section):
    """As a section of the configuration; `for` and other words of Python go by another name."""

    model_config = ConfigDict(validate_by_alias=True, validate_by_name=False)


class SoundMatch(RuleSection):
    """Which sounds on which streams; all keys given must hold, of a list any."""

    class_: Names | None = Field(default=None, alias="class", description="label or its slug")
    any_of: Names | None = Field(default=None, description="as `class`")
    group: Names | None = Field(default=None, description="of `classes` in this file")
    under: Names | None = Field(default=None, description="branches of the ontology")
    stream: dict[str, Names] = Field(
        default_factory=dict, description="by `id` (the stream's name) and by labels"
    )


class ScoreMatch(RuleSection):
    """Bounds of the score so far."""

    min: float = Field(ge=0, le=1)


class EventMatch(SoundMatch):
    """Which events."""

    score: ScoreMatch | None = None
    not_: SoundMatch | None = Field(default=None, alias="not", description="but not these")


class Count(RuleSection):
    """So many onsets within a sliding window."""

    min: int = Field(ge=2, le=MAX_COUNT)
    within: PositiveDuration
    distinct: Literal["stream"] | None = Field(
        default=None, description="count streams instead of events"
    )


class Step(RuleSection):
    """One sound of a sequence."""

    match: EventMatch


class Sequence(RuleSection):
    """Sounds whose onsets follow each other, first to last within a time."""

    within: PositiveDuration
    steps: list[Step] = Field(min_length=2, max_length=16)


class Absent(RuleSection):
    """No such sound for a time, although the stream was heard."""

    match: EventMatch
    for_: PositiveDuration = Field(alias="for")


class Level(RuleSection):
    """The level or the absence of a stream, whatever the sound; exactly one condition."""

    stream: dict[str, Names] = Field(default_factory=dict)
    louder_than_dbfs: float | None = Field(default=None, ge=-120, le=0)
    quieter_than_dbfs: float | None = Field(default=None, ge=-120, le=0)
    digital_silence: Literal[True] | None = None
    missing: Literal[True] | None = None
    for_: Duration = Field(default=0, alias="for")

    @model_validator(mode="after")
    def _one_condition(self) -> Level:
        names = ("louder_than_dbfs", "quieter_than_dbfs", "digital_silence", "missing")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(names)}, got {got}")
        if self.missing and self.for_ < MIN_MISSING_NS:
            raise ValueError(
                "with 'missing' expected 'for' of at least 3s, as health comes each 1s"
            )
        return self


class RuleSettings(RuleSection):
    """One rule: exactly one trigger, and what becomes of it."""

    alert: str = Field(
        pattern=RULE_NAME,
        description="a name of lower-case letters, digits, '-' and '_', at most 63",
    )
    match: EventMatch | None = None
    for_: PositiveDuration | None = Field(default=None, alias="for")
    tolerate: Duration = 0
    count: Count | None = None
    sequence: Sequence | None = None
    absent: Absent | None = None
    level: Level | None = None
    group_by: NameList | None = None
    when: Names | None = None
    unless: Names | None = None
    keep_firing_for: Duration | None = None
    cooldown: Duration | None = None
    severity: Severity | None = None
    limit: int = Field(default=64, ge=1, le=10_000, description="alerts of this rule at a time")
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    actions: Actions = Field(
        default=None, description="of the configuration; null: the group's, or the file's default"
    )


class Defaults(RuleSection):
    """What holds for rules that say nothing else."""

    timezone: str | None = None
    severity: Severity = "medium"
    cooldown: Duration = 0
    keep_firing_for: Duration = 0
    group_by: NameList = Field(default_factory=lambda: ["stream"])
    actions: Actions = Field(default=None, description="of rules and groups without `actions`")
    resume_window: PositiveDuration = Field(
        default=3600 * NS_PER_SECOND, description="alerts go on after a pause of at most this"
    )


class WindowSettings(RuleSection):
    """A window of time; see `windows`."""

    timezone: str | None = None
    days: Names | None = None
    dates: Names | None = None
    from_: str | None = Field(default=None, alias="from")
    to: str | None = None


class Group(RuleSection):
    """Rules that share labels."""

    name: str = Field(min_length=1, max_length=100)
    labels: dict[str, str] = Field(default_factory=dict)
    actions: Actions = Field(default=None, description="of rules without `actions`")
    rules: list[RuleSettings] = Field(min_length=1)


class Selector(RuleSection):
    """Alerts by name or severity; all keys given must hold."""

    alert: Names | None = None
    severity: Annotated[list[Severity], BeforeValidator(_as_list)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Selector:
        if self.alert is None and self.severity is None:
            raise ValueError("expected 'alert' or 'severity', got neither")
        return self


class Inhibit(RuleSection):
    """While a source alert is active, target alerts with equal labels do not fire."""

    source: Selector
    target: Selector
    equal: NameList = Field(default_factory=list)


class RuleFile(RuleSection):
    """A whole rule file; only `groups` has no default."""

    version: Literal[1] = 1
    defaults: Defaults = Defaults()
    ontology: str | None = Field(default=None, description="AudioSet's ontology.json or alike")
    classes: dict[str, Names] = Field(default_factory=dict, description="your groups of classes")
    windows: dict[str, WindowSettings] = Field(default_factory=dict)
    groups: list[Group] = Field(min_length=1)
    inhibit: list[Inhibit] = Field(default_factory=list)


def rule_file_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a rule file, durations as text."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RuleFile.model_json_schema(),
        "title": "Alert rules of ast-stream",
    }
    for section in (schema, *schema["$defs"].values()):
        for field in section.get("properties", {}).values():
            if field.get("pattern") == _DURATION_PATTERN and isinstance(field.get("default"), int):
                field["default"] = f"{field['default'] / NS_PER_SECOND:g}s"
    return schema
