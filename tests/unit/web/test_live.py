"""The feeds as browsers get them: once, in bounded queues, and nothing missed by a reconnect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from alert_samples import alert
from feed_worker import Worker, event
from sample_messages import gap_message, health

from ast_stream.feed import FeedAddress, Subscriber
from ast_stream.messages.event import Position
from ast_stream.messages.spectrogram import SpectrogramHeader
from ast_stream.pool.feed import PoolFeed
from ast_stream.units import N_MELS
from ast_stream.web.browser_queue import BrowserMessage, BrowserQueue
from ast_stream.web.live import KEPT_TOPICS, PICTURE_TOPICS, LiveHub
from ast_stream.web.pool_reading import PoolReading

PATIENCE_S = 60.0
LEVELS = np.ones((10, N_MELS), dtype=np.uint8)


@pytest.fixture
def worker(socket_dir: Path) -> Iterator[Worker]:
    running = Worker(socket_dir, "boot1")
    yield running
    running.close()


@asynccontextmanager
async def hub_of(folder: Path) -> AsyncIterator[LiveHub]:
    """Give a hub that hears the worker."""
    feed = FeedAddress(f"ipc://{folder}/feed.sock", f"ipc://{folder}/query.sock")
    async with running(LiveHub({"worker": feed}, ("Bark", "Siren"))) as hub:
        yield hub


@asynccontextmanager
async def running(hub: LiveHub) -> AsyncIterator[LiveHub]:
    """Give a hub as soon as it hears the worker."""
    hub.start(asyncio.get_running_loop())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not hub.place:
                await asyncio.sleep(0.01)
        yield hub
    finally:
        await asyncio.to_thread(hub.stop)


def picture() -> SpectrogramHeader:
    """Return the header of a tenth of a second of the porch."""
    return SpectrogramHeader(stream="porch", epoch="e", start_sample=0, time_ns=0, frames=10)


class Browser:
    """Reads an event stream as a browser does."""

    def __init__(self, hub: LiveHub, last_id: str | None = None) -> None:
        self.last_id = last_id
        self._stream = hub.event_stream(last_id)

    async def next(self) -> tuple[str, dict[str, Any]]:
        """Return name and body of the next event that is no health and no status."""
        while True:
            async with asyncio.timeout(PATIENCE_S):
                text = await anext(self._stream)
            fields = dict(line.split(": ", 1) for line in text.strip().splitlines())
            if "id" in fields:
                self.last_id = fields["id"]
            if "event" in fields and fields["event"] not in ("health", "status"):
                return fields["event"], json.loads(fields["data"])

    async def ids(self, count: int) -> list[str]:
        """Return the ids of the next events."""
        return [(await self.next())[1]["id"] for _ in range(count)]

    async def ids_until_the_end(self) -> list[str]:
        """Return the ids of all events until the connection is ended."""
        found: list[str] = []
        with suppress(StopAsyncIteration):
            while True:
                found += await self.ids(1)
        return found

    async def close(self) -> None:
        """Go away."""
        await self._stream.aclose()  # type: ignore[attr-defined]


def test_a_browser_hears_what_happens(worker: Worker, socket_dir: Path) -> None:
    async def run() -> None:
        async with hub_of(socket_dir) as hub:
            browser = Browser(hub)
            assert await browser.next() == ("hello", {})
            worker.publish(event(1))
            with worker.lock:  # its thread publishes as well
                worker.publisher.publish(health(lag_s=0.5))
                worker.publisher.publish(gap_message())
            name, body = await browser.next()
            assert (name, body["id"], body["boot"]) == ("event", "id1", "boot1")
            assert browser.last_id == f"boot1:{body['seq']}"
            assert (await browser.next())[0] == "gap"
            assert set(hub.open_events) == {"id1"}
            assert hub.health["porch"]["lag_s"] == 0.5
            worker.publish(event(2, "end").model_copy(update={"id": "id1"}))
            await browser.next()
            assert hub.open_events == {}
            await browser.close()
            assert hub.viewers == {"events": 0, "pictures": 0}

    asyncio.run(run())


def test_a_browser_that_was_away_gets_what_it_missed_once(worker: Worker, socket_dir: Path) -> None:
    async def run() -> None:
        async with hub_of(socket_dir) as hub:
            browser = Browser(hub)
            await browser.next()
            worker.publish(event(1))
            assert await browser.ids(1) == ["id1"]
            await browser.close()
            other = Browser(hub)
            await other.next()
            worker.publish(event(2), event(3))
            await other.ids(2)
            again = Browser(hub, browser.last_id)
            assert await again.ids(2) == ["id2", "id3"]
            assert await again.next() == ("hello", {})
            worker.publish(event(4))
            assert await again.ids(1) == ["id4"]
            await again.close()
            await other.close()

    asyncio.run(run())


def test_after_a_restart_of_the_page_the_log_has_what_a_browser_missed(
    worker: Worker, socket_dir: Path
) -> None:
    async def run() -> None:
        async with hub_of(socket_dir) as hub:
            browser = Browser(hub)
            await browser.next()
            worker.publish(event(1))
            assert await browser.ids(1) == ["id1"]
            await browser.close()
        worker.publish(event(2), event(3))
        async with hub_of(socket_dir) as hub:
            worker.publish(event(4))
            again = Browser(hub, browser.last_id)
            assert await again.ids(3) == ["id2", "id3", "id4"]
            assert await again.next() == ("hello", {})
            worker.publish(event(5))
            assert await again.ids(1) == ["id5"]
            await again.close()

    asyncio.run(run())


def test_what_the_log_no_longer_has_is_said(worker: Worker, socket_dir: Path) -> None:
    async def run() -> None:
        async with hub_of(socket_dir) as hub:
            browser = Browser(hub, "of-another-box:77")
            name, body = await browser.next()
            assert name == "missed"
            assert body["reason"]
            await browser.close()

    asyncio.run(run())


def test_a_killed_worker_leaves_no_hole_and_no_double(socket_dir: Path) -> None:
    async def run() -> None:
        first = Worker(socket_dir, "boot1")
        async with hub_of(socket_dir) as hub:
            browser = Browser(hub)
            await browser.next()
            first.publish(event(1))
            await browser.ids(1)
            first.publish(event(2), arrives=False)  # logged, and not sent any more
            await asyncio.to_thread(first.close)
            second = Worker(socket_dir, "boot2")
            second.publish(event(3))
            assert await browser.ids(2) == ["id2", "id3"]
            await browser.close()
            await asyncio.to_thread(second.close)

    asyncio.run(run())


def test_a_browser_that_does_not_read_is_ended_and_gets_the_rest_as_it_reconnects(
    worker: Worker, socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ast_stream.web.live.WAITING_EVENTS", 5)

    async def run() -> None:
        async with hub_of(socket_dir) as hub:
            slow, quick = Browser(hub), Browser(hub)
            await slow.next()
            await quick.next()
            for n in range(1, 41):
                worker.publish(event(n))
                assert await quick.ids(1) == [f"id{n}"]
            seen = await slow.ids_until_the_end()
            again = Browser(hub, slow.last_id)
            seen += await again.ids(40 - len(seen))
            assert seen == [f"id{n}" for n in range(1, 41)]
            assert hub.counters["slow_event_streams_ended"] == 1
            assert hub.counters["dropped_events"] > 0
            await quick.close()
            await again.close()

    asyncio.run(run())


def test_a_browser_that_connects_is_told_of_the_alerts_before(
    worker: Worker, socket_dir: Path
) -> None:
    async def run() -> None:
        async with hub_of(socket_dir) as hub:
            early = Browser(hub)
            await early.next()
            with worker.lock:
                worker.publisher.publish(alert("a1"))
            assert await early.ids(1) == ["a1"]
            late = Browser(hub)
            name, body = await late.next()
            assert (name, body["rule"]) == ("alert", "dog")
            assert await late.next() == ("hello", {})
            await early.close()
            await late.close()

    asyncio.run(run())


class CountingFeed(FeedAddress):
    """Counts the subscriptions to each of its topics."""

    taken: ClassVar[list[tuple[str, ...]]] = []

    def subscriber(self, topics: Iterable[str], *args: Any, **options: Any) -> Subscriber:
        self.taken.append(tuple(topics))
        return super().subscriber(topics, *args, **options)


def test_any_number_of_pages_takes_one_subscription(worker: Worker, socket_dir: Path) -> None:
    async def run() -> None:
        feed = CountingFeed(f"ipc://{socket_dir}/feed.sock", f"ipc://{socket_dir}/query.sock")
        async with running(LiveHub({"worker": feed})) as hub:
            assert feed.taken == [KEPT_TOPICS]
            browsers = [Browser(hub) for _ in range(20)]
            with ExitStack() as watching:
                watchers = [watching.enter_context(hub.watching()) for _ in browsers]
                for browser, watcher in zip(browsers, watchers, strict=True):
                    await browser.next()
                    assert watcher is not None
                    watcher.streams = frozenset(["porch"])
                async with asyncio.timeout(PATIENCE_S):
                    while not hub.counters["pictures"]:
                        await asyncio.sleep(0.01)
                        with worker.lock:
                            worker.publisher.publish(picture(), spectrogram=LEVELS)
                assert hub.viewers == {"events": 20, "pictures": 20}
                assert feed.taken == [KEPT_TOPICS, PICTURE_TOPICS]
                for watcher in watchers:
                    assert watcher is not None
                    assert await watcher.next(PATIENCE_S) is not None
            for browser in browsers:
                await browser.close()
            assert hub.viewers == {"events": 0, "pictures": 0}

    asyncio.run(run())


class Members:
    """Workers of a pool, in folders beside each other."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.names = list(names)

    def start(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def addresses(self) -> dict[str, FeedAddress | None]:
        return {
            name: FeedAddress(
                f"ipc://{self.folder}/{name}/feed.sock",
                f"ipc://{self.folder}/{name}/query.sock",
                None,
            )
            for name in self.names
        }

    def is_lost(self, name: str) -> bool:
        return False


def test_a_page_of_a_pool_shows_an_event_of_each_worker_once(socket_dir: Path) -> None:
    members = Members(socket_dir, "one", "alerts")  # a name that the alerts process has, too
    workers = {}
    for name in members.names:
        (socket_dir / name).mkdir()
        workers[name] = Worker(socket_dir / name, f"boot-{name}")

    def open_feed(topics: tuple[str, ...]) -> PoolFeed:
        def subscribe(address: FeedAddress, after: Position | None) -> Subscriber:
            return Subscriber(address.feed, topics=topics, query=address.query, after=after)

        return PoolFeed(members, subscribe, {}, has_replays=False)

    async def run() -> None:
        pool = PoolReading(members, open_feed)
        async with running(LiveHub({}, ("Bark", "Siren"), pool)) as hub:
            async with asyncio.timeout(PATIENCE_S):
                while hub.place.count(":") < len(workers):
                    await asyncio.sleep(0.01)
            browser = Browser(hub)
            await browser.next()
            workers["one"].publish(event(1))
            assert await browser.ids(1) == ["id1"]
            workers["alerts"].publish(event(1), event(1, "end"), event(2))  # it took over
            assert await browser.ids(2) == ["id1", "id2"]
            assert set(hub.open_events) == {"id2"}
            await browser.close()
            other = Browser(hub)
            await other.next()
            workers["one"].publish(event(3))
            await other.ids(1)
            await other.close()
            again = Browser(hub, browser.last_id)  # it was away meanwhile
            assert await again.ids(1) == ["id3"]
            await again.close()
            with hub.watching() as watcher:
                assert watcher is not None
                watcher.streams = frozenset(["porch"])
                async with asyncio.timeout(PATIENCE_S):
                    while not hub.counters["pictures"]:
                        await asyncio.sleep(0.01)
                        with workers["one"].lock:
                            workers["one"].publisher.publish(picture(), spectrogram=LEVELS)

    try:
        asyncio.run(run())
    finally:
        for worker in workers.values():
            worker.close()


def test_of_pictures_the_oldest_are_dropped_and_counted() -> None:
    async def run() -> None:
        listener = BrowserQueue(2, may_drop=True)
        assert [listener.put(BrowserMessage(text)) for text in "abc"] == [True, True, False]
        assert [await listener.next(1.0) for _ in "bc"] == [
            BrowserMessage("b"),
            BrowserMessage("c"),
        ]
        assert (listener.dropped, listener.is_overrun) == (1, False)
        assert await listener.next(0.0) is None

    asyncio.run(run())


def test_more_connections_than_allowed_are_refused(
    worker: Worker, socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ast_stream.web.live.MAX_LISTENERS", 1)

    async def run() -> None:
        async with hub_of(socket_dir) as hub:
            first = Browser(hub)
            await first.next()
            assert (await Browser(hub).next())[0] == "refused"
            assert hub.counters["refused"] == 1
            await first.close()

    asyncio.run(run())
