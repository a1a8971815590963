"""A wall clock that is set while rules wait: what lasted or passed stays as long as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alert_samples import T0_NS, action_settings, firing
from clocks import FakeClock
from rule_bodies import START, at, engine_of, event, news, restarted, rules_from

from ast_stream.alerts.actions.base import ActionRunner
from ast_stream.alerts.clock import WallClock
from ast_stream.alerts.delivery import DeliveryThreads
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.loop import SILENT_S, AlertLoop
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.outbox_operations import snooze, snoozes
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.store import Store
from ast_stream.alerts.transitions import Transition
from ast_stream.feed import FeedMessage, Missed, Position
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, format_time

HOUR_S = 3600
STEPS_S = [HOUR_S, -HOUR_S, 300 * 86400, -300 * 86400]
LONG = "alert: long, match: {class: Bark}, for: 10m"


def body_at(
    kind: str,
    name: str,
    seconds: float,
    onset: float,
    offset: float | None = None,
    *,
    step: float = 0,
    onset_step: float | None = None,
    stream: str = "hall",
    label: str = "Bark",
) -> dict[str, Any]:
    """Return a body with samples at seconds of sound, on a clock that was set by `step`."""
    onset_step = (0 if onset < 60 else step) if onset_step is None else onset_step
    body = event(
        kind,
        name,
        label,
        seconds + step,
        onset + onset_step,
        None if offset is None else offset + step,
        stream=stream,
    )
    body |= {"epoch": f"epoch of {stream}", "at_sample": round(seconds * SAMPLE_RATE)}
    body |= {"onset_sample": round(onset * SAMPLE_RATE), "published": body["captured"]}
    if offset is not None:
        body["offset_sample"] = round(offset * SAMPLE_RATE)
    return body


def long_sound(until: int, step_at: int, step: float, **more: Any) -> Iterator[dict[str, Any]]:
    """Yield a sound's messages; the clock is set by `step` while it lasts."""
    yield body_at("begin", "x", 1, 0, **more)
    for second in range(2, until):
        yield body_at("update", "x", second, 0, step=step if second >= step_at else 0, **more)
    yield body_at("end", "x", until, 0, until, step=step if until >= step_at else 0, **more)


def process(engine: Engine, bodies: Iterator[dict[str, Any]]) -> list[Transition]:
    return [transition for body in bodies for transition in engine.on_message("event/", body)]


@pytest.mark.parametrize("step", STEPS_S)
def test_for_does_not_fire_because_the_clock_was_set_while_the_sound_lasts(step: int) -> None:
    engine = engine_of(rules_from(LONG))
    found = process(engine, long_sound(60, 20, step))
    assert news(found + engine.advance(at(60 + step))) == []
    assert engine.now_ns == at(60 + step)  # it has followed, forward and back


@pytest.mark.parametrize("step", STEPS_S)
def test_for_fires_when_the_sound_has_lasted_whatever_was_done_to_the_clock(step: int) -> None:
    engine = engine_of(rules_from(LONG))
    found = process(engine, long_sound(700, 20, step))
    assert [time for time, _, state in news(found) if state == "firing"] == [600 + step]
    (fired, *_) = (transition for transition in found if transition.to_state == "firing")
    assert fired.alert.started_ns == at(step)  # on the clock that is right now


@pytest.mark.parametrize("step", STEPS_S)
def test_for_goes_by_samples_when_only_the_end_shows_the_set_clock(step: int) -> None:
    engine = engine_of(rules_from(LONG))
    bodies = [body_at("begin", "x", 1, 0), body_at("end", "x", 30, 0, 25, step=step)]
    assert news(process(engine, iter(bodies)) + engine.advance(at(40 + step))) == []


def test_for_goes_by_samples_when_begin_and_updates_were_missed() -> None:
    engine = engine_of(rules_from(LONG))
    assert news(process(engine, iter([body_at("end", "x", 30, 0, 25, step=HOUR_S)]))) == []


def test_sound_of_another_stream_whose_capture_has_not_noticed_the_step_yet_is_no_older() -> None:
    engine = engine_of(rules_from(LONG))
    found = process(engine, iter([body_at("begin", "y", 1, 0, stream="yard")]))
    found += process(engine, iter([body_at("begin", "x", 1, 0)]))
    found += engine.on_message("event/", body_at("update", "x", 20, 0, step=HOUR_S))
    found += engine.on_message("event/", body_at("update", "y", 22, 0, stream="yard"))
    found += engine.on_message("event/", body_at("begin", "z", 23, 22, onset_step=0, stream="yard"))
    found += engine.on_message(
        "event/", body_at("update", "z", 28, 22, onset_step=0, step=HOUR_S, stream="yard")
    )
    found += engine.on_message("event/", body_at("update", "y", 29, 0, step=HOUR_S, stream="yard"))
    assert news(found + engine.advance(at(60 + HOUR_S))) == []
    assert engine.now_ns == at(60 + HOUR_S)  # both steps were one


