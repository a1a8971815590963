"""Each pitfall that users of other alerting systems report, and that it is none here."""

from __future__ import annotations

import pytest
from rule_bodies import (
    at,
    engine_of,
    event,
    health,
    news,
    restarted,
    rules_from,
    run,
    sound,
)

from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.rules.lint import lint
from ast_stream.alerts.rules.templates import Template
from ast_stream.errors import ConfigError
from ast_stream.settings.streams import StdinSource, StreamSettings
from ast_stream.units import parse_time

BARK = "alert: bark, match: {class: Bark}, actions: [phone]"


def test_for_state_is_not_lost_on_restart() -> None:
    rules = rules_from("alert: long, match: {class: Bark}, for: 30s, actions: [phone]")
    engine = engine_of(rules)
    engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    engine.advance(at(20))
    engine = restarted(engine, rules, 21)
    assert news(engine.resume() + engine.advance(at(40))) == [(30.0, "long", "firing")]


def test_keep_firing_for_is_not_lost_on_restart() -> None:
    rules = rules_from(f"{BARK}, keep_firing_for: 20s")
    engine = engine_of(rules)
    run(engine, sound("a", "Bark", 0, 2), 5)
    engine = restarted(engine, rules, 6)
    assert news(engine.resume() + engine.advance(at(60))) == [(22.0, "bark", "resolved")]


def test_alert_goes_on_when_the_pause_is_within_the_resume_window() -> None:
    rules = rules_from(BARK, top="defaults: {resume_window: 10m}")
    engine = engine_of(rules)
    engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    engine = restarted(engine, rules, 599)
    assert engine.resume() == []
    assert news(engine.on_message("event/", event("end", "a", "Bark", 600, 0, 590))) == [
        (600.0, "bark", "resolved")
    ]


def test_alert_is_resolved_with_reason_restart_when_the_pause_was_longer() -> None:
    rules = rules_from(BARK, top="defaults: {resume_window: 10m}")
    engine = engine_of(rules)
    engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    engine = restarted(engine, rules, 601)
    (ended,) = engine.resume()
    assert (ended.to_state, ended.alert.reason, ended.actions) == (
        "resolved",
        "restart",
        ("phone",),
    )
    # further messages about the old sound make no second alert
    assert engine.on_message("event/", event("update", "a", "Bark", 602, 0)) == []
    assert engine.resume() == []


def test_nothing_is_repeated_after_a_restart() -> None:
    rules = rules_from(BARK)
    engine = engine_of(rules)
    (fired,) = engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    engine = restarted(engine, rules)
    assert engine.resume() + engine.on_message("event/", event("begin", "a", "Bark", 0, 0)) == []
    (ended,) = engine.on_message("event/", event("end", "a", "Bark", 3, 0, 3))
    assert ended.alert.id == fired.alert.id


def test_nothing_is_repeated_after_a_reload_of_unchanged_rules() -> None:
    engine = engine_of(rules_from(BARK))
    engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    assert engine.replace_rules(rules_from(f"{BARK}, annotations: {{summary: new}}")) == []
    (ended,) = engine.on_message("event/", event("end", "a", "Bark", 3, 0, 3))
    assert ended.alert.annotations == {"summary": "new"}


def test_alert_of_a_rule_that_changed_or_went_is_resolved_by_a_reload() -> None:
    for text in ("alert: bark, match: {class: Siren}", "alert: other, match: {class: Bark}"):
        engine = engine_of(rules_from(BARK))
        engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
        (ended,) = engine.replace_rules(rules_from(text))
        assert (ended.to_state, ended.alert.reason) == ("resolved", "rule_changed")
        assert ended.actions == ("phone",)
        assert engine.active_alerts() == []


def test_resolve_is_sent_after_a_restart_in_which_the_rule_went() -> None:
    engine = engine_of(rules_from(BARK))
    (fired,) = engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    engine = restarted(engine, rules_from("alert: other, match: {class: Bark}"))
    (ended,) = engine.resume()
    assert (ended.alert.id, ended.to_state, ended.actions) == (
        fired.alert.id,
        "resolved",
        ("phone",),
    )
    assert ended.alert.labels == fired.alert.labels


