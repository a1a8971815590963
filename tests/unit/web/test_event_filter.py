"""Which events a page shows, as its address says it."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from ast_stream.errors import UsageError
from ast_stream.history.records import EventQuery
from ast_stream.web.event_filter import PAGE_EVENTS, EventFilter, format_key, parse_key


def test_an_address_without_values_restricts_nothing() -> None:
    assert EventFilter.of(QueryParams("")).query() == EventQuery(limit=PAGE_EVENTS)


def test_each_value_restricts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = EventFilter.of(
        QueryParams("stream=porch&class=bark&day=2026-11-20&verdict=none&clip=1&other=x")
    )
    query = asked.query(after=(5, "id"), limit=1, newest_first=False)
    assert (query.streams, query.classes) == (("porch",), ("bark",))
    assert query.since_ns is not None
    assert query.until_ns is not None
    assert query.until_ns - query.since_ns == 86_400 * 10**9
    assert (query.has_verdict, query.has_clip, query.verdicts) == (False, True, ())
    assert (query.after, query.limit, query.newest_first) == ((5, "id"), 1, False)


def test_an_address_is_read_as_it_was_written() -> None:
    asked = EventFilter(stream="porch", class_="a&b", day="2026-11-20", verdict="any", clip="1")
    address = asked.address("/events/x", after="1~y")
    assert address.startswith("/events/x?stream=porch&class=a%26b&")
    assert EventFilter.of(QueryParams(address.partition("?")[2])) == asked
    assert EventFilter().address("/events") == "/events"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("verdict=maybe", "verdict: expected none or any, got 'maybe'"),
        ("clip=yes", "clip: expected 1, got 'yes'"),
        ("day=today", "day: expected one such as "),
        ("day=0001-01-01", "day: expected one of this age, got 0001-01-01"),
        ("day=9999-12-31", "day: expected one of this age, got 9999-12-31"),
        (f"class={'a' * 201}", "class: expected a short text, got 201 characters"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(text: str, named: str) -> None:
    with pytest.raises(UsageError) as refused:
        EventFilter.of(QueryParams(text)).query()
    assert named in str(refused.value)


def test_a_place_in_the_list_is_read_as_it_was_written() -> None:
    assert parse_key(format_key((-5, "01~J"))) == (-5, "01~J")
    assert parse_key("") is None


@pytest.mark.parametrize("text", ["1", "~", "x~y", "1~", f"{'9' * 30}~a", "--1~a"])
def test_what_is_no_place_in_the_list_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="after: expected the place of an event"):
        parse_key(text)
