"""The feeds, read once and handed to all browsers.

Of each publisher, one thread reads what is kept and what is said each second (events, gaps, alerts,
health, status), as long as the page runs. Of each worker, another one reads what only a live view
needs (spectrograms, scores, levels), and only while a browser shows one: any number of open pages
costs a worker one subscription.

Each browser has a bounded queue. Of a live picture the oldest part is dropped. Of events nothing
is: the browser's connection is ended instead, and as it reconnects it is sent what it missed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ast_stream.errors import WireError
from ast_stream.feed import ClientKeys, FeedMessage, Missed, Subscriber
from ast_stream.messages.event import Position
from ast_stream.messages.query import ReplayQuery, Snapshot, SnapshotQuery, TooOld, decode_replay
from ast_stream.settings.paths import alerts_endpoint, feed_endpoint, query_endpoint
from ast_stream.settings.schema import Settings
from ast_stream.settings.workers import of_worker, worker_names
from ast_stream.transport.keys import client_keys
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import Sockets
from ast_stream.web.live_messages import event_stream_message, live_message
from ast_stream.web.recent import Backlog, RecentMessages, parse_place

KEPT_TOPICS = ("event/", "gap/", "alert/", "health/", "status/")
PICTURE_TOPICS = ("spectrogram/", "scores/", "levels/")
ALERTS = "alerts"  # name of the feed of the alerts process
RECENT_MESSAGES = 5000
RECENT_ALERTS = 50  # sent to each browser as it connects: no feed has a log of them
MAX_LISTENERS = 200  # browser connections of each kind
WAITING_EVENTS = 2000  # for one browser
WAITING_PICTURES = 50  # for one browser: five seconds of one stream
MAX_REPLAYED = 20_000  # messages from the log for one browser
_WAITING_FOR_LOOP = 5000  # what the threads have read and the event loop has not taken
_POLL_S = 0.5
_LINGER_S = 5.0  # a page that is loaded again goes on with the same subscription
_ANSWER_TIMEOUT_S = 2.0
_KEEP_ALIVE_S = 15.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feed:
    """Where a publisher is."""

    endpoint: str
    query: str | None
    keys: ClientKeys | None = None

    def subscriber(self, topics: tuple[str, ...]) -> Subscriber:
        """Return a reader of some of its topics, from now on."""
        return Subscriber(self.endpoint, topics=topics, query=self.query, keys=self.keys)


def feeds_of(settings: Settings) -> dict[str, Feed]:
    """Return the feeds of a configuration by name: of each worker, and of the alerts process.

    Raises:
        ConfigError, StartupError: keys that are needed cannot be had.
    """
    keys = client_keys(settings.transport)
    feeds: dict[str, Feed] = {}
    for name in worker_names(settings):
        own = of_worker(settings, name)
        feeds[name or "worker"] = Feed(feed_endpoint(own), query_endpoint(own), keys)
    if settings.alerts.rules:
        feeds[ALERTS] = Feed(alerts_endpoint(settings), None)
    return feeds


@dataclass(frozen=True)
class Outgoing:
    """What one or all browsers are sent; `position` is that of a durable message."""

    data: bytes | str
    position: Position | None = None


class Listener:
    """What waits for one browser.

    Args:
        may_drop: whether the oldest is dropped if there is no room, or the newest.

    Attributes:
        streams: names of those of which it wants pictures.
        dropped: messages for which there was no room.
    """

    def __init__(self, max_waiting: int, *, may_drop: bool) -> None:
        self.streams: frozenset[str] = frozenset()
        self.dropped = 0
        self._may_drop = may_drop
        self._waiting: deque[Outgoing] = deque()
        self._max_waiting = max_waiting
        self._news = asyncio.Event()

    @property
    def is_overrun(self) -> bool:
        """Whether it lacks a message that must not be dropped."""
        return self.dropped > 0 and not self._may_drop

    def put(self, message: Outgoing) -> bool:
        """Add a message; return False if there was no room for all."""
        self._news.set()
        has_room = len(self._waiting) < self._max_waiting
        if not has_room:
            self.dropped += 1
        if not has_room and self._may_drop:
            self._waiting.popleft()
        if has_room or self._may_drop:
            self._waiting.append(message)
        return has_room

    def wake(self) -> None:
        """Let `next` return."""
        self._news.set()

    async def next(self, timeout_s: float) -> Outgoing | None:
        """Return the next message; None if none comes in time."""
        if not self._waiting:
            self._news.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout_s)
        return self._waiting.popleft() if self._waiting else None


class LiveHub:
    """Reads the feeds of a configuration for all browsers.

    All methods but `start` and `stop` are for the event loop.

    Args:
        feeds: by name; `alerts` is the alerts process, all others are workers.
        labels: of the model's classes, in order; None: not known, and no scores are shown.

    Attributes:
        counters: what was read, sent and dropped since the start.
        health: the last of each stream, by name.
        statuses: the last of each process.
        open_events: events that have begun and not ended, by id.
    """

    def __init__(self, feeds: Mapping[str, Feed], labels: tuple[str, ...] | None = None) -> None:
        self.counters: Counter[str] = Counter()
        self.health: dict[str, dict[str, Any]] = {}
        self.statuses: dict[str, dict[str, Any]] = {}
        self.open_events: dict[str, dict[str, Any]] = {}
        self._feeds = dict(feeds)
        self.labels = labels
        self._recent = RecentMessages(RECENT_MESSAGES)
        self._alerts: deque[Outgoing] = deque(maxlen=RECENT_ALERTS)
        self._events: set[Listener] = set()
        self._pictures: set[Listener] = set()
        self._stopped = threading.Event()
        self._is_watched = threading.Event()
        self._watched_until_s = 0.0
        self._threads: list[threading.Thread] = []
        self._readers: set[Subscriber] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._handed_over: deque[tuple[str, FeedMessage | Missed | Snapshot]] = deque(
            maxlen=_WAITING_FOR_LOOP
        )
        self._replaying = asyncio.Lock()

    @classmethod
    def of(cls, settings: Settings, labels: tuple[str, ...] | None = None) -> LiveHub:
        """Return the hub of a configuration."""
        return cls(feeds_of(settings), labels)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to read; what comes is handled by `loop`."""
        self._loop = loop
        for name, feed in self._feeds.items():
            self._begin_thread(f"feed of {name}", self._read_kept, name, feed)
            if name != ALERTS:
                self._begin_thread(f"pictures of {name}", self._read_pictures, feed)

    def stop(self) -> None:
        """End reading, and wait for it."""
        self._stopped.set()
        self._is_watched.set()
        for reader in tuple(self._readers):
            reader.stop()
        for thread in self._threads:
            thread.join(_ANSWER_TIMEOUT_S + 2 * _POLL_S)

    @property
    def viewers(self) -> dict[str, int]:
        """Connections of browsers, by kind."""
        return {"events": len(self._events), "pictures": len(self._pictures)}

    @property
    def place(self) -> str:
        """Where a page stands that shows what this hub knows; empty before the first message."""
        return self._recent.place

    def recent(self, count: int) -> list[FeedMessage]:
        """Return the last durable messages, oldest first."""
        return self._recent.newest(count)

    async def event_stream(self, last_id: str | None) -> AsyncIterator[str]:
        """Yield server-sent events: first what was missed after `last_id`, then what comes.

        It ends when the browser does not keep up: that one reconnects, and is sent the rest.
        """
        with self._listening(self._events, WAITING_EVENTS, may_drop=False) as listener:
            if listener is None:
                yield event_stream_message("refused", {"error": "too many open pages"})
                return
            place = self._recent.place  # all that comes later is in the queue
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
            while not listener.is_overrun and not self._stopped.is_set():
                message = await listener.next(_KEEP_ALIVE_S)
                if message is None:
                    yield ": nothing new\n\n"
                elif message.position is None or message.position not in sent:
                    yield str(message.data)
            self.counters["slow_event_streams_ended"] += listener.is_overrun

    @contextmanager
    def watching(self) -> Iterator[Listener | None]:
        """Give a listener to pictures of the `streams` that are set on it; None: too many."""
        with self._listening(self._pictures, WAITING_PICTURES, may_drop=True) as listener:
            self._is_watched.set()
            try:
                yield listener
            finally:
                self._watched_until_s = time.monotonic() + _LINGER_S
                if len(self._pictures) <= 1:
                    self._is_watched.clear()

    async def _missed_after(self, backlog: Backlog) -> AsyncIterator[FeedMessage | Missed]:
        """Yield what a browser has missed, in order; from the log where it is no longer here."""
        for position in backlog.unknown:
            async with self._replaying:  # one at a time: the log is the worker's
                for name in backlog.feeds:
                    for item in await asyncio.to_thread(self._from_log, name, position):
                        yield item
        for entry in backlog.entries:
            yield entry.message

    def _from_log(self, name: str, after: Position) -> list[FeedMessage | Missed]:
        """Return what the log of a publisher has after a position; in a thread of its own."""
        feed = self._feeds[name]
        if feed.query is None:
            return []
        found: list[FeedMessage | Missed] = []
        sockets = Sockets(feed.keys)
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
        self, listeners: set[Listener], max_waiting: int, *, may_drop: bool
    ) -> Iterator[Listener | None]:
        if len(listeners) >= MAX_LISTENERS:
            self.counters["refused"] += 1
            yield None
            return
        listener = Listener(max_waiting, may_drop=may_drop)
        listeners.add(listener)
        try:
            yield listener
        finally:
            listeners.discard(listener)

    # the threads that read

    def _begin_thread(self, name: str, read: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=read, args=args, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    @contextmanager
    def _reading(self, feed: Feed, topics: tuple[str, ...]) -> Iterator[Subscriber]:
        with feed.subscriber(topics) as reader:
            self._readers.add(reader)
            try:
                yield reader
            finally:
                self._readers.discard(reader)

    def _read_kept(self, name: str, feed: Feed) -> None:
        boot = None
        with self._reading(feed, KEPT_TOPICS) as reader:
            while not self._stopped.is_set():
                item = reader.receive(_POLL_S)
                if isinstance(item, FeedMessage) and item.body["boot"] != boot:
                    boot = item.body["boot"]
                    if name != ALERTS and (snapshot := self._snapshot(name, feed)) is not None:
                        self._hand_over(name, snapshot)
                if item is not None:
                    self._hand_over(name, item)

    def _read_pictures(self, feed: Feed) -> None:
        while not self._stopped.is_set():
            if not self._is_watched.wait(_POLL_S):
                continue
            with self._reading(feed, PICTURE_TOPICS) as reader:
                while not self._stopped.is_set() and self._are_pictures_wanted():
                    item = reader.receive(_POLL_S)
                    if isinstance(item, FeedMessage):
                        self._hand_over("", item)

    def _are_pictures_wanted(self) -> bool:
        return self._is_watched.is_set() or time.monotonic() < self._watched_until_s

    def _snapshot(self, name: str, feed: Feed) -> Snapshot | None:
        """Return how a worker is: also events that began before this process."""
        if feed.query is None:
            return None
        sockets = Sockets(feed.keys)
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
        """Give what was read to the event loop; the oldest is dropped if that hangs."""
        assert self._loop is not None
        with self._lock:
            if len(self._handed_over) == self._handed_over.maxlen:
                self.counters["dropped_by_page"] += 1
            self._handed_over.append((name, item))
            is_first = len(self._handed_over) == 1
        if is_first:
            with suppress(RuntimeError):  # the loop is closed: this process ends
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
            self._send(Outgoing(_text_of(item)))
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
        outgoing = Outgoing(_text_of(item, place), item.position if item.is_durable else None)
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

    def _send(self, message: Outgoing) -> None:
        self.counters["event_messages"] += 1
        for listener in self._events:
            if not listener.put(message):
                self.counters["dropped_events"] += 1

    def _show(self, message: FeedMessage) -> None:
        wanting = [one for one in self._pictures if message.stream in one.streams]
        data = live_message(message, self.labels) if wanting else None
        if data is None:
            return
        self.counters["pictures"] += 1
        for listener in wanting:
            if not listener.put(Outgoing(data)):
                self.counters["dropped_pictures"] += 1


def _text_of(item: FeedMessage | Missed, place: str | None = None) -> str:
    if isinstance(item, Missed):
        return event_stream_message("missed", {"reason": item.reason})
    return event_stream_message(item.kind, item.body, place)
