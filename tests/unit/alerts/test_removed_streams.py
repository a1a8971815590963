"""A stream that was removed from the configuration: nothing is expected of it any more."""

from __future__ import annotations

from typing import Any

import pytest
from rule_bodies import at, engine_of, event, health, news, rules_from

from ast_stream.messages.status import STREAM_REMOVED

ABSENT = "alert: a, absent: {match: {class: Bark}, for: 60s}"
MISSING = "alert: a, level: {stream: {id: hall}, missing: true, for: 60s}"


def farewell(stream: str, at_s: float) -> dict[str, Any]:
    return health(at_s, "missing", stream=stream) | {"detail": STREAM_REMOVED}


@pytest.mark.parametrize("rule", [ABSENT, MISSING])
def test_removed_stream_raises_no_alert_of_silence(rule: str) -> None:
    engine = engine_of(rules_from(rule))
    engine.on_message("health/", health(0))
    assert news(engine.on_message("health/", farewell("hall", 10))) == []
    assert engine.advance(at(3600)) == []
    assert engine.replace_rules(rules_from(rule)) == []
    assert engine.advance(at(7200)) == []


def test_alert_of_silence_ends_when_its_stream_is_removed() -> None:
    engine = engine_of(rules_from(ABSENT))
    engine.on_message("health/", health(0))
    assert news(engine.advance(at(100)))[0][1:] == ("a", "firing")
    (ended,) = engine.on_message("health/", farewell("hall", 110))
    assert (ended.to_state, ended.alert.reason) == ("resolved", "stream_removed")


def test_silence_of_a_stream_that_is_back_counts_from_its_return() -> None:
    engine = engine_of(rules_from(ABSENT))
    engine.on_message("health/", health(0))
    engine.on_message("health/", farewell("hall", 10))
    engine.advance(at(1000))
    engine.on_message("health/", health(1000))
    assert engine.advance(at(1050)) == []
    ((fired_s, *_),) = news(engine.advance(at(1100)))
    assert 1060 <= fired_s < 1070


def test_other_streams_of_the_same_group_go_on_counting() -> None:
    engine = engine_of(rules_from(f"{ABSENT}, group_by: []"))
    for stream in ("hall", "yard"):
        engine.on_message("health/", health(0, stream=stream))
    assert engine.on_message("health/", farewell("hall", 10)) == []
    engine.on_message("event/", event("begin", "y", "Bark", 20, 20, stream="yard"))
    engine.on_message("event/", event("end", "y", "Bark", 22, 20, 21, stream="yard"))
    ((fired_s, *_),) = news(engine.advance(at(200)))
    assert 80 <= fired_s < 90
