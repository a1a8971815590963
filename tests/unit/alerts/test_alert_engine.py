"""The rule engine: triggers, groups, inhibition, levels, and laws that hold for any messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bodies import (
    START,
    at,
    engine_of,
    event,
    gap,
    health,
    news,
    restarted,
    rules_from,
    run,
    sound,
)

from ast_stream.alerts.instances import Transition
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.messages.status import SOURCE_ENDED
from ast_stream.units import NS_PER_SECOND

SECOND = NS_PER_SECOND
PAIR = "{match: {class: Bark}}, {match: {class: Siren}}"


def test_plain_rule_fires_and_resolves_with_the_sound() -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Bark}, actions: [phone]"))
    fired, ended = run(engine, sound("x", "Bark", 1, 4), 10)
    assert (fired.from_state, fired.to_state, fired.event_id) == ("inactive", "firing", "x")
    assert (ended.from_state, ended.to_state) == ("firing", "resolved")
    assert fired.alert.id == ended.alert.id
    assert fired.alert.events == ("x",)
    assert (ended.alert.started_ns, ended.alert.fired_ns) == (at(1), at(1))
    assert ended.alert.resolved_ns == at(4)
    assert fired.actions == ended.actions == ("phone",)


def test_overlapping_sounds_of_a_group_are_one_alert() -> None:
    engine = engine_of(rules_from("alert: a, match: {any_of: [Bark, Siren]}"))
    bodies = [*sound("x", "Bark", 1, 4), *sound("y", "Siren", 3, 8)]
    assert news(run(engine, bodies, 10)) == [(1.0, "a", "firing"), (8.0, "a", "resolved")]


def test_score_counts_once_it_is_reached_also_by_an_update() -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Bark, score: {min: 0.8}}"))
    bodies = [
        event("begin", "x", "Bark", 1, 1, peak=0.5),
        event("update", "x", "Bark", 2, 1, peak=0.85),
        event("end", "x", "Bark", 4, 1, 4, peak=0.85),
        *sound("y", "Bark", 6, 7, peak=0.79),
    ]
    assert news(run(engine, bodies, 10)) == [(2.0, "a", "firing"), (4.0, "a", "resolved")]


def test_score_of_the_small_model_counts_like_that_of_the_large_one() -> None:
    rules = rules_from(
        "alert: a, match: {class: Bark, score: {min: 0.8}, watcher_score: {min: 0.4}}"
    )

    def heard(
        kind: str, id: str, at_s: float, peak: float, watcher: float | None
    ) -> dict[str, Any]:
        more = {} if watcher is None else {"watcher_score": watcher}
        return event(kind, id, "Bark", at_s, 1, peak=peak) | more

    bodies = [
        heard("begin", "x", 1, 0.5, 0.4),  # its best window of the small model comes first
        heard("update", "x", 2, 0.8, 0.1),
        event("end", "x", "Bark", 4, 1, 4, peak=0.8),
        heard("begin", "of the large model alone", 5, 0.9, 0.39),
        heard("begin", "of no small model", 6, 0.9, None),
    ]
    engine = engine_of(rules)
    assert news(run(engine, bodies[:1], 1.5)) == []
    again = restarted(engine, rules, 1.5)
    assert news(run(again, bodies[1:], 10)) == [(2.0, "a", "firing"), (4.0, "a", "resolved")]


def test_the_verifier_has_a_say_if_a_rule_asks_for_it() -> None:
    """Also where its score came with the begin, and the large model's rises later."""
    rules = rules_from(
        "alert: a, match: {class: Bark, score: {min: 0.8}, verifier_score: {min: 0.6}}"
    )
    bodies = [
        event("begin", "x", "Bark", 1, 1, peak=0.5) | {"verifier_score": 0.6},
        event("update", "x", "Bark", 2, 1, peak=0.8),
        event("end", "x", "Bark", 4, 1, 4, peak=0.8),
        event("begin", "of no verifier", "Bark", 5, 5, peak=0.9),
        event("begin", "not believed", "Bark", 6, 6, peak=0.9) | {"verifier_score": 0.59},
    ]
    engine = engine_of(rules)
    assert news(run(engine, bodies[:1], 1.5)) == []
    again = restarted(engine, rules, 1.5)
    assert news(run(again, bodies[1:], 10)) == [(2.0, "a", "firing"), (4.0, "a", "resolved")]


