"""Days in the time zone of this machine: when they begin, and the offsets from UTC.

A day is a calendar day of local time, of 23 or 25 hours when clocks change. The history counts
events by the days of the recorder's machine, and stores the offsets that it used.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self

from ast_stream.errors import UsageError
from ast_stream.units import NS_PER_SECOND

_FIRST, _LAST = 0, 4_102_444_800  # 1970 and 2100, whose offsets are used beyond these years
_DAY_S = 86_400


@dataclass(frozen=True)
class Zone:
    """A time zone.

    Attributes:
        offsets: pairs of a time (ns since 1970 UTC) and the offset from UTC from then on (s),
            oldest first; the first offset also holds for all earlier times.
    """

    offsets: tuple[tuple[int, int], ...]

    @classmethod
    def here(cls) -> Self:
        """Return the time zone of this process."""
        offsets = [(_FIRST, time.localtime(_FIRST).tm_gmtoff)]
        for day_s in range(_FIRST, _LAST, _DAY_S):
            offset_s = time.localtime(day_s + _DAY_S).tm_gmtoff
            if offset_s != offsets[-1][1]:
                offsets.append((_change_after(day_s, offset_s), offset_s))
        return cls(tuple((since_s * NS_PER_SECOND, offset_s) for since_s, offset_s in offsets))

    def date_of(self, time_ns: int) -> date:
        """Return the local day of a time."""
        number = bisect_right(self.offsets, (time_ns, _DAY_S))
        _, offset_s = self.offsets[max(0, number - 1)]
        moment_s = time_ns // NS_PER_SECOND + offset_s
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=moment_s)).date()

    def begins_day(self, time_ns: int) -> bool:
        """Return whether a local day begins at a time."""
        return self.date_of(time_ns - 1) != self.date_of(time_ns)


def start_of_day(day: date) -> int:
    """Return the start of a local day, nanoseconds since 1970.

    Raises:
        UsageError: the day is before 1970, or too far in the future.
    """
    try:
        began = datetime(day.year, day.month, day.day).astimezone()
        if began.date() != day:  # its first hour does not exist
            began = datetime(day.year, day.month, day.day, fold=1).astimezone()
    except (OverflowError, OSError, ValueError) as error:
        raise UsageError(f"day: expected one of this age, got {day.isoformat()}") from error
    return round(began.timestamp()) * NS_PER_SECOND


def starts_of_days(first: date, last: date) -> list[int]:
    """Return the starts of the local days from `first` to `last`, and the end of the last one.

    Raises:
        UsageError: the days are before 1970, or too far in the future.
    """
    try:
        days = [first + timedelta(days=number) for number in range((last - first).days + 2)]
    except OverflowError as error:
        raise UsageError(f"day: expected one of this age, got {last.isoformat()}") from error
    return [start_of_day(day) for day in days]


def hours(since_ns: int, until_ns: int) -> Sequence[int]:
    """Return the starts of the hours that overlap a time range, and the end of the last one."""
    hour_ns = 3600 * NS_PER_SECOND
    return range(since_ns // hour_ns * hour_ns, until_ns - 1 + hour_ns, hour_ns)


def _change_after(day_s: int, offset_s: int) -> int:
    """Return the second within the day after `day_s` from which this offset holds."""
    before, after = day_s, day_s + _DAY_S
    while after - before > 1:
        middle = (before + after) // 2
        if time.localtime(middle).tm_gmtoff == offset_s:
            after = middle
        else:
            before = middle
    return after