def test_cooldown_is_not_forgotten_on_restart() -> None:
    rules = rules_from(f"{BARK}, cooldown: 60s")
    engine = engine_of(rules)
    run(engine, sound("a", "Bark", 0, 2), 5)
    engine = restarted(engine, rules)
    assert news(run(engine, sound("b", "Bark", 10, 12), 15)) == []
    engine = restarted(engine, rules)
    (fired, _) = run(engine, sound("c", "Bark", 70, 72), 75)
    assert fired.to_state == "firing"


def test_suppressed_firings_are_counted_and_shown_not_lost() -> None:
    engine = engine_of(
        rules_from(f'{BARK}, cooldown: 60s, annotations: {{text: "{{{{ suppressed }}}} more"}}')
    )
    sounds = [*sound("a", "Bark", 0, 2), *sound("b", "Bark", 10, 12), *sound("c", "Bark", 20, 22)]
    found = run(engine, [*sounds, *sound("d", "Bark", 90, 92)], 100)
    assert engine.counters.suppressed == {"cooldown": 2}
    assert [
        transition.alert.suppressed for transition in found if transition.to_state == "firing"
    ] == [0, 2]
    assert found[-2].alert.annotations == {"text": "2 more"}


def test_short_event_is_not_missed_between_evaluations() -> None:
    engine = engine_of(rules_from(BARK))
    found = run(engine, sound("a", "Bark", 7.001, 7.002), 60)
    assert news(found) == [(7.001, "bark", "firing"), (7.002, "bark", "resolved")]


def test_event_whose_begin_was_missed_fires_all_the_same() -> None:
    engine = engine_of(rules_from(BARK))
    found = engine.on_message("event/", event("end", "a", "Bark", 9, 7, 8))
    assert news(found) == [(9.0, "bark", "firing"), (9.0, "bark", "resolved")]


def test_flapping_sound_is_one_alert() -> None:
    engine = engine_of(rules_from(f"{BARK}, keep_firing_for: 5s"))
    sounds = [body for n in range(10) for body in sound(f"e{n}", "Bark", 3 * n, 3 * n + 1)]
    assert news(run(engine, sounds, 60)) == [
        (0.0, "bark", "firing"),
        (33.0, "bark", "resolved"),
    ]
    assert engine.counters.flaps == 9


def test_notification_storm_is_limited_for_each_rule() -> None:
    engine = engine_of(rules_from(f"{BARK}, limit: 3"))
    bodies = [event("begin", f"e{n}", "Bark", n / 10, n / 10, stream=f"mic-{n}") for n in range(20)]
    assert len(news(run(engine, bodies, 5))) == 3
    assert engine.counters.suppressed == {"limit": 17}


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("match: {class: Bark, stream: {id: porsh}}", "no configured stream matches; did you mean"),
        ("match: {class: Bark, stream: {rooom: hall}}", "matches; did you mean 'room'?"),
        ("match: {class: Bark, stream: {room: hell}}", "'a': no configured stream matches"),
        ("level: {louder_than_dbfs: -20, stream: {id: attic}}", "'a': no configured stream"),
        ("match: {class: Bark}, group_by: [rom]", "no stream has the label 'rom'; did you mean"),
        ("match: {class: Bark, stream: {id: [attic, porch]}}", ""),
        ("match: {class: Bark, stream: {room: hall}}, group_by: [room, class]", ""),
    ],
)
def test_streams_and_labels_that_there_are_not_are_warned_of(rule: str, problem: str) -> None:
    porch = StreamSettings(
        name="porch", labels={"room": "hall"}, source=StdinSource(type="stdin"), calibration_db=90
    )
    found = lint(rules_from(f"alert: a, {rule}"), streams=[porch])
    assert [one.code for one in found] == (["W219"] if problem else [])
    assert all(problem in one.text for one in found)
    assert lint(rules_from(f"alert: a, {rule}")) == []