def test_stream_and_labels_choose() -> None:
    engine = engine_of(
        rules_from(
            "alert: a, match: {class: Bark, stream: {id: [one, two], room: hall}, "
            "not: {stream: {floor: '2'}}}"
        )
    )
    hall = {"room": "hall"}
    bodies = [
        *sound("x", "Bark", 1, 2, stream="one", labels=hall),
        *sound("y", "Bark", 3, 4, stream="three", labels=hall),
        *sound("z", "Bark", 5, 6, stream="two", labels={"room": "attic"}),
        *sound("w", "Bark", 7, 8, stream="two", labels=hall | {"floor": "2"}),
    ]
    assert [transition.event_id for transition in run(engine, bodies, 10)] == ["x", "x"]


def test_groups_have_alerts_of_their_own() -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Bark}, group_by: [room]"))
    bodies = [
        event("begin", "x", "Bark", 1, 1, stream="one", labels={"room": "hall"}),
        event("begin", "y", "Bark", 2, 2, stream="two", labels={"room": "hall"}),
        event("begin", "z", "Bark", 3, 3, stream="three", labels={"room": "attic"}),
    ]
    fired = run(engine, bodies, 4)
    assert [transition.alert.group for transition in fired] == [{"room": "hall"}, {"room": "attic"}]
    assert fired[0].alert.fingerprint != fired[1].alert.fingerprint


def test_for_counts_the_sound_without_its_pauses() -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Bark}, for: 10s, tolerate: 3s"))
    bodies = [*sound("x", "Bark", 0, 6), *sound("y", "Bark", 8, 20)]
    assert news(run(engine, bodies, 60)) == [(12.0, "a", "firing"), (23.0, "a", "resolved")]


def test_for_with_keep_firing_for_ends_and_says_how_long_it_was() -> None:
    engine = engine_of(
        rules_from(
            "alert: a, match: {class: Bark}, for: 10s, tolerate: 3s, keep_firing_for: 20s, "
            "annotations: {text: '{{ active_s | int }} s'}"
        )
    )
    found = run(engine, sound("x", "Bark", 0, 12), 60)
    assert news(found) == [(10.0, "a", "firing"), (35.0, "a", "resolved")]
    assert found[-1].alert.annotations == {"text": "12 s"}


def test_for_starts_anew_after_a_longer_pause() -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Bark}, for: 10s, tolerate: 3s"))
    bodies = [*sound("x", "Bark", 0, 9), *sound("y", "Bark", 12.5, 21)]
    found = run(engine, bodies, 60)
    assert news(found) == []
    assert [transition.to_state for transition in found] == [
        "pending",
        "inactive",
        "pending",
        "inactive",
    ]
    assert len({transition.alert.id for transition in found}) == 2


def test_for_does_not_count_what_the_window_still_shows() -> None:
    timing = DetectionTiming(latency_ns=SECOND, smear_ns=10 * SECOND)
    engine = engine_of(rules_from("alert: a, match: {class: Bark}, for: 5s"), timing)
    # a bark of 1 s is open for 11 s
    bodies = [event("begin", "x", "Bark", 1, 0), event("end", "x", "Bark", 11, 0, 1)]
    assert news(run(engine, bodies, 60)) == []
    bodies = [event("begin", "y", "Bark", 101, 100), event("end", "y", "Bark", 118, 100, 108)]
    assert news(run(engine, bodies, 160)) == [(115.0, "a", "firing"), (118.0, "a", "resolved")]


