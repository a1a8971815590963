"""From the `windows` of a rule file to windows of time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import time
from zoneinfo import ZoneInfo

from ast_stream.alerts.rules.problems import Notes
from ast_stream.alerts.rules.schema import WindowSettings
from ast_stream.alerts.rules.windows import (
    TimeWindow,
    parse_clock,
    parse_dates,
    parse_days,
    parse_zone,
)
from ast_stream.settings.explain import Path as KeyPath


def compile_windows(
    windows: Mapping[str, WindowSettings], default_zone: str | None, notes: Notes
) -> dict[str, TimeWindow | None]:
    """Return the windows of a rule file; None for those that are wrong, which is noted."""
    default: ZoneInfo | None = None
    if default_zone is not None:
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
    days = notes.attempt((*path, "days"), "E103", parse_days, given.days) if given.days else None
    dates = (
        notes.attempt((*path, "dates"), "E103", parse_dates, given.dates) if given.dates else None
    )
    hours = _hours(path, given, notes)
    if not (given.days or given.dates or given.from_ or given.to):
        notes.add(path, "E103", "expected 'days', 'dates' or 'from' and 'to', got none")
    if len(notes.problems) != before or zone is None:
        return None
    return TimeWindow(zone, days, dates, hours)


def _hours(path: KeyPath, given: WindowSettings, notes: Notes) -> tuple[time, time] | None:
    if given.from_ is None and given.to is None:
        return None
    if given.from_ is None or given.to is None:
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