@pytest.mark.parametrize("step", STEPS_S)
def test_absent_counts_what_has_passed_not_what_the_clock_says(step: int) -> None:
    engine = engine_of(rules_from("alert: a, absent: {match: {class: Siren}, for: 5m}"))
    process(engine, iter([body_at("begin", "s", 1, 0, label="Siren")]))
    process(engine, iter([body_at("end", "s", 12, 0, 10, label="Siren")]))
    found = process(engine, long_sound(60, 20, step))
    assert news(found + engine.advance(at(309 + step))) == []
    assert news(engine.advance(at(310 + step))) == [(310 + step, "a", "firing")]


@pytest.mark.parametrize("step", STEPS_S)
def test_cooldown_neither_ends_nor_lengthens_when_the_clock_is_set(step: int) -> None:
    rule = "alert: a, match: {class: Siren}, cooldown: 5m"
    engine = engine_of(rules_from(rule))
    process(engine, iter([body_at("begin", "s", 1, 0, label="Siren")]))
    process(engine, iter([body_at("end", "s", 12, 0, 10, label="Siren")]))
    process(engine, long_sound(60, 20, step))
    more: dict[str, Any] = {"label": "Siren", "step": step}
    assert engine.on_message("event/", body_at("begin", "t", 300, 299, **more)) == []
    engine.on_message("event/", body_at("end", "t", 305, 299, 304, **more))
    assert news(engine.on_message("event/", body_at("begin", "u", 320, 319, **more))) == [
        (320 + step, "a", "firing")
    ]


@pytest.mark.parametrize("step", STEPS_S)
def test_count_within_counts_across_a_step_of_the_clock(step: int) -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Siren}, count: {min: 2, within: 60s}"))
    process(engine, iter([body_at("begin", "s", 1, 0, label="Siren")]))
    process(engine, iter([body_at("end", "s", 12, 0, 10, label="Siren")]))
    found = process(engine, long_sound(40, 20, step))
    found += engine.on_message(
        "event/", body_at("begin", "t", 41, 40, step=step, onset_step=step, label="Siren")
    )
    assert [transition.alert.rule for transition in found if transition.to_state == "firing"] == [
        "a"
    ]


def test_count_within_does_not_count_what_is_long_ago_because_the_clock_was_put_back() -> None:
    engine = engine_of(rules_from("alert: a, match: {class: Siren}, count: {min: 2, within: 60s}"))
    process(engine, iter([body_at("begin", "s", 1, 0, label="Siren")]))
    process(engine, iter([body_at("end", "s", 12, 0, 10, label="Siren")]))
    process(engine, long_sound(400, 200, -400))
    found = engine.on_message("event/", body_at("begin", "t", 402, 401, step=-400, label="Siren"))
    assert [transition.to_state for transition in found] == []


def test_pause_of_a_source_is_no_step_of_the_clock() -> None:
    engine = engine_of(rules_from("alert: a, absent: {match: {class: Siren}, for: 5m}"))
    process(engine, iter([body_at("begin", "s", 1, 0, label="Siren")]))
    process(engine, iter([body_at("end", "s", 12, 0, 10, label="Siren")]))
    found = engine.on_message(
        "event/", body_at("begin", "x", 70, 69, step=HOUR_S)
    )  # an hour without samples
    assert news(found) == [(310, "a", "firing")]


def test_engine_follows_when_the_publisher_begins_again_with_its_clock_put_back() -> None:
    engine = engine_of(rules_from(LONG))
    process(engine, iter([body_at("begin", "s", 1, 0), body_at("end", "s", 12, 0, 10)]))
    after = body_at("begin", "t", 5, 4, onset_step=-HOUR_S, step=-HOUR_S) | {"epoch": "another"}
    engine.on_message("event/", after)
    assert engine.now_ns == at(5 - HOUR_S)
    assert news(engine.advance(at(500 - HOUR_S))) == []
    assert news(engine.advance(at(610 - HOUR_S))) == [(604 - HOUR_S, "long", "firing")]


def test_restart_after_the_clock_was_put_back_keeps_what_was_left_of_a_cooldown() -> None:
    rules = rules_from("alert: a, match: {class: Siren}, cooldown: 5m")
    engine = engine_of(rules)
    process(engine, iter([body_at("begin", "s", 1, 0, label="Siren")]))
    process(engine, iter([body_at("end", "s", 12, 0, 10, label="Siren")]))
    engine = restarted(engine, rules, 12 - HOUR_S)
    assert engine.now_ns == at(12 - HOUR_S)
    again: dict[str, Any] = {"label": "Siren", "onset_step": -HOUR_S, "step": -HOUR_S}
    assert engine.on_message("event/", body_at("begin", "t", 20, 19, **again)) == []