def test_groups_whose_firings_were_suppressed_do_not_keep_new_ones_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ast_stream.alerts.instances.MAX_INSTANCES", 4)
    engine = engine_of(rules_from(f"{BARK}, cooldown: 10s"))
    twice = [
        body
        for n in range(4)
        for start in (n, n + 5)  # the second falls into the cooldown
        for body in sound(f"{n}-{start}", "Bark", start, start + 1, stream=f"mic-{n}")
    ]
    run(engine, twice, 60)
    assert engine.counters.suppressed == {"cooldown": 4}
    new = [event("begin", "x", "Bark", 60, 60, stream="new")]
    assert news(run(engine, new, 61)) == [(60.0, "bark", "firing")]
    cooling = [event("begin", f"y{n}", "Bark", 62, 62, stream=f"other-{n}") for n in range(4)]
    run(engine, cooling, 63)  # all are at work: the last finds no room
    assert engine.counters.suppressed == {"cooldown": 4, "instances": 1}


def test_more_streams_than_alerts_at_a_time_are_warned_of() -> None:
    streams = [
        StreamSettings(
            name=f"mic-{n}", labels={"site": f"s{n % 3}"}, source=StdinSource(type="stdin")
        )
        for n in range(65)
    ]
    (found,) = lint(rules_from(BARK), streams=streams)
    assert found.code == "W218"
    assert "can fire for 65 streams or groups of them, but no more than 64 (limit)" in found.text
    assert lint(rules_from(BARK), streams=streams[1:]) == []
    assert lint(rules_from(f"{BARK}, limit: 65"), streams=streams) == []
    assert lint(rules_from(f"{BARK}, group_by: [site]"), streams=streams) == []


def test_group_by_class_keeps_apart_what_a_common_cooldown_would_hide() -> None:
    engine = engine_of(rules_from("alert: any, match: {}, group_by: [class], cooldown: 1h"))
    found = run(engine, [*sound("a", "Bark", 0, 1), *sound("b", "Siren", 2, 3)], 5)
    assert [transition.alert.labels["class"] for transition in found] == [
        "bark",
        "bark",
        "siren",
        "siren",
    ]


def test_group_by_label_divides_by_the_label_of_the_class() -> None:
    engine = engine_of(rules_from("alert: any, match: {}, group_by: [label]"))
    found = run(engine, [*sound("a", "Bark", 0, 2), *sound("b", "Siren", 1, 3)], 5)
    firing = [transition.alert for transition in found if transition.alert.state == "firing"]
    assert [alert.group for alert in firing] == [{"label": "Bark"}, {"label": "Siren"}]


def test_durations_are_seconds_whatever_the_hop_or_window() -> None:
    for timing in (DetectionTiming(), DetectionTiming.of(10.24, 0.5), DetectionTiming.of(1, 0.1)):
        engine = engine_of(rules_from("alert: long, match: {class: Bark}, for: 30s"), timing)
        late_s, smear_s = timing.latency_ns / 1e9, timing.smear_ns / 1e9
        for length, is_long in ((29.9, False), (30.1, True)):
            name, start = f"e{length}", length * 10
            end = start + length
            found = engine.on_message("event/", event("begin", name, "Bark", start + late_s, start))
            found += engine.on_message(
                "event/", event("end", name, "Bark", end + smear_s, start, end)
            )
            assert bool(news(found)) is is_long


def test_window_crosses_midnight_and_belongs_to_the_day_it_began() -> None:
    top = "windows: {n: {days: [fri], from: '22:00', to: '06:00', timezone: Europe/Paris}}"
    rule = rules_from(f"{BARK}, when: [n]", top=top).rules[0]
    inside = ("2026-11-20T22:00:00+01:00", "2026-11-20T23:59:59+01:00", "2026-11-21T05:59:59+01:00")
    outside = (
        "2026-11-20T21:59:59+01:00",
        "2026-11-21T06:00:00+01:00",
        "2026-11-20T03:00:00+01:00",
    )
    assert all(rule.may_fire_at(parse_time(text)) for text in inside)
    assert not any(rule.may_fire_at(parse_time(text)) for text in outside)