def test_for_adds_up_overlapping_sounds_once() -> None:
    engine = engine_of(rules_from("alert: a, match: {any_of: [Bark, Siren]}, for: 10s"))
    bodies = [*sound("x", "Bark", 0, 6), *sound("y", "Siren", 4, 9)]
    assert news(run(engine, bodies, 60)) == []


def test_count_resolves_when_the_window_has_slid_on() -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Knock}, count: {min: 3, within: 10s}"))
    bodies = [body for n, t in enumerate((0, 2, 4)) for body in sound(f"k{n}", "Knock", t, t + 0.5)]
    found = run(engine, bodies, 60)
    assert news(found) == [(4.0, "a", "firing"), (10.0, "a", "resolved")]
    assert found[0].alert.events == ("k0", "k1", "k2")
    assert engine.export()["instances"] == []


def test_count_of_streams_does_not_count_one_stream_twice() -> None:
    rules = rules_from(
        "alert: a, match: {class: Knock}, group_by: [], "
        "count: {min: 2, within: 10s, distinct: stream}"
    )
    one = [*sound("k0", "Knock", 0, 1), *sound("k1", "Knock", 2, 3)]
    assert news(run(engine_of(rules), one, 5)) == []
    two = [*sound("k0", "Knock", 0, 1), *sound("k1", "Knock", 2, 3, stream="attic")]
    assert news(run(engine_of(rules), two, 5)) == [(2.0, "a", "firing")]


def test_sequence_goes_by_onset_whatever_arrives_first() -> None:
    timing = DetectionTiming(latency_ns=2 * SECOND)
    rules = rules_from(f"alert: a, sequence: {{within: 5s, steps: [{PAIR}]}}")
    late_first = [event("begin", "s", "Siren", 3, 2), event("begin", "b", "Bark", 3.5, 1.8)]
    assert news(run(engine_of(rules, timing), late_first, 10)) == [(3.5, "a", "firing")]
    wrong = [event("begin", "s", "Siren", 3, 2), event("begin", "b", "Bark", 3.5, 2.1)]
    assert news(run(engine_of(rules, timing), wrong, 10)) == []


def test_sequence_must_fit_into_its_time() -> None:
    rules = rules_from(f"alert: a, sequence: {{within: 5s, steps: [{PAIR}]}}")
    for pause_s, n_expected in ((5.0, 2), (5.01, 0)):
        bodies = [*sound("b", "Bark", 1, 2), *sound("s", "Siren", 1 + pause_s, 8)]
        assert len(news(run(engine_of(rules), bodies, 20))) == n_expected


def test_sequence_uses_no_event_twice() -> None:
    same = "{match: {class: Bark}}, {match: {class: Bark}}"
    engine = engine_of(
        rules_from(f"alert: a, sequence: {{within: 9s, steps: [{same}]}}, keep_firing_for: 0s")
    )
    bodies = [body for n in range(5) for body in sound(f"b{n}", "Bark", n, n + 0.5)]
    fired = [
        transition for transition in run(engine, bodies, 30) if transition.to_state == "firing"
    ]
    assert [transition.alert.events for transition in fired] == [("b0", "b1"), ("b2", "b3")]


def test_absence_fires_after_the_offset_and_ends_with_the_next_sound() -> None:
    engine = engine_of(rules_from("alert: a, absent: {match: {class: Bark}, for: 60s}"))
    bodies = [*sound("x", "Bark", 1, 10), *sound("y", "Bark", 100, 110)]
    assert news(run(engine, bodies, 120)) == [(70.0, "a", "firing"), (100.0, "a", "resolved")]


def test_absence_on_a_named_stream_is_noticed_without_a_single_message() -> None:
    engine = engine_of(
        rules_from("alert: a, absent: {match: {class: Bark, stream: {id: hall}}, for: 60s}")
    )
    (fired,) = engine.advance(at(61))
    assert (fired.at_ns, fired.alert.group) == (at(60), {"stream": "hall"})


def test_gap_is_no_absence() -> None:
    engine = engine_of(rules_from("alert: a, absent: {match: {class: Bark}, for: 60s}"))
    run(engine, sound("x", "Bark", 0, 1), 30)
    engine.on_message("gap/", gap(30, 20.0))
    assert news(engine.advance(at(120))) == [(110.0, "a", "firing")]


