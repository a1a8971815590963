"""Days and times of day as the pages show them: in the time zone of this machine."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from ast_stream.errors import UsageError
from ast_stream.units import NS_PER_SECOND


def local_time(time_ns: int) -> datetime:
    """Return a moment on the clock of this machine's place."""
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
    """Return how far the clock of this place is ahead of UTC, seconds."""
    offset = local_time(time_ns).utcoffset()
    return 0 if offset is None else round(offset.total_seconds())


def parse_day(text: str | None, today: date) -> date:
    """Return the day in a request; today if it names none.

    Raises:
        UsageError: it is no day.
    """
    if not text:
        return today
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"day: expected one such as {today.isoformat()}, got {text!r}") from error


def start_of_day(day: date) -> int:
    """Return when a day begins here, nanoseconds since 1970.

    Raises:
        UsageError: a day before 1970, or too far ahead.
    """
    try:
        began = datetime(day.year, day.month, day.day).astimezone().timestamp()
    except (OverflowError, OSError, ValueError) as error:
        raise UsageError(f"day: expected one of this age, got {day.isoformat()}") from error
    return round(began) * NS_PER_SECOND


def day_range(day: date) -> tuple[int, int]:
    """Return begin and end of a day here, which may have 23 or 25 hours."""
    try:
        following = day + timedelta(days=1)
    except OverflowError as error:
        raise UsageError(f"day: expected one of this age, got {day.isoformat()}") from error
    return start_of_day(day), start_of_day(following)
