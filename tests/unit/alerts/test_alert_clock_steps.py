"""A wall clock that is set while rules wait: what lasted or passed stays as long as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from alert_samples import T0_NS, action_settings, firing
from clocks import FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_bodies import START, at, event, gap, health, news, restarted, rules_from

from ast_stream.alerts.actions.base import ActionRunner
from ast_stream.alerts.delivery import DeliveryThreads
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.loop import SILENT_S, AlertLoop
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.outbox_operations import snooze, snoozes
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.steady_time import MAX_CLOCKS, SteadyTime
from ast_stream.alerts.store import Store
from ast_stream.feed import FeedMessage, Missed, Position
from ast_stream.machine_clock import CLOCK_ID, Moment
from ast_stream.messages.event import EventMessage
from ast_stream.units import NS_PER_SECOND, format_time, parse_time

HOUR_S = 3600
YEAR_S = 365 * 86400
STEPS_S = [HOUR_S, -HOUR_S, YEAR_S, -YEAR_S]
LENGTH_S = 240
UPTIME_S = 1000  # of the machine, at second 0
TIMES = ("onset", "offset", "captured", "time", "published")
RULES = rules_from(
    "alert: plain, match: {class: Bark}, keep_firing_for: 20s, cooldown: 40s",
    "alert: long, match: {class: Siren}, for: 30s, tolerate: 3s",
    "alert: many, match: {class: Knock}, count: {min: 2, within: 60s}",
    "alert: steps, sequence: {within: 60s, steps: "
    "[{match: {class: Knock}}, {match: {class: Bark}}]}, group_by: []",
    "alert: quiet, absent: {match: {class: Bark}, for: 50s}",
    "alert: loud, level: {louder_than_dbfs: -30, for: 15s}",
)


@dataclass(frozen=True)
class Wall:
    """A wall clock that is set now and then: at a second, by seconds."""

    steps: tuple[tuple[float, float], ...] = ()

    def set_by_s(self, second: float) -> float:
        return sum(by for when, by in self.steps if when <= second)

    def stamp(self, body: dict[str, Any], second: float, clock: str = "c1") -> dict[str, Any]:
        """Return a body as published at a second, with its times by the clock as it is set then."""
        set_by_ns = round(self.set_by_s(second) * NS_PER_SECOND)
        moved = {
            name: format_time(parse_time(time) + set_by_ns)
            for name in TIMES
            if (time := body.get(name)) is not None
        }
        published = {"published": format_time(at(second) + set_by_ns), "clock": clock}
        monotonic_ns = round((UPTIME_S + second) * NS_PER_SECOND)
        return body | moved | published | {"monotonic_ns": monotonic_ns}


def facts(transition: Transition, engine: Engine) -> list[object]:
    """Return what became of an alert, its wall times as steady time."""
    alert, set_by_ns = transition.alert, engine.time.set_by_ns
    if transition.to_state == "firing" and transition.from_state != "recovering":
        assert alert.fired_ns == transition.at_ns + set_by_ns  # by the clock that is right now
    return [
        transition.at_ns,
        alert.rule,
        transition.from_state,
        transition.to_state,
        alert.id,
        alert.started_ns - set_by_ns,
        alert.events,
        alert.suppressed,
        alert.reason,
        transition.actions,
    ]


Sound = tuple[str, str, float, float]
sounds = st.lists(
    st.tuples(
        st.sampled_from(["Bark", "Siren", "Knock"]),
        st.sampled_from(["hall", "yard"]),
        st.floats(0, LENGTH_S - 60).map(lambda second: round(second, 2)),
        st.sampled_from([0.5, 4.0, 33.0, 50.0]),
    ),
    min_size=2,
    max_size=8,
)
steps = st.lists(
    st.tuples(
        st.floats(0, LENGTH_S),
        st.one_of(st.floats(-YEAR_S, YEAR_S), st.floats(-5, 5))
        .map(lambda by: round(by, 3))
        .filter(lambda by: abs(by) > 0.2),  # less is the jitter of two clocks
    ),
    min_size=1,
    max_size=3,
)


def timeline(sounds: list[Sound]) -> list[tuple[float, dict[str, Any]]]:
    """Return bodies as a worker publishes them while its clock is right, and when."""
    # as the process does at its start, the engine reads the clock before it is set
    found: list[tuple[float, dict[str, Any]]] = [(-1, health(-1))]
    for number, (label, stream, onset, length) in enumerate(sounds):
        name, end = f"e{number}", onset + length
        found.append((onset + 1, event("begin", name, label, onset + 1, onset, stream=stream)))
        for second in range(int(onset) + 3, int(end), 9):
            body = event("update", name, label, second, onset, stream=stream)
            found.append((second, body))
        ended = event("end", name, label, end + 1, onset, end, stream=stream)
        found.append((end + 1, ended))
    for second in range(0, LENGTH_S, 5):
        level = -20.0 if 60 <= second < 120 else -50.0
        found += [(second, health(second, level=level, stream=name)) for name in ("hall", "yard")]
    found.append((101.5, gap(95, 5.0)))
    return sorted(found, key=lambda entry: entry[0])


def alerts(bodies: list[tuple[float, dict[str, Any]]], wall: Wall, restart_s: float) -> list[Any]:
    """Return what the engine makes of bodies; it is killed once, and restored."""
    engine = Engine(RULES, now_ns=START)
    found = []
    is_restarted = False
    for second, body in bodies:
        if second > restart_s and not is_restarted:
            engine, is_restarted = restarted(engine, RULES, second), True
            found += [facts(transition, engine) for transition in engine.resume()]
        stamped = wall.stamp(body, second)
        topic = "event/" if "id" in body else "gap/" if "samples" in body else "health/"
        found += [facts(it, engine) for it in engine.on_message(topic, stamped)]
    return found + [facts(it, engine) for it in engine.advance(at(LENGTH_S + 100))]


@given(sounds, steps, st.integers(0, LENGTH_S))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_alerts_fire_and_end_as_without_a_step_of_the_clock_whenever_it_is_set_and_by_how_much(
    sounds: list[Sound], steps: list[tuple[float, float]], restart_s: float
) -> None:
    bodies = timeline(sounds)
    undisturbed = alerts(bodies, Wall(), restart_s)
    found = alerts(bodies, Wall(tuple(sorted(steps))), restart_s)
    assert found == undisturbed


LONG = rules_from("alert: long, match: {class: Bark}, for: 10m")
COOLDOWN = rules_from("alert: a, match: {class: Siren}, cooldown: 5m")


def process(engine: Engine, *bodies: dict[str, Any]) -> list[Transition]:
    return [transition for body in bodies for transition in engine.on_message("event/", body)]


def siren(name: str, second: float) -> list[dict[str, Any]]:
    begin = event("begin", name, "Siren", second + 1, second)
    return [begin, event("end", name, "Siren", second + 4, second, second + 3)]


@pytest.mark.parametrize("set_by_s", STEPS_S)
def test_sound_of_which_only_the_end_is_told_is_as_long_as_it_was(set_by_s: int) -> None:
    engine, wall = Engine(LONG, now_ns=START), Wall(((20, set_by_s),))
    process(engine, *(wall.stamp(body, 1) for body in siren("s", 0)))
    ended = event("end", "x", "Bark", 30, 0, 25)
    assert news(process(engine, wall.stamp(ended, 30)) + engine.advance(at(40))) == []


@pytest.mark.parametrize(("away_s", "expected"), [(100, []), (400, ["firing"])])
@pytest.mark.parametrize("set_by_s", STEPS_S)
def test_boot_takes_as_long_as_the_wall_clock_says(
    away_s: int, expected: list[str], set_by_s: int
) -> None:
    engine, wall = Engine(COOLDOWN, now_ns=START), Wall(((2, set_by_s),))
    process(engine, *(wall.stamp(body, n) for n, body in enumerate(siren("s", 0), 1)))
    engine = restarted(engine, COOLDOWN)
    again = wall.stamp(siren("t", away_s)[0], away_s, clock="c2") | {"monotonic_ns": 5}
    found = process(engine, again)
    assert [transition.to_state for transition in found] == expected


def test_boot_with_a_clock_that_was_put_back_takes_no_time_rather_than_less() -> None:
    engine = Engine(COOLDOWN, now_ns=START)
    process(engine, *(Wall().stamp(body, 3 * n) for n, body in enumerate(siren("s", 0), 1)))
    wall = Wall(((0, -YEAR_S), (60, YEAR_S)))  # right again after a minute
    for name, second, expected in (("t", 40, 0), ("u", 200, 0), ("v", 400, 1)):
        begin, end = siren(name, second)
        found = process(engine, wall.stamp(begin, second + 1, clock="c2"))
        process(engine, wall.stamp(end, second + 4, clock="c2"))
        assert len(found) == expected
    assert engine.time.wall_ns(found[0].at_ns) == at(401)


def test_messages_of_an_earlier_boot_that_are_replayed_lie_where_they_were() -> None:
    engine = Engine(COOLDOWN, now_ns=START)
    process(engine, Wall().stamp(siren("s", 0)[0], 1))
    after = Wall(((0, HOUR_S),)).stamp(siren("t", 500)[0], 501, clock="c2")
    engine.time.observe(EventMessage.from_json(after))
    found = process(engine, Wall().stamp(siren("s", 0)[1], 4))
    assert [transition.at_ns for transition in found] == [at(4)]


def test_body_without_a_stamp_is_by_the_clock_as_it_was_last_seen() -> None:
    engine, wall = Engine(COOLDOWN, now_ns=START), Wall(((2, HOUR_S),))
    process(engine, *(wall.stamp(body, n) for n, body in enumerate(siren("s", 0), 1)))
    bare = {**siren("t", 100)[0], "captured": format_time(at(101 + HOUR_S))}
    assert process(engine, bare | {"onset": format_time(at(100 + HOUR_S))}) == []
    assert engine.now_ns == at(101)


def test_known_clocks_are_bounded_and_an_old_one_that_comes_back_is_met_anew() -> None:
    time = SteadyTime()
    for number in range(3 * MAX_CLOCKS):
        body = Wall().stamp(siren("s", 0)[0], number, clock=f"c{number}")
        time.observe(EventMessage.from_json(body))
    assert len(time.export()["offsets_ns"]) == MAX_CLOCKS


class FakeFeed:
    """A feed of what a test puts there."""

    def __init__(self) -> None:
        self.items: list[FeedMessage | Missed] = []
        self.position: Position | None = None
        self.is_publisher_there = True

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        return self.items.pop(0) if self.items else None

    def remove_topic(self, topic: str) -> None:
        """Nothing was added."""

    def add_topic(self, topic: str) -> None:
        raise AssertionError("no rule goes by levels")


RULE_FILE = """
version: 1
groups:
  - name: test
    rules:
      - {alert: long, match: {class: Bark}, for: 10m}
      - {alert: quiet_pump, absent: {match: {class: Pump}, for: 5m}}
