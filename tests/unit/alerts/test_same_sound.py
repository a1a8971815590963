"""`same_sound`: one alert for one sound at several microphones, whatever the order of messages."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from feed_worker import Worker
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bodies import (
    START,
    at,
    engine_of,
    event,
    news,
    restarted,
    rules_from,
    run,
    sound,
)

from ast_stream.alerts.engine import Engine
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.model_facts import DetectionTiming, DetectorFacts
from ast_stream.alerts.rules.lint import lint
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.triggers.same_sound import REMEMBER_NS, SKEW_NS, occurrences
from ast_stream.errors import ConfigError
from ast_stream.feed import FeedMessage, SeveralFeeds, Subscriber
from ast_stream.messages.event import EventMessage
from ast_stream.settings.streams import StdinSource, StreamSettings
from ast_stream.units import NS_PER_SECOND

STREAMS = ("porch", "yard", "hall")
SKEW_S = SKEW_NS / NS_PER_SECOND


def rules_of(more: str = "within: 1s", rest: str = "") -> RuleSet:
    return rules_from(f"alert: barks, match: {{class: Bark}}, same_sound: {{{more}}}{rest}")


def fired(transitions: list[Transition]) -> list[Transition]:
    return [one for one in transitions if one.to_state == "firing" and one.is_announced]


def test_one_sound_on_three_streams_is_one_alert() -> None:
    bodies = [
        *sound("a", "Bark", 1.0, 2.0, stream="porch", peak=0.6),
        *sound("b", "Bark", 1.05, 2.1, stream="yard", peak=0.9),
        *sound("c", "Bark", 1.6, 2.2, stream="hall", peak=0.7),
    ]
    found = run(engine_of(rules_of()), bodies, until=10)
    assert news(found) == [(2.5, "barks", "firing"), (3.5, "barks", "resolved")]
    (alert,) = [one.alert for one in fired(found)]
    assert alert.events == ("a", "b", "c")
    assert alert.best == "b"
    assert alert.streams == ("porch", "yard", "hall")
    assert alert.group == {"class": "bark"}
    assert alert.started_ns == at(1.0)


def test_sounds_further_apart_are_two() -> None:
    bodies = [
        *sound("a", "Bark", 1.0, 1.5, stream="porch"),
        *sound("b", "Bark", 2.1, 2.6, stream="yard"),
    ]
    assert len(fired(run(engine_of(rules_of()), bodies, until=10))) == 2


def test_other_classes_are_other_sounds() -> None:
    rules = rules_from("alert: any, match: {class: [Bark, Knock]}, same_sound: {within: 1s}")
    bodies = [
        *sound("a", "Bark", 1.0, 1.5, stream="porch"),
        *sound("b", "Knock", 1.0, 1.6, stream="yard"),
    ]
    found = fired(run(engine_of(rules), bodies, until=10))
    assert [one.alert.events for one in found] == [("a",), ("b",)]


def test_streams_with_another_label_are_another_group() -> None:
    bodies = [
        *sound("a", "Bark", 1.0, 1.5, stream="porch", labels={"house": "1"}),
        *sound("b", "Bark", 1.1, 1.6, stream="yard", labels={"house": "1"}),
        *sound("c", "Bark", 1.1, 1.6, stream="hall", labels={"house": "2"}),
    ]
    found = fired(run(engine_of(rules_of(rest=", group_by: house")), bodies, until=10))
    assert [(one.alert.group["house"], one.alert.events) for one in found] == [
        ("1", ("a", "b")), ("2", ("c",))
    ]  # fmt: skip


def test_a_sound_that_too_few_hear_is_no_alert() -> None:
    twice_on_one = [
        *sound("a", "Bark", 1.0, 1.2, stream="porch"),
        *sound("b", "Bark", 1.5, 1.7, stream="porch"),
    ]
    rules = rules_of("within: 1s, heard_by: 2")
    assert fired(run(engine_of(rules), twice_on_one, until=10)) == []
    heard = [*twice_on_one, *sound("c", "Bark", 1.9, 2.2, stream="yard")]
    (one,) = fired(run(engine_of(rules), heard, until=10))
    assert one.alert.events == ("a", "b", "c")


def test_a_stream_that_lags_joins_the_sound_and_makes_no_other() -> None:
    """Also when the lag is that of a stream that a killed worker reads from its ring."""
    engine = engine_of(rules_of())
    found = run(engine, [event("begin", "a", "Bark", 1.0, 1.0, stream="porch")], until=15)
    found += engine.on_message("event/", event("begin", "b", "Bark", 1.3, 1.2, stream="yard"))
    found += engine.on_message("event/", event("end", "b", "Bark", 2.3, 1.2, 2.2, stream="yard"))
    found += run(engine, sound("c", "Bark", 0.5, 0.9, stream="hall"), until=19)
    found += engine.on_message("event/", event("end", "a", "Bark", 20, 1.0, 20, stream="porch"))
    assert len(fired(found)) == 1
    (over,) = [one.alert for one in found if one.to_state == "resolved"]
    assert set(over.events) == {"a", "b", "c"}
    assert over.streams == ("hall", "porch", "yard")


def test_a_late_second_microphone_still_makes_the_alert() -> None:
    rules = rules_of("within: 1s, heard_by: 2")
    engine = engine_of(rules)
    assert fired(run(engine, sound("a", "Bark", 1.0, 1.5, stream="porch"), until=60)) == []
    (one,) = fired(
        engine.on_message("event/", event("begin", "b", "Bark", 1.5, 1.4, stream="yard"))
    )
    assert one.alert.events == ("a", "b")


def test_a_stream_that_is_dead_holds_nothing_up() -> None:
    """A rule that names it fires as if it were not there."""
    rules = rules_from(
        "alert: barks, match: {class: Bark, stream: {id: [porch, yard, dead]}}, "
        "same_sound: {within: 1s, heard_by: 2}"
    )
    bodies = [
        *sound("a", "Bark", 1.0, 1.5, stream="porch"),
        *sound("b", "Bark", 1.1, 1.6, stream="yard"),
    ]
    assert news(run(engine_of(rules), bodies, until=10))[0] == (2.5, "barks", "firing")


def test_the_alert_waits_for_what_the_detector_may_still_tell() -> None:
    timing = DetectionTiming(latency_ns=2 * NS_PER_SECOND)
    bodies = [
        event("begin", "a", "Bark", 1.2, 1.0, stream="porch"),
        event("begin", "b", "Bark", 3.9, 1.9, stream="yard"),
    ]
    (one,) = fired(run(engine_of(rules_of(), timing), bodies, until=10))
    assert one.at_ns == at(4.5)
    assert one.alert.events == ("a", "b")


def test_a_rule_that_does_not_wait_fires_at_once_and_takes_in_what_follows() -> None:
    bodies = [
        event("begin", "a", "Bark", 1.1, 1.0, stream="porch", peak=0.5),
        event("begin", "b", "Bark", 1.8, 1.7, stream="yard", peak=0.6),
        event("end", "a", "Bark", 3.0, 1.0, 2.9, stream="porch"),
        event("end", "b", "Bark", 3.0, 1.7, 2.9, stream="yard", peak=0.6),
    ]
    found = run(engine_of(rules_of("within: 1s, wait: 0s")), bodies, until=10)
    assert news(found) == [(1.1, "barks", "firing"), (3.0, "barks", "resolved")]
    assert [one.alert.events for one in found] == [("a",), ("a", "b")]
    assert found[-1].alert.best == "b"
    found = run(engine_of(rules_of("within: 1s, wait: 0s, heard_by: 2")), bodies, until=10)
    assert news(found)[0] == (1.8, "barks", "firing")


def test_the_best_is_the_one_with_the_highest_score_so_far() -> None:
    bodies = [
        event("begin", "a", "Bark", 1.1, 1.0, stream="porch", peak=0.5),
        event("begin", "b", "Bark", 1.2, 1.1, stream="yard", peak=0.6),
        event("update", "a", "Bark", 2.1, 1.0, stream="porch", peak=0.8),
    ]
    (one,) = fired(run(engine_of(rules_of()), bodies, until=10))
    assert one.alert.best == "a"


def test_the_verifier_decides_which_is_best_where_there_is_one() -> None:
    bodies = [
        event("begin", "a", "Bark", 1.1, 1.0, stream="porch", peak=0.9) | {"verifier_score": 0.6},
        event("begin", "b", "Bark", 1.2, 1.1, stream="yard", peak=0.5) | {"verifier_score": 0.8},
    ]
    (one,) = fired(run(engine_of(rules_of()), bodies, until=10))
    assert one.alert.best == "b"


def test_texts_know_who_heard_it() -> None:
    rest = (
        ", annotations: {summary: '{{ label }}: {{ heard_by | int }} of {{ heard_on }}, best on "
        "{{ stream.name }} ({{ score }})'}"
    )
    bodies = [
        *sound("a", "Bark", 1.0, 2.0, stream="porch", peak=0.6),
        *sound("b", "Bark", 1.05, 2.1, stream="yard", peak=0.9),
        *sound("c", "Bark", 9.0, 9.5, stream="hall", peak=0.7),
    ]
    first, second = fired(run(engine_of(rules_of(rest=rest)), bodies, until=20))
    assert first.alert.annotations == {"summary": "Bark: 2 of porch, yard, best on yard (0.9)"}
    assert second.alert.annotations == {"summary": "Bark: 1 of hall, best on hall (0.7)"}


def test_a_sound_during_the_alert_of_another_belongs_to_it() -> None:
    bodies = [
        *sound("a", "Bark", 1.0, 9.0, stream="porch"),
        *sound("b", "Bark", 5.0, 6.0, stream="yard"),
    ]
    found = run(engine_of(rules_of()), bodies, until=20)
    assert news(found) == [(2.5, "barks", "firing"), (9.0, "barks", "resolved")]
    assert found[-1].alert.events == ("a", "b")
    assert found[-1].alert.streams == ("porch", "yard")


def test_an_event_of_too_few_does_not_prolong_an_alert() -> None:
    rules = rules_of("within: 1s, heard_by: 2")
    bodies = [
        *sound("a", "Bark", 1.0, 4.0, stream="porch"),
        *sound("b", "Bark", 1.1, 4.0, stream="yard"),
        *sound("c", "Bark", 3.0, 30.0, stream="hall"),
    ]
    found = run(engine_of(rules), bodies, until=60)
    assert news(found) == [(2.5, "barks", "firing"), (4.0, "barks", "resolved")]


def test_everything_is_forgotten_in_the_end() -> None:
    engine = engine_of(rules_of())
    run(engine, sound("a", "Bark", 1.0, 2.0), until=10)
    assert engine.export()["instances"]
    engine.advance(at(10) + REMEMBER_NS)
    assert engine.export()["instances"] == []


@pytest.mark.parametrize("moment", [1.5, 2.6, 5.0])
def test_a_killed_process_goes_on_where_it_was(moment: float) -> None:
    rules = rules_of("within: 1s, heard_by: 2")
    bodies = [
        event("begin", "a", "Bark", 1.1, 1.0, stream="porch"),
        event("begin", "b", "Bark", 1.8, 1.7, stream="yard"),
        event("end", "a", "Bark", 7.0, 1.0, 6.9, stream="porch"),
        event("end", "b", "Bark", 7.0, 1.7, 6.9, stream="yard"),
        event("begin", "c", "Bark", 7.1, 1.9, stream="hall"),
    ]
    whole = run(engine_of(rules), bodies, until=20)

    def is_before(body: dict[str, Any]) -> bool:
        return str(body["captured"]) < event("begin", "x", "Bark", moment, moment)["captured"]

    engine = engine_of(rules)
    found = run(engine, [one for one in bodies if is_before(one)], until=moment)
    engine = restarted(engine, rules, moment)
    found += run(engine, [one for one in bodies if not is_before(one)], until=20)
    assert [one.alert for one in found] == [one.alert for one in whole]
    assert len(fired(found)) == 1


def test_a_group_by_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match="'same_sound' is about several streams"):
        rules_of(rest=", group_by: [stream]")


def test_a_long_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at most 10s"):
        rules_of("within: 30s")


@pytest.mark.parametrize("late", ["one", "two"])
def test_microphones_of_several_workers_are_one_group(socket_dir: Path, late: str) -> None:
    """Also when one of the workers publishes long after the other."""
    workers = {}
    for name in ("one", "two"):
        (socket_dir / name).mkdir()
        workers[name] = Worker(socket_dir / name, f"boot-{name}")
    readers = {
        name: Subscriber(f"ipc://{socket_dir}/{name}/feed.sock", after="oldest") for name in workers
    }
    engine = engine_of(rules_of("within: 1s, heard_by: 2"))
    found: list[Transition] = []
    try:
        with SeveralFeeds(readers) as feed:
            for name in sorted(workers, key=lambda name: name == late):
                onset = 1.1 if name == "two" else 1.0
                begin = event("begin", name, "Bark", onset + 0.5, onset, stream=f"hall-{name}")
                workers[name].publish(EventMessage.from_json(begin, "event"))
                while engine.counters.events < 1 + (name == late):
                    item = feed.receive(0.1)
                    if isinstance(item, FeedMessage) and item.kind == "event":
                        found += engine.process(item.content())
                found += engine.advance(at(30 if name == late else 10))
    finally:
        for worker in workers.values():
            worker.close()
    (one,) = fired(found)
    assert one.alert.streams == ("hall-one", "hall-two")


# onsets in tenths of a second, as close as they come in life; the rest of a draw is the arrival
_HEARD = st.lists(
    st.tuples(
        st.integers(0, 80),
        st.sampled_from(STREAMS),
        st.integers(0, 12),
        st.sampled_from([1, 9, 40]),
    ),
    min_size=1,
    max_size=12,
)


def _bodies(heard: list[tuple[int, str, int, int]]) -> list[tuple[float, dict[str, Any]]]:
    """Return messages with the time at which each arrives: up to the latency after the onset."""
    bodies = []
    for number, (tenths, stream, late, lasts) in enumerate(heard):
        onset, name = tenths / 10, f"{number:02}"
        known = onset + late / 10
        ended = onset + max(late, lasts) / 10
        peak = 0.5 + (number * 7 % 10) / 100
        more: dict[str, Any] = {"stream": stream, "peak": peak}
        bodies.append((known, event("begin", name, "Bark", known, onset, **more)))
        bodies.append((ended, event("end", name, "Bark", ended, onset, ended, **more)))
    return bodies


def _outcome(rules: RuleSet, ordered: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    timing = DetectionTiming(latency_ns=round(1.2 * NS_PER_SECOND))
    engine = engine_of(rules, timing)
    found = []
    for body in ordered:
        found += engine.on_message("event/", body)
    found += engine.advance(at(600))
    return [
        (one.alert.id, one.to_state, one.at_ns, one.alert.events, one.alert.best, one.alert.streams)
        for one in found
    ]


@settings(deadline=None)
@given(_HEARD, st.randoms(use_true_random=False), st.integers(1, 3))
def test_the_order_of_arrival_changes_nothing(
    heard: list[tuple[int, str, int, int]], random: Any, heard_by: int
) -> None:
    """Of messages that come at most half a second out of order, as of unequal streams."""
    rules = rules_of(f"within: 1s, heard_by: {heard_by}")
    bodies = _bodies(heard)
    in_order = [body for _, body in sorted(bodies, key=lambda one: (one[0], one[1]["type"]))]
    moved = {stream: random.uniform(0, SKEW_S * 0.99) for stream in STREAMS}
    mixed = [
        body
        for _, body in sorted(
            bodies, key=lambda one: (one[0] + moved[one[1]["stream"]], one[1]["type"])
        )
    ]
    assert _outcome(rules, mixed) == _outcome(rules, in_order)


@settings(deadline=None)
@given(_HEARD, st.randoms(use_true_random=False), st.integers(1, 3))
def test_every_event_is_in_one_sound_however_late(
    heard: list[tuple[int, str, int, int]], random: Any, heard_by: int
) -> None:
    """And no alert names a sound that fewer streams heard than the rule asks for."""
    rules = rules_of(f"within: 1s, heard_by: {heard_by}")
    bodies = [body for _, body in _bodies(heard)]
    begins = [body for body in bodies if body["type"] == "begin"]
    random.shuffle(begins)
    engine = engine_of(rules)
    found = []
    for number, body in enumerate(begins):
        found += engine.on_message("event/", body)
        if number % 3 == 2:
            found += engine.advance(at(12 + number))
            engine = Engine(rules, json.loads(json.dumps(engine.export())), now_ns=START)
    found += engine.advance(at(60))
    (instance,) = engine.export()["instances"]
    decided = [[row[1] for row in sound] for _, sound in instance["trigger_state"]["decided"]]
    assert sorted(itertools.chain(*decided)) == sorted(body["id"] for body in begins)
    for is_spent, sound_ in instance["trigger_state"]["decided"]:
        assert is_spent == (len({row[2] for row in sound_}) >= heard_by)
        onsets = [row[0] for row in sound_]
        assert max(onsets) - min(onsets) <= NS_PER_SECOND
    for one in fired(found):
        assert len(one.alert.streams) >= heard_by


def test_sounds_reach_from_their_first_onset() -> None:
    class One:
        def __init__(self, onset_ns: int) -> None:
            self.onset_ns = onset_ns

    found = occurrences([One(0), One(6), One(10), One(11), One(21)], 10)
    assert [[one.onset_ns for one in sound] for sound in found] == [[0, 6, 10], [11, 21]]


def stream(name: str, **labels: str) -> StreamSettings:
    return StreamSettings(name=name, source=StdinSource(type="stdin"), labels=labels)


BOX = (stream("porch", house="1"), stream("yard", house="1"), stream("hall", house="2"))
ON_ONE = "alert: a, match: {class: Bark, stream: {id: porch}}, same_sound: {within: 1s}"


@pytest.mark.parametrize(
    ("rule", "warnings"),
    [
        (
            "alert: a, match: {class: Bark, stream: {id: [porch, yard]}}, same_sound: {within: 1s}",
            [],
        ),
        (ON_ONE, ["W216: groups[0].rules[0].same_sound: expected several streams to hear one "
                  "sound, got 1"]),
        (
            "alert: a, match: {class: Bark, stream: {id: [porch, yart]}}, same_sound: {within: 1s}",
            [
                "W216: groups[0].rules[0].match.stream.id: there is no stream 'yart'; did you mean "
                "'yard'?",
                "W216: groups[0].rules[0].same_sound: expected several streams to hear one sound, "
                "got 1",
            ],
        ),
        (
            "alert: a, match: {class: Bark, stream: {house: '2'}}, same_sound: {within: 1s}",
            ["W216: groups[0].rules[0].same_sound: expected several streams to hear one sound, "
             "got 1"],
        ),
        (
            "alert: a, match: {class: Bark}, group_by: house, "
            "same_sound: {within: 1s, heard_by: 3}",
            ["W210: groups[0].rules[0].same_sound.heard_by: 2 streams cannot hear a sound on 3"],
        ),
        (
            "alert: a, match: {class: Bark, stream: {id: [porch, yard]}}, "
            "same_sound: {within: 1s, heard_by: 3}",
            ["W210: groups[0].rules[0].same_sound.heard_by: 2 streams cannot hear a sound on 3"],
        ),
    ],
)  # fmt: skip
def test_groups_of_streams_that_are_none_are_warned_of(rule: str, warnings: list[str]) -> None:
    found = lint(rules_from(rule), streams=BOX)
    assert [str(one).split(" warning ")[1] for one in found] == warnings


def test_without_a_configuration_a_group_of_one_is_seen() -> None:
    assert [one.code for one in lint(rules_from(ON_ONE))] == ["W216"]


def test_a_time_in_which_one_microphone_hears_two_sounds_is_warned_of() -> None:
    facts = DetectorFacts({"bark": 0.5}, (), 2.0, 0.25, {"bark": 2.25}, {"bark": 0.5}, {"bark": 9})
    (found,) = lint(rules_of("within: 3s"), facts)
    assert found.code == "W217"
    assert "2.25 s apart are two events" in found.text
    assert lint(rules_of("within: 2s"), facts) == []


def test_events_that_outlast_the_memory_of_their_sound_leave_nothing_behind() -> None:
    bodies: list[dict[str, Any]] = []
    for number in range(40):  # one of them is always open
        onset, name = 100.0 * number, f"e{number}"
        bodies += sound(name, "Bark", onset, onset + 600.0, stream=STREAMS[number % 3])
        bodies += [event("update", name, "Bark", onset + 300.0 + s, onset) for s in (0, 250)]
    bodies += sound("last", "Bark", 3990.0, 3991.0)[:1]
    engine = engine_of(rules_of())
    for body in sorted(bodies, key=lambda body: str(body["captured"])):
        engine.on_message("event/", body)
        if body["id"] == "last":
            break
    (instance,) = engine.export()["instances"]
    assert len(instance["trigger_state"].get("said", {})) <= 1
