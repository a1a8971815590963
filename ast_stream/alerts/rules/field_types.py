"""Types of the fields in rule files: durations, which become nanoseconds, and lists of names."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from ast_stream.settings.section import Section
from ast_stream.units import NS_PER_SECOND

_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[dhms]))+\Z")
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


def as_list(value: Any) -> Any:
    """Return a lone name as a list of one."""
    return [value] if isinstance(value, str) else value


# the JSON Schema describes what is written in a file, not what it becomes
DURATION_PATTERN = "^" + _DURATION.pattern.replace(r"\Z", "$")
_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})
_ONE_OR_MORE: dict[str, Any] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
}

Duration = Annotated[int, BeforeValidator(parse_duration), _DURATION_SCHEMA]
PositiveDuration = Annotated[int, BeforeValidator(_positive_duration), _DURATION_SCHEMA]
NameList = Annotated[list[str], BeforeValidator(as_list), WithJsonSchema(_ONE_OR_MORE)]
Names = Annotated[
    list[str], BeforeValidator(as_list), Field(min_length=1), WithJsonSchema(_ONE_OR_MORE)
]
OptionalNameList = Annotated[
    list[str] | None,
    BeforeValidator(as_list),
    WithJsonSchema({"anyOf": [*_ONE_OR_MORE["anyOf"], {"type": "null"}]}),
]


class RuleSection(Section):
    """As a section of the configuration; keys that are Python keywords have aliases."""

    model_config = ConfigDict(validate_by_alias=True, validate_by_name=False)
