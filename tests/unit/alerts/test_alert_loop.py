from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alert_samples import T0_NS, states
from clocks import FakeClock

from ast_stream.alerts.delivery import DeliveryThreads
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.loop import SILENT_S, AlertLoop
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.steady_time import SteadyTime
from ast_stream.alerts.store import Store, StoreError
from ast_stream.feed import FeedMessage, Missed, Position
from ast_stream.machine_clock import Moment
from ast_stream.units import NS_PER_SECOND, format_time

RULES = """
version: 1
groups:
  - name: test
    rules:
      - {alert: quiet_pump, absent: {match: {class: Pump}, for: 60s}}
      - {alert: dog, match: {class: Bark}}
"""


class FakeFeed:
    """A feed of what a test puts there."""

    def __init__(self) -> None:
        self.items: list[FeedMessage | Missed] = []
        self.position: Position | None = None
        self.is_publisher_there = True
        self.added: list[str] = []
        self.n_receives = 0

    def receive(self, timeout_s: float | None = None) -> FeedMessage | Missed | None:
        self.n_receives += 1
        return self.items.pop(0) if self.items else None

    def add_topic(self, topic: str) -> None:
        self.added.append(topic)

    def remove_topic(self, topic: str) -> None:
        self.added.remove(topic)


class Bench:
    """A loop on a fake feed, with a clock that moves on request."""

    def __init__(self, folder: Path) -> None:
        (folder / "rules.yaml").write_text(RULES)
        self.clock = FakeClock(T0_NS)
        self.feed = FakeFeed()
        self.store = Store(folder / "a.sqlite")
        outbox = Outbox(self.store, {}, self.clock)
        time = SteadyTime(read=lambda: Moment(self.clock(), self.clock() - T0_NS))
        engine = Engine(load_rules([folder / "rules.yaml"]), now_ns=T0_NS, time=time)
        self.loop = AlertLoop(
            self.feed,
            engine,
            self.store,
            outbox,
            DeliveryThreads({}, outbox),
            now_s=lambda: self.clock() / NS_PER_SECOND,
        )

    def hear_health(self, lag_s: float = 0.0) -> None:
        body: dict[str, Any] = {"v": 1, "boot": "b", "seq": 1, "stream": "porch", "labels": {}}
        body |= {"state": "listening", "lag_s": lag_s, "level_dbfs": -40.0}
        body["published"] = format_time(self.clock())
        self.feed.items.append(FeedMessage("health/porch/", body))
        self.loop.step()
        self.loop.save()

    def pass_s(self, seconds: int, lag_s: float = 0.0) -> None:
        for _ in range(seconds):
            self.clock.pass_s(1)
            self.hear_health(lag_s)

    @property
    def fired(self) -> list[str]:
        with self.store.reading() as db:
            query = "SELECT rule FROM deliveries WHERE transition = 'firing'"
            return [row[0] for row in db.execute(query)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def test_levels_are_read_while_a_rule_goes_by_them(bench: Bench, tmp_path: Path) -> None:
    assert bench.feed.added == []
    rules = RULES.replace("match: {class: Bark}", "level: {louder_than_db: 70}")
    (tmp_path / "rules.yaml").write_text(rules)
    for _ in range(2):
        bench.loop.replace_rules(load_rules([tmp_path / "rules.yaml"]), DetectionTiming())
    assert bench.feed.added == ["levels/"]
    (tmp_path / "rules.yaml").write_text(RULES)
    for _ in range(2):
        bench.loop.replace_rules(load_rules([tmp_path / "rules.yaml"]), DetectionTiming())
    assert bench.feed.added == []


def test_timer_runs_when_the_sound_up_to_it_has_been_scored(bench: Bench) -> None:
    bench.hear_health()
    bench.pass_s(59)
    assert bench.fired == []
    bench.pass_s(3)
    assert bench.fired == ["quiet_pump"]


def test_timer_waits_while_a_backlog_is_worked_off(bench: Bench) -> None:
    bench.hear_health()
    bench.pass_s(90, lag_s=40.0)
    assert bench.fired == []  # the sound of the last 40 s is not known yet
    bench.pass_s(1, lag_s=0.0)
    assert bench.fired == ["quiet_pump"]


def test_wall_clock_stands_in_for_a_worker_that_is_silent(bench: Bench) -> None:
    bench.hear_health()
    bench.clock.pass_s(60 + SILENT_S / 2)
    bench.loop.step()
    bench.loop.save()
    assert bench.fired == []
    bench.clock.pass_s(SILENT_S)
    bench.loop.step()
    bench.loop.save()
    assert bench.fired == ["quiet_pump"]


def test_feed_is_read_in_bounded_portions(bench: Bench) -> None:
    bench.feed.items += [Missed(None, ("b", 1), "gone")] * 2000
    bench.loop.step()
    assert bench.feed.items


def test_message_that_is_not_what_it_should_be_is_left_out(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.feed.items += [
        FeedMessage("health/porch/", {"v": 1, "boot": "b", "seq": 1}),
        FeedMessage("event/bark/porch/", {"v": 1, "boot": "b", "seq": 2, "previous": 0}),
    ]
    bench.loop.step()
    assert bench.feed.items == []
    assert "feed message 'health/porch/': stream: Field required" in caplog.text


def test_messages_that_are_missed_are_reported(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.feed.items.append(Missed(None, ("b", 7), "the log does not have them"))
    bench.loop.step()
    assert "messages up to 7 of boot b are missed, alerts may be too" in caplog.text


def test_alert_is_saved_at_once_and_progress_from_time_to_time(bench: Bench) -> None:
    bench.hear_health()
    bench.feed.position = ("b", 3)
    at = format_time(bench.clock())
    body = {"v": 1, "boot": "b", "seq": 3, "previous": 0, "id": "e1", "type": "begin"}
    body |= {"stream": "porch", "labels": {}, "class": "speech", "label": "Speech", "peak": 0.9}
    body |= {"onset": at, "captured": at, "published": at}
    bench.feed.items.append(FeedMessage("event/speech/porch/", body))
    bench.loop.step()
    bench.loop.save()
    assert bench.store.position() is None
    bench.clock.pass_s(1)
    bench.loop.save()
    assert bench.store.position() == ("b", 3)
    barks = body | {"id": "e2", "class": "bark", "label": "Bark"}
    bench.feed.items.append(FeedMessage("event/bark/porch/", barks))
    bench.feed.position = ("b", 4)
    bench.loop.step()
    bench.loop.save()
    assert bench.store.position() == ("b", 4)
    assert {key[2] for key in states(bench.store)} == {FEED}
    assert bench.fired == ["dog"]


def test_alerts_that_a_full_rule_does_not_fire_are_logged_and_counted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.hear_health()
    at = format_time(bench.clock())
    for n in range(70):
        body = {"v": 1, "boot": "b", "seq": n + 1, "previous": n, "id": f"e{n}", "type": "begin"}
        body |= {"stream": f"mic-{n}", "labels": {}, "class": "bark", "label": "Bark", "peak": 0.9}
        body |= {"onset": at, "captured": at, "published": at}
        bench.feed.items.append(FeedMessage(f"event/bark/mic-{n}/", body))
    bench.loop.step()
    bench.loop.save()
    assert bench.fired == ["dog"] * 64
    assert bench.loop.suppressed == {"quiet_pump": {"limit": 0}, "dog": {"limit": 6}}
    assert "6 alerts did not fire since the start" in caplog.text
    assert "as many alerts at a time as 'limit' allows (dog: 6)" in caplog.text


def test_sign_of_life_needs_a_worker_and_a_disk(bench: Bench) -> None:
    assert bench.loop.hears_worker
    bench.feed.is_publisher_there = False
    assert not bench.loop.hears_worker


def test_database_that_is_damaged_while_it_runs_ends_the_loop(bench: Bench) -> None:
    bench.hear_health()
    with bench.store.reading() as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA cache_size = 0")  # else it would be found only much later
        db.execute("PRAGMA shrink_memory")
    path = bench.store.path
    path.write_bytes(path.read_bytes()[:100] + b"\xa5" * (path.stat().st_size - 100))
    bench.clock.pass_s(5)
    with pytest.raises(StoreError, match="malformed") as raised:
        bench.loop.run(threading.Event(), bench.hear_health)
    assert raised.value.is_damaged