def test_rule_loaded_while_its_sound_lasts_claims_no_absence() -> None:
    engine = engine_of(rules_from("alert: other, match: {class: Bark}"))
    engine.on_message("event/", event("begin", "x", "Bark", 0, 0))
    engine.replace_rules(rules_from("alert: a, absent: {match: {class: Bark}, for: 10s}"))
    found = engine.advance(at(5)) + engine.on_message("event/", event("update", "x", "Bark", 6, 0))
    assert news(found + engine.advance(at(60))) == []


@pytest.mark.parametrize(
    ("condition", "bad", "good"),
    [
        ("louder_than_dbfs: -20", -10.0, -30.0),
        ("quieter_than_dbfs: -60", -70.0, -50.0),
        ("digital_silence: true", -120.0, -119.0),
    ],
)
def test_level_must_last(condition: str, bad: float, good: float) -> None:
    engine = engine_of(rules_from(f"alert: a, level: {{{condition}, for: 3s}}"))
    levels = [good, bad, bad, good, bad, bad, bad, bad, bad, good]
    found = run(engine, [health(t, level=level) for t, level in enumerate(levels)], 12)
    assert news(found) == [(7.0, "a", "firing"), (9.0, "a", "resolved")]


def test_level_that_is_no_longer_reported_is_not_known() -> None:
    engine = engine_of(rules_from("alert: a, level: {louder_than_dbfs: -20, for: 60s}"))
    assert news(run(engine, [health(0, level=-5.0)], 300)) == []
    engine = engine_of(rules_from("alert: a, level: {louder_than_dbfs: -20}"))
    found = run(engine, [health(0, level=-5.0)], 300)
    assert news(found) == [(0.0, "a", "firing"), (10.0, "a", "resolved")]


def test_stream_is_missing_when_it_says_so_and_when_nobody_says_anything() -> None:
    rules = rules_from("alert: a, level: {missing: true, for: 5s}")
    reports = [health(0), *(health(t, "missing", None) for t in range(1, 9)), health(9)]
    assert news(run(engine_of(rules), reports, 9)) == [
        (5.0, "a", "firing"),
        (9.0, "a", "resolved"),
    ]
    assert news(run(engine_of(rules), [health(0)], 60)) == [(5.0, "a", "firing")]


def test_inhibited_alert_does_not_fire_for_equal_labels() -> None:
    rules = rules_from(
        "alert: big, match: {class: Siren}, severity: critical, group_by: [site]",
        "alert: small, match: {class: Bark}, severity: low, group_by: [site]",
        top="inhibit: [{source: {alert: big}, target: {severity: low}, equal: [site]}]",
    )
    engine = engine_of(rules)
    bodies = [
        event("begin", "s", "Siren", 1, 1, labels={"site": "home"}),
        *sound("b", "Bark", 2, 3, labels={"site": "home"}),
        *sound("c", "Bark", 4, 5, labels={"site": "farm"}, stream="barn"),
    ]
    assert [transition.alert.labels["site"] for transition in run(engine, bodies, 6)] == [
        "home",
        "farm",
        "farm",
    ]
    assert engine.counters.suppressed == {"inhibited": 1}


def test_outside_its_window_a_rule_does_not_fire_later_instead() -> None:
    top = "windows: {w: {from: '09:00', to: '10:00', timezone: UTC}}"  # the clock starts at 08:00
    engine = engine_of(rules_from("alert: a, match: {class: Bark}, when: [w]", top=top))
    engine.on_message("event/", event("begin", "x", "Bark", 3590, 3590))
    assert engine.advance(at(3620)) == []
    assert engine.counters.suppressed == {"window": 1}
    assert news(engine.on_message("event/", event("begin", "y", "Bark", 3630, 3630))) == [
        (3630.0, "a", "firing")
    ]


