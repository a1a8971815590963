"""Client of the feed for Python programs: events as they happen, none missed unnoticed.

    for event in Subscriber("ipc:///run/ast-stream/feed.sock", classes=["bark"]):
        print(event["type"], event["class"], event["stream"], event["onset"])

Needs no torch. docs/reference/protocol.md describes the messages.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from ast_stream.errors import UsageError
from ast_stream.labels import slug
from ast_stream.messages.event import FeedMessage, Position
from ast_stream.transport.keys import ClientKeys, KeyPair
from ast_stream.transport.reader import FeedReader, Missed
from ast_stream.urls import check_endpoint

__all__ = [
    "ClientKeys",
    "FeedAddress",
    "FeedMessage",
    "MessageReader",
    "Missed",
    "Position",
    "SeveralFeeds",
    "Subscriber",
    "query_endpoint_beside",
]

_FEED_NAME, _QUERY_NAME = "/feed.sock", "/query.sock"

_LOOK_EVERY_S = 0.02  # at several feeds, whether one has a message
_ALL_HEARD_S = 3.0  # after a start, for each of several publishers to be heard

logger = logging.getLogger(__name__)


class MessageReader(Protocol):
    """What the loops of the recorder and the alerts process need of a reader of feeds."""

    @property
    def position(self) -> Position | Mapping[str, Position] | None:
        """Position after the last message returned; of several feeds, by their names."""

    @property
    def is_publisher_there(self) -> bool:
        """Whether messages have been received recently."""

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        """Return the next message; None after `timeout_s`."""


class Subscriber:
    """A reader of one publisher's feed that always reconnects and asks for what it missed.

    Iterating yields the bodies of event messages (`begin`, `update`, `end`) as dicts, in order and
    without repeats. `receive` and `messages` return every message of `topics`, and `Missed` where
    durable messages (events, gaps) are lost for good. The publisher may be absent, killed and
    started again, and this program may be paused: what was published meanwhile is replayed from
    the publisher's log. For use by one thread; `stop` may be called from any.

    Args:
        endpoint: of the feed, `ipc:///path` or `tcp://host:port`.
        classes: labels or slugs of the events to yield; None: all.
        streams: names of the streams; None: all.
        topics: prefixes of the topics.
        query: endpoint that answers replays; None: beside `endpoint` if that is a `feed.sock`.
        after: where to begin: an earlier `position`, "oldest" for what the publisher's log holds,
            None for now.
        on_missed: called with each `Missed` while iterating; None: a warning is logged.
        idle_timeout_s: iteration ends after so long without a message; None: never.
        replay_patience_s: how long to ask a present publisher for missed messages before they are
            `Missed`; an absent one is waited for at least a minute.
        keys: `ClientKeys.load(secret_file, server_key_file)`, without which tcp is refused beyond
            loopback.

    Raises:
        UsageError: an endpoint that cannot be one.
    """

    def __init__(
        self,
        endpoint: str,
        classes: Iterable[str] | None = None,
        streams: Iterable[str] | None = None,
        *,
        topics: Iterable[str] = ("event/",),
        query: str | None = None,
        after: Position | Literal["oldest"] | None = None,
        on_missed: Callable[[Missed], None] | None = None,
        idle_timeout_s: float | None = None,
        replay_patience_s: float = 5.0,
        keys: ClientKeys | None = None,
    ) -> None:
        _check(endpoint, keys)
        _check(query, keys)
        for name, names in (("classes", classes), ("streams", streams), ("topics", topics)):
            if isinstance(names, str | bytes):  # its letters would be mistaken for names
                raise UsageError(f"{name}: expected a list of text such as [{names!r}], got text")
        self._classes = None if classes is None else {slug(name) for name in classes}
        self._streams = None if streams is None else set(streams)
        self._topics = tuple(topics)
        self._on_missed = on_missed or _warn
        self._idle_timeout_s = idle_timeout_s
        self._reader = FeedReader(
            endpoint,
            query or query_endpoint_beside(endpoint),
            self._topics,
            after,
            replay_patience_s,
            keys,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for item in self.messages():
            if isinstance(item, Missed):
                self._on_missed(item)
            elif item.kind == "event":
                yield item.body

    @property
    def position(self) -> Position | None:
        """Position of this reader, to be stored and passed as `after` by its next run."""
        return self._reader.position

    @property
    def is_publisher_there(self) -> bool:
        """Whether messages have come, and recently if the publisher sends a status each second."""
        return self._reader.is_publisher_there

    @property
    def duplicates(self) -> int:
        """Messages skipped because they came twice."""
        return self._reader.duplicates

    @property
    def malformed(self) -> int:
        """Messages skipped because they did not follow the format."""
        return self._reader.malformed

    def messages(self) -> Iterator[FeedMessage | Missed]:
        """Yield every message of the topics until `stop` or the idle timeout."""
        while (item := self.receive(self._idle_timeout_s)) is not None:
            yield item

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        """Return the next message of the topics; None after `timeout_s` or `stop`.

        An answer of the query endpoint is waited for, which may take a second more.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            item = self._reader.receive(left_s)
            if item is None or isinstance(item, Missed) or self._matches(item):
                return item

    def add_topic(self, topic: str) -> None:
        """Receive messages of one more topic (a prefix) from now on; by the thread that reads."""
        self._topics = (*self._topics, topic)
        self._reader.add_topic(topic)

    def remove_topic(self, topic: str) -> None:
        """Give back what `add_topic` asked for; by the thread that reads."""
        self._topics = tuple(known for known in self._topics if known != topic)
        self._reader.remove_topic(topic)

    def stop(self) -> None:
        """End all waiting and iterating, for good; from any thread."""
        self._reader.stop()

    def close(self) -> None:
        """Stop, and close the sockets; called by the thread that reads."""
        self._reader.close()

    def _matches(self, message: FeedMessage) -> bool:
        if not message.topic.startswith(self._topics):
            return False
        if self._streams is not None and message.stream not in (None, *self._streams):
            return False
        is_of_other_class = self._classes is not None and message.class_ not in self._classes
        return not (message.kind == "event" and is_of_other_class)


