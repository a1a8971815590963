from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from feed_worker import Worker, event
from forward_box import wait_until

from ast_stream.feed import Subscriber
from ast_stream.forward.feed_source import FeedSource, lines_after
from ast_stream.forward.source import Cursor, Item
from ast_stream.settings.fleet import BoxIdentity
from ast_stream.settings.forward import Kind

ATTIC = BoxIdentity("home", "attic")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="asf-", dir="/tmp") as path:  # ipc paths are short
        yield Path(path)


def source(
    folder: Path, cursor: Cursor = None, kinds: tuple[Kind, ...] = ("event",), updates: bool = True
) -> FeedSource:
    def subscribe(after: object) -> Subscriber:
        endpoint = f"ipc://{folder}/feed.sock"
        return Subscriber(endpoint, topics=("event/", "gap/"), after=after)  # type: ignore[arg-type]

    log = folder / "events"
    return FeedSource("feed", subscribe, cursor, ATTIC, kinds, updates=updates, log=log)


def read(reader: FeedSource, n_items: int) -> list[Item]:
    found: list[Item] = []

    def is_read() -> bool:
        found.extend(reader.read(n_items - len(found), 0.1))
        return len(found) >= n_items

    wait_until(is_read, f"{n_items} items")
    return found


def ids(items: list[Item]) -> list[str | None]:
    return [None if item.outgoing is None else item.outgoing.id for item in items]


def test_a_source_begins_with_the_oldest_and_goes_on_from_its_position(folder: Path) -> None:
    worker = Worker(folder, "b1")
    try:
        worker.publish(*map(event, range(1, 6)))
        with closing(source(folder)) as reader:
            items = read(reader, 5)
        assert ids(items) == [f"id{n}.begin" for n in range(1, 6)]
        with closing(source(folder, items[2].cursor)) as reader:
            assert ids(read(reader, 2)) == ["id4.begin", "id5.begin"]
            worker.publish(event(6))
            assert ids(read(reader, 1)) == ["id6.begin"]
        assert lines_after(folder / "events", ("b1", items[2].cursor[1])) == 3
        assert lines_after(folder / "events", None) == 6
        assert lines_after(folder / "nothing", None) == 0
    finally:
        worker.close()


def test_what_is_not_wanted_moves_the_position_alone(folder: Path) -> None:
    worker = Worker(folder, "b1")
    try:
        worker.publish(event(1), event(2, "update"), event(3, "end"))
        with closing(source(folder, updates=False)) as reader:
            items = read(reader, 3)
        assert ids(items) == ["id1.begin", None, "id3.end"]
        with closing(source(folder, kinds=("gap",))) as reader:
            assert ids(read(reader, 3)) == [None, None, None]
    finally:
        worker.close()


def test_what_the_log_no_longer_has_is_said_to_be_lost(folder: Path) -> None:
    worker = Worker(folder, "b1")
    try:
        worker.publish(*map(event, range(1, 4)))
        with closing(source(folder)) as reader:
            position = read(reader, 3)[2].cursor
        worker.publish(event(4), arrives=False)
    finally:
        worker.close()
    for path in (folder / "events").glob("events-*"):
        path.unlink()
    worker = Worker(folder, "b2")
    try:
        worker.publish(event(5))
        with closing(source(folder, position)) as reader:
            items = read(reader, 2)
        assert items[0].outgoing is not None
        assert items[0].outgoing.kind == "lost"
        assert items[0].lost is None
        assert ids(items)[1] == "id5.begin"
    finally:
        worker.close()
