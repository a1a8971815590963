"""One publisher's feed from a SUB socket, put in order and completed from its query endpoint."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Literal

from ast_stream.errors import WireError
from ast_stream.messages.feed import DURABLE_TOPICS, FeedMessage, Position
from ast_stream.messages.query import PingAnswer, PingQuery, ReplayQuery, TooOld, decode_replay
from ast_stream.runtime.logging import LimitedLog
from ast_stream.transport.feed_order import FeedOrder, Missed
from ast_stream.transport.query_client import QueryClient
from ast_stream.transport.sockets import FEED_HWM_MESSAGES, Socket, Sockets

_POLL_MS = 100  # how late a stop is noticed
_ANSWER_TIMEOUT_S = 1.0
_AWAY_AFTER_S = 3.0  # a publisher says its status each second
_RECONNECT_AFTER_S = 5.0  # of silence: the connection may be dead without either end knowing
_MOST_PATIENT_S = 30.0
_ABSENT_S = 60.0  # for a publisher to come back, and to answer
_STATUS_TOPIC = "status/"

logger = logging.getLogger(__name__)


class FeedReader:
    """Messages of one publisher in order, with `Missed` where durable ones are lost.

    With topics among the durable ones, all durable messages are taken, because only then is a
    loss known; the caller leaves out what it does not want.

    Args:
        query: endpoint that answers replays, None if there is none.
        topics: prefixes to subscribe to, besides the publisher's status. Where that is silent
            for some seconds, the connection is made anew.
        after: position to begin after, "oldest" for what the log holds, None for now.
        patience_s: how long to ask a publisher that is there for missed messages; one that is
            not there is waited for at least a minute, as after a kill it needs to start again.

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
    ) -> None:
        self.malformed = 0
        self._heard_s: float | None = None
        self._hears_status = False
        self._order = FeedOrder(
            None if after is None or after == "oldest" else (after[0], after[1])
        )
        self._starts_oldest = after == "oldest"
        self._started_ns = time.time_ns()
        self._patience_s = patience_s
        self._delivered = self._order.position
        self._ready: deque[FeedMessage | Missed] = deque()
        self._awaiting: FeedMessage | None = None  # a live message with a hole before it
        self._awaiting_since_s = 0.0
        self._unanswered_s = 0.0  # asked in vain while the publisher was there
        self._held: deque[list[bytes]] = deque()  # came while a live message was waiting
        self._stopped = threading.Event()
        self._limited_log = LimitedLog(logger)
        self._sockets = Sockets()
        self._client: QueryClient | None = None
        if query is not None:
            self._client = QueryClient(self._sockets, query, self._stopped.is_set)
        wanted = {*topics, _STATUS_TOPIC}
        self._is_tracking = any(_overlap(topic, log) for topic in wanted for log in DURABLE_TOPICS)
        self._wanted = wanted.union(DURABLE_TOPICS if self._is_tracking else ())
        self._endpoint = endpoint
        self._sub = self._connect()
        self._silence_s = 0.0  # waited in vain; not the time in which nobody waited
        self._patient_s = _RECONNECT_AFTER_S

    @property
    def position(self) -> Position | None:
        """Position of the last durable message given out, or left out by agreement."""
        is_even = not self._ready and self._awaiting is None
        return self._order.position if is_even else self._delivered

    @property
    def duplicates(self) -> int:
        """Durable messages that came twice."""
        return self._order.duplicates

    @property
    def is_publisher_there(self) -> bool:
        """Whether the publisher was heard, and lately if it is one that speaks each second."""
        if self._heard_s is None:
            return False
        return not self._hears_status or time.monotonic() - self._heard_s < _AWAY_AFTER_S

    def receive(self, timeout_s: float | None) -> FeedMessage | Missed | None:
        """Return what comes next, or None after `timeout_s` or `stop`.

        A question to the query endpoint is waited for, which may take a second more.
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
                    self._take(frames)
                else:
                    self._on_silence(wait_ms / 1000)
            if left_s <= 0 and not self._ready:
                return None
        return None

    def stop(self) -> None:
        """End `receive`, from any thread."""
        self._stopped.set()

    def close(self) -> None:
        """Close all sockets."""
        self._stopped.set()
        self._sockets.close()

    def _connect(self) -> Socket:
        sub = self._sockets.connect("sub", self._endpoint, FEED_HWM_MESSAGES)
        for topic in self._wanted:
            sub.subscribe(topic)
        return sub

    def _on_silence(self, duration_s: float) -> None:
        """Connect anew where not even the status came: libzmq would never notice a dead tunnel.

        What the old connection still held comes again from the log, if it was durable.
        """
        self._silence_s += duration_s
        if self._silence_s < self._patient_s:
            return
        self._sockets.forget(self._sub)
        self._sub = self._connect()
        self._silence_s = 0.0
        self._patient_s = min(_MOST_PATIENT_S, 2 * self._patient_s)

    def _deliver(self, item: FeedMessage | Missed) -> FeedMessage | Missed:
        if isinstance(item, Missed):
            self._delivered = item.upto
        elif item.is_durable:
            self._delivered = item.position
        return item

    def _take(self, frames: list[bytes]) -> None:
        try:
            message = FeedMessage.decode(frames)
        except WireError as error:
            self.malformed += 1
            self._limited_log.warning("%s", error)
            return
        self._heard_s = time.monotonic()
        self._silence_s = 0.0
        self._patient_s = _RECONNECT_AFTER_S
        self._hears_status = self._hears_status or message.topic.startswith(_STATUS_TOPIC)
        before = message.position_before if self._is_tracking else None
        if before is None:
            self._ready.append(message)
            return
        if self._order.position is None and not self._starts_oldest:
            self._order.start_at(self._beginning(before))
        if self._order.follows(message):
            self._finish(message)
        else:
            self._delivered = self._order.position
            self._awaiting = message
            self._awaiting_since_s, self._unanswered_s = self._heard_s, 0.0

    def _beginning(self, before: Position) -> Position:
        """Return where "now" is: all of a publisher that was started after this reader."""
        frames = None if self._client is None else self._client.ask(PingQuery(), _ANSWER_TIMEOUT_S)
        try:
            answer = PingAnswer.decode(frames or [])
        except WireError:
            return before
        is_later = answer.started_ns >= self._started_ns
        return (before[0], 0) if is_later and answer.boot == before[0] else before

    def _replay_page(self, message: FeedMessage) -> None:
        """Ask once for what is missing before a live message."""
        if self._client is None:
            self._give_up(message, "no query endpoint is known")
            return
        position = self._order.position
        asked_s = time.monotonic()
        frames = self._client.ask(ReplayQuery(after=position), _ANSWER_TIMEOUT_S)
        if frames is None:
            if self._is_out_of_patience(asked_s) and not self._stopped.is_set():
                self._give_up(message, f"{self._client.endpoint} does not answer")
            return
        self._awaiting_since_s, self._unanswered_s = time.monotonic(), 0.0
        try:
            page = decode_replay(frames)
        except WireError as error:
            self._give_up(message, str(error))
            return
        if isinstance(page, TooOld):
            if page.oldest is None or not _leads_on(position, page.oldest, message):
                self._give_up(message, "the publisher's event log does not have them")
            else:
                self._ready += self._order.too_old(page.oldest)
            return
        for missed in page.messages:
            self._ready += self._order.replayed(missed)
        if not page.more or self._order.position == position:
            self._ready += self._order.caught_up(message)
            self._finish(message)

    def _is_out_of_patience(self, asked_s: float) -> bool:
        """Tell whether a question since `asked_s` was one too many in vain."""
        n_held = len(self._held)
        while len(self._held) < FEED_HWM_MESSAGES and (frames := self._sub.receive()) is not None:
            self._held.append(frames)
        now_s = time.monotonic()
        if len(self._held) > n_held or n_held >= FEED_HWM_MESSAGES:
            self._heard_s = now_s
            self._unanswered_s += now_s - asked_s
        if self._unanswered_s > 0 and self._unanswered_s >= self._patience_s:
            return True
        return now_s - self._awaiting_since_s >= max(_ABSENT_S, self._patience_s)

    def _give_up(self, message: FeedMessage, reason: str) -> None:
        self._ready += self._order.give_up(message, reason)
        self._finish(message)

    def _finish(self, message: FeedMessage) -> None:
        self._awaiting = None
        taken = self._order.take(message)
        if taken is not None:
            self._ready.append(taken)


def _leads_on(position: Position | None, oldest: Position, message: FeedMessage) -> bool:
    """Tell whether going on after `oldest` can lead to the live message."""
    boot = message.position[0]
    is_of_this_boot = position is not None and position[0] == boot
    return oldest != position and not (is_of_this_boot and oldest[0] != boot)


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
