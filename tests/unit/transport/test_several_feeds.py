"""Several feeds read as one: in the order of publishing, each from where it was left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feed_worker import Worker, event

from ast_stream.feed import FeedMessage, Position, SeveralFeeds, Subscriber

LONG_S = 60.0


@pytest.fixture
def workers(socket_dir: Path) -> Iterator[dict[str, Worker]]:
    running = {}
    for name in ("one", "two"):
        (socket_dir / name).mkdir()
        running[name] = Worker(socket_dir / name, f"boot-{name}")
    yield running
    for worker in running.values():
        worker.close()


def feeds(folder: Path, after: dict[str, Position] | None = None) -> SeveralFeeds:
    def reader(name: str) -> Subscriber:
        known: Any = "oldest" if after is None else after[name]
        topics = ["event/", "status/"]
        return Subscriber(f"ipc://{folder}/{name}/feed.sock", topics=topics, after=known)

    return SeveralFeeds({name: reader(name) for name in ("one", "two")})


def ids(reader: SeveralFeeds, n_events: int) -> list[str]:
    found: list[str] = []
    end_s = time.monotonic() + LONG_S
    while len(found) < n_events and time.monotonic() < end_s:
        item = reader.receive(0.1)
        if isinstance(item, FeedMessage) and item.kind == "event":
            found.append(item.body["id"])
    return found


def hear_status(reader: SeveralFeeds, *boots: str) -> None:
    """Read on until a status of each has come: before, silence says nothing of a publisher."""
    heard: set[str] = set()
    while not heard >= set(boots):
        item = reader.receive(LONG_S)
        assert isinstance(item, FeedMessage)
        heard |= {item.body["boot"]} if item.kind == "status" else set()


def test_what_waits_on_several_feeds_comes_in_the_order_of_publishing(
    workers: dict[str, Worker], socket_dir: Path
) -> None:
    for n in range(1, 11):
        workers["one" if n % 3 else "two"].publish(event(n))
        time.sleep(0.002)
    with feeds(socket_dir) as reader:
        assert ids(reader, 10) == [f"id{n}" for n in range(1, 11)]
        assert reader.is_publisher_there


def test_each_feed_goes_on_where_it_was_left(workers: dict[str, Worker], socket_dir: Path) -> None:
    for n in range(1, 7):
        workers["one" if n % 2 else "two"].publish(event(n))
    with feeds(socket_dir) as reader:
        first = ids(reader, 3)
        left = reader.position
    workers["two"].publish(event(8))
    with feeds(socket_dir, after=left) as reader:
        second = ids(reader, 4)
    assert sorted(first + second) == sorted(f"id{n}" for n in (1, 2, 3, 4, 5, 6, 8))
    assert {name: boot for name, (boot, _) in left.items()} == {
        "one": "boot-one",
        "two": "boot-two",
    }


def test_no_publisher_is_there_unless_all_are(workers: dict[str, Worker], socket_dir: Path) -> None:
    with feeds(socket_dir) as reader:
        workers["one"].publish(event(1))
        workers["two"].publish(event(2))
        assert len(ids(reader, 2)) == 2
        hear_status(reader, "boot-one", "boot-two")
        assert reader.is_publisher_there
        workers.pop("two").close()
        end_s = time.monotonic() + LONG_S
        while reader.is_publisher_there and time.monotonic() < end_s:
            reader.receive(0.1)
        assert not reader.is_publisher_there
        workers["one"].publish(event(3))
        assert ids(reader, 1) == ["id3"]


def test_stop_ends_waiting(workers: dict[str, Worker], socket_dir: Path) -> None:
    with feeds(socket_dir) as reader:
        reader.stop()
        assert reader.receive() is None
