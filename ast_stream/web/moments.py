"""Days and times as the pages show them: in the time zone of this machine."""

from __future__ import annotations

from datetime import date, datetime

from ast_stream.errors import UsageError
from ast_stream.history.days import starts_of_days
from ast_stream.units import NS_PER_SECOND


def local_time(time_ns: int) -> datetime:
    """Return a time in the time zone of this machine."""
    return datetime.fromtimestamp(time_ns / NS_PER_SECOND).astimezone()


def clock(time_ns: int) -> str:
    """Return the time of day, `10:00:30`."""
    return local_time(time_ns).strftime("%H:%M:%S")


def day_and_clock(time_ns: int) -> str:
    """Return day and time, `2026-11-20 10:00:30`."""
    return local_time(time_ns).strftime("%Y-%m-%d %H:%M:%S")


def zone(time_ns: int) -> str:
    """Return the name of the time zone, `CET`."""
    return local_time(time_ns).strftime("%Z")


def utc_offset_s(time_ns: int) -> int:
    """Return how far local time is ahead of UTC, in seconds."""
    offset = local_time(time_ns).utcoffset()
    return 0 if offset is None else round(offset.total_seconds())


def parse_day(text: str | None, today: date) -> date:
    """Return the day in a request; today if there is none.

    Raises:
        UsageError: the text is not a day.
    """
    if not text:
        return today
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"day: expected one such as {today.isoformat()}, got {text!r}") from error


def day_range(day: date) -> tuple[int, int]:
    """Return start and end of a local day, which may have 23 or 25 hours (ns).

    Raises:
        UsageError: the day is before 1970 or too far in the future.
    """
    since_ns, until_ns = starts_of_days(day, day)
    return since_ns, until_ns
