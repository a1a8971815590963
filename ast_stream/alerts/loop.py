"""The loop of the alerts process: messages in order through the engine, into the database.

Stream time is what the worker's health messages say has been scored; the clock of this machine
replaces it only while the worker is silent. So a timer runs only when everything before it is
known, also after a pause, and while a backlog is processed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ast_stream.alerts.actions.base import LiveSensors
from ast_stream.alerts.delivery import DeliveryThreads, no_fault
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.instances import Transition
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.store import Store, StoreError, save_progress
from ast_stream.errors import WireError
from ast_stream.feed import FeedMessage, MessageReader, Missed
from ast_stream.messages.event import EventMessage
from ast_stream.messages.status import STREAM_REMOVED, Health
from ast_stream.runtime.logging import LimitedLog
from ast_stream.units import NS_PER_SECOND, counted, seconds_to_ns

TOPICS = ("event/", "gap/", "health/")
LEVELS = "levels/"
SILENT_S = 10.0  # after this long without the worker, time passes all the same
MAX_BATCH = 512
WAIT_S = 1.0  # how late a stop or a changed rule file is noticed
SAVE_EVERY_S = 1.0  # progress without an alert: what is not saved is evaluated again
RETRY_S = 1.0
CROWDED = ("limit", "instances")  # why an alert did not fire for want of room
DRAIN_S, MAX_DRAIN_S = 0.5, 3.0  # on a busy box a worker's last messages arrive late

logger = logging.getLogger(__name__)


class TopicReader(MessageReader, Protocol):
    """A reader whose topics can be changed."""

    def add_topic(self, topic: str) -> None:
        """Also receive messages of this topic from now on."""

    def remove_topic(self, topic: str) -> None:
        """Stop receiving messages of a topic that was added."""


class AlertLoop:
    """Evaluates one feed.

    Args:
        since_ns: events and gaps published before are ignored; for a first start, which has no
            position on the feed: reading from the oldest on misses nothing of a new worker.
        now_s: a clock that only goes forward.
        on_blocked: called each time a save has failed, before the next try.
        fault: called with `evaluated`, `committing`, `committed` at the boundaries of a save.
    """

    def __init__(
        self,
        feed: TopicReader,
        engine: Engine,
        store: Store,
        outbox: Outbox,
        deliveries: DeliveryThreads,
        *,
        sensors: Sequence[LiveSensors] = (),
        since_ns: int = 0,
        now_s: Callable[[], float] = time.monotonic,
        on_blocked: Callable[[], None] = lambda: None,
        fault: Callable[[str], None] = no_fault,
    ) -> None:
        self._engine = engine
        self._feed = feed
        self._store = store
        self._outbox = outbox
        self._deliveries = deliveries
        self._sensors = sensors
        self._since_ns = since_ns
        self._now_s = now_s
        self._fault = fault
        self._unsaved: list[Transition] = []
        self._has_news = False
        self._saved_s = self._started_s = now_s()
        self._scored_ns: dict[str, tuple[float, int]] = {}  # by stream: when reported, and what
        self._time = engine.time
        self._set_by_ns = engine.time.set_by_ns  # as last logged
        self._limited_log = LimitedLog(logger)
        self._crowd_log = LimitedLog(logger)
        self._n_crowded_out = 0  # as last logged
        self._on_blocked = on_blocked
        self._reads_levels = False
        self._read_levels_for(engine.rules)
        self._known_ns = outbox.evaluated_ns = 0  # stream time up to which alerts are known

    def run(self, stop: threading.Event, between: Callable[[], None]) -> None:
        """Evaluate until `stop` is set; `between` is called at least once a second."""
        self._add(self._engine.resume())
        self.save_until_done(stop)
        self._end_unknown()
        while not stop.is_set():
            between()
            self.step()
            self.save_until_done(stop)
        self._drain()
        self.save_until_done(stop)

    def step(self) -> None:
        """Process what is on the feed, waiting a moment for it, and run the timers that are due."""
        item = self._feed.receive(WAIT_S)
        for _ in range(MAX_BATCH):
            if item is None:
                break
            self._process(item)
            item = self._feed.receive(0.0)
        else:
            if item is not None:
                self._process(item)
        self._follow_clocks()
        horizon_ns, deadline_ns = self._horizon_ns(), self._engine.next_deadline_ns
        if horizon_ns is not None and deadline_ns is not None and deadline_ns <= horizon_ns:
            self._add(self._engine.advance(horizon_ns))
        self._known_ns = horizon_ns or 0
        self._tell_crowded_out()

    def replace_rules(self, rules: RuleSet, timing: DetectionTiming) -> None:
        """Continue with other rules or another timing; unchanged rules are not affected."""
        self._read_levels_for(rules)
        self._add(self._engine.replace_rules(rules, timing))

    def _read_levels_for(self, rules: RuleSet) -> None:
        """Subscribe to sound levels, which are made for readers alone, while a rule wants them."""
        wants_levels = bool(rules.by_levels)
        if wants_levels and not self._reads_levels:
            self._feed.add_topic(LEVELS)
        elif self._reads_levels and not wants_levels:
            self._feed.remove_topic(LEVELS)
        self._reads_levels = wants_levels

    def save_until_done(self, stop: threading.Event) -> None:
        """Save what is due; while that fails (a full disk), nothing else is read from the feed."""
        while True:
            try:
                self.save()
                return
            except StoreError as error:
                if error.is_damaged:  # it will not get better: the next start begins anew
                    raise
                self._store.outage.failed("%s; trying again each %s s", error, f"{RETRY_S:g}")
                self._on_blocked()
            if stop.wait(RETRY_S):
                return

    def save(self) -> None:
        """Save at once after a transition, else from time to time.

        Raises:
            StoreError: nothing was saved.
        """
        is_due = self._has_news and self._now_s() - self._saved_s >= SAVE_EVERY_S
        if not self._unsaved and not is_due:
            self._outbox.evaluated_ns = self._known_ns
            return
        self._fault("evaluated")
        with self._store.transaction() as db:
            save_progress(db, self._engine.export(), self._feed.position)
            self._outbox.enqueue(db, self._unsaved)
            self._fault("committing")
        self._fault("committed")
        self._unsaved.clear()
        self._has_news = False
        self._saved_s = self._now_s()
        self._outbox.evaluated_ns = self._known_ns
        self._deliveries.wake()

    @property
    def suppressed(self) -> Mapping[str, Mapping[str, int]]:
        """How many alerts did not fire since the start, by rule and reason."""
        counted_so_far = self._engine.counters.suppressed_by_rule
        return {
            rule.name: {"limit": 0} | counted_so_far.get(rule.name, {})
            for rule in self._engine.rules.rules
        }

    @property
    def hears_worker(self) -> bool:
        """Whether the worker has published lately and everything evaluated is saved."""
        return self._feed.is_publisher_there and not self._unsaved

    def _process(self, item: FeedMessage | Missed) -> None:
        if isinstance(item, Missed):
            logger.error(
                "messages up to %s of boot %s are missed, alerts may be too: %s",
                item.upto[1],
                item.upto[0],
                item.reason,
            )
            return
        self._has_news = self._has_news or item.is_durable
        try:
            self._evaluate(item)
        except WireError as error:
            self._limited_log.warning("%s", error)
        except Exception as error:  # one boundary: it is from outside and may hold anything
            self._limited_log.warning("message %s cannot be used: %r", item.topic, error)

    def _evaluate(self, message: FeedMessage) -> None:
        content = message.content()
        self._time.observe(content)
        published_ns = self._time.steady_ns(content.published_ns or 0)
        if message.is_durable and self._since_ns > published_ns:
            return
        self._add(self._engine.process(content))
        for sensors in self._sensors:
            match content:
                case EventMessage():
                    sensors.on_event(content)
                case Health():
                    sensors.on_health(content)
        if isinstance(content, Health) and content.detail == STREAM_REMOVED:
            self._scored_ns.pop(content.stream, None)
        elif isinstance(content, Health):
            scored_ns = published_ns - seconds_to_ns(content.lag_s or 0.0)
            self._scored_ns[content.stream] = (self._now_s(), scored_ns)

    def _tell_crowded_out(self) -> None:
        """Log what did not fire for want of room: nobody has chosen that, unlike a cooldown."""
        numbers = {
            rule: sum(by_reason.get(reason, 0) for reason in CROWDED)
            for rule, by_reason in self.suppressed.items()
        }
        n_now = sum(numbers.values())
        if n_now > self._n_crowded_out:
            self._crowd_log.warning(
                "%s did not fire since the start: as many alerts at a time as 'limit' allows (%s)",
                counted(n_now, "alert"),
                ", ".join(f"{rule}: {number}" for rule, number in numbers.items() if number),
            )
            self._n_crowded_out = n_now

    def _follow_clocks(self) -> None:
        """Follow the clocks of this machine, for wall times that people read, and calendars."""
        self._time.follow_machine()
        set_by_ns, self._set_by_ns = self._time.set_by_ns - self._set_by_ns, self._time.set_by_ns
        if set_by_ns:
            logger.warning("the clock was set by %+.1f s", set_by_ns / NS_PER_SECOND)
            self._has_news = True

    def _horizon_ns(self) -> int | None:
        """Return the stream time up to which everything is known; None: not known yet."""
        now_s = self._now_s()
        fresh = [ns for reported_s, ns in self._scored_ns.values() if now_s - reported_s < SILENT_S]
        if fresh:
            return min(fresh)
        if now_s - self._started_s < SILENT_S:
            return None
        self._add(self._engine.lose_feed())
        return self._time.now_ns() - seconds_to_ns(SILENT_S)

    def _end_unknown(self) -> None:
        """Resolve alerts that, after damage, only the receivers know of."""
        try:
            with self._store.transaction() as db:
                self._outbox.end_unknown(db, self._engine.alert_ids())
        except StoreError as error:
            if error.is_damaged:
                raise
            self._store.outage.failed("%s", error)

    def _drain(self) -> None:
        """Process what the worker published before it ended, for a moment if it keeps running."""
        end_s = self._now_s() + MAX_DRAIN_S
        while self._now_s() < end_s and (item := self._feed.receive(DRAIN_S)) is not None:
            self._process(item)

    def _add(self, transitions: list[Transition]) -> None:
        self._unsaved += transitions
