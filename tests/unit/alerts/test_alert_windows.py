"""Windows of time: days, dates and hours, by the instant."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.alerts.rules.windows import (
    TimeWindow,
    parse_clock,
    parse_dates,
    parse_days,
    parse_zone,
)
from ast_stream.units import parse_time

PARIS = ZoneInfo("Europe/Paris")
INSTANTS = st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))
NIGHT = TimeWindow(PARIS, hours=(parse_clock("22:00"), parse_clock("06:00")))
DAY = TimeWindow(PARIS, hours=(parse_clock("06:00"), parse_clock("22:00")))


def nanoseconds(moment: datetime) -> int:
    return parse_time(moment.isoformat())


@given(INSTANTS)
def test_every_instant_is_in_a_range_or_in_the_rest_of_the_day(moment: datetime) -> None:
    assert NIGHT.holds(nanoseconds(moment)) is not DAY.holds(nanoseconds(moment))


@given(INSTANTS, st.sets(st.integers(0, 6)))
def test_night_belongs_to_the_day_it_began(moment: datetime, days: set[int]) -> None:
    window = TimeWindow(PARIS, days=frozenset(days), hours=NIGHT.hours)
    local = moment.astimezone(PARIS)
    began = (local.weekday() - (local.hour < 6)) % 7
    expected = (local.hour >= 22 or local.hour < 6) and began in days
    assert window.holds(nanoseconds(moment)) is expected


def test_dates_hold_whole_days_of_their_zone() -> None:
    window = TimeWindow(PARIS, dates=parse_dates(["2026-12-24..2027-01-02", "2027-05-01"]))
    inside = ("2026-12-24T00:00:00+01:00", "2027-01-02T23:59:59+01:00", "2027-05-01T12:00:00+02:00")
    outside = (
        "2026-12-23T23:59:59+01:00",
        "2027-01-03T00:00:00+01:00",
        "2027-05-02T00:00:00+02:00",
    )
    assert all(window.holds(parse_time(text)) for text in inside)
    assert not any(window.holds(parse_time(text)) for text in outside)


@pytest.mark.parametrize(
    ("texts", "days"),
    [
        (["mon"], {0}),
        (["mon-fri"], {0, 1, 2, 3, 4}),
        (["sat-mon"], {5, 6, 0}),
        (["mon-sun"], set(range(7))),
        (["tue", "thu-fri"], {1, 3, 4}),
    ],
)
def test_days_and_ranges_of_days(texts: list[str], days: set[int]) -> None:
    assert parse_days(texts) == days


@pytest.mark.parametrize("text", ["6:00", "24:00", "22:60", "22:00:00", "", "22.00"])
def test_what_is_no_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time such as 22:00"):
        parse_clock(text)


@pytest.mark.parametrize("name", ["Paris", "../etc/passwd", "/etc/passwd", "", "Europe"])
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a time zone such as Europe/Paris"):
        parse_zone(name)


@pytest.mark.parametrize("text", ["2026-13-01", "24.12.2026", "2026-12-24..", "x..y"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a date such as"):
        parse_dates([text])
