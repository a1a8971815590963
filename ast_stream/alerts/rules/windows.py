"""Time windows of rules: ranges of local time in which rules may or may not fire.

Membership is tested by converting the instant to the zone, which is always defined: the hour that
a clock skips never happens, the hour it repeats is inside both times. A range may cross midnight
and then belongs to the day on which it began; it holds its first minute and not its last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import Field

from ast_stream.alerts.rules.field_types import Names, RuleSection
from ast_stream.alerts.rules.problems import Notes
from ast_stream.labels import did_you_mean
from ast_stream.settings.explain import Path as KeyPath

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class WindowSettings(RuleSection):
    """A window of time as a rule file has it."""

    timezone: str | None = Field(default=None, description="null: that of the defaults")
    days: Names | None = Field(default=None, description="mon to sun, or ranges such as mon-fri")
    dates: Names | None = Field(
        default=None, description="dates, or ranges such as 2026-12-24..2027-01-02"
    )
    from_: str | None = Field(
        default=None, alias="from", description="first minute, HH:MM; may be later than `to`"
    )
    to: str | None = Field(default=None, description="minute after the last one, HH:MM")


@dataclass(frozen=True)
class TimeWindow:
    """Days, dates and times of day that must all hold; None: any.

    Attributes:
        days: of the week, 0 is Monday.
        dates: first and last day of each span.
        hours: from the first inclusive to the second exclusive.
    """

    zone: ZoneInfo
    days: frozenset[int] | None = None
    dates: tuple[tuple[date, date], ...] | None = None
    hours: tuple[time, time] | None = None

    def holds(self, at_ns: int) -> bool:
        """Return whether an instant, in nanoseconds since 1970, is inside."""
        local = (_EPOCH + timedelta(microseconds=at_ns // 1000)).astimezone(self.zone)
        day = local.date()
        if self.hours is not None:
            first, last = self.hours
            clock = local.time()
            if first < last:
                if not first <= clock < last:
                    return False
            elif clock < last:
                day -= timedelta(days=1)
            elif clock < first:
                return False
        if self.days is not None and day.weekday() not in self.days:
            return False
        return self.dates is None or any(first <= day <= last for first, last in self.dates)


def parse_clock(text: str) -> time:
    """Return `HH:MM` as a time of day.

    Raises:
        ValueError: it is not that.
    """
    match = _CLOCK.match(text)
    if match is None:
        raise ValueError(f"expected a time such as 22:00, got '{text}'")
    return time(int(match[1]), int(match[2]))


def parse_days(texts: list[str]) -> frozenset[int]:
    """Return days such as `sat` and ranges such as `mon-fri` or `fri-mon`.

    Raises:
        ValueError: a word is neither.
    """
    days: set[int] = set()
    for text in texts:
        first, dash, last = text.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"expected days such as mon or mon-fri, got '{text}'")
        start = DAYS.index(first)
        length = (DAYS.index(last) - start) % 7 + 1 if dash else 1
        days |= {(start + step) % 7 for step in range(length)}
    return frozenset(days)


def parse_dates(texts: list[str]) -> tuple[tuple[date, date], ...]:
    """Return dates such as `2026-12-24` and spans such as `2026-12-24..2027-01-02`.

    Raises:
        ValueError: a text is neither, or a span ends before it begins.
    """
    spans = []
    for text in texts:
        first, dots, last = text.partition("..")
        try:
            span = date.fromisoformat(first), date.fromisoformat(last if dots else first)
        except ValueError:
            form = "2026-12-24 or 2026-12-24..2027-01-02"
            raise ValueError(f"expected a date such as {form}, got '{text}'") from None
        if span[1] < span[0]:
            raise ValueError(f"expected the first day before the last, got '{text}'")
        spans.append(span)
    return tuple(spans)


def parse_zone(name: str) -> ZoneInfo:
    """Return the time zone called `name`.

    Raises:
        ValueError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = did_you_mean(name, available_timezones())
        raise ValueError(f"expected a time zone such as Europe/Paris, got '{name}'{near}") from None


def compile_windows(
    windows: Mapping[str, WindowSettings], default_zone: str | None, notes: Notes
) -> dict[str, TimeWindow | None]:
    """Return the windows of a rule file; None for those that are wrong, which is noted."""
    default = notes.attempt(("defaults", "timezone"), "E103", parse_zone, default_zone)
    found = {}
    for name, given in windows.items():
        path: KeyPath = ("windows", name)
        zone = default
        if given.timezone is not None:
            zone = notes.attempt((*path, "timezone"), "E103", parse_zone, given.timezone)
        elif default_zone is None:
            text = "expected a 'timezone' here or in 'defaults', got neither"
            notes.add(path, "E103", text)
        found[name] = _window(path, given, zone, notes)
    return found


def _window(
    path: KeyPath, given: WindowSettings, zone: ZoneInfo | None, notes: Notes
) -> TimeWindow | None:
    before = len(notes.problems)
    days = notes.attempt((*path, "days"), "E103", parse_days, given.days)
    dates = notes.attempt((*path, "dates"), "E103", parse_dates, given.dates)
    hours = _hours(path, given, notes)
    if not (given.days or given.dates or given.from_ or given.to):
        notes.add(path, "E103", "expected 'days', 'dates' or 'from' and 'to', got none")
    if len(notes.problems) != before or zone is None:
        return None
    return TimeWindow(zone, days, dates, hours)


def _hours(path: KeyPath, given: WindowSettings, notes: Notes) -> tuple[time, time] | None:
    if (given.from_ is None) != (given.to is None):
        notes.add(path, "E103", "expected both 'from' and 'to', got one of them")
        return None
    first = notes.attempt((*path, "from"), "E103", parse_clock, given.from_)
    last = notes.attempt((*path, "to"), "E103", parse_clock, given.to)
    if first is None or last is None:
        return None
    if first == last:
        text = "expected 'from' and 'to' to differ; for the whole day leave both out"
        notes.add(path, "E103", text)
    return first, last
