from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alert_samples import T0_NS, action_settings, firing, state_file, states
from clocks import FakeClock
from mqtt_broker import wait_for

from ast_stream.alerts.actions.base import ActionRunner, Delivered, Failed, Outcome, Undeliverable
from ast_stream.alerts.delivery import (
    DELIVERY_POINTS,
    POLL_EVERY_S,
    DeliveryThread,
    DeliveryThreads,
)
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.notification import Notification
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.store import Store
from ast_stream.messages.alert import Severity

PATIENCE_S = 60.0


class Receiver(ActionRunner):
    """An action that answers as instructed, and notes what it got."""

    def __init__(self, *answers: Outcome | Exception) -> None:
        super().__init__("receiver", None)
        self.got: list[str] = []
        self.has_got = threading.Event()
        self.is_closed = False
        self._answers = list(answers)

    def deliver(self, notification: Notification) -> Outcome:
        self.got.append(notification.id)
        self.has_got.set()
        answer = self._answers.pop(0) if self._answers else Delivered()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.is_closed = True


class HangingReceiver(Receiver):
    """An action that hangs until it is let go; with `ids` only for these."""

    def __init__(self, *ids: str) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self._ids = ids

    def deliver(self, notification: Notification) -> Outcome:
        super().deliver(notification)
        if not self._ids or notification.id in self._ids:
            assert self.let_go.wait(PATIENCE_S)
        return Delivered()


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
    return Outbox(
        store, {"phone": action_settings(), "mail": action_settings()}, clock, lambda: 0.5
    )


def write(store: Store, outbox: Outbox, *ids: str, severity: Severity = "low") -> None:
    with store.transaction() as db:
        outbox.enqueue(db, [firing(id, "phone", "mail", severity=severity) for id in ids])


def test_step_delivers_one_row_and_says_when_to_look_again(store: Store, outbox: Outbox) -> None:
    receiver = Receiver()
    thread = DeliveryThread("phone", receiver, outbox)
    write(store, outbox, "a1", "a2")
    assert [thread.step() for _ in range(3)] == [0.0, 0.0, POLL_EVERY_S]
    assert receiver.got == ["a1.firing", "a2.firing"]


def test_failed_row_is_tried_again_when_its_time_has_come(
    store: Store, outbox: Outbox, clock: FakeClock
) -> None:
    receiver = Receiver(Failed("busy"))
    thread = DeliveryThread("phone", receiver, outbox)
    write(store, outbox, "a1")
    assert [thread.step(), thread.step()] == [0.0, 1.0]
    clock.pass_s(1.0)
    thread.step()
    assert receiver.got == ["a1.firing", "a1.firing"]
    assert states(store)["a1", "firing", "phone"] == "done"