@pytest.mark.parametrize(
    "body",
    [{}, {"id": "x"}, event("begin", "x", "Bark", 1, 1) | {"captured": "now"}]
    + [event("begin", "x", "Bark", 1, 1) | {key: None} for key in ("peak", "onset", "captured")],
)
def test_malformed_bodies_are_counted_and_change_nothing(body: dict[str, Any]) -> None:
    engine = engine_of(rules_from("alert: a, match: {}"))
    before = engine.export()
    assert (
        engine.on_message("event/", body) + engine.on_message("health/", body | {"published": 7})
        == []
    )
    assert engine.on_message("gap/", body) == []
    assert engine.counters.malformed == 3
    assert engine.export() == before


def test_other_topics_say_nothing() -> None:
    engine = engine_of(rules_from("alert: a, match: {}"))
    assert engine.on_message("status/worker/", {"v": 1}) == []


def test_body_of_an_alert_is_json_with_times_as_text() -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Bark}, labels: {site: home}"))
    (fired,) = engine.on_message("event/", event("begin", "x", "Bark", 1, 1))
    body = json.loads(json.dumps(fired.alert.to_json()))
    assert fired.alert.topic == "alert/medium/a/"
    assert (body["started"], body["resolved"]) == ("2027-01-15T08:00:01.000000Z", None)
    assert body["labels"] == {"site": "home", "stream": "hall", "severity": "medium"}


EVERY_KIND = (
    "alert: plain, match: {class: Bark}, cooldown: 4s",
    "alert: kept, match: {class: Siren}, keep_firing_for: 3s",
    "alert: long, match: {class: Bark}, for: 4s, tolerate: 2s, keep_firing_for: 3s",
    "alert: many, match: {any_of: [Bark, Siren]}, count: {min: 3, within: 9s}, group_by: []",
    f"alert: order, sequence: {{within: 8s, steps: [{PAIR}]}}, group_by: []",
    "alert: gone, absent: {match: {class: Bark}, for: 6s}",
    "alert: loud, level: {louder_than_dbfs: -20, for: 2s}",
    "alert: missing, level: {missing: true, for: 5s}",
)
TIMING = DetectionTiming(latency_ns=SECOND, smear_ns=2 * SECOND)


