"""A busy minute of a box, as the disk sees it: a worker and an alerts process in one process.

    LD_PRELOAD=disk.so DISK_ROOT=FOLDER DISK_LOG=FILE python busy_minute.py each_event 60

Three streams with sounds and silence, a worker that is killed and started again, a capture process
that is replaced, an event log and a coverage ledger of small segments, rules that make an alert of
each event, and an action that delivers them. Marks in the record say what the box has told anyone:
a line of JSON each, see `Box`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))  # helpers that several tests share

from reactive_model import save_reactive, tones_and_noise
from recording import Mark, marker
from worker_harness import MACHINE_STARTED_NS, Site

from ast_stream.alerts.actions.base import Delivered
from ast_stream.alerts.delivery import DeliveryThreads
from ast_stream.alerts.loop import AlertLoop
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.outbox import Delivery, Outbox
from ast_stream.alerts.process import resume_engine
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.alerts.store import Store, StoreError
from ast_stream.coverage.spans import Span
from ast_stream.machine_clock import Moment
from ast_stream.messages.event import BOOT_TOPIC, FeedMessage, Position
from ast_stream.messages.query import TooOld
from ast_stream.model.tagger import Tagger, load_tagger
from ast_stream.settings.alerts import ActionSection, RateLimit
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.reader import Missed
from ast_stream.units import NS_PER_SECOND

STREAMS = ("porch", "yard", "hall")
LOG_SIZES: dict[str, Any] = {"max_bytes": 64 * 1024, "segment_bytes": 8 * 1024}
LEDGER_SIZES: dict[str, Any] = {"max_bytes": 64 * 1024, "segment_bytes": 4 * 1024}
GATE_DBFS = -50.0  # the noise between the sounds is below
SETTINGS = "same"  # of the journal
RULES = """version: 1
groups:
  - name: g
    rules:
      - {alert: any, match: {}, group_by: [stream, class], cooldown: 0s, actions: [say]}