@pytest.mark.parametrize(
    ("instant", "is_inside"),
    [
        ("2026-03-29T00:59:59Z", True),  # 01:59:59 in winter time
        ("2026-03-29T01:00:00Z", True),  # 03:00 in summer time: 02:30 never happened
        ("2026-10-25T00:30:00Z", True),  # 02:30 for the first time
        ("2026-10-25T01:30:00Z", True),  # and for the second
        ("2026-10-25T03:00:00Z", False),  # 04:00 in winter time
        ("2026-03-29T02:00:00Z", False),  # 04:00 in summer time
    ],
)
def test_hours_that_a_clock_skips_or_repeats_are_decided_by_the_instant(
    instant: str, is_inside: bool
) -> None:
    top = "windows: {n: {from: '01:30', to: '04:00', timezone: Europe/Paris}}"
    rule = rules_from(f"{BARK}, when: [n]", top=top).rules[0]
    assert rule.may_fire_at(parse_time(instant)) is is_inside


@pytest.mark.parametrize(
    ("zone", "evening", "hours"),
    [
        ("Europe/Berlin", "2026-03-28T22:00:00+01:00", 7),  # 02:00 is followed by 03:00
        ("Europe/Berlin", "2026-10-24T22:00:00+02:00", 9),  # 03:00 is followed by 02:00
        ("Europe/Berlin", "2026-06-01T22:00:00+02:00", 8),
        ("America/New_York", "2026-03-07T22:00:00-05:00", 7),
        ("America/New_York", "2026-10-31T22:00:00-04:00", 9),
    ],
)
def test_night_is_whole_when_the_clock_changes_in_it(zone: str, evening: str, hours: int) -> None:
    top = f"windows: {{n: {{from: 22:00, to: 06:00, timezone: {zone}}}}}"
    night = rules_from(f"{BARK}, when: [n]", "alert: day, match: {}, unless: [n]", top=top)
    start = parse_time(evening)
    for minute in range(-30, hours * 60 + 30):
        instant = start + minute * 60 * 10**9
        is_night = 0 <= minute < hours * 60
        assert night.rules[0].may_fire_at(instant) is is_night
        assert night.rules[1].may_fire_at(instant) is not is_night


def test_alerts_that_inhibit_each_other_never_silence_both() -> None:
    top = (
        "inhibit:\n"
        "  - {source: {alert: bark}, target: {alert: siren}}\n"
        "  - {source: {alert: siren}, target: {alert: bark}}\n"
        "  - {source: {severity: medium}, target: {severity: medium}}"
    )
    engine = engine_of(rules_from(BARK, "alert: siren, match: {class: Siren}", top=top))
    together = [*sound("a", "Bark", 0, 4), *sound("b", "Siren", 0, 4)]
    later = [*sound("c", "Siren", 10, 14), *sound("d", "Bark", 12, 14), *sound("e", "Bark", 20, 21)]
    assert news(run(engine, [*together, *later], 30)) == [
        (0.0, "bark", "firing"),
        (4.0, "bark", "resolved"),
        (10.0, "siren", "firing"),
        (14.0, "siren", "resolved"),
        (20.0, "bark", "firing"),
        (21.0, "bark", "resolved"),
    ]
    assert engine.counters.suppressed == {"inhibited": 2}


def test_resolve_is_sent_after_a_restart() -> None:
    rules = rules_from(BARK)
    engine = engine_of(rules)
    engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    engine = restarted(engine, rules, 30)
    (ended,) = engine.resume() + engine.on_message("event/", event("end", "a", "Bark", 31, 0, 30))
    assert (ended.to_state, ended.alert.reason, ended.actions) == ("resolved", "quiet", ("phone",))


