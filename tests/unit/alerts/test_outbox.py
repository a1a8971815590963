from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alert_samples import T0_NS, action_settings, alert, firing, resolved, state_file, states
from clocks import FakeClock

from ast_stream.alerts import outbox as outbox_module
from ast_stream.alerts import outbox_operations as operations
from ast_stream.alerts import outbox_rows
from ast_stream.alerts.actions.base import Delivered, Failed, Undeliverable
from ast_stream.alerts.delivery_schedule import FEED, MAX_PAUSE_S
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.outbox import PRUNE_EVERY_S, SELF_RULE, Delivery, Outbox
from ast_stream.alerts.store import Store, StoreError, save_progress
from ast_stream.errors import UsageError

ACTIONS = {
    "phone": action_settings(max=1_000),
    "pager": action_settings("firing"),
    "mail": action_settings(),
}
HALF = 0.5  # what the jitter always is here


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(T0_NS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(state_file(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def outbox(store: Store, clock: FakeClock) -> Outbox:
    return Outbox(store, ACTIONS, clock, lambda: HALF)


@pytest.fixture
def write(store: Store, outbox: Outbox) -> Callable[..., None]:
    def enqueue(*transitions: Transition) -> None:
        with store.transaction() as db:
            outbox.enqueue(db, transitions)

    return enqueue


def taken(outbox: Outbox, action: str) -> Delivery:
    found = outbox.next_delivery(action)
    assert isinstance(found, Delivery)
    return found


def deliver(outbox: Outbox, action: str, outcome: Delivered | Failed | Undeliverable) -> Delivery:
    delivery = taken(outbox, action)
    outbox.settle(delivery, outcome)
    return delivery


Write = Callable[..., None]


def test_transition_state_position_and_deliveries_are_one_transaction(
    store: Store, outbox: Outbox
) -> None:
    def fail_at_the_end() -> None:
        with store.transaction() as db:
            save_progress(db, {"x": 1}, ("b", 1))
            outbox.enqueue(db, [firing("a1", "phone")])
            raise KeyError("a fault at the end")

    with pytest.raises(KeyError, match="a fault at the end"):
        fail_at_the_end()
    assert states(store) == {}
    assert store.position() is None


def test_firing_goes_to_the_actions_of_the_rule_and_to_the_feed(store: Store, write: Write) -> None:
    write(firing("a1", "phone", "pager"))
    assert states(store) == {
        ("a1", "firing", FEED): "pending",
        ("a1", "firing", "phone"): "pending",
        ("a1", "firing", "pager"): "pending",
    }


def test_action_gets_only_the_kinds_it_is_on_for(store: Store, write: Write) -> None:
    write(resolved("a1", "phone", "pager"))
    assert set(states(store)) == {("a1", "resolved", FEED), ("a1", "resolved", "phone")}


@pytest.mark.parametrize(
    ("before", "after"),
    [("inactive", "pending"), ("recovering", "firing"), ("pending", "inactive")],
)
def test_transitions_within_the_engine_are_not_announced(
    store: Store, write: Write, before: str, after: str
) -> None:
    write(Transition(alert(state=after), before, after, 0, ("phone",)))  # type: ignore[arg-type]
    assert states(store) == {}


def test_same_transition_twice_is_one_delivery_with_the_same_id(
    store: Store, outbox: Outbox, write: Write
) -> None:
    write(firing("a1", "phone"))
    first = deliver(outbox, "phone", Delivered())
    write(firing("a1", "phone"))
    assert outbox.next_delivery("phone") is None
    assert first.notification.id == "a1.firing"
    assert states(store)["a1", "firing", "phone"] == "done"


def test_failed_delivery_waits_with_full_jitter_and_keeps_its_id(
    outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone", severity="critical"))
    ids = []
    waits = []
    for _ in range(7):
        ids.append(deliver(outbox, "phone", Failed("busy")).notification.id)
        wait_s = outbox.next_delivery("phone")
        assert isinstance(wait_s, float)
        waits.append(wait_s)
        clock.pass_s(wait_s)
    assert waits == [1.0, 5.0, 30.0, 150.0, 450.0, 1800.0, 1800.0]
    assert set(ids) == {"a1.firing"}


def test_receiver_may_ask_for_a_longer_pause(outbox: Outbox, write: Write) -> None:
    write(firing("a1", "phone"))
    deliver(outbox, "phone", Failed("busy", after_s=120.0))
    assert outbox.next_delivery("phone") == 120.0


def test_row_that_fails_holds_up_no_other_alert_of_its_action(
    outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("poison", "phone", severity="low"))
    deliver(outbox, "phone", Failed("the receiver answered 500"))
    write(firing("a2", "phone", severity="low"), firing("a3", "phone", severity="critical"))
    assert deliver(outbox, "phone", Delivered()).notification.id == "a3.firing"
    assert deliver(outbox, "phone", Delivered()).notification.id == "a2.firing"
    assert (
        outbox.next_delivery("phone") == 1.0
    )  # nobody else's success shortens the wait of the poison
    clock.pass_s(1.0)
    assert taken(outbox, "phone").notification.id == "poison.firing"


def test_most_severe_goes_first_and_what_was_never_tried_before_what_failed(
    outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    severities = ("low", "critical", "informational", "high", "medium")
    write(*[firing(severity, "phone", severity=severity) for severity in severities])  # type: ignore[arg-type]
    deliver(outbox, "phone", Failed("busy"))
    write(firing("second", "phone", severity="critical"))
    clock.pass_s(1.0)
    order = [deliver(outbox, "phone", Delivered()).notification.alert.id for _ in range(6)]
    assert order == ["second", "critical", "high", "medium", "low", "informational"]


def test_feed_gets_alerts_in_the_order_of_their_transitions(outbox: Outbox, write: Write) -> None:
    write(firing("a1", severity="low"), firing("a2", severity="critical"))
    order = [deliver(outbox, FEED, Delivered()).notification.alert.id for _ in range(2)]
    assert order == ["a1", "a2"]


def test_resolve_waits_for_a_firing_that_is_in_flight_and_others_do_not(
    outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    under_way = taken(outbox, "phone")
    write(resolved("a1", "phone"), firing("a2", "phone"))
    assert deliver(outbox, "phone", Delivered()).notification.id == "a2.firing"
    assert outbox.next_delivery("phone") is None
    outbox.settle(under_way, Failed("busy"))
    assert outbox.next_delivery("phone") == 1.0
    clock.pass_s(1.0)
    notifications = [deliver(outbox, "phone", Delivered()).notification for _ in range(2)]
    assert [(notification.id, notification.combined) for notification in notifications] == [
        ("a1.firing", False),
        ("a1.resolved", False),
    ]


def test_row_that_is_in_flight_is_taken_by_nobody_else(outbox: Outbox, write: Write) -> None:
    write(firing("a1", "phone"), firing("a2", "phone"))
    assert {taken(outbox, "phone").seq, taken(outbox, "phone").seq} == {2, 4}
    assert outbox.next_delivery("phone") is None


def test_thread_for_urgent_alerts_delivers_nothing_less_severe(
    outbox: Outbox, write: Write
) -> None:
    write(firing("a1", "phone", severity="medium"))
    assert outbox.next_delivery("phone", urgent_only=True) is None
    write(firing("a2", "phone", severity="high"))
    found = outbox.next_delivery("phone", urgent_only=True)
    assert isinstance(found, Delivery)
    assert found.notification.id == "a2.firing"


def test_pause_that_a_receiver_asks_for_holds_for_all_but_not_for_long(
    outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"), firing("a2", "phone"))
    deliver(outbox, "phone", Failed("429", after_s=1200.0))
    assert outbox.next_delivery("phone") == MAX_PAUSE_S
    clock.pass_s(MAX_PAUSE_S)
    assert deliver(outbox, "phone", Delivered()).notification.id == "a2.firing"
    assert outbox.next_delivery("phone") == 1200.0 - MAX_PAUSE_S


def test_what_could_not_get_there_is_tried_at_once_when_something_does(
    outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone", severity="critical"), firing("a2", "phone", severity="critical"))
    for _ in range(4):
        for _ in range(2):
            deliver(outbox, "phone", Failed("no connection", is_down=True))
        wait_s = outbox.next_delivery("phone")
        assert isinstance(wait_s, float)
        clock.pass_s(wait_s)
    deliver(outbox, "phone", Failed("no connection", is_down=True))
    deliver(outbox, "phone", Delivered())
    assert isinstance(outbox.next_delivery("phone"), Delivery)


def test_clock_that_is_put_back_holds_up_nothing(store: Store, clock: FakeClock) -> None:
    outbox = Outbox(store, {"phone": action_settings(max=1)}, clock, lambda: HALF)
    with store.transaction() as db:
        outbox.enqueue(db, [firing("a1", "phone"), firing("a2", "phone")])
    deliver(outbox, "phone", Delivered())
    clock.pass_s(60)
    deliver(outbox, "phone", Failed("busy"))
    clock.pass_s(-7200)
    assert taken(outbox, "phone").notification.id == "a2.firing"


def test_failing_action_holds_no_other(outbox: Outbox, write: Write) -> None:
    write(firing("a1", "phone", "mail"))
    deliver(outbox, "phone", Failed("busy"))
    assert taken(outbox, "mail").notification.id == "a1.firing"


@pytest.mark.parametrize(("severity", "hours"), [("low", 1), ("high", 6), ("critical", 24)])
def test_delivery_expires_by_severity_and_another_action_reports_it(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write, severity: str, hours: int
) -> None:
    write(firing("a1", "phone", severity=severity))  # type: ignore[arg-type]
    clock.pass_s(hours * 3600 - 1)
    outbox.expire("phone")
    assert states(store)["a1", "firing", "phone"] == "pending"
    clock.pass_s(1)
    assert outbox.next_delivery("phone") is None
    outbox.expire("phone")
    assert states(store)["a1", "firing", "phone"] == "expired"
    assert taken(outbox, "pager").notification.alert.rule == SELF_RULE


def test_refused_delivery_is_dead_and_the_next_action_reports_it(
    store: Store, outbox: Outbox, write: Write
) -> None:
    write(firing("a1", "phone"))
    deliver(outbox, "phone", Undeliverable("the receiver answered 404"))
    assert states(store)["a1", "firing", "phone"] == "dead"
    message = taken(outbox, "pager").notification
    assert message.text == (
        "[medium] dog: not delivered by phone: the receiver answered 404; "
        "see ast-stream outbox list"
    )
    assert {key[2] for key in states(store) if key[0] == message.alert.id} == {FEED, "pager"}


def test_actions_that_all_fail_do_not_raise_alarms_without_end(
    store: Store, outbox: Outbox, write: Write
) -> None:
    write(firing("a1", "phone"))
    n_sent = 0
    for _ in range(20):
        for action in ACTIONS:
            if isinstance(delivery := outbox.next_delivery(action), Delivery):
                outbox.settle(delivery, Undeliverable("no"))
                n_sent += 1
    assert n_sent == 4  # the alert, and one alarm for each of three actions
    assert {state for (_, _, action), state in states(store).items() if action != FEED} == {"dead"}


def test_receiver_that_is_gone_gets_nothing_more_until_its_settings_change(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"), firing("a2", "phone"))
    deliver(outbox, "phone", Undeliverable("410", is_closed=True))
    write(firing("a3", "phone"))
    assert outbox.next_delivery("phone") is None
    assert [states(store)[id, "firing", "phone"] for id in ("a1", "a2", "a3")] == ["dead"] * 3
    outbox.recover()
    write(firing("a4", "phone"))
    assert outbox.next_delivery("phone") is None
    changed = Outbox(store, ACTIONS | {"phone": action_settings(max=2_000)}, clock)
    changed.recover()
    write(firing("a5", "phone"))
    assert taken(changed, "phone").notification.id == "a5.firing"


def test_resolve_stands_for_a_firing_that_was_not_delivered(
    store: Store, outbox: Outbox, write: Write
) -> None:
    write(firing("a1", "phone"))
    write(resolved("a1", "phone"))
    message = deliver(outbox, "phone", Delivered()).notification
    assert (message.id, message.combined) == ("a1.resolved", True)
    assert outbox.next_delivery("phone") is None
    assert states(store)["a1", "firing", "phone"] == "superseded"


def test_resolve_comes_after_a_firing_that_is_in_flight(outbox: Outbox, write: Write) -> None:
    write(firing("a1", "phone"))
    under_way = taken(outbox, "phone")
    write(resolved("a1", "phone"))
    outbox.settle(under_way, Delivered())
    message = taken(outbox, "phone").notification
    assert (message.id, message.combined) == ("a1.resolved", False)


def test_firing_stays_for_an_action_that_does_not_deliver_resolutions(
    outbox: Outbox, write: Write
) -> None:
    write(firing("a1", "pager"))
    write(resolved("a1", "pager"))
    assert taken(outbox, "pager").notification.id == "a1.firing"


def test_rate_limit_lets_more_wait(store: Store, clock: FakeClock) -> None:
    outbox = Outbox(store, {"phone": action_settings(max=2)}, clock)
    with store.transaction() as db:
        outbox.enqueue(db, [firing(f"a{n}", "phone") for n in range(3)])
    deliver(outbox, "phone", Delivered())
    clock.pass_s(10)
    deliver(outbox, "phone", Delivered())
    assert outbox.next_delivery("phone") == 50.0
    clock.pass_s(50)
    assert taken(outbox, "phone").notification.id == "a2.firing"


def test_rate_limit_counts_what_is_under_way(store: Store, clock: FakeClock) -> None:
    outbox = Outbox(store, {"phone": action_settings(max=2)}, clock)
    with store.transaction() as db:
        outbox.enqueue(db, [firing(f"a{n}", "phone") for n in range(4)])
    first, second = taken(outbox, "phone"), taken(outbox, "phone")
    assert outbox.next_delivery("phone") == 60.0
    outbox.settle(first, Delivered())
    assert outbox.next_delivery("phone") == 60.0
    outbox.settle(second, Undeliverable("no"))  # it was a request, like one that succeeded
    assert outbox.next_delivery("phone") == 60.0
    clock.pass_s(60)
    assert taken(outbox, "phone").notification.id == "a2.firing"


def test_receiver_that_refuses_everything_is_not_flooded(store: Store, clock: FakeClock) -> None:
    outbox = Outbox(store, {"phone": action_settings(max=3)}, clock, lambda: HALF)
    with store.transaction() as db:
        outbox.enqueue(db, [firing(f"a{n}", "phone") for n in range(20)])
    n_requests = 0
    for _ in range(120):
        clock.pass_s(1)
        while isinstance(found := outbox.next_delivery("phone"), Delivery):
            outbox.settle(found, Failed("the receiver answered 500"))
            n_requests += 1
    assert n_requests == 6


def test_effort_of_taking_grows_with_what_waits_and_not_with_its_square(
    store: Store, outbox: Outbox, write: Write
) -> None:
    n_rows, steps = 1000, [0]
    write(*[firing(f"a{n}", "phone") for n in range(n_rows)])

    def count() -> int:
        steps[0] += 1000
        return 0

    with store.reading() as db:
        db.set_progress_handler(count, 1000)  # every 1000 steps of the database's machine
        taken(outbox, "phone")
        db.set_progress_handler(None, 0)
    assert n_rows < steps[0] < 200 * n_rows


def test_row_of_another_version_is_dead_and_holds_up_nobody(
    store: Store, outbox: Outbox, write: Write
) -> None:
    write(firing("odd", "phone"), firing("a2", "phone"))
    with store.transaction() as db:
        db.execute("UPDATE deliveries SET payload = X'7B7D' WHERE alert_id = 'odd'")
    assert outbox.next_delivery("phone") == 0.0
    assert taken(outbox, "phone").notification.id == "a2.firing"
    assert states(store)["odd", "firing", "phone"] == "dead"
    message = taken(outbox, "pager").notification.text
    assert message.startswith("[medium] dog: not delivered by phone: unknown to this version")


def test_taken_row_goes_out_again_after_a_kill(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    before = taken(outbox, "phone")
    after = taken(Outbox(store, ACTIONS, clock), "phone")
    assert after.notification == before.notification


def test_full_disk_keeps_nothing_from_going_out(store: Store, outbox: Outbox, write: Write) -> None:
    write(firing("a1", "phone"))
    with store.reading() as db:
        db.execute("PRAGMA query_only = ON")  # every write fails from here on
    delivery = taken(outbox, "phone")
    with pytest.raises(StoreError, match="readonly database"):
        outbox.settle(delivery, Delivered())
    with store.reading() as db:
        db.execute("PRAGMA query_only = OFF")
    outbox.settle(delivery, Delivered())
    assert states(store)["a1", "firing", "phone"] == "done"


def test_rows_of_an_action_that_is_configured_no_more_die(
    store: Store, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    Outbox(store, {}, clock).recover()
    assert states(store)["a1", "firing", "phone"] == "dead"


def test_old_rows_are_forgotten_but_never_those_of_an_alert_that_fires(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("old", "phone"), firing("lasting", "phone"))
    for _ in range(2):
        deliver(outbox, "phone", Delivered())
    write(resolved("old", "phone"))
    deliver(outbox, "phone", Delivered())
    for _ in range(3):
        deliver(outbox, FEED, Delivered())
    clock.pass_s(31 * 86400)
    outbox.expire("mail")  # which checks every few seconds, for as long as the process runs
    assert {key[0] for key in states(store)} == {"lasting"}


def test_nothing_of_what_is_forgotten_stays_in_the_files(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    def traces() -> int:
        return sum(
            file.read_bytes().count(b"secret-")
            for file in store.path.parent.iterdir()
            if file.name.startswith(store.path.name)
        )

    for n in range(100):
        write(firing(f"secret-{n}", "phone"))
    for n in range(100):
        deliver(outbox, "phone", Delivered())
        write(resolved(f"secret-{n}", "phone"))
        deliver(outbox, "phone", Delivered())
        for _ in range(2):
            deliver(outbox, FEED, Delivered())
    clock.pass_s(31 * 86400)
    assert traces() > 0
    outbox.expire("mail")
    assert states(store) == {}
    assert traces() == 0


def test_rows_that_are_over_are_bounded_and_forgotten_in_batches(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_rows, "PRUNE_BATCH", 10)
    with store.reading() as db:
        max_bytes = outbox_rows.used_bytes(db) + 64 * 1024
    outbox = Outbox(store, ACTIONS, clock, lambda: HALF, max_bytes=max_bytes)
    with store.transaction() as db:
        outbox.enqueue(db, [firing("lasting", "phone")])
        for n in range(100):
            outbox.enqueue(db, [firing(f"a{n}", "phone", severity="critical"), resolved(f"a{n}")])
        outbox.enqueue(db, [firing("waiting", "mail")])
    for action in ("phone", FEED):
        while isinstance(found := outbox.next_delivery(action), Delivery):
            outbox.settle(found, Delivered())
    counts = []
    for _ in range(40):
        outbox.expire("phone")
        counts.append(len(states(store)))
        clock.pass_s(PRUNE_EVERY_S)
    assert counts[0] - counts[1] <= 10, "a batch at a time"
    assert 4 < counts[-1] == counts[-2], "no more than has to go"
    with store.reading() as db:
        assert outbox_rows.used_bytes(db) <= max_bytes
    assert states(store)["lasting", "firing", "phone"] == "done"
    assert states(store)["waiting", "firing", "mail"] == "pending"
    assert ("a99", "firing", "phone") in states(store), "the newest"
    assert ("a0", "firing", "phone") not in states(store), "the oldest"


def test_too_many_that_wait_are_dropped_the_least_severe_and_oldest_first(
    store: Store, outbox: Outbox, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_PENDING", 3)
    write(firing("a1", "phone", severity="critical"), firing("a2", "phone", severity="low"))
    write(firing("a3", "phone"), firing("a4", "phone"))
    write(firing("a5", "phone"), firing("a6", "phone", severity="high"))
    phone = {key[0]: state for key, state in states(store).items() if key[2] == "phone"}
    assert [id for id, state in phone.items() if state == "pending"] == ["a1", "a5", "a6"]
    assert [id for id, state in phone.items() if state == "dropped"] == ["a2", "a3", "a4"]
    assert "more than 3 deliveries wait" in taken(outbox, "pager").notification.text


def test_alarm_of_a_lost_delivery_can_be_acknowledged(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    deliver(outbox, "phone", Undeliverable("no"))
    (alarm,) = operations.rows(store, ["pending"], "pager")
    assert operations.acknowledge(store, alarm.alert_id, clock(), "someone") == 1
    assert outbox.next_delivery("pager") is None


def test_row_that_is_in_flight_does_not_expire(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    delivery = taken(outbox, "phone")
    clock.pass_s(3600)
    outbox.expire("phone")
    outbox.settle(delivery, Delivered())
    assert states(store)["a1", "firing", "phone"] == "done"
    assert outbox.next_delivery("pager") is None


def test_snoozed_rule_is_announced_when_the_time_is_over_and_it_still_fires(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + 7200 * 10**9, clock())
    write(firing("a1", "phone"))
    assert outbox.next_delivery("phone") == 7200.0
    assert taken(outbox, FEED).notification.id == "a1.firing"
    clock.pass_s(7200)
    outbox.expire("phone")
    assert taken(outbox, "phone").notification.id == "a1.firing"


def test_alert_that_begins_and_ends_while_snoozed_is_not_announced(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + 7200 * 10**9, clock())
    write(firing("a1", "phone"))
    write(resolved("a1", "phone"))
    clock.pass_s(7200)
    assert outbox.next_delivery("phone") is None
    assert states(store)["a1", "firing", "phone"] == "snoozed"
    assert states(store)["a1", "resolved", "phone"] == "snoozed"


HOUR_NS = 3600 * 10**9


def test_action_that_delivers_no_resolutions_gets_after_a_snooze_only_what_still_fires(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + HOUR_NS, clock())
    for n in range(20):
        write(firing(f"a{n}", "pager"))
        write(resolved(f"a{n}", "pager"))
    write(firing("still", "pager"))
    clock.pass_s(3600)
    outbox.expire("pager")
    assert deliver(outbox, "pager", Delivered()).notification.id == "still.firing"
    assert outbox.next_delivery("pager") is None


def test_alert_that_is_acknowledged_and_ends_while_snoozed_is_not_announced(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + HOUR_NS, clock())
    write(firing("a1", "phone"))
    operations.acknowledge(store, "a1", clock(), "someone")
    write(resolved("a1", "phone"))
    clock.pass_s(3600)
    assert outbox.next_delivery("phone") is None


def test_end_of_what_was_announced_before_a_snooze_is_announced_after_it(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    deliver(outbox, "phone", Delivered())
    operations.snooze(store, "dog", clock() + HOUR_NS, clock())
    write(resolved("a1", "phone"))
    assert outbox.next_delivery("phone") == 3600.0
    clock.pass_s(3600)
    assert taken(outbox, "phone").notification.id == "a1.resolved"


def test_action_for_ends_alone_gets_nothing_of_what_began_and_ended_while_snoozed(
    store: Store, clock: FakeClock
) -> None:
    outbox = Outbox(store, {"tick": action_settings("resolved")}, clock)

    def write(*transitions: Transition) -> None:
        with store.transaction() as db:
            outbox.enqueue(db, transitions)

    write(firing("before", "tick"))
    clock.pass_s(1)
    operations.snooze(store, "dog", clock() + HOUR_NS, clock())
    write(firing("within", "tick"), resolved("within", "tick"), resolved("before", "tick"))
    clock.pass_s(3600)
    assert deliver(outbox, "tick", Delivered()).notification.id == "before.resolved"
    assert outbox.next_delivery("tick") is None


def test_what_was_held_for_an_action_the_rule_no_longer_has_is_not_delivered_after_its_end(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + HOUR_NS, clock())
    write(firing("a1", "phone"))
    write(resolved("a1", "mail"))
    clock.pass_s(3600)
    assert (outbox.next_delivery("phone"), outbox.next_delivery("mail")) == (None, None)


def test_what_a_snooze_held_back_waits_until_it_is_known_whether_it_still_fires(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + 60 * 10**9, clock())
    write(firing("a1", "phone"), firing("a2", "phone"))
    clock.pass_s(3600)  # nobody evaluated anything meanwhile
    outbox.evaluated_ns = clock() - 3590 * 10**9
    outbox.expire("phone")
    wait_s = outbox.next_delivery("phone")
    assert isinstance(wait_s, float)
    assert wait_s > 0
    write(resolved("a1", "phone"))  # it ended a second after it began, as is known only now
    outbox.evaluated_ns = clock()
    assert deliver(outbox, "phone", Delivered()).notification.id == "a2.firing"
    assert outbox.next_delivery("phone") is None


def test_what_began_while_snoozed_and_is_evaluated_late_is_held_back_all_the_same(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + 60 * 10**9, clock())
    clock.pass_s(3600)
    outbox.evaluated_ns = clock() - 3600 * 10**9
    outbox.expire("phone")  # forgets what is over
    write(firing("a1", "pager"))
    write(resolved("a1", "pager"))
    outbox.evaluated_ns = clock()
    assert outbox.next_delivery("pager") is None


def test_snooze_that_is_ended_early_lets_out_only_what_still_fires(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + HOUR_NS, clock())
    write(firing("a1", "pager"), firing("a2", "pager"))
    write(resolved("a1", "pager"))
    clock.pass_s(60)
    assert operations.snooze(store, "dog", clock(), clock()) == 1
    assert deliver(outbox, "pager", Delivered()).notification.id == "a2.firing"
    assert outbox.next_delivery("pager") is None
    write(firing("a3", "pager"))
    assert taken(outbox, "pager").notification.id == "a3.firing"


def test_alarms_of_lost_deliveries_do_not_come_in_a_burst_after_their_snooze(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, SELF_RULE, clock() + 3 * HOUR_NS, clock())
    for n in range(3):
        write(firing(f"a{n}", "phone"))
        deliver(outbox, "phone", Undeliverable("404"))
        clock.pass_s(3600)
    assert outbox.next_delivery("pager") is None


def test_alerts_that_nobody_follows_any_more_are_resolved(
    store: Store, outbox: Outbox, write: Write
) -> None:
    write(firing("a1", "phone", "pager"), firing("a2", "phone"))
    deliver(outbox, "phone", Delivered())
    with store.transaction() as db:
        outbox.end_unknown(db, {"a2"})
    notifications = [deliver(outbox, "phone", Delivered()).notification for _ in range(2)]
    assert [notification.id for notification in notifications] == ["a2.firing", "a1.resolved"]
    assert notifications[1].alert.reason == "restart"


def test_snooze_holds_back_what_waits_and_lets_other_rules_pass(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    assert operations.snooze(store, "dog", clock() + 60 * 10**9, clock()) == 1
    cat = alert("c1", rule="cat")
    write(Transition(cat, "inactive", "firing", 0, ("phone",)))
    assert deliver(outbox, "phone", Delivered()).notification.alert.rule == "cat"
    assert outbox.next_delivery("phone") == 60.0
    assert operations.snoozes(store, clock()) == [("dog", clock() + 60 * 10**9)]


def test_snooze_of_no_length_ends_one(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    operations.snooze(store, "dog", clock() + 60 * 10**9, clock())
    write(firing("a1", "phone"))
    assert operations.snooze(store, "dog", clock(), clock()) == 1
    assert taken(outbox, "phone").notification.id == "a1.firing"
    assert operations.snoozes(store, clock()) == []


def test_snooze_that_is_ended_leaves_a_delivery_the_time_to_expire_that_it_had(
    store: Store, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    (before,) = operations.rows(store, action="phone")
    rule = before.rule
    year_ns = 366 * 86_400 * 10**9
    for _ in range(300):
        operations.snooze(store, rule, clock() + year_ns, clock())
        operations.snooze(store, rule, clock() + 60 * 10**9, clock())
        clock.pass_s(1)
        operations.snooze(store, rule, clock(), clock())
    (after,) = operations.rows(store, action="phone")
    assert after.expires_ns == before.expires_ns + 300 * 10**9  # what it was held back for


def test_acknowledged_alert_is_not_sent_again_but_its_end_is(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("abc1", "phone", "mail"), firing("abd2", "phone"))
    assert operations.acknowledge(store, "abc", clock(), "someone") == 2
    assert deliver(outbox, "phone", Delivered()).notification.alert.id == "abd2"
    write(resolved("abc1", "phone"))
    message = taken(outbox, "phone").notification
    assert (message.id, message.combined) == ("abc1.resolved", False)


@pytest.mark.parametrize(
    ("start", "got"), [("ab", "'ab', which 2 begin with"), ("x", "unknown 'x'")]
)
def test_acknowledging_needs_one_alert(
    store: Store, clock: FakeClock, write: Write, start: str, got: str
) -> None:
    write(firing("abc1"), firing("abd2"))
    with pytest.raises(UsageError, match=f"expected the id of one alert, got {got}"):
        operations.acknowledge(store, start, clock(), "someone")


def test_dead_row_can_be_tried_again_and_its_receiver_is_open_again(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    dead = deliver(outbox, "phone", Undeliverable("410", is_closed=True))
    clock.pass_s(90_000)
    assert operations.retry(store, [dead.seq], clock()) == 1
    assert deliver(outbox, "phone", Delivered()).notification.id == "a1.firing"
    write(firing("a2", "phone"))
    assert taken(outbox, "phone").notification.id == "a2.firing"


def test_pending_row_can_be_dropped_by_its_number_only_while_it_waits(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    (row,) = operations.rows(store, ["pending"], "phone")
    assert operations.drop(store, [row.seq], clock()) == 1
    assert outbox.next_delivery("phone") is None
    with pytest.raises(UsageError, match=f"expected deliveries that are pending, got {row.seq}"):
        operations.drop(store, [row.seq], clock())


def test_rows_are_listed_newest_first_by_state_and_action(
    store: Store, outbox: Outbox, write: Write
) -> None:
    write(firing("a1", "phone"), firing("a2", "phone", "mail"))
    deliver(outbox, "phone", Failed("busy"))
    rows = operations.rows(store, action="phone")
    assert [(row.alert_id, row.attempts, row.last_error) for row in rows] == [
        ("a2", 0, None),
        ("a1", 1, "busy"),
    ]
    assert len(operations.rows(store, ["pending"])) == 5
    assert len(operations.rows(store, limit=2)) == 2
    with pytest.raises(UsageError, match="state: expected one of pending, done"):
        operations.rows(store, ["gone"])


def test_action_that_fails_is_named_with_what_waits_and_why(
    store: Store, outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone", "mail"), firing("a2", "phone"))
    assert outbox.failing() == []
    for _ in range(4):
        deliver(outbox, "phone", Failed("no answer\x1b[31m"))
        clock.pass_s(300)
    (failing,) = outbox.failing()
    assert (failing.action, failing.waiting, failing.lost) == ("phone", 2, False)
    assert failing.text == (
        "alerts are not delivered by phone: 2 alerts wait after up to 3 attempts: no answer [31m"
    )
    assert outbox.attempts == {("phone", "failed"): 4}
    for _ in range(2):
        deliver(outbox, "phone", Delivered())
    assert outbox.failing() == []


def test_action_whose_last_alert_was_given_up_fails_until_one_gets_through(
    outbox: Outbox, clock: FakeClock, write: Write
) -> None:
    write(firing("a1", "phone"))
    deliver(outbox, "phone", Undeliverable("the receiver answered 404"))
    (failing,) = outbox.failing()
    assert failing.text == (
        "alerts are not delivered by phone: the last one was given up: the receiver answered 404"
    )
    write(firing("a2", "mail"))
    clock.pass_s(3700)
    outbox.expire("mail")
    assert [failure.action for failure in outbox.failing()] == ["phone", "mail"]
    write(firing("a3", "phone"))
    deliver(outbox, "phone", Delivered())
    assert [failure.action for failure in outbox.failing()] == ["mail"]