def test_action_that_breaks_is_tried_again_and_its_thread_lives(
    store: Store, outbox: Outbox, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    thread = DeliveryThread("phone", Receiver(ValueError("bug")), outbox)
    write(store, outbox, "a1")
    thread.step()
    assert "action phone failed in a way it should not" in caplog.text
    clock.pass_s(1.0)
    thread.step()
    assert states(store)["a1", "firing", "phone"] == "done"


def test_faults_are_offered_at_every_boundary(store: Store, outbox: Outbox) -> None:
    points: list[str] = []
    thread = DeliveryThread("phone", Receiver(), outbox, points.append)
    write(store, outbox, "a1")
    thread.step()
    assert points == [f"phone {point}" for point in DELIVERY_POINTS]


def test_message_that_hangs_holds_up_no_other_of_its_action(store: Store, outbox: Outbox) -> None:
    hanging = HangingReceiver("a1.firing", "a2.firing")
    deliveries = DeliveryThreads({"phone": hanging}, outbox)
    deliveries.start()
    write(store, outbox, "a1")
    deliveries.wake()
    assert hanging.has_got.wait(PATIENCE_S)
    write(store, outbox, "a3")
    deliveries.wake()
    wait_for(lambda: "a3.firing" in hanging.got, "the other message")
    write(store, outbox, "a2")
    deliveries.wake()
    wait_for(lambda: "a2.firing" in hanging.got, "the second that hangs")
    write(store, outbox, "a4", severity="critical")
    deliveries.wake()
    wait_for(lambda: "a4.firing" in hanging.got, "the urgent message")
    assert states(store)["a1", "firing", "phone"] == "pending"
    hanging.let_go.set()
    deliveries.stop(PATIENCE_S)
    assert hanging.is_closed
    assert sorted(hanging.got) == ["a1.firing", "a2.firing", "a3.firing", "a4.firing"]


def test_threads_of_many_actions_deliver_everything_once(store: Store, clock: FakeClock) -> None:
    names = [f"action{n}" for n in range(4)]
    outbox = Outbox(store, {name: action_settings(max=10_000) for name in names}, clock)
    receivers = {name: Receiver(*[Failed("busy", is_down=True)] * 20) for name in names}
    deliveries = DeliveryThreads(receivers, outbox)
    deliveries.start()
    for n in range(60):
        with store.transaction() as db:
            outbox.enqueue(db, [firing(f"a{n}", *names)])
        deliveries.wake()
    wait_for(lambda: all(len(action.got) >= 60 for action in receivers.values()), "the first tries")
    clock.pass_s(10)
    deliveries.wake()
    wait_for(lambda: sum(outbox.pending()[name] for name in names) == 0, "the rest")
    deliveries.stop(PATIENCE_S)
    for receiver in receivers.values():
        assert len(receiver.got) == 60 + 20
        assert set(receiver.got) == {f"a{n}.firing" for n in range(60)}


def test_feed_is_published_by_one_thread_in_order(store: Store, outbox: Outbox) -> None:
    feed = Receiver()
    deliveries = DeliveryThreads({FEED: feed}, outbox)
    write(store, outbox, *[f"a{n}" for n in range(20)])
    deliveries.start()
    deliveries.stop(PATIENCE_S)
    assert feed.got == [f"a{n}.firing" for n in range(20)]


def test_hanging_action_holds_no_other(store: Store, outbox: Outbox) -> None:
    hanging, mail = HangingReceiver(), Receiver()
    deliveries = DeliveryThreads({"phone": hanging, "mail": mail}, outbox)
    deliveries.start()
    write(store, outbox, "a1")
    deliveries.wake()
    assert hanging.has_got.wait(PATIENCE_S)
    assert mail.has_got.wait(PATIENCE_S)
    deliveries.stop(0.0)
    assert not hanging.is_closed  # it is still at work
    hanging.let_go.set()


def test_stop_delivers_what_is_due_and_closes_the_actions(store: Store, outbox: Outbox) -> None:
    receivers = {"phone": Receiver(), "mail": Receiver(Undeliverable("no"))}
    deliveries = DeliveryThreads(receivers, outbox)
    write(store, outbox, "a1", "a2")
    deliveries.start()
    deliveries.stop(PATIENCE_S)
    assert {"a1.firing", "a2.firing"} <= set(receivers["phone"].got)
    assert all(action.is_closed for action in receivers.values())


def test_actions_that_were_never_started_are_closed(outbox: Outbox) -> None:
    receiver = Receiver()
    DeliveryThreads({"phone": receiver}, outbox).stop(1.0)
    assert receiver.is_closed


def test_full_disk_after_a_delivery_does_not_send_it_again(
    store: Store, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver()
    deliveries = DeliveryThreads({"phone": receiver}, outbox)
    write(store, outbox, "a1")
    with store.reading() as db:
        db.execute("PRAGMA query_only = ON")  # every write fails from here on
    deliveries.start()
    assert receiver.has_got.wait(PATIENCE_S)
    with store.reading() as db:
        db.execute("PRAGMA query_only = OFF")
    deliveries.wake()
    wait_for(lambda: states(store)["a1", "firing", "phone"] == "done", "the outcome")
    deliveries.stop(PATIENCE_S)
    assert states(store)["a1", "firing", "phone"] == "done"
    assert receiver.got == ["a1.firing"]