def test_blanket_for_that_makes_a_rule_unable_to_fire_is_warned_of() -> None:
    (warning,) = lint(rules_from("alert: knock, match: {class: Knock}, for: 5m"))
    assert warning.code == "W202"


def test_duration_over_the_change_of_the_clock_is_what_really_passed() -> None:
    rules = rules_from("alert: long, match: {class: Bark}, for: 30m")
    engine = engine_of(rules)
    start = parse_time("2026-03-29T01:45:00+01:00")
    body = event("begin", "a", "Bark", 0, 0) | {
        "onset": "2026-03-29T01:45:00+01:00",
        "captured": "2026-03-29T01:45:00+01:00",
    }
    engine.on_message("event/", body)
    assert engine.next_deadline_ns is not None
    assert min(engine.next_deadline_ns, start + 1800 * 10**9) == engine.next_deadline_ns


def test_zone_must_be_given_or_defaulted_explicitly() -> None:
    with pytest.raises(ConfigError, match="expected a 'timezone' here or in 'defaults'"):
        rules_from(BARK, top="windows: {n: {from: '22:00', to: '06:00'}}")


@pytest.mark.parametrize("value", ["010", "22:00", "0x1F"])
def test_yaml_makes_no_numbers_of_what_only_looks_like_one(value: str) -> None:
    with pytest.raises(ConfigError, match=f"expected a whole number, got '{value}'"):
        rules_from(f"alert: a, match: {{class: Bark}}, limit: {value}")


def test_yaml_reads_times_and_words_as_they_look() -> None:
    top = (
        "defaults: {timezone: Europe/Oslo}\n"
        "windows: {no: {from: 22:00, to: 06:30, days: [mon]}}\n"
        "classes: {on: [Bark], 'off': [Siren]}"
    )
    rules = rules_from("alert: a, match: {group: on}, when: no", top=top)
    window = rules.rules[0].when[0]
    assert window.hours is not None
    assert [str(time) for time in window.hours] == ["22:00:00", "06:30:00"]
    assert rules.rules[0].matchers[0].slugs == frozenset({"bark"})


def test_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="given twice, first on line"):
        rules_from("alert: a, match: {class: Bark}, severity: low, severity: high")


@pytest.mark.parametrize(
    "text", ["{{ x.__class__ }}", "{% if 1 %}", "{{ cycler() }}", "{# x #}", "{{ labels['a'] }}"]
)
def test_templates_of_a_template_language_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|unknown field"):
        Template.parse(text)


def test_missing_value_is_no_markup() -> None:
    assert Template.parse("on {{ labels.room }}").render({}) == "on -"


def test_count_slides_and_does_not_start_anew_at_bucket_boundaries() -> None:
    rules = rules_from("alert: many, match: {class: Knock}, count: {min: 3, within: 10s}")
    for start in (0.0, 3.0, 7.0, 9.0):  # any tumbling bucket of 10 s would split one of these
        onsets = [start, start + 4.5, start + 9]
        bodies = [
            body for n, t in enumerate(onsets) for body in sound(f"k{n}", "Knock", t, t + 0.1)
        ]
        found = news(run(engine_of(rules), bodies, start + 9.5))
        assert found == [(start + 9, "many", "firing")]


def test_alert_does_not_fire_for_ever_when_the_end_is_lost() -> None:
    engine = engine_of(rules_from(BARK))
    engine.on_message("event/", event("begin", "a", "Bark", 0, 0))
    found = engine.advance(at(3600))
    assert [state for _, _, state in news(found)] == ["resolved"]
    assert engine.counters.lost_ends == 1
    assert engine.next_deadline_ns is None


def test_absence_is_not_claimed_while_the_stream_is_missing() -> None:
    rules = rules_from("alert: gone, absent: {match: {class: Bark}, for: 60s}")
    engine = engine_of(rules)
    found = run(engine, [health(0), health(30, "missing", None), health(100)], 159)
    assert news(found) == []
    assert news(engine.advance(at(161))) == [(160.0, "gone", "firing")]
