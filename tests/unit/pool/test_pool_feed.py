"""The feeds of a pool's workers as one: each event once, wherever its stream goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from feed_worker import Worker, event
from sample_messages import EPOCH, STREAM

from ast_stream.feed import FeedAddress, FeedMessage, Subscriber
from ast_stream.messages.pool import Placement
from ast_stream.messages.status import Health
from ast_stream.pool.feed import PoolFeed

LONG_S = 60.0
TOPICS = ("event/", "gap/", "health/", "status/")


class Members:
    """Workers of a pool: who is in it, and who of them is dead."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        self.dead: set[str] = set()

    def start(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def addresses(self) -> Mapping[str, FeedAddress | None]:
        return {
            name: FeedAddress(f"ipc://{self.folder}/{name}/feed.sock", None, None)
            for name in self.names
        }

    def is_lost(self, name: str) -> bool:
        return name in self.dead


class Pool:
    def __init__(self, folder: Path) -> None:
        self.members = Members(folder)
        self.workers: dict[str, Worker] = {}
        self.now_s = 0.0
        self.stands_still = False
        self.feed = PoolFeed(
            self.members,
            lambda address, after: Subscriber(address.feed, topics=TOPICS, after=after or "oldest"),
            {},
            now_s=lambda: self.now_s,
        )

    def start(self, name: str) -> Worker:
        (self.members.folder / name).mkdir(exist_ok=True)
        boot = f"boot-{name}-{len(self.workers)}"
        self.workers[name] = Worker(self.members.folder / name, boot)
        self.members.names.append(name)
        return self.workers[name]

    def read(self) -> FeedMessage | None:
        self.now_s += 0.0 if self.stands_still else 1.0  # it looks for workers again
        item = self.feed.receive(0.0)
        assert item is None or isinstance(item, FeedMessage)
        return item

    def hear_status(self, n_workers: int) -> None:
        """Read on until a status of each has come: before, silence says nothing of a worker."""
        boots: set[str] = set()
        while len(boots) < n_workers:
            (message,) = self.messages("status", 1)
            boots.add(message.body["boot"])

    def events(self, n_events: int) -> list[str]:
        return [one.body["id"] for one in self.messages("event", n_events)]

    def messages(self, kind: str, n_messages: int) -> list[FeedMessage]:
        found: list[FeedMessage] = []
        end_s = time.monotonic() + LONG_S
        while len(found) < n_messages and time.monotonic() < end_s:
            item = self.read()
            if item is None:
                time.sleep(0.01)
            elif item.kind == kind:
                found.append(item)
        return found

    def close(self) -> None:
        self.feed.close()
        for worker in self.workers.values():
            worker.close()


@pytest.fixture
def pool(socket_dir: Path) -> Iterator[Pool]:
    running = Pool(socket_dir)
    yield running
    running.close()


def health(changes: int, state: str = "listening") -> Health:
    placement = Placement(worker="any", changes=changes)
    return Health.model_validate(
        {"stream": STREAM, "epoch": EPOCH, "state": state, "placement": placement}
    )


def test_an_event_that_two_workers_publish_is_given_out_once(pool: Pool) -> None:
    one, two = pool.start("one"), pool.start("two")
    one.publish(event(1))
    assert pool.events(1) == ["id1"]
    two.publish(event(1), event(1, "end"), event(2))  # it took over, and derived the first again
    one.publish(event(1, "end"))  # it had only been stopped
    assert sorted(pool.events(2)) == ["id1", "id2"]
    two.publish(event(3))
    assert pool.events(1) == ["id3"]


def test_workers_that_join_later_are_heard_from_their_first_message(pool: Pool) -> None:
    pool.start("one").publish(event(1))
    assert pool.events(1) == ["id1"]
    pool.start("two").publish(event(2))
    assert pool.events(1) == ["id2"]


def test_a_dead_worker_and_one_that_has_left_do_not_make_the_pool_silent(pool: Pool) -> None:
    one, two = pool.start("one"), pool.start("two")
    one.publish(event(1))
    two.publish(event(2))
    assert len(pool.events(2)) == 2
    pool.hear_status(2)
    assert pool.feed.is_publisher_there
    pool.workers.pop("two").close()
    wait_until(pool, lambda: not pool.feed.is_publisher_there)
    pool.members.dead.add("two")
    assert pool.feed.is_publisher_there
    pool.members.dead.clear()
    pool.members.names.remove("two")
    wait_until(pool, lambda: pool.feed.is_publisher_there)
    pool.members.dead.add("one")
    pool.workers.pop("one").close()
    wait_until(pool, lambda: not pool.feed.is_publisher_there)  # none is left


def test_what_a_late_worker_says_of_an_event_that_has_ended_is_old(pool: Pool) -> None:
    one, two = pool.start("one"), pool.start("two")
    one.publish(event(1))
    assert pool.events(1) == ["id1"]
    two.publish(event(1, "end"))
    assert pool.events(1) == ["id1"]
    one.publish(event(1, "update"), event(2))  # it had been stopped before the other one began
    assert pool.events(1) == ["id2"]


def test_positions_of_other_feeds_are_not_those_of_workers(pool: Pool) -> None:
    folder, known = pool.members.folder, {"@alerts": ("outbox", 3), "": ("b", 1), "one": ("c", 2)}
    feed = PoolFeed(Members(folder), lambda address, after: Subscriber(address.feed), known)
    assert feed.position == {"one": ("c", 2)}
    feed.close()


def test_a_stream_is_asked_about_where_it_is_and_nowhere_while_its_worker_is_silent(
    pool: Pool,
) -> None:
    one, two = pool.start("one"), pool.start("two")
    assert pool.feed.worker_of(STREAM) is None
    assert "listening" in states(pool, "listening", (one, health(changes=0)))
    assert holder(pool) == "one"
    assert "degraded" in states(pool, "degraded", (two, health(changes=1, state="degraded")))
    assert holder(pool) == "two"
    pool.hear_status(2)
    pool.workers.pop("two").close()
    wait_until(pool, lambda: holder(pool) is None)


def holder(pool: Pool) -> str | None:
    found = pool.feed.worker_of(STREAM)
    if found is None:
        return None
    name, address = found
    assert address == pool.members.addresses()[name]
    return name


def test_reading_goes_on_where_it_was_left_for_each_worker(pool: Pool) -> None:
    pool.start("one").publish(event(1))
    pool.start("two").publish(event(2))
    assert sorted(pool.events(2)) == ["id1", "id2"]
    again = Pool(pool.members.folder)
    again.members.names = pool.members.names
    again.feed._given.update(pool.feed.position)
    try:
        pool.workers["two"].publish(event(3))
        assert again.events(1) == ["id3"]
    finally:
        again.close()


def test_how_a_stream_is_says_the_worker_that_has_it(pool: Pool) -> None:
    one, two = pool.start("one"), pool.start("two")
    assert "listening" in states(pool, "listening", (one, health(changes=0)))
    assert "degraded" in states(pool, "degraded", (two, health(changes=1, state="degraded")))
    pool.stands_still = True
    late = (one, health(changes=0, state="missing"))  # it has yet to learn that it lost it
    found = states(pool, "gated", late, (two, health(changes=1, state="gated")))
    assert "gated" in found
    assert "missing" not in found


def states(pool: Pool, wanted: str, *said: tuple[Worker, Health]) -> list[str]:
    """Return what is heard while this is said again and again, until one state is heard."""
    found: list[str] = []
    end_s = time.monotonic() + LONG_S
    while wanted not in found and time.monotonic() < end_s:
        for worker, message in said:
            say(worker, message)
        time.sleep(0.02)
        while (item := pool.read()) is not None:
            if item.kind == "health":
                found.append(item.body["state"])
    return found


def say(worker: Worker, message: Health) -> None:
    with worker.lock:
        worker.publisher.publish(message)


def wait_until(pool: Pool, condition: object) -> None:
    assert callable(condition)
    end_s = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end_s
        pool.read()
        time.sleep(0.02)
