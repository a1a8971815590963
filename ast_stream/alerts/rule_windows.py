"""From the `windows` of a rule file to windows of time."""

from __future__ import annotations

from datetime import time

from ast_stream.alerts.problems import Notes
from ast_stream.alerts.schema import WindowSettings
from ast_stream.alerts.windows import TimeWindow, parse_clock, parse_dates, parse_days, parse_zone
from ast_stream.settings.explain import Path as KeyPath


def compile_window(
    name: str, given: WindowSettings, default_zone: str | None, notes: Notes
) -> TimeWindow | None:
    """Return a window of a rule file, or None and note what is wrong."""
    path: KeyPath = ("windows", name)
    before = len(notes.problems)
    zone_name = given.timezone or default_zone
    if zone_name is None:
        text = "expected a 'timezone' here or in 'defaults', got neither"
        notes.add(path, "E103", text)
    where = (*path, "timezone") if given.timezone else ("defaults", "timezone")
    zone = notes.attempt(where, "E103", parse_zone, zone_name) if zone_name else None
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