def test_steps_are_followed_the_same_when_the_service_restarts_in_between() -> None:
    rules = rules_from(LONG)
    engine, often = engine_of(rules), engine_of(rules)
    found: list[Transition] = []
    found_often: list[Transition] = []
    for body in long_sound(700, 20, HOUR_S):
        found += engine.on_message("event/", body)
        often = restarted(often, rules)
        found_often += often.on_message("event/", json.loads(json.dumps(body)))
    assert found_often == found


class FakeFeed:
    """A feed of what a test puts there."""

    def __init__(self) -> None:
        self.items: list[FeedMessage | Missed] = []
        self.position: Position | None = None
        self.is_publisher_there = True

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        return self.items.pop(0) if self.items else None


RULES = """
version: 1
groups:
  - name: test
    rules:
      - {alert: long, match: {class: Bark}, for: 10m}
      - {alert: quiet_pump, absent: {match: {class: Pump}, for: 5m}}
"""


class Bench:
    """A loop on a fake feed with a wall clock that can be set, and one that only goes forward."""

    def __init__(self, folder: Path) -> None:
        (folder / "rules.yaml").write_text(RULES)
        self.wall, self.passed_s = FakeClock(T0_NS), 0.0
        self.feed = FakeFeed()
        self.store = Store(folder / "a.sqlite")
        clock = WallClock(self.wall, lambda: self.passed_s)
        self.outbox = Outbox(self.store, {"phone": action_settings("firing")}, clock.now_ns)
        runners: dict[str, ActionRunner] = {}
        self.loop = AlertLoop(
            self.feed,
            Engine(load_rules([folder / "rules.yaml"]), now_ns=T0_NS),
            self.store,
            self.outbox,
            DeliveryThreads(runners, self.outbox),
            now_ns=self.wall,
            now_s=lambda: self.passed_s,
            clock=clock,
        )

    def pass_s(self, seconds: int, *, is_worker_there: bool = True) -> None:
        for _ in range(seconds):
            self.wall.pass_s(1)
            self.passed_s += 1
            if is_worker_there:
                body: dict[str, Any] = {"stream": "porch", "labels": {}, "state": "listening"}
                body |= {"lag_s": 0.0, "level_dbfs": -40.0, "published": format_time(self.wall())}
                self.feed.items.append(FeedMessage("health/porch/", body))
            self.loop.step()
            self.loop.save()

    def hear_bark(self) -> None:
        seconds = (self.wall() - START) / NS_PER_SECOND
        body = event("begin", "x", "Bark", seconds, seconds, stream="porch")
        self.feed.items.append(FeedMessage("event/bark/porch/", body))

    @property
    def fired(self) -> list[str]:
        with self.store.reading() as db:
            query = "SELECT rule FROM alerts WHERE state = 'firing'"
            return [row[0] for row in db.execute(query)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


@pytest.mark.parametrize("step", STEPS_S)
@pytest.mark.parametrize("is_worker_there", [True, False])
def test_timers_do_not_run_because_the_clock_of_this_box_was_set(
    bench: Bench, step: int, is_worker_there: bool
) -> None:
    bench.pass_s(1)
    bench.pass_s(60, is_worker_there=is_worker_there)
    bench.wall.pass_s(step)
    bench.pass_s(200, is_worker_there=is_worker_there)
    assert bench.fired == []
    bench.pass_s(60, is_worker_there=is_worker_there)
    assert bench.fired == ["quiet_pump"]


def test_open_sound_is_not_known_to_go_on_while_the_worker_is_silent(bench: Bench) -> None:
    bench.pass_s(1)
    bench.hear_bark()
    bench.pass_s(2)
    bench.pass_s(650 + round(SILENT_S), is_worker_there=False)
    assert "long" not in bench.fired


def test_snooze_is_as_long_as_it_was_when_the_clock_is_set(bench: Bench) -> None:
    snooze(bench.store, "long", T0_NS + 600 * NS_PER_SECOND, T0_NS)
    bench.wall.pass_s(HOUR_S)
    bench.pass_s(1)
    until_ns = T0_NS + (HOUR_S + 600) * NS_PER_SECOND
    assert snoozes(bench.store, bench.wall()) == [("long", until_ns)]


def test_delivery_that_waits_does_not_expire_because_the_clock_was_set(bench: Bench) -> None:
    with bench.store.transaction() as db:
        bench.outbox.enqueue(db, [firing("a1", "phone")])
    bench.wall.pass_s(300 * 86400)
    bench.outbox.expire("phone")  # before the loop has noticed
    bench.pass_s(1)
    bench.outbox.expire("phone")
    with bench.store.reading() as db:
        query = "SELECT state FROM deliveries WHERE action = 'phone'"
        assert db.execute(query).fetchall() == [("pending",)]
