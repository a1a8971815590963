from __future__ import annotations

from typing import Any

from sample_messages import event_message

from ast_stream.messages.event import EventMessage
from ast_stream.recorder.plan import ClipPart, Plan
from ast_stream.recorder.policy import Policies
from ast_stream.settings.recorder import ClipPolicy
from ast_stream.units import SAMPLE_RATE as S

MAX_CLIP, MARGIN = 30 * S, 10 * S
SOURCE = ("porch", "ab" * 16)


def message(kind: str, onset: float, offset: float | None = None, **fields: Any) -> EventMessage:
    chosen: dict[str, Any] = {
        "id": "one",
        "type": kind,
        "stream": SOURCE[0],
        "epoch": SOURCE[1],
        "onset_sample": round(onset * S),
        "offset_sample": None if offset is None else round(offset * S),
        "at_sample": round((offset or onset) * S) + S,
    }
    return event_message().model_copy(update=chosen | fields)


def plan(**policy: Any) -> Plan:
    chosen = ClipPolicy.model_validate({"pre_s": 3.0, "post_s": 2.0} | policy)
    return Plan(Policies([chosen]), MAX_CLIP, MARGIN)


def cut(found: Plan, end: float, *, is_over: bool = False) -> list[tuple[float, float, bool]]:
    """Cut all that is due with audio up to a second."""
    parts: list[ClipPart] = []
    for part in found.due({SOURCE: round(end * S)}, [SOURCE] if is_over else []):
        found.is_cut(part)
        parts.append(part)
    return [(part.start / S, part.stop / S, part.is_last) for part in parts]


def test_a_clip_reaches_from_before_the_onset_to_behind_the_offset() -> None:
    events = plan()
    events.observe(message("begin", 10), None)
    assert events.wanted() == {SOURCE: 7 * S}
    events.observe(message("end", 10, 15), None)
    assert cut(events, 16.9) == []
    assert cut(events, 17) == [(7, 17, True)]
    assert len(events) == 0
    assert events.wanted() == {}


def test_a_clip_at_the_beginning_of_an_epoch_begins_there() -> None:
    events = plan()
    events.observe(message("end", 1, 2), None)
    assert cut(events, 9) == [(0, 4, True)]


def test_a_long_event_is_cut_into_parts_that_follow_each_other() -> None:
    events = plan()
    events.observe(message("begin", 10), None)
    assert cut(events, 60) == []  # the feed may be read late, with the end on its way
    events.observe(message("update", 10, at_sample=round(46.9 * S)), None)
    assert cut(events, 60) == []  # its end may lie before, and not be known yet
    events.observe(message("update", 10, at_sample=47 * S), None)
    assert cut(events, 36.9) == []
    assert cut(events, 48) == [(7, 37, False)]
    assert events.wanted() == {SOURCE: 37 * S}
    events.observe(message("end", 10, 80), None)
    assert cut(events, 81) == [(37, 67, False)]
    assert cut(events, 82) == [(67, 82, True)]


def test_an_event_is_cut_where_its_audio_ends_for_good() -> None:
    events = plan()
    events.observe(message("end", 10, 15), None)
    assert cut(events, 16) == []
    assert cut(events, 16, is_over=True) == [(7, 17, True)]


def test_an_event_is_met_with_any_of_its_messages_and_goes_on_behind_what_is_cut() -> None:
    events = plan()
    event = events.observe(message("update", 10), None)
    assert event is not None
    events.resume(event, [(0, 7 * S, 37 * S)])
    assert events.wanted() == {SOURCE: 37 * S}
    events.observe(message("end", 10, 50), None)
    assert cut(events, 60) == [(37, 52, True)]


def test_a_restart_begins_before_the_first_end_whose_clip_is_not_complete() -> None:
    events = plan()
    events.observe(message("begin", 10, id="a"), ("boot", 1))
    assert events.resume_at(("boot", 2)) == ("boot", 2)
    events.observe(message("begin", 11, id="b"), ("boot", 2))
    events.observe(message("end", 11, 12, id="b"), ("boot", 3))
    events.observe(message("end", 10, 20, id="a"), ("boot", 7))
    assert events.resume_at(("boot", 9)) == ("boot", 3)
    assert cut(events, 15) == [(8, 14, True)]
    assert events.resume_at(("boot", 9)) == ("boot", 7)
    cut(events, 30)
    assert events.resume_at(("boot", 9)) == ("boot", 9)


def test_overlapping_events_want_the_audio_from_the_first_on() -> None:
    events = plan()
    events.observe(message("begin", 20, id="a"), None)
    events.observe(message("begin", 14, id="b"), None)
    assert events.wanted() == {SOURCE: 11 * S}


def test_events_that_no_policy_fits_are_not_tracked() -> None:
    assert plan(classes=["Siren"]).observe(message("begin", 1), None) is None
    high = plan(min_score=0.99)
    assert high.observe(message("begin", 1, peak=0.5), None) is not None
    assert high.observe(message("end", 1, 2, peak=0.5), None) is None
    assert len(high) == 0