@st.composite
def timelines(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw sounds and health of two streams, in the order in which they are published."""
    bodies: list[tuple[float, dict[str, Any]]] = []
    for number in range(draw(st.integers(1, 8))):
        onset = draw(st.integers(0, 120)) / 4
        length = draw(st.integers(1, 40)) / 4
        label = draw(st.sampled_from(["Bark", "Siren"]))
        stream = draw(st.sampled_from(["hall", "attic"]))
        name = f"e{number}"
        begin, end = onset + draw(st.integers(1, 4)) / 4, onset + length + 2
        bodies.append((begin, event("begin", name, label, begin, onset, stream=stream)))
        if draw(st.booleans()):
            ended = event("end", name, label, max(begin, end), onset, onset + length, stream=stream)
            bodies.append((max(begin, end), ended))
    for second in range(draw(st.integers(0, 20))):
        state, level = draw(st.sampled_from([("listening", -50.0), ("listening", -5.0)]))
        bodies.append((float(second), health(second, state, level)))
    return [body for _, body in sorted(bodies, key=lambda body: body[0])]


def transitions_of(
    rules: RuleSet, bodies: list[dict[str, Any]], restarts: set[int]
) -> list[Transition]:
    engine = engine_of(rules, TIMING)
    found: list[Transition] = []
    for number, body in enumerate(bodies):
        if number in restarts:
            engine = restarted(engine, rules, timing=TIMING)
            found += engine.resume()
        found += engine.on_message("health/" if "level_dbfs" in body else "event/", body)
    return found + engine.advance(at(2000))


@pytest.mark.slow
@given(timelines(), st.sets(st.integers(0, 30)))
@settings(max_examples=60)
def test_restart_at_any_message_changes_nothing(
    bodies: list[dict[str, Any]], restarts: set[int]
) -> None:
    rules = rules_from(*EVERY_KIND)
    assert transitions_of(rules, bodies, restarts) == transitions_of(rules, bodies, set())


@given(timelines())
@settings(max_examples=40)
def test_states_of_an_alert_follow_each_other_and_it_ends(bodies: list[dict[str, Any]]) -> None:
    allowed = {
        "inactive": {"pending", "firing"},
        "pending": {"inactive", "firing"},
        "firing": {"recovering", "resolved"},
        "recovering": {"firing", "resolved"},
    }
    state: dict[tuple[str, str], str] = {}
    last_ns = START
    for transition in transitions_of(rules_from(*EVERY_KIND), bodies, set()):
        key = (transition.alert.rule, transition.alert.fingerprint)
        assert transition.from_state == state.get(key, "inactive")
        assert transition.to_state in allowed[transition.from_state]
        state[key] = "inactive" if transition.to_state == "resolved" else transition.to_state
        if transition.alert.rule not in (
            "loud",
            "missing",
            "gone",
        ):  # health is ahead of the sounds
            assert transition.at_ns >= last_ns
            last_ns = transition.at_ns
    lasting = {rule for (rule, _), last in state.items() if last != "inactive"}
    assert lasting <= {"gone", "missing"}  # what is absent for ever is absent for ever


@given(timelines())
@settings(max_examples=40)
def test_no_alert_is_announced_twice(bodies: list[dict[str, Any]]) -> None:
    news = [
        (transition.alert.id, transition.to_state)
        for transition in transitions_of(rules_from(*EVERY_KIND), bodies, set())
        if transition.to_state == "resolved"
        or (transition.to_state == "firing" and transition.from_state != "recovering")
    ]
    assert len(news) == len(set(news))


@pytest.mark.slow
@given(timelines())
@settings(max_examples=40)
def test_reload_of_the_same_rules_at_any_message_changes_nothing(
    bodies: list[dict[str, Any]],
) -> None:
    rules = rules_from(*EVERY_KIND)
    engine = engine_of(rules, TIMING)
    found: list[Transition] = []
    for body in bodies:
        found += engine.replace_rules(rules_from(*EVERY_KIND))
        found += engine.on_message("health/" if "level_dbfs" in body else "event/", body)
    assert found + engine.advance(at(2000)) == transitions_of(rules, bodies, set())


@pytest.mark.slow
def test_memory_does_not_grow_with_events() -> None:
    engine = engine_of(rules_from(*EVERY_KIND))
    sizes = []
    for number in range(3000):
        for body in sound(f"e{number:05}", "Bark", number * 3, number * 3 + 1):
            engine.on_message("event/", body)
        if number in (1000, 2999):
            sizes.append(len(json.dumps(engine.export())))
    assert abs(sizes[1] - sizes[0]) < 100


def test_one_sound_that_raises_a_branch_and_its_member_counts_once(tmp_path: Path) -> None:
    nodes = [
        {"id": "1", "name": "Dog", "child_ids": ["2"]},
        {"id": "2", "name": "Bark", "child_ids": []},
    ]
    (tmp_path / "ontology.json").write_text(json.dumps(nodes))
    file = tmp_path / "rules.yaml"
    file.write_text(
        "ontology: ontology.json\n"
        "groups: [{name: g, rules: [{alert: a, match: {under: Dog}, "
        "count: {min: 3, within: 20s}}]}]\n"
    )
    rules = load_rules([file], labels=["Dog", "Bark"])
    bodies = [
        body
        for n, onset in enumerate((0.0, 5.0))
        for label in ("Bark", "Dog")
        for body in sound(f"{label}{n}", label, onset, onset + 1)
    ]
    assert news(run(engine_of(rules), bodies, 10)) == []
    third = sound("Dog2", "Dog", 9, 10)
    assert news(run(engine_of(rules), [*bodies, *third], 10)) == [(9.0, "a", "firing")]


def worker_health(
    seconds: float, epoch: str = "a", audio_s: float | None = None, **fields: Any
) -> Any:
    """Return a health body as the worker has it: of which epoch, and how much audio it has had."""
    more = {"epoch": epoch, "audio_s": audio_s, "lag_s": 0.5} | fields
    return health(seconds) | more


ABSENT = "alert: a, absent: {match: {class: Bark}, for: 300s}"


def test_time_in_which_everything_was_off_is_no_absence() -> None:
    rules = rules_from(ABSENT)
    engine = engine_of(rules)
    run(engine, [worker_health(0), *sound("b", "Bark", 1, 2), worker_health(10)], 10)
    again = restarted(engine, rules, 700)
    found = again.resume() + again.advance(at(705))  # before the worker is there again
    found += run(again, [worker_health(710, "b", audio_s=4.5)], 1004.9)
    assert news(found) == []
    assert news(again.advance(at(1006))) == [(1005.0, "a", "firing")]


def test_time_in_which_only_the_alerts_were_off_counts_for_an_absence() -> None:
    rules = rules_from(ABSENT)
    engine = engine_of(rules)
    run(engine, [worker_health(0), *sound("b", "Bark", 1, 2), worker_health(10)], 10)
    again = restarted(engine, rules, 200)
    found = again.resume() + run(again, [worker_health(210)], 301.9)
    assert news(found) == []
    assert news(again.advance(at(303))) == [(302.0, "a", "firing")]


def test_gap_that_is_published_before_anybody_is_seen_again_is_no_absence() -> None:
    rules = rules_from(ABSENT)
    engine = engine_of(rules)
    run(engine, [worker_health(0), *sound("b", "Bark", 1, 2), worker_health(10)], 10)
    again = restarted(engine, rules, 200)
    again.on_message("gap/", gap(20, 130.0))
    assert news(again.resume() + run(again, [worker_health(210)], 449.9)) == []
    assert news(again.advance(at(451))) == [(450.0, "a", "firing")]


@pytest.mark.parametrize(("epoch", "fires_s"), [("a", 302.0), ("b", 905.0)])
def test_absence_is_not_counted_while_nobody_says_that_somebody_listens(
    epoch: str, fires_s: float
) -> None:
    engine = engine_of(rules_from(ABSENT))
    run(engine, [worker_health(0), *sound("b", "Bark", 1, 2), worker_health(10)], 20)
    found = engine.lose_feed() + engine.advance(at(600))
    assert news(found) == []
    found = engine.on_message("health/", worker_health(610, epoch, audio_s=4.5))
    fired = news(found + engine.advance(at(1200)))
    assert fired == [(max(fires_s, 600.0), "a", "firing")]


def test_time_in_which_everything_was_off_is_not_missed_by_a_rule_for_missing_streams() -> None:
    rules = rules_from("alert: a, level: {missing: true, for: 30s}")
    engine = engine_of(rules)
    run(engine, [worker_health(0), worker_health(10)], 20)
    again = restarted(engine, rules, 620)
    assert news(again.resume() + again.advance(at(639.9))) == []
    assert news(again.advance(at(650))) == [(640.0, "a", "firing")]  # 10 s before it, 20 s after


def test_time_in_which_everything_was_off_was_not_loud() -> None:
    rules = rules_from("alert: a, level: {louder_than_dbfs: -20, for: 60s}")
    engine = engine_of(rules)
    run(engine, [health(0, level=-5.0)], 1)
    again = restarted(engine, rules, 600)
    bodies = [health(600 + second, level=-5.0) for second in range(61)]
    assert news(again.resume() + run(again, bodies, 661)) == [(660.0, "a", "firing")]


def test_stream_that_has_come_to_its_end_is_not_missing() -> None:
    rules = rules_from("alert: a, level: {missing: true, for: 5s}")
    ended = {"state": "missing", "level_dbfs": None, "detail": SOURCE_ENDED}
    bodies = [health(0), *(health(second) | ended for second in range(1, 60))]
    assert news(run(engine_of(rules), bodies, 600)) == []