"""
DATABASE_NAME = "alerts.sqlite"
ACTIONS = {"say": ActionSection(rate_limit=RateLimit(max=10_000))}


class QueuedFeed:
    """A feed of the messages that are put into it."""

    def __init__(self, position: Position | None) -> None:
        self.waiting: list[FeedMessage] = []
        self.position = position
        self.is_publisher_there = True

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        if not self.waiting:
            return None
        message = self.waiting.pop(0)
        if message.is_durable:
            self.position = message.position
        return message

    def remove_topic(self, topic: str) -> None:
        """Nothing was added."""

    def add_topic(self, topic: str) -> None:
        raise AssertionError("no rule goes by levels")


class Alerts:
    """An alerts process: engine, database and outbox are the real ones.

    Marks: `committed`, rows of the outbox that a transaction has made, and `delivered`.
    """

    def __init__(self, folder: Path, now_ns: Callable[[], int], mark: Mark) -> None:
        self.store = Store(folder / DATABASE_NAME)
        state = self.store.engine_state() or {}
        time = SteadyTime(
            state.get("time"), read=lambda: Moment(now_ns(), now_ns() - MACHINE_STARTED_NS)
        )
        time.follow_machine()
        self.outbox = Outbox(self.store, ACTIONS, time.now_ns, wall_ns=time.wall_ns)
        self.outbox.recover()
        position = self.store.position()
        assert not isinstance(position, Mapping)  # there is one feed
        self.feed = QueuedFeed(position)
        engine = resume_engine(self.store, rules(), DetectionTiming(), time)
        self.loop = AlertLoop(
            self.feed,
            engine,
            self.store,
            self.outbox,
            DeliveryThreads({}, self.outbox),
            now_s=lambda: now_ns() / NS_PER_SECOND,
        )
        self._mark = mark
        self._known = set(self.rows())
        self._is_blocked = False
        self._unsettled: list[Delivery] = []  # that their receivers have

    def rows(self) -> dict[tuple[str, str, str], str]:
        """Return the state of each delivery by alert, transition and action."""
        with self.store.reading() as db:
            query = "SELECT alert_id, transition, action, state FROM deliveries"
            return {
                (alert, kind, action): state for alert, kind, action, state in db.execute(query)
            }

    def turn(self) -> None:
        """Evaluate what is on the feed, and save it; nothing more is read until that works."""
        try:
            if not self._is_blocked:
                self.loop.step()
            self.loop.save()
        except StoreError:
            self._is_blocked = True
            return
        self._is_blocked = False
        new = self.rows().keys() - self._known
        if new:
            self._known |= new
            self._mark({"committed": sorted(new)})

    def deliver(self) -> None:
        """Deliver everything that is due, and record it as soon as the database takes it."""
        with suppress(StoreError):
            while self._unsettled:
                self.outbox.settle(self._unsettled[0], Delivered())
                del self._unsettled[0]
            for action in self.outbox.actions:
                while isinstance(delivery := self.outbox.next_delivery(action), Delivery):
                    alert, kind = delivery.notification.id.rsplit(".", 1)
                    self._mark({"delivered": [alert, kind, action]})
                    self._unsettled.append(delivery)
                    self.outbox.settle(delivery, Delivered())
                    self._unsettled.clear()

    def close(self) -> None:
        self.store.close()


class Box:
    """The box; marks `sent`, messages of the feed; `acked`, audio; `heard`, spans; `ledgered`.

    Attributes:
        before_turn, before_restart: called each quarter of a second of its time, and before a
            process of it begins again.
    """

    def __init__(self, folder: Path, tagger: Tagger, mark: Mark, *, syncs_first: bool) -> None:
        self.site = site = Site(tagger, folder=folder)
        site.syncs_first, site.gate_dbfs = syncs_first, GATE_DBFS
        site.log_sizes, site.ledger_sizes = LOG_SIZES, LEDGER_SIZES
        site.on_sent = self._on_sent
        self.before_turn: Callable[[], None] = lambda: None
        self.before_restart: Callable[[], None] = lambda: None
        self._mark = mark
        self._acked: dict[str, tuple[str, int]] = {}
        self.alerts = Alerts(folder, self._now_ns, mark)

    def play(self, seconds: float) -> None:
        """Play the minute, with what may happen to a box in it."""
        site, began_s = self.site, self.site.now_s
        sounds = {
            name: tones_and_noise(seconds, seed) for seed, name in enumerate(STREAMS, start=11)
        }
        for name in STREAMS:
            site.start_capture(name)
        self._start_worker()
        self._play_until(sounds, began_s + 0.3 * seconds)
        self.before_restart()
        site.kill_worker()
        self._start_worker()
        self._play_until(sounds, began_s + 0.6 * seconds)
        self.before_restart()
        site.start_capture("yard")  # another epoch
        self._play_until(sounds, began_s + 0.8 * seconds)
        self.before_restart()
        site.kill_worker()
        self._start_worker()
        self.alerts.close()
        self.alerts = Alerts(site.folder, self._now_ns, self._mark)
        assert site.log is not None
        missed = held(site.log, after=self.alerts.feed.position)
        self.alerts.feed.waiting += [message for message in missed if message.topic != BOOT_TOPIC]
        self._play_until(sounds, began_s + seconds)

    def end(self) -> None:
        """Stop the worker as a signal does, and deliver what there is."""
        self.site.worker.finish()
        self.site.tick()
        self._turn()
        self.alerts.deliver()

    def _now_ns(self) -> int:
        return round(self.site.now_s * NS_PER_SECOND)

    def _start_worker(self) -> None:
        site = self.site
        site.start_worker(*STREAMS)
        ledger, add, save = site.ledger, site.ledger.add, site.ledger.save

        def add_marked(span: Span) -> None:
            self._mark({"heard": span.to_json()})
            add(span)

        def save_marked(*, at_once: bool = False) -> None:
            save(at_once=at_once)
            if ledger.outage.text is None:
                self._mark({"ledgered": at_once})

        ledger.add, ledger.save = add_marked, save_marked  # type: ignore[method-assign]

    def _play_until(self, sounds: dict[str, Any], until_s: float) -> None:
        while self.site.now_s < until_s:
            self.before_turn()
            self.site.play_live(sounds, self.site.now_s + 0.25)
            self._turn()

    def _turn(self) -> None:
        for name in STREAMS:
            capture = self.site.capture(name)
            acked = (capture.epoch, capture.ring.acked)
            if acked != self._acked.get(name):
                self._acked[name] = acked
                self._mark({"acked": [name, *acked]})
        self.alerts.turn()
        if round(self.site.now_s * 4) % 8 == 0:
            self.alerts.deliver()

    def _on_sent(self, message: FeedMessage) -> None:
        if message.is_durable:
            self._mark({"sent": [*message.position, message.body]})
        self.alerts.feed.waiting.append(message)


def held(log: EventLog, after: Position | None = None) -> list[FeedMessage]:
    """Return the messages after a position, or all where the log does not know it any more."""
    messages: list[FeedMessage] = []
    while True:
        page = log.replay(after)
        if isinstance(page, TooOld):
            after = page.oldest
            continue
        messages += page.messages
        if not page.more or not page.messages:
            return messages
        after = page.messages[-1].position


@cache
def rules() -> RuleSet:
    """Return the rules: an alert of each event."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yaml"
        path.write_text(RULES)
        return load_rules([path])


def reactive_tagger() -> Tagger:
    """Return a tiny model whose scores follow the sounds."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_reactive(Path(folder))
        return load_tagger(str(checkpoint), "cpu", "fp32", "math")


def main() -> None:
    durability, seconds = sys.argv[1], float(sys.argv[2])
    box = Box(
        Path(os.environ["DISK_ROOT"]),
        reactive_tagger(),
        marker(),
        syncs_first=durability == "each_event",
    )
    box.play(seconds)
    box.end()
    os._exit(0)  # as a power cut would, with all files open


if __name__ == "__main__":
    main()