@dataclass(frozen=True)
class FeedAddress:
    """The addresses of a publisher's feed and queries.

    Attributes:
        query: None: it answers none.
        key: its public key in Z85; None: none is needed.
    """

    feed: str
    query: str | None
    key: str | None = None

    def keys(self, own: KeyPair | None) -> ClientKeys | None:
        """Return the keys for it of a reader with a key of its own; None: it needs none."""
        return None if own is None or self.key is None else ClientKeys(own, self.key)

    def subscriber(
        self,
        topics: Iterable[str],
        own: KeyPair | None,
        *,
        after: Position | Literal["oldest"] | None = None,
        replay_patience_s: float = 5.0,
    ) -> Subscriber:
        """Return a reader of some of its topics, by default from the next message on."""
        return Subscriber(
            self.feed,
            topics=topics,
            query=self.query,
            after=after,
            replay_patience_s=replay_patience_s,
            keys=self.keys(own),
        )


class SeveralFeeds:
    """A reader of several publishers' feeds, as one: where several workers share the streams.

    Of messages that wait on several feeds, the one that was published first is first; each feed
    keeps its own order. Everything else is as for a `Subscriber`: reconnecting, replays, `Missed`.
    For use by one thread; `stop` may be called from any.

    Args:
        feeds: a reader of each feed, by the name that `positions` gives it; closed with this one.
    """

    def __init__(self, feeds: Mapping[str, Subscriber]) -> None:
        self._feeds = dict(feeds)
        self._waiting: dict[str, FeedMessage | Missed] = {}
        self._given: dict[str, Position | None] = {
            name: feed.position for name, feed in self._feeds.items()
        }
        self._added: list[str] = []  # topics
        self._is_stopped = threading.Event()
        self._since_s = time.monotonic()
        self._has_begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (item := self.receive()) is not None:
            if isinstance(item, Missed):
                _warn(item)
            elif item.kind == "event":
                yield item.body

    @property
    def position(self) -> dict[str, Position]:
        """By name, where the messages of each feed that were given out end."""
        return {name: at for name, at in self._given.items() if at is not None}

    @property
    def is_publisher_there(self) -> bool:
        """Whether all publishers are."""
        return all(feed.is_publisher_there for feed in self._feeds.values())

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        """Return the next message of any feed; None after `timeout_s` or `stop`."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._is_stopped.is_set():
            self._look()
            if self._waiting and self._are_all_heard():
                name = min(self._waiting, key=lambda name: _published_ns(self._waiting[name]))
                item = self._waiting.pop(name)
                self._note(name, item)
                return item
            left_s = math.inf if end_s is None else end_s - time.monotonic()
            if left_s <= 0:
                return None
            self._is_stopped.wait(min(left_s, _LOOK_EVERY_S))
        return None

    def add_topic(self, topic: str) -> None:
        """Receive messages of one more topic (a prefix) of all feeds from now on."""
        self._added.append(topic)
        for feed in self._feeds.values():
            feed.add_topic(topic)

    def remove_topic(self, topic: str) -> None:
        """Give back what `add_topic` asked for."""
        self._added.remove(topic)
        for feed in self._feeds.values():
            feed.remove_topic(topic)

    def add_feed(self, name: str, feed: Subscriber) -> None:
        """Read one more feed from now on, in place of another one of this name."""
        self.remove_feed(name)
        for topic in self._added:
            feed.add_topic(topic)
        self._feeds[name] = feed
        self._given.setdefault(name, feed.position)

    def remove_feed(self, name: str) -> None:
        """Stop reading the feed of this name, if there is one; its position is kept."""
        self._waiting.pop(name, None)
        if (feed := self._feeds.pop(name, None)) is not None:
            feed.close()

    def stop(self) -> None:
        """End all waiting and iterating, for good; from any thread."""
        self._is_stopped.set()
        for feed in [*self._feeds.values()]:  # of the thread that reads
            feed.stop()

    def close(self) -> None:
        """Stop, and close the sockets; called by the thread that reads."""
        self.stop()
        for feed in self._feeds.values():
            feed.close()

    def _are_all_heard(self) -> bool:
        """Return whether each feed was heard once, or none more is waited for: replays merge."""
        if not self._has_begun:
            has_waited = time.monotonic() - self._since_s > _ALL_HEARD_S
            self._has_begun = has_waited or self.is_publisher_there
        return self._has_begun

    def _look(self) -> None:
        """Have the next message of each feed that has one."""
        for name, feed in self._feeds.items():
            if name not in self._waiting and (item := feed.receive(0.0)) is not None:
                self._waiting[name] = item

    def _note(self, name: str, item: FeedMessage | Missed) -> None:
        # not the reader's own: that is beyond a message which waits here
        if isinstance(item, Missed):
            self._given[name] = item.upto
        elif item.is_durable:
            self._given[name] = item.position


def _published_ns(item: FeedMessage | Missed) -> int:
    return 0 if isinstance(item, Missed) else item.published_ns or 0


def query_endpoint_beside(feed: str) -> str | None:
    """Return the query endpoint beside an ipc feed named `feed.sock`; None for other feeds."""
    if feed.startswith("ipc://") and feed.endswith(_FEED_NAME):
        return feed.removesuffix(_FEED_NAME) + _QUERY_NAME
    return None


def _check(endpoint: str | None, keys: ClientKeys | None) -> None:
    try:
        if endpoint is not None:
            check_endpoint(endpoint, has_keys=keys is not None)
    except ValueError as error:
        raise UsageError(f"endpoint: {error}") from error


def _warn(missed: Missed) -> None:
    since = "the beginning" if missed.after is None else f"message {missed.after[1]}"
    logger.warning(
        "messages after %s up to %s of boot %s are missed: %s",
        since,
        missed.upto[1],
        missed.upto[0],
        missed.reason,
    )