"""


class Bench:
    """A loop on a fake feed with a wall clock that can be set, and one that only goes forward."""

    def __init__(self, folder: Path, since_ns: int = 0) -> None:
        (folder / "rules.yaml").write_text(RULE_FILE)
        self.wall, self.passed_s = FakeClock(T0_NS), 0.0
        self.feed = FakeFeed()
        self.store = Store(folder / "a.sqlite")
        self.time = SteadyTime(read=self.read)
        self.time.follow_machine()
        actions = {"phone": action_settings("firing")}
        self.outbox = Outbox(self.store, actions, self.time.now_ns, wall_ns=self.time.wall_ns)
        runners: dict[str, ActionRunner] = {}
        self.loop = AlertLoop(
            self.feed,
            Engine(load_rules([folder / "rules.yaml"]), now_ns=T0_NS, time=self.time),
            self.store,
            self.outbox,
            DeliveryThreads(runners, self.outbox),
            now_s=lambda: self.passed_s,
            since_ns=since_ns,
        )

    def read(self) -> Moment:
        return Moment(self.wall(), round((UPTIME_S + self.passed_s) * NS_PER_SECOND))

    def pass_s(self, seconds: int, *, is_worker_there: bool = True) -> None:
        for _ in range(seconds):
            self.wall.pass_s(1)
            self.passed_s += 1
            if is_worker_there:
                body: dict[str, Any] = {"stream": "porch", "labels": {}, "state": "listening"}
                body |= {"lag_s": 0.0, "level_dbfs": -40.0}
                self.publish("health/porch/", body)
            self.loop.step()
            self.loop.save()

    def hear_bark(self) -> None:
        seconds = (self.wall() - START) / NS_PER_SECOND
        body = event("begin", "x", "Bark", seconds, seconds, stream="porch")
        self.publish("event/bark/porch/", body)

    def publish(self, topic: str, body: dict[str, Any]) -> None:
        now = self.read()
        stamp = {"published": format_time(now.wall_ns), "monotonic_ns": now.monotonic_ns}
        self.feed.items.append(FeedMessage(topic, body | stamp | {"clock": CLOCK_ID}))

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
    until_ns = T0_NS + 600 * NS_PER_SECOND
    assert snoozes(bench.store, bench.time.now_ns()) == [("long", until_ns)]
    assert bench.time.wall_ns(until_ns) == until_ns + HOUR_S * NS_PER_SECOND


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


def deliveries(steps: list[tuple[float, float]], silent_from: int) -> list[tuple[object, ...]]:
    """Return what was to be delivered, and when, while the clock is set."""
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bench.pass_s(1)
        bench.hear_bark()
        for second in range(1, 700):
            bench.wall.pass_s(sum(by for when, by in steps if second <= when < second + 1))
            bench.pass_s(1, is_worker_there=second < silent_from)
        bench.outbox.expire("phone")
        with bench.store.reading() as db:
            query = "SELECT rule, transition, action, state, created_ns, expires_ns FROM deliveries"
            found = db.execute(f"{query} ORDER BY seq").fetchall()
        bench.store.close()
    return found


@given(steps, st.sampled_from([100, 700]))
@settings(max_examples=3, deadline=None, derandomize=True)
def test_deliveries_are_due_and_expire_as_without_a_step_of_the_clock(
    steps: list[tuple[float, float]], silent_from: int
) -> None:
    undisturbed = deliveries([], silent_from)
    assert undisturbed
    assert deliveries(steps, silent_from) == undisturbed


def test_first_start_hears_what_is_published_after_it_also_when_the_clock_is_set_back(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, since_ns=T0_NS)
    bench.wall.pass_s(-HOUR_S)
    bench.pass_s(1)
    bench.hear_bark()
    bench.pass_s(602)
    assert "long" in bench.fired
    bench.store.close()
