"""Reading the feed of one publisher completely, in order, and nothing twice.

What the numbers of a message show to be missing is asked for at the publisher's query endpoint.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ast_stream.errors import WireError
from ast_stream.messages.event import (
    BOOT_TOPIC,
    DURABLE_TOPICS,
    FeedMessage,
    Identity,
    Position,
)
from ast_stream.messages.query import PingAnswer, PingQuery, ReplayQuery, TooOld, decode_replay
from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.logging import LimitedLog
from ast_stream.transport.keys import ClientKeys
from ast_stream.transport.query import QueryClient
from ast_stream.transport.sockets import FEED_HWM_MESSAGES, Socket, Sockets

REMEMBERED_MESSAGES = 10_000  # against repeats with a new `seq`, after a worker was killed
_REMEMBERED_BOOTS = 64
_POLL_MS = 100  # how late a stop is noticed
_ANSWER_TIMEOUT_S = 1.0
_AWAY_AFTER_S = 3.0  # without a status, which a publisher sends each second
_RECONNECT_S = (5.0, 30.0)  # of silence: the connection may be dead without either end knowing
_ABSENT_S = 60.0  # for a publisher to come back, and to answer
_ASK_AGAIN_S = 60.0  # for what earlier boots left, while the present one has published nothing
_STATUS_TOPIC = "status/"
_NOT_LOGGED = "the publisher's event log does not have them"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missed:
    """Durable messages that are lost to this reader.

    Attributes:
        after: position of the last message before them; None if there was none.
        upto: position of the last lost message; of a later boot if the publisher was restarted.
        reason: why they could not be had again, a sentence.
    """

    after: Position | None
    upto: Position
    reason: str


class FeedOrder:
    """Where a reader is among the durable messages of one publisher; no sockets, no clock.

    If a message of the feed `follows`, `accept` it. Else pass what is replayed from `position` on
    to `replayed` and call `caught_up`, or `give_up` if there is no replay.

    Attributes:
        position: last durable message accepted or given up; None before the first contact.
        duplicates: durable messages that came twice.
    """

    def __init__(self, position: Position | None = None) -> None:
        self.position = position
        self.duplicates = 0
        self._past_boots: deque[str] = deque(maxlen=_REMEMBERED_BOOTS)
        self._seen: OrderedDict[Identity, None] = OrderedDict()

    def follows(self, message: FeedMessage) -> bool:
        """Return whether no durable message is missing before `message`."""
        before = message.position_before
        if before is None or before[0] in self._past_boots:
            return True
        if self.position is None or before[0] != self.position[0]:
            return False
        return before[1] <= self.position[1]

    def accept(self, message: FeedMessage) -> FeedMessage | None:
        """Return a message that `follows`; None if it came before."""
        if not message.is_durable:
            return message
        boot, seq = message.position
        is_old = boot in self._past_boots or (self.position is not None and seq <= self.position[1])
        if not is_old:
            self.position = message.position
        if is_old or self._is_repeated(message):
            self.duplicates += 1
            return None
        return message

    def replayed(self, message: FeedMessage) -> list[FeedMessage | Missed]:
        """Return the next replayed message, after a `Missed` if messages before it are lost."""
        items: list[FeedMessage | Missed] = []
        before = message.position_before
        if before is not None and not self.follows(message):
            items += self._skip_to(before, _NOT_LOGGED)
        if message.topic == BOOT_TOPIC:
            return items
        accepted = self.accept(message)
        return items if accepted is None else [*items, accepted]

    def caught_up(self, message: FeedMessage) -> list[FeedMessage | Missed]:
        """Note that the replay is complete up to the live `message`, which now follows."""
        before = message.position_before
        if before is None or self.follows(message):
            return []
        return self._skip_to(before, _NOT_LOGGED)

    def too_old(self, oldest: Position) -> list[FeedMessage | Missed]:
        """Note that only messages after `oldest` can be replayed; continue there."""
        return self._lose_up_to(oldest, "the publisher's event log no longer has them")

    def give_up(self, message: FeedMessage, reason: str) -> list[FeedMessage | Missed]:
        """Continue with the live `message`, which now follows; report what is lost before it."""
        before = message.position_before
        if before is None or self.follows(message):
            return []
        return self._lose_up_to(before, reason)

    def start_at(self, position: Position) -> None:
        """Begin after `position`."""
        self._move_to(position)

    def _lose_up_to(self, upto: Position, reason: str) -> list[FeedMessage | Missed]:
        """Move there; a reader of no boot loses nothing of one that has published nothing."""
        start = self.position
        self._move_to(upto)
        return [] if start is None and upto[1] == 0 else [Missed(start, upto, reason)]

    def _skip_to(self, before: Position, reason: str) -> list[FeedMessage | Missed]:
        """Move to another boot, which loses nothing, or over lost messages of this one."""
        start = self.position
        self._move_to(before)
        last_seq = 0 if start is None or start[0] != before[0] else start[1]
        return [] if start is None or before[1] <= last_seq else [Missed(start, before, reason)]

    def _move_to(self, position: Position) -> None:
        if self.position is not None and self.position[0] != position[0]:
            self._past_boots.append(self.position[0])
        self.position = position

    def _is_repeated(self, message: FeedMessage) -> bool:
        identity = message.identity
        if identity is None:
            return False
        is_repeated = identity in self._seen
        self._seen[identity] = None
        self._seen.move_to_end(identity)
        if len(self._seen) > REMEMBERED_MESSAGES:
            self._seen.popitem(last=False)
        return is_repeated


class FeedReader:
    """Messages of one publisher in order, with `Missed` where durable ones are lost.

    If durable messages are among the topics, all of them are received, because only then is a
    loss known; the caller skips those it does not want.

    Args:
        query: endpoint that answers replays; None if there is none.
        topics: prefixes to subscribe to, besides the publisher's status. If that is not received
            for some seconds, the reader reconnects.
        after: position to begin after; "oldest" for what the log holds; None for now.
        patience_s: how long to ask a present publisher for missed messages; an absent one is
            waited for at least a minute, which it needs to start again after a kill.
        keys: for tcp.

    Attributes:
        malformed: messages that did not follow the format.
    """

    def __init__(
        self,
        endpoint: str,
        query: str | None,
        topics: Iterable[str],
        after: Position | Literal["oldest"] | None,
        patience_s: float,
        keys: ClientKeys | None = None,
    ) -> None:
        self.malformed = 0
        self._received_s: float | None = None
        self._has_status = False
        self._order = FeedOrder(
            None if after is None or after == "oldest" else (after[0], after[1])
        )
        self._starts_oldest = after == "oldest"
        self._started_ns = time.time_ns()
        self._patience_s = patience_s
        self._delivered = self._order.position
        self._ready: deque[FeedMessage | Missed] = deque()
        self._awaiting: FeedMessage | None = None  # a live message before which some are missing
        self._awaiting_since_s = 0.0
        self._unanswered_s = 0.0  # time without answers while the publisher was there
        self._ask_again_s = 0.0
        self._held: deque[list[bytes]] = deque()  # received while a live message waits
        self._stopped = threading.Event()
        self._limited_log = LimitedLog(logger)
        self._sockets = Sockets(keys)
        self._client: QueryClient | None = None
        if query is not None:
            self._client = QueryClient(self._sockets, query, self._stopped.is_set)
        subscriptions = {*topics, _STATUS_TOPIC}
        self._is_tracking = any(
            _overlap(topic, log) for topic in subscriptions for log in DURABLE_TOPICS
        )
        self._subscriptions = subscriptions.union(DURABLE_TOPICS if self._is_tracking else ())
        self._endpoint = endpoint
        self._sub = self._connect()
        self._silence_s = 0.0  # of `receive` calls; not the time between them
        self._reconnect = Backoff(*_RECONNECT_S)

    @property
    def position(self) -> Position | None:
        """Position of the last durable message returned or skipped."""
        is_even = not self._ready and self._awaiting is None
        return self._order.position if is_even else self._delivered

    @property
    def duplicates(self) -> int:
        """Durable messages that came twice."""
        return self._order.duplicates

    @property
    def is_publisher_there(self) -> bool:
        """Whether messages have come, and recently if the publisher sends a status each second."""
        if self._received_s is None:
            return False
        return not self._has_status or time.monotonic() - self._received_s < _AWAY_AFTER_S

    def receive(self, timeout_s: float | None) -> FeedMessage | Missed | None:
        """Return the next message or loss; None after `timeout_s` or `stop`.

        An answer of the query endpoint is waited for, which may take a second more.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._stopped.is_set():
            if self._ready:
                return self._deliver(self._ready.popleft())
            left_s = 1.0 if deadline_s is None else deadline_s - time.monotonic()
            if self._awaiting is not None:
                self._replay_page(self._awaiting)
            else:
                wait_ms = max(0, min(_POLL_MS, round(left_s * 1000)))
                frames = self._held.popleft() if self._held else self._sub.receive(wait_ms)
                if frames is not None:
                    self._process(frames)
                else:
                    self._on_silence(wait_ms / 1000)
            if left_s <= 0 and not self._ready:
                return None
        return None

    def add_topic(self, topic: str) -> None:
        """Subscribe to one more prefix of topics that are not durable."""
        self._subscriptions = self._subscriptions | {topic}
        self._sub.subscribe(topic)

    def remove_topic(self, topic: str) -> None:
        """Undo `add_topic`; messages on their way still come."""
        self._subscriptions = self._subscriptions - {topic}
        self._sub.unsubscribe(topic)

    def stop(self) -> None:
        """End `receive`, from any thread."""
        self._stopped.set()

    def close(self) -> None:
        """Close all sockets."""
        self._stopped.set()
        self._sockets.close()

    def _connect(self) -> Socket:
        sub = self._sockets.connect("sub", self._endpoint, FEED_HWM_MESSAGES)
        for topic in self._subscriptions:
            sub.subscribe(topic)
        return sub

    def _on_silence(self, duration_s: float) -> None:
        """Reconnect if not even the status came: libzmq would never notice a dead tunnel.

        Durable messages that the old connection still held come again, from the log.
        """
        self._silence_s += duration_s
        if self._silence_s < self._reconnect.delay_s:
            return
        self._sockets.forget(self._sub)
        self._sub = self._connect()
        self._silence_s = 0.0
        self._reconnect.next_s()

    def _deliver(self, item: FeedMessage | Missed) -> FeedMessage | Missed:
        if isinstance(item, Missed):
            self._delivered = item.upto
        elif item.is_durable:
            self._delivered = item.position
        return item

    def _process(self, frames: list[bytes]) -> None:
        try:
            message = FeedMessage.decode(frames)
        except WireError as error:
            self.malformed += 1
            self._limited_log.warning("%s", error)
            return
        self._received_s = time.monotonic()
        self._silence_s = 0.0
        self._reconnect.reset()
        self._has_status = self._has_status or message.topic.startswith(_STATUS_TOPIC)
        before = message.position_before if self._is_tracking else None
        if before is None:
            self._ready.append(message)
            return
        if self._order.position is None and not self._starts_oldest:
            self._order.start_at(self._beginning(before))
        if self._order.follows(message):
            self._finish(message)
        elif _is_of_silent_boot(message) and self._received_s < self._ask_again_s:
            self._ready.append(message)
        else:
            self._delivered = self._order.position
            self._awaiting = message
            self._awaiting_since_s, self._unanswered_s = self._received_s, 0.0

    def _beginning(self, before: Position) -> Position:
        """Return where "now" is: before everything, if the publisher started after this reader."""
        frames = None if self._client is None else self._client.ask(PingQuery(), _ANSWER_TIMEOUT_S)
        try:
            answer = PingAnswer.decode(frames or [])
        except WireError:
            return before
        is_later = answer.started_ns >= self._started_ns
        return (before[0], 0) if is_later and answer.boot == before[0] else before

    def _replay_page(self, message: FeedMessage) -> None:
        """Ask once for the messages missing before a live one."""
        if self._client is None:
            self._give_up(message, "no query endpoint is known")
            return
        position = self._order.position
        asked_s = time.monotonic()
        # not validated: a position that a program has kept is refused by the publisher, if need be
        query = ReplayQuery.model_construct(after=position)
        frames = self._client.ask(query, _ANSWER_TIMEOUT_S)
        if frames is None:
            if self._is_out_of_patience(asked_s) and not self._stopped.is_set():
                self._go_on_unanswered(message, f"{self._client.endpoint} does not answer")
            return
        self._awaiting_since_s, self._unanswered_s = time.monotonic(), 0.0
        try:
            page = decode_replay(frames)
        except WireError as error:
            self._give_up(message, str(error))
            return
        if isinstance(page, TooOld):
            if page.oldest is None or not _leads_on(position, page.oldest, message):
                self._give_up(message, _NOT_LOGGED)
            else:
                self._ready += self._order.too_old(page.oldest)
            return
        for missed in page.messages:
            self._ready += self._order.replayed(missed)
        if not page.more or self._order.position == position:
            self._ready += self._order.caught_up(message)
            self._finish(message)

    def _is_out_of_patience(self, asked_s: float) -> bool:
        """Return whether to give up after a query of `asked_s` that was not answered."""
        n_held = len(self._held)
        while len(self._held) < FEED_HWM_MESSAGES and (frames := self._sub.receive()) is not None:
            self._held.append(frames)
        now_s = time.monotonic()
        if len(self._held) > n_held or n_held >= FEED_HWM_MESSAGES:
            self._received_s = now_s
            self._unanswered_s += now_s - asked_s
        if self._unanswered_s > 0 and self._unanswered_s >= self._patience_s:
            return True
        return now_s - self._awaiting_since_s >= max(_ABSENT_S, self._patience_s)

    def _go_on_unanswered(self, message: FeedMessage, reason: str) -> None:
        """Give up, unless nothing is known to be missing: then ask once more in a while."""
        if not _is_of_silent_boot(message):
            self._give_up(message, reason)
            return
        self._ask_again_s = time.monotonic() + _ASK_AGAIN_S
        self._awaiting = None
        self._ready.append(message)

    def _give_up(self, message: FeedMessage, reason: str) -> None:
        self._ready += self._order.give_up(message, reason)
        self._finish(message)

    def _finish(self, message: FeedMessage) -> None:
        self._awaiting = None
        accepted = self._order.accept(message)
        if accepted is not None:
            self._ready.append(accepted)


def _is_of_silent_boot(message: FeedMessage) -> bool:
    """Return whether nothing durable was published in the boot of a message so far."""
    before = message.position_before
    return before is not None and before[1] == 0 and not message.is_durable


def _leads_on(position: Position | None, oldest: Position, message: FeedMessage) -> bool:
    """Return whether continuing after `oldest` can lead to the live message."""
    boot = message.position[0]
    is_of_this_boot = position is not None and position[0] == boot
    return oldest != position and not (is_of_this_boot and oldest[0] != boot)


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
