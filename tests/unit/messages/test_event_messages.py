from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_messages import (
    alerts_status,
    event_message,
    gap_message,
    health,
    scores_header,
    worker_status,
)

from ast_stream.machine_clock import Moment
from ast_stream.messages.audio import AudioBlock
from ast_stream.messages.event import Event, EventMessage, Gap, event_id
from ast_stream.sample_clock import SampleClock
from ast_stream.units import format_time, parse_time

START_NS = parse_time("2026-11-20T10:00:00Z")


def make_event(**changes: Any) -> Event:
    facts: dict[str, Any] = {
        "type": "begin",
        "id": "abc",
        "stream": "porch",
        "epoch": "9f2c4e1a",
        "index": 74,
        "label": "Baby cry, infant cry",
        "score": 0.83456,
        "peak": 0.91,
        "mean": None,
        "onset_sample": 16_000,
        "offset_sample": None,
        "uncertainty_s": 0.25,
        "at_sample": 32_000,
    }
    return Event(**(facts | changes))


@given(st.integers(0, 2**62 // 1000))
def test_times_come_back_as_they_were_written(microseconds: int) -> None:
    assert parse_time(format_time(microseconds * 1000)) == microseconds * 1000


def test_times_of_other_zones_are_the_same_moment() -> None:
    assert parse_time("2026-11-20T11:00:00+01:00") == START_NS


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-20T10:00:00", "2026-13-01T00:00:00Z"])
def test_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_time(text)


def test_block_ends_after_its_last_sample() -> None:
    block = AudioBlock("porch", "9f2c4e1a", 100, Moment(0, 0), np.zeros(60, np.int16))
    assert block.end_sample == 160


def test_event_id_depends_on_all_that_makes_an_event_and_nothing_else() -> None:
    first = event_id("porch", "9f2c4e1a", 74, 16_000)
    others = [
        event_id("yard", "9f2c4e1a", 74, 16_000),
        event_id("porch", "9f2c4e1b", 74, 16_000),
        event_id("porch", "9f2c4e1a", 75, 16_000),
        event_id("porch", "9f2c4e1a", 74, 24_000),
    ]
    assert first == event_id("porch", "9f2c4e1a", 74, 16_000)
    assert len({first, *others}) == 5
    assert first == "yae7g5yzyv5wcgvxbf7pojew"  # readers keep ids: it may never change


def test_topics_end_with_a_slash_so_that_no_prefix_matches_half_a_name() -> None:
    assert event_message().topic == "event/bark/porch/"
    assert gap_message().topic == "gap/porch/"
    assert scores_header().topic == "scores/porch/"
    assert health().topic == "health/porch/"
    assert worker_status().topic == "status/worker/"
    assert alerts_status().topic == "status/alerts/"


def test_duration_is_known_when_the_event_has_ended() -> None:
    assert make_event().duration_s is None
    assert make_event(offset_sample=40_000).duration_s == 1.5


def test_event_body_tells_times_on_the_capture_clock() -> None:
    clock = SampleClock.from_start(START_NS)
    message = EventMessage.of(
        make_event(type="end", offset_sample=24_000, mean=0.5, reason="quiet"),
        clock,
        labels={"room": "porch"},
        audio_end=30_000,
        scored=clock.moment(48_000),
        model="sha256:00",
    )
    assert message.to_json() == {
        "v": 1,
        "id": "abc",
        "type": "end",
        "stream": "porch",
        "labels": {"room": "porch"},
        "class": "baby_cry_infant_cry",
        "label": "Baby cry, infant cry",
        "index": 74,
        "score": 0.8346,
        "peak": 0.91,
        "mean": 0.5,
        "onset": "2026-11-20T10:00:01.000000Z",
        "offset": "2026-11-20T10:00:01.500000Z",
        "duration_s": 0.5,
        "duration_reliable": True,
        "uncertainty_s": 0.25,
        "onset_sample": 16_000,
        "offset_sample": 24_000,
        "at_sample": 32_000,
        "epoch": "9f2c4e1a",
        "reason": "quiet",
        "captured": "2026-11-20T10:00:01.875000Z",
        "scored": "2026-11-20T10:00:03.000000Z",
        "model": "sha256:00",
    }


def test_the_score_of_the_small_model_is_in_the_body_where_there_is_one() -> None:
    clock = SampleClock.from_start(START_NS)

    def message(**fields: object) -> EventMessage:
        event = make_event(**fields)
        known = {"labels": {}, "audio_end": 30_000, "scored": clock.moment(48_000), "model": "m"}
        return EventMessage.of(event, clock, **known)  # type: ignore[arg-type]

    with_score = message(watcher_score=0.123456)
    assert with_score.to_json()["watcher_score"] == 0.1235
    assert EventMessage.from_json(with_score.to_json()) == with_score
    assert "watcher_score" not in message().to_json()
    ended = with_score.ended_by_restart(clock.moment(48_000))
    assert "watcher_score" not in ended.to_json()  # no window decided that


@pytest.mark.parametrize(
    ("known", "parts"),
    [
        ([], [(100, 50)]),
        ([(100, 150)], []),
        ([(90, 160)], []),
        ([(120, 150)], [(100, 20)]),
        ([(100, 110)], [(110, 40)]),
        ([(130, 140), (110, 120)], [(100, 10), (120, 10), (140, 10)]),
        ([(0, 100), (150, 200)], [(100, 50)]),
    ],
)
def test_gap_is_divided_by_known_gaps(
    known: list[tuple[int, int]], parts: list[tuple[int, int]]
) -> None:
    gap = Gap("porch", "aaaaaaaa", 100, 50, "overflow")
    others = [replace(gap, start_sample=a, samples=b - a, reason="other") for a, b in known]
    divided = list(gap.divided(others))
    new = [part for part, is_known in divided if not is_known]
    assert [(part.start_sample, part.samples) for part in new] == parts
    assert {part.reason for part in new} <= {"overflow"}
    assert {part.reason for part, is_known in divided if is_known} <= {"other"}
    stops = [part.stop_sample for part, _ in divided]
    assert [part.start_sample for part, _ in divided] == [100, *stops[:-1]]
    assert stops[-1] == 150
