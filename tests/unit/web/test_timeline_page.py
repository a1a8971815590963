"""What the timeline shows of a day."""

from __future__ import annotations

from dataclasses import fields
from datetime import date, timedelta

import pytest
from alert_samples import alert

from ast_stream.coverage.spans import Kind
from ast_stream.coverage.timeline import Stretch
from ast_stream.history.days import start_of_day
from ast_stream.history.records import AlertRecord, EventCount
from ast_stream.messages.alert import Alert
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE
from ast_stream.web.moments import day_range, local_time
from ast_stream.web.timeline_page import (
    Bar,
    coverage_bars,
    heatmap,
    shade,
    without_those_fired,
)

DAY = date(2026, 11, 20)
SINCE_NS = start_of_day(DAY)


def stretch(kind: Kind, start_s: float, stop_s: float, reason: str | None = None) -> Stretch:
    samples = round((stop_s - start_s) * SAMPLE_RATE)
    return Stretch(kind, SINCE_NS + round(start_s * NS_PER_SECOND), samples, reason)


def test_a_short_gap_is_seen_in_a_day_that_was_listened_to() -> None:
    bars = coverage_bars(
        [
            stretch("listened", 0, 600.1),
            stretch("gap", 600.1, 600.2, "overflow"),
            stretch("listened", 600.2, 1200),
        ],
        SINCE_NS,
    )
    assert bars == [
        Bar(0, 600, "listened", "listened"),
        Bar(600, 60, "gap", "lost: overflow"),
        Bar(660, 540, "listened", "listened"),
    ]


def test_an_alert_that_fired_is_not_among_those_that_would_have() -> None:
    def at(rule: str, started_s: float) -> Alert:
        return alert(rule=rule, started_ns=SINCE_NS + round(started_s * NS_PER_SECOND))

    would_be = [at("dog", 10), at("dog", 60), at("siren", 10.5)]
    one = at("dog", 10.4)
    names = {field.name for field in fields(AlertRecord)} - {"updated_ns"}
    fired = [AlertRecord(**{name: getattr(one, name) for name in names}, updated_ns=0)]
    missed = [(one.rule, one.started_ns) for one in without_those_fired(would_be, fired)]
    assert missed == [("dog", would_be[1].started_ns), ("siren", would_be[2].started_ns)]


def test_what_is_not_accounted_for_has_no_bar() -> None:
    bars = coverage_bars([stretch("missing", 60, 120), stretch("off", 240, 300)], SINCE_NS)
    assert [(bar.start_s, bar.kind) for bar in bars] == [(60, "missing"), (240, "off")]


def test_the_heatmap_has_a_cell_for_each_class_and_day() -> None:
    dates = [DAY, DAY + timedelta(days=1)]
    second_ns = start_of_day(dates[1])
    heat = heatmap(
        [
            EventCount(SINCE_NS, "porch", "bark", 2),
            EventCount(SINCE_NS, "attic", "bark", 3),
            EventCount(second_ns, "porch", "siren", 1),
        ],
        dates,
    )
    assert [(row["class"], row["total"]) for row in heat["rows"]] == [("bark", 5), ("siren", 1)]
    assert [[cell["n_events"] for cell in row["cells"]] for row in heat["rows"]] == [[5, 0], [0, 1]]
    assert heat["rows"][1]["cells"][1]["address"] == "/events?class=siren&day=2026-11-21"


@pytest.mark.parametrize(
    ("count", "most", "shown"), [(0, 9, 0), (1, 1, 1), (1, 99, 1), (99, 99, 6)]
)
def test_one_event_a_day_is_seen_beside_many(count: int, most: int, shown: int) -> None:
    assert shade(count, most) == shown


def test_a_day_begins_at_midnight_of_this_place() -> None:
    since_ns, until_ns = day_range(DAY)
    assert local_time(since_ns).strftime("%F %T") == "2026-11-20 00:00:00"
    assert local_time(until_ns).strftime("%F %T") == "2026-11-21 00:00:00"
