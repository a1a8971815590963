"""Reads the feeds once and passes them on to all browsers.

For each publisher, one thread reads durable messages and those of every second (events, gaps,
alerts, health, status) as long as the web process runs. For each worker, another thread reads what
only live views need (spectrograms, scores, levels), and only while a browser shows one. So any
number of open pages costs a worker one subscription.

Each browser has a bounded queue. If it is full, the oldest part of a live picture is dropped, but
no event: the browser's connection is closed instead, and when it reconnects it is sent what it has
missed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ast_stream.errors import WireError
from ast_stream.feed import ClientKeys, FeedAddress, FeedMessage, Missed, SeveralFeeds, Subscriber
from ast_stream.messages.event import Position
from ast_stream.messages.query import ReplayQuery, Snapshot, SnapshotQuery, TooOld, decode_replay
from ast_stream.settings.paths import alerts_endpoint, feed_endpoint, query_endpoint
from ast_stream.settings.schema import Settings
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.keys import KeyPair, client_keys
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets
from ast_stream.web.browser_queue import BrowserMessage, BrowserQueue
from ast_stream.web.live_messages import event_stream_message, live_message
from ast_stream.web.pool_reading import PoolReading
from ast_stream.web.recent_messages import Backlog, RecentMessages, parse_place

KEPT_TOPICS = ("event/", "gap/", "alert/", "health/", "status/")
PICTURE_TOPICS = ("spectrogram/", "scores/", "levels/")
ALERTS = "alerts"  # name of the feed of the alerts process
RECENT_MESSAGES = 5000
RECENT_ALERTS = 50  # sent to each browser when it connects: alerts cannot be replayed
MAX_LISTENERS = 200  # browser connections of each kind
WAITING_EVENTS = 2000  # for one browser
WAITING_PICTURES = 50  # for one browser: five seconds of one stream
MAX_REPLAYED = 20_000  # messages from the log for one browser
_WAITING_FOR_LOOP = 5000  # messages read by the threads and not yet taken by the event loop
_POLL_S = 0.5
_LINGER_S = 5.0  # so that a page that is reloaded keeps the same subscription
_ANSWER_TIMEOUT_S = 2.0
_KEEP_ALIVE_S = 15.0

Reader = Subscriber | SeveralFeeds

logger = logging.getLogger(__name__)


def feeds_of(settings: Settings, keys: ClientKeys | None) -> dict[str, FeedAddress]:
    """Return the publishers of a configuration by name: each worker, and the alerts process.

    The workers of a pool are not among them.

    Args:
        keys: of the clients of this box.
    """
    key = None if keys is None else keys.server
    feeds: dict[str, FeedAddress] = {}
    for name in worker_names(settings) if settings.pool is None else ():
        own = of_worker(settings, name)
        feeds[name or "worker"] = FeedAddress(feed_endpoint(own), query_endpoint(own), key)
    if settings.alerts.rules:
        feeds[ALERTS] = FeedAddress(alerts_endpoint(settings), None)
    return feeds


class LiveHub:
    """Reads the feeds of a configuration for all browsers.

    All methods but `start` and `stop` must be called in the event loop.

    Args:
        feeds: by name; `alerts` is the alerts process, all others are workers.
        labels: of the model's classes, in order; None: not known, so no scores are shown.
        pool: the workers of a pool, which are read as well; None: there is none.
        own: the key of this process, for feeds that need one; None: it has none.

    Attributes:
        counters: messages read, sent and dropped since the start.
        health: the last health message of each stream, by name.
        statuses: the last status message of each process.
        open_events: events that have begun and not ended, by id.
    """

    def __init__(
        self,
        feeds: Mapping[str, FeedAddress],
        labels: tuple[str, ...] | None = None,
        pool: PoolReading | None = None,
        own: KeyPair | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.health: dict[str, dict[str, Any]] = {}
        self.statuses: dict[str, dict[str, Any]] = {}
        self.open_events: dict[str, dict[str, Any]] = {}
        self._feeds = dict(feeds)  # replaced as a whole when a worker of the pool is heard first
        self._pool = pool
        self._own = own
        self.labels = labels
        self._recent = RecentMessages(RECENT_MESSAGES)
        self._alerts: deque[BrowserMessage] = deque(maxlen=RECENT_ALERTS)
        self._events: set[BrowserQueue] = set()
        self._pictures: set[BrowserQueue] = set()
        self._stopped = threading.Event()
        self._is_watched = threading.Event()
        self._watched_until_s = 0.0
        self._threads: list[threading.Thread] = []
        self._readers: set[Reader] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._handed_over: deque[tuple[str, FeedMessage | Missed | Snapshot]] = deque(
            maxlen=_WAITING_FOR_LOOP
        )
        self._replaying = asyncio.Lock()

    @classmethod
    def of(cls, settings: Settings, labels: tuple[str, ...] | None = None) -> LiveHub:
        """Return the hub of a configuration.

        Raises:
            ConfigError, StartupError: the keys for the feeds cannot be read.
        """
        keys = client_keys(settings.transport)
        if settings.pool is not None:
            pool = PoolReading.of(settings)
            return cls(feeds_of(settings, keys), labels, pool, pool.own)
        return cls(feeds_of(settings, keys), labels, own=None if keys is None else keys.own)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start reading; messages are handled in `loop`."""
        self._loop = loop
        for name, feed in self._feeds.items():
            self._begin_thread(f"feed of {name}", self._read_kept, name, feed)
            if name != ALERTS:
                self._begin_thread(f"pictures of {name}", self._read_pictures, feed)
        if self._pool is not None:
            self._pool.workers.start()
            self._begin_thread("feeds of the pool", self._read_pool, self._pool)
            self._begin_thread("pictures of the pool", self._read_pool_pictures, self._pool)

    def stop(self) -> None:
        """Stop reading, and wait for the threads to end."""
        self._stopped.set()
        self._is_watched.set()
        for reader in tuple(self._readers):
            reader.stop()
        for thread in self._threads:
            thread.join(_ANSWER_TIMEOUT_S + 2 * _POLL_S)
        if self._pool is not None:
            self._pool.workers.close()

    @property
    def viewers(self) -> dict[str, int]:
        """Number of browser connections, by kind."""
        return {"events": len(self._events), "pictures": len(self._pictures)}

    @property
    def place(self) -> str:
        """The place of a page that shows everything this hub knows; empty before any message."""
        return self._recent.place

    def recent(self, count: int) -> list[FeedMessage]:
        """Return the last durable messages, oldest first."""
        return self._recent.newest(count)

    async def event_stream(self, last_id: str | None) -> AsyncIterator[str]:
        """Yield server-sent events: first those missed since `last_id`, then new ones.

        It ends when the browser does not keep up; the browser then reconnects and gets the rest.
        """
        with self._listening(self._events, WAITING_EVENTS, may_drop=False) as queue:
            if queue is None:
                yield event_stream_message("refused", {"error": "too many open pages"})
                return
            place = self._recent.place  # everything newer is in the queue
            sent: set[Position] = set()
            yield "retry: 1000\n\n"
            if last_id:
                backlog = self._recent.after(parse_place(last_id), self._feeds)
                async for item in self._missed_after(backlog):
                    if isinstance(item, FeedMessage):
                        sent.add(item.position)
                    yield _text_of(item)
            for alert in tuple(self._alerts):
                yield str(alert.data)
            yield event_stream_message("hello", {}, place or None)
            while not queue.is_overrun and not self._stopped.is_set():
                message = await queue.next(_KEEP_ALIVE_S)
                if message is None:
                    yield ": nothing new\n\n"
                elif message.position is None or message.position not in sent:
                    yield str(message.data)
            self.counters["slow_event_streams_ended"] += queue.is_overrun

    @contextmanager
    def watching(self) -> Iterator[BrowserQueue | None]:
        """Yield a queue of pictures of the `streams` set on it; None: too many browsers."""
        with self._listening(self._pictures, WAITING_PICTURES, may_drop=True) as queue:
            self._is_watched.set()
            try:
                yield queue
            finally:
                self._watched_until_s = time.monotonic() + _LINGER_S
                if len(self._pictures) <= 1:
                    self._is_watched.clear()

    async def _missed_after(self, backlog: Backlog) -> AsyncIterator[FeedMessage | Missed]:
        """Yield what a browser has missed, in order; what is no longer in memory from the log."""
        for position in backlog.unknown:
            async with self._replaying:  # one at a time: a replay takes a worker's time
                for name in backlog.feeds:
                    for item in await asyncio.to_thread(self._from_log, name, position):
                        yield item
        for entry in backlog.entries:
            yield entry.message

    def _from_log(self, name: str, after: Position) -> list[FeedMessage | Missed]:
        """Return a publisher's logged messages after a position; runs in a separate thread."""
        feed = self._feeds[name]
        if feed.query is None:
            return []
        found: list[FeedMessage | Missed] = []
        sockets = Sockets(feed.keys(self._own))
        try:
            client = QueryClient(sockets, feed.query, self._stopped.is_set)
            while len(found) < MAX_REPLAYED:
                frames = client.ask(ReplayQuery(after=after), _ANSWER_TIMEOUT_S)
                if frames is None:
                    return [*found, Missed(after, after, "the worker does not answer")]
                page = decode_replay(frames)
                if isinstance(page, TooOld):
                    upto = page.oldest or after
                    return [*found, Missed(after, upto, "the event log no longer has them")]
                found += [message for message in page.messages if message.identity is not None]
                if not page.more or not page.messages:
                    return found
                after = page.messages[-1].position
            return [*found, Missed(after, after, f"there are more than {MAX_REPLAYED}")]
        except WireError as error:
            return [*found, Missed(after, after, str(error))]
        finally:
            sockets.close()

    @contextmanager
    def _listening(
        self, listeners: set[BrowserQueue], max_waiting: int, *, may_drop: bool
    ) -> Iterator[BrowserQueue | None]:
        if len(listeners) >= MAX_LISTENERS:
            self.counters["refused"] += 1
            yield None
            return
        queue = BrowserQueue(max_waiting, may_drop=may_drop)
        listeners.add(queue)
        try:
            yield queue
        finally:
            listeners.discard(queue)

    # the threads that read

    def _begin_thread(self, name: str, read: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=read, args=args, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    @contextmanager
    def _reading(self, opened: Reader) -> Iterator[None]:
        with opened as reader:
            self._readers.add(reader)
            try:
                yield
            finally:
                self._readers.discard(reader)

    def _read_kept(self, name: str, feed: FeedAddress) -> None:
        reader = feed.subscriber(KEPT_TOPICS, self._own)
        boots: dict[str, object] = {}
        with self._reading(reader):
            while not self._stopped.is_set():
                self._pass_on(name, feed, reader.receive(_POLL_S), boots)

    def _read_pool(self, pool: PoolReading) -> None:
        reader = pool.open_feed(KEPT_TOPICS)
        boots: dict[str, object] = {}
        with self._reading(reader):
            while not self._stopped.is_set():
                item = reader.receive(_POLL_S)
                if (by := reader.given_by) is None:
                    continue
                name, address = f"pool {by[0]}", by[1]
                if self._feeds.get(name) != address:
                    self._feeds = self._feeds | {name: address}
                self._pass_on(name, address, item, boots)

    def _pass_on(
        self,
        name: str,
        feed: FeedAddress,
        item: FeedMessage | Missed | None,
        boots: dict[str, object],
    ) -> None:
        """Hand over what was read; of another run of a worker, what it knows already before."""
        if isinstance(item, FeedMessage) and item.body["boot"] != boots.get(name):
            boots[name] = item.body["boot"]
            if name != ALERTS and (snapshot := self._snapshot(name, feed)) is not None:
                self._hand_over(name, snapshot)
        if item is not None:
            self._hand_over(name, item)

    def _read_pool_pictures(self, pool: PoolReading) -> None:
        """Read pictures of those streams only that a browser shows: a pool may have thousands."""
        while not self._stopped.is_set():
            if not self._is_watched.wait(_POLL_S):
                continue
            reader = pool.open_feed(())
            topics: set[str] = set()
            with self._reading(reader):
                while not self._stopped.is_set() and self._are_pictures_wanted():
                    wanted = {
                        f"{kind}{stream}/"
                        for queue in tuple(self._pictures)
                        for stream in queue.streams
                        for kind in PICTURE_TOPICS
                    }
                    for topic in wanted - topics:
                        reader.add_topic(topic)
                    for topic in topics - wanted:
                        reader.remove_topic(topic)
                    topics = wanted
                    item = reader.receive(_POLL_S)
                    if isinstance(item, FeedMessage):
                        self._hand_over("", item)

    def _read_pictures(self, feed: FeedAddress) -> None:
        while not self._stopped.is_set():
            if not self._is_watched.wait(_POLL_S):
                continue
            reader = feed.subscriber(PICTURE_TOPICS, self._own)
            with self._reading(reader):
                while not self._stopped.is_set() and self._are_pictures_wanted():
                    item = reader.receive(_POLL_S)
                    if isinstance(item, FeedMessage):
                        self._hand_over("", item)

    def _are_pictures_wanted(self) -> bool:
        return self._is_watched.is_set() or time.monotonic() < self._watched_until_s

    def _snapshot(self, name: str, feed: FeedAddress) -> Snapshot | None:
        """Return the snapshot of a worker, with the events that began before this process."""
        if feed.query is None:
            return None
        sockets = Sockets(feed.keys(self._own))
        try:
            client = QueryClient(sockets, feed.query, self._stopped.is_set)
            frames = client.ask(SnapshotQuery(), _ANSWER_TIMEOUT_S)
            return None if frames is None else Snapshot.decode(frames)
        except WireError as error:
            logger.warning("snapshot of %s: %s", name, error)
            return None
        finally:
            sockets.close()

    def _hand_over(self, name: str, item: FeedMessage | Missed | Snapshot) -> None:
        """Pass a message to the event loop; if that hangs, the oldest message is dropped."""
        assert self._loop is not None
        with self._lock:
            if len(self._handed_over) == self._handed_over.maxlen:
                self.counters["dropped_by_page"] += 1
            self._handed_over.append((name, item))
            is_first = len(self._handed_over) == 1
        if is_first:
            with suppress(RuntimeError):  # the loop is closed: this process is ending
                self._loop.call_soon_threadsafe(self._take_over)

    # in the event loop

    def _take_over(self) -> None:
        while self._handed_over:
            self._handle(*self._handed_over.popleft())

    def _handle(self, name: str, item: FeedMessage | Missed | Snapshot) -> None:
        if isinstance(item, Snapshot):
            self._begin_with(item)
            return
        if isinstance(item, Missed):
            self.counters["missed"] += 1
            self._send(BrowserMessage(_text_of(item)))
            return
        if item.topic.startswith(PICTURE_TOPICS):
            self._show(item)
            return
        place = None
        if item.is_durable:
            place = self._recent.add(name, item).place
        elif (before := item.position_before) is not None:
            self._recent.begin(name, before)
        self._note(name, item)
        outgoing = BrowserMessage(_text_of(item, place), item.position if item.is_durable else None)
        if item.kind == "alert":
            self._alerts.append(outgoing)
        self._send(outgoing)

    def _begin_with(self, snapshot: Snapshot) -> None:
        streams = {health.stream for health in snapshot.streams}
        self.open_events = {
            id: body for id, body in self.open_events.items() if body["stream"] not in streams
        } | {event.id: event.to_json() for event in snapshot.events}
        self.health |= {health.stream: health.to_json() for health in snapshot.streams}

    def _note(self, name: str, message: FeedMessage) -> None:
        body = message.body
        match message.kind:
            case "event" if body.get("type") == "end":
                self.open_events.pop(str(body.get("id")), None)
            case "event":
                self.open_events[str(body.get("id"))] = body
            case "health" if message.stream is not None:
                self.health[message.stream] = body
            case "status":
                self.statuses[name] = body

    def _send(self, message: BrowserMessage) -> None:
        self.counters["event_messages"] += 1
        for queue in self._events:
            if not queue.put(message):
                self.counters["dropped_events"] += 1

    def _show(self, message: FeedMessage) -> None:
        wanting = [queue for queue in self._pictures if message.stream in queue.streams]
        data = live_message(message, self.labels) if wanting else None
        if data is None:
            return
        self.counters["pictures"] += 1
        for queue in wanting:
            if not queue.put(BrowserMessage(data)):
                self.counters["dropped_pictures"] += 1


def _text_of(item: FeedMessage | Missed, place: str | None = None) -> str:
    if isinstance(item, Missed):
        return event_stream_message("missed", {"reason": item.reason})
    return event_stream_message(item.kind, item.body, place)
