"""A roll-out goes on box by box, returns if it is worse, and survives its own end at any write."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from memory_store import KilledError, MemoryStore
from sample_messages import STREAM, T0_NS, box_report

from ast_stream.fleet.buckets import ALL, PLAN, BucketEntry
from ast_stream.fleet.rollout import Rollout, RolloutError, Terms, known_boxes
from ast_stream.messages.fleet import (
    BoxReport,
    RolloutReport,
    RolloutState,
    StreamReport,
    WorkerReport,
)
from ast_stream.messages.rollout import MAX_PLAN_BYTES, RolloutPlan, WantedModel
from ast_stream.runtime.nats import NatsError
from ast_stream.units import NS_PER_SECOND

OLD, NEW = (f"sha256:{64 * letter}" for letter in "ab")
MODEL = f"sha256:{64 * 'c'}"
TERMS = Terms("farm.a", after_s=600.0, batch=2, settle_s=60.0)
LIMIT = 500  # steps: far more than any of these takes

Change = Callable[[BoxReport], BoxReport]


class Fleet:
    """Boxes that do what they are asked, and a centre that is killed now and then."""

    def __init__(self, *names: str, current: str | None = OLD) -> None:
        self.store = MemoryStore()
        self.now_ns = T0_NS
        self.said: list[str] = []
        self.current: dict[str, str | None] = dict.fromkeys(names, current)
        self.refusing: dict[str, str] = {}
        self.away: set[str] = set()
        self.with_new: Change = lambda report: report
        self.orders: dict[str, str] = {}
        self.states: dict[str, RolloutState] = dict.fromkeys(names, "in_use")
        self.report()

    def rollout(self, factor: float = 3.0) -> Rollout:
        return Rollout(
            self.store, events_factor=factor, now_ns=lambda: self.now_ns, say=self.said.append
        )

    def tick(self, seconds: float = 10.0) -> None:
        """Let time pass, and every box that is there follow and report."""
        self.now_ns += round(seconds * NS_PER_SECOND)
        for key in self.current:
            if key not in self.away:
                self._follow(key)
        self.report()

    def report(self) -> None:
        for key, content in self.current.items():
            site, _, box = key.partition(".")
            if key in self.away:
                report, age_s = self.store.boxes[key]
                self.store.boxes[key] = (report, age_s + 10.0)
                continue
            wanted = self.store.wanted(key)
            rollout = RolloutReport(
                wanted=None if wanted is None else wanted.content,
                current=content,
                previous=OLD,
                state=self.states[key],
                detail=self.refusing.get(key),
                since_ns=T0_NS,
            )
            report = box_report(site=site, box=box, time_ns=self.now_ns, rollout=rollout)
            if content == NEW:
                report = self.with_new(report)
            self.store.boxes[key] = (report, 0.0)

    def _follow(self, key: str) -> None:
        wanted = self.store.wanted(key)
        if wanted is None or (self.current[key] == wanted.content and key not in self.refusing):
            return
        if key in self.refusing and wanted.content == NEW:
            self.states[key] = "refused"
            return
        self.states[key] = "in_use"
        self.current[key] = wanted.content

    def play(self, until: Callable[[RolloutPlan], bool], factor: float = 3.0) -> RolloutPlan:
        """Go on until a plan is as wanted."""
        for _ in range(LIMIT):
            plan = self.rollout(factor).step()
            assert plan is not None
            if until(plan):
                return plan
            self.tick()
        raise AssertionError(f"not at its end: {self.said}")

    def play_to_the_end(self, factor: float = 3.0) -> RolloutPlan:
        return self.play(lambda plan: plan.stage in ("done", "returned"), factor)

    def wanted(self, key: str) -> WantedModel | None:
        return self.store.wanted(key)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet("farm.a", "farm.b", "farm.c", "farm.d", "home.e")


def begin(fleet: Fleet, terms: Terms = TERMS) -> RolloutPlan:
    return fleet.rollout().begin(NEW, MODEL, "model", terms)


def test_the_canary_goes_first_and_the_others_in_batches(fleet: Fleet) -> None:
    begin(fleet)
    used: list[int] = []
    for _ in range(LIMIT):
        plan = fleet.rollout().step()
        fleet.tick()
        used.append(sum(content == NEW for content in fleet.current.values()))
        if plan is not None and plan.stage == "done":
            break
    assert list(dict.fromkeys(used)) == [1, 3, 5]
    assert used.count(1) >= 600 / 10  # for ten minutes
    assert fleet.wanted("farm.b") == fleet.wanted("new.one")  # of all, also of those to come
    assert [key for key in fleet.store.values if key != PLAN] == [ALL]


def test_a_site_is_not_the_fleet(fleet: Fleet) -> None:
    fleet.away.add("farm.d")
    begin(fleet, Terms("farm.a", "farm", 60.0, 2, 10.0))
    for _ in range(10):
        fleet.tick()
    fleet.play_to_the_end()
    assert fleet.current["home.e"] == OLD
    assert fleet.wanted("home.e") is None
    fleet.away.clear()  # it comes back, and follows
    fleet.tick()
    assert {key for key, content in fleet.current.items() if content == NEW} == {
        f"farm.{name}" for name in "abcd"
    }


def stream(**fields: Any) -> Change:
    one = StreamReport(stream=STREAM, heard=1.0, accounted_s=86_400.0)
    fields = {"state": "listening", "hop_s": 0.5} | fields
    return lambda report: report.model_copy(update={"streams": [one.model_copy(update=fields)]})


def rollout_with(**fields: Any) -> Change:
    def change(report: BoxReport) -> BoxReport:
        assert report.rollout is not None
        rollout = report.rollout.model_copy(update={"since_ns": T0_NS, **fields})
        return report.model_copy(update={"rollout": rollout})

    return change


WORSE: dict[str, tuple[Change, str]] = {
    "slow": (
        lambda report: report.model_copy(
            update={"workers": [WorkerReport(boot="x", model=MODEL, lag_s=9.0)]}
        ),
        "it is 9.0 s behind, where 5.0 s are allowed",
    ),
    "wide": (stream(hop_s=1.0), "it scores a window every 1 s, and not every 0.5 s"),
    "silent": (
        stream(state="degraded"),
        "1 streams are missing or degraded, 0 were before",
    ),
    "lossy": (stream(heard=0.9), "it has heard 10.0% less of the last 24 hours"),
    "crashing": (rollout_with(restarts=2), "its workers began again 2 times by themselves"),
    "complaining": (
        lambda report: report.model_copy(update={"problems": ["the worker's disk is full"]}),
        "the worker's disk is full",
    ),
    "deaf": (
        rollout_with(began={}, began_before={"bark": 40_000}, before_s=604_800.0),
        "0 events of bark have begun, where ",
    ),
    "noisy": (
        rollout_with(began={"bark": 400}, began_before={"bark": 40}, before_s=604_800.0),
        "400 events of bark have begun, where ",
    ),
}


@pytest.mark.parametrize("kind", list(WORSE))
def test_what_is_worse_returns(fleet: Fleet, kind: str) -> None:
    change, reason = WORSE[kind]
    begin(fleet)
    fleet.with_new = change
    plan = fleet.play_to_the_end()
    assert plan.stage == "returned"
    assert plan.reason is not None
    assert plan.reason.startswith(f"farm/a: {reason}")
    assert set(fleet.current.values()) == {OLD}


def test_seconds_that_a_new_box_misses_are_no_part_of_a_day(fleet: Fleet) -> None:
    begin(fleet)
    fleet.with_new = stream(heard=0.9, accounted_s=120.0)
    assert fleet.play_to_the_end().stage == "done"


def test_what_was_so_before_is_not_held_against_it(fleet: Fleet) -> None:
    fleet.with_new = lambda report: report
    for key, (report, age_s) in list(fleet.store.boxes.items()):
        busy = report.model_copy(update={"problems": ["stream a is missing: since 12 days"]})
        fleet.store.boxes[key] = (busy, age_s)
    begin(fleet)
    fleet.rollout().step()
    fleet.with_new = lambda report: report.model_copy(
        update={"problems": ["stream a is missing: since 13 days"]}
    )
    assert fleet.play(lambda plan: plan.stage != "canary").stage == "others"


def test_one_bad_report_is_no_reason(fleet: Fleet) -> None:
    begin(fleet)
    fleet.play(lambda plan: any(one.in_use_ns for one in plan.boxes.values()))
    for number in range(100):
        bad = number % 3 == 0
        fleet.with_new = WORSE["complaining"][0] if bad else lambda report: report
        fleet.tick()
        plan = fleet.rollout().step()
        assert plan is not None
        assert plan.stage != "returning"


def test_events_are_judged_only_if_asked(fleet: Fleet) -> None:
    begin(fleet)
    fleet.with_new = WORSE["deaf"][0]
    assert fleet.play_to_the_end(factor=0).stage == "done"


def test_a_canary_that_refuses_says_why(fleet: Fleet) -> None:
    fleet.refusing["farm.a"] = "unknown class 'Bark'"
    begin(fleet)
    plan = fleet.play_to_the_end()
    assert (plan.stage, plan.reason) == ("returned", "farm/a: unknown class 'Bark'")
    assert set(fleet.current.values()) == {OLD}


def test_another_box_that_refuses_makes_all_return(fleet: Fleet) -> None:
    fleet.refusing["farm.c"] = "unknown class 'Bark'"
    begin(fleet)
    plan = fleet.play_to_the_end()
    assert (plan.stage, plan.reason) == ("returned", "farm/c: unknown class 'Bark'")
    assert set(fleet.current.values()) == {OLD}


def test_some_may_refuse_if_that_is_allowed(fleet: Fleet) -> None:
    fleet.refusing["farm.c"] = "unknown class 'Bark'"
    begin(fleet, Terms("farm.a", after_s=60.0, batch=2, settle_s=10.0, max_failures=1))
    assert fleet.play_to_the_end().stage == "done"
    assert [key for key, content in fleet.current.items() if content == OLD] == ["farm.c"]


def test_a_canary_that_is_gone_is_not_good(fleet: Fleet) -> None:
    begin(fleet)
    fleet.play(lambda plan: any(one.in_use_ns for one in plan.boxes.values()))
    fleet.away.add("farm.a")
    plan = fleet.play(lambda plan: plan.stage == "returning")
    assert plan.reason is not None
    assert plan.reason.startswith("farm/a: it has not reported for 9")
    assert fleet.play_to_the_end().stage == "returned"  # it returns when it is there again
    fleet.away.clear()
    fleet.tick()
    assert set(fleet.current.values()) == {OLD}


def test_somebody_may_say_that_all_return_even_afterwards(fleet: Fleet) -> None:
    begin(fleet)
    fleet.play_to_the_end()
    fleet.current["farm.late"] = OLD  # it came later, and followed what is wanted of all
    fleet.states["farm.late"] = "in_use"
    fleet.tick()
    assert fleet.current["farm.late"] == NEW
    fleet.rollout().give_up("it barks")
    plan = fleet.play_to_the_end()
    assert (plan.stage, plan.reason) == ("returned", "it barks")
    fleet.tick()
    assert set(fleet.current.values()) == {OLD}
    assert fleet.wanted("new.one") is None


def test_what_was_wanted_of_all_before_is_wanted_again(fleet: Fleet) -> None:
    fleet.store.put(ALL, WantedModel(content=OLD, order="0").encode())
    begin(fleet)
    fleet.play_to_the_end()
    fleet.rollout().give_up("it barks")
    fleet.play_to_the_end()
    wanted = fleet.wanted("new.one")
    assert wanted is not None
    assert wanted.content == OLD


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (Terms("farm.x"), "expected a box that reports, got none"),
        (Terms("home.e", "farm"), "expected a box of --site farm"),
    ],
)
def test_a_canary_has_to_be_there(fleet: Fleet, terms: Terms, reason: str) -> None:
    with pytest.raises(RolloutError, match=reason):
        begin(fleet, terms)
    assert fleet.store.values == {}


def test_boxes_that_do_not_follow_are_left_alone(fleet: Fleet) -> None:
    report, age_s = fleet.store.boxes["farm.a"]
    alone = report.model_copy(update={"rollout": None})
    fleet.store.boxes["farm.a"] = (alone, age_s)
    with pytest.raises(RolloutError, match=r"expected a box with fleet\.models\.follow: true"):
        begin(fleet)


def test_one_roll_out_at_a_time(fleet: Fleet) -> None:
    first = begin(fleet)
    assert begin(fleet) == first  # the same words: go on
    with pytest.raises(RolloutError, match="expected none to be under way"):
        fleet.rollout().begin(OLD, MODEL, "model", Terms("farm.b"))


def test_two_who_decide_do_not_decide_twice(fleet: Fleet) -> None:
    begin(fleet)
    fleet.tick()
    rollout = fleet.rollout()
    plan, revision = rollout._read()
    assert plan is not None
    fleet.rollout().step()
    with pytest.raises(NatsError, match="changed by somebody else"):
        rollout._write(plan, revision)


@pytest.mark.parametrize("is_worse", [False, True])
def test_a_kill_at_any_write_changes_nothing(is_worse: bool) -> None:
    def play(fleet: Fleet, writes: int | None) -> RolloutPlan:
        if is_worse:
            fleet.refusing["farm.c"] = "unknown class"
        fleet.store.writes_left = writes
        for _ in range(LIMIT):
            try:
                begun = fleet.rollout().plan() or begin(fleet)
                plan = fleet.rollout().step() or begun
            except KilledError:
                fleet.store.writes_left = None  # somebody starts it again
                continue
            if plan.stage in ("done", "returned"):
                return plan
            fleet.tick()
        raise AssertionError(fleet.said)

    names = ("farm.a", "farm.b", "farm.c", "home.e")
    expected = Fleet(*names)
    end = play(expected, None)
    n_kills = 0
    for n_writes in range(LIMIT):
        fleet = Fleet(*names)
        plan = play(fleet, n_writes)
        assert (plan.stage, fleet.current) == (end.stage, expected.current)
        wanted = {key: fleet.wanted(key) for key in (*names, "new.one")}
        other = {key: expected.wanted(key) for key in (*names, "new.one")}
        assert {k: w and w.content for k, w in wanted.items()} == {
            k: w and w.content for k, w in other.items()
        }
        if fleet.store.writes_left:
            break
        n_kills += 1
    assert n_kills > 10


def test_a_box_that_makes_up_what_it_used_keeps_no_other_from_returning(fleet: Fleet) -> None:
    def made_up() -> None:
        report, age_s = fleet.store.boxes["farm.b"]
        assert report.rollout is not None
        rollout = report.rollout.model_copy(update={"current": "none of yours"})
        fleet.store.boxes["farm.b"] = (report.model_copy(update={"rollout": rollout}), age_s)

    begin(fleet)
    plan = fleet.play(lambda plan: plan.stage == "others")
    made_up()
    while "farm.b" not in plan.boxes:
        plan = fleet.rollout().step() or plan
    fleet.rollout().give_up("it is deaf")
    for _ in range(5):
        fleet.rollout().step()
        fleet.tick()
    assert {key: one for key, one in fleet.current.items() if key != "farm.b"} == dict.fromkeys(
        ("farm.a", "farm.c", "farm.d", "home.e"), OLD
    )


def test_a_plan_that_nobody_could_read_again_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("messages", "fleet"):  # 5000 boxes reach the real limit, and take seconds
        monkeypatch.setattr(f"ast_stream.{module}.rollout.MAX_PLAN_BYTES", MAX_PLAN_BYTES // 16)
    fleet = Fleet("farm.a", *(f"farm.box-{number}" for number in range(5000 // 16)))
    begin(fleet, Terms("farm.a", after_s=60.0, batch=5000, settle_s=10.0))
    with pytest.raises(NatsError, match=r"roll-out of 313 boxes takes .* --site"):
        fleet.play_to_the_end()
    plan = fleet.rollout().give_up("too many")
    assert plan.stage == "returning"


def test_problems_of_a_box_take_little_room_in_the_plan(fleet: Fleet) -> None:
    report, age_s = fleet.store.boxes["farm.a"]
    words = [f"{1000 * chr(97 + number % 26)} {number}" for number in range(200)]
    fleet.store.boxes["farm.a"] = (report.model_copy(update={"problems": words}), age_s)
    begin(fleet)
    plan = fleet.rollout().step()
    assert plan is not None
    assert len(plan.encode()) < 4000


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("rollout", "began_before"), {"x": 10**400}),
        (("rollout", "restarts"), 10**400),
        (("rollout", "before_s"), -1.0),
        (("streams", 0, "heard"), 1e308),
        (("streams", 0, "accounted_s"), -5.0),
        (("streams_total",), -1),
    ],
)
def test_figures_that_nobody_can_reckon_with_are_no_report(
    fleet: Fleet, place: tuple[str | int, ...], value: object
) -> None:
    report, _ = fleet.store.boxes["farm.b"]
    body: Any = json.loads(report.encode())
    there = body
    for key in place[:-1]:
        there = there[key]
    there[place[-1]] = value
    entry = BucketEntry("farm.b", json.dumps(body).encode(), 1, 1.0)
    box = known_boxes([entry])["farm.b"]
    assert box.report is None
    assert box.error is not None
