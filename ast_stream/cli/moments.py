"""Moments on the command line: a time, or how long ago."""

from __future__ import annotations

from ast_stream.alerts.rules.field_types import parse_duration
from ast_stream.errors import UsageError
from ast_stream.units import parse_time

MOMENT = "A time (2026-11-20T10:00:00Z), or how long ago (24h, 7d)"


def moment(text: str | None, option: str, now_ns: int) -> int | None:
    """Return the value of an option in nanoseconds since 1970, None if it is not given.

    Raises:
        UsageError: it is neither a time nor a duration.
    """
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        pass
    try:
        return now_ns - parse_duration(text)
    except ValueError as error:
        raise UsageError(
            f"{option}: expected a time with its offset from UTC, such as 2026-11-20T10:00:00Z, or "
            f"a duration such as 24h, got {text!r}"
        ) from error
