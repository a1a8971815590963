"""Whatever is in the database's place, alerts start, and begin with what is certain."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from alert_samples import T0_NS, action_settings, firing, resolved, states
from clocks import FakeClock

from ast_stream.alerts import outbox_operations as operations
from ast_stream.alerts.actions.base import Delivered, Failed, Outcome, Undeliverable
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.engine import Engine
from ast_stream.alerts.model_facts import DetectionTiming
from ast_stream.alerts.outbox import Delivery, Outbox
from ast_stream.alerts.process import resume_engine
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.store import Store, save_progress
from ast_stream.units import format_time

RULES = """
version: 1
groups:
  - name: test
    rules:
      - {alert: dog, match: {class: Bark}, actions: [phone]}
      - {alert: quiet_pump, absent: {match: {class: Pump}, for: 60s}}
      - {alert: long_siren, match: {class: Siren}, for: 3s, tolerate: 1s}
"""
ACTIONS = {"phone": action_settings(), "mail": action_settings()}
TIMES = ("created_ns", "updated_ns", "next_ns", "held_until_ns", "expires_ns")


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> RuleSet:
    file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    file.write_text(RULES)
    return load_rules([file])


@pytest.fixture(scope="module")
def sound(rules: RuleSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in the middle of its work: alerts that fire, wait, failed, and are snoozed."""
    path = tmp_path_factory.mktemp("sound") / "a.sqlite"
    clock = FakeClock(T0_NS)
    store = Store(path)
    store.since_ns(clock())
    outbox = Outbox(store, ACTIONS, clock, lambda: 0.5)
    engine = Engine(rules, now_ns=T0_NS)
    transitions = engine.on_message("event/", event("e1", "bark")) + engine.on_message(
        "event/", event("e2", "siren")
    )
    with store.transaction() as db:
        save_progress(db, engine.export(), ("b1", 7))
        outbox.enqueue(db, transitions)
        for number in range(40):
            outbox.enqueue(db, [firing(f"a{number}", "phone", "mail")])
    outcomes: list[Outcome] = [
        Delivered(),
        Failed("no answer"),
        Undeliverable("404"),
        Undeliverable("410", is_closed=True),
    ]
    for outcome in outcomes:
        delivery = outbox.next_delivery("mail")
        assert isinstance(delivery, Delivery)
        outbox.settle(delivery, outcome)
    operations.snooze(store, "dog", clock() + 3600 * 10**9, clock())
    with store.transaction() as db:
        outbox.enqueue(db, [resolved("a3", "phone"), firing("late", "phone")])
    store.close()
    return path


def event(id: str, name: str) -> dict[str, object]:
    at = format_time(T0_NS)
    return {
        "id": id, "type": "begin", "stream": "porch", "labels": {}, "class": name,
        "label": name, "score": 0.9, "peak": 0.9, "onset": at, "offset": None, "captured": at,
        "epoch": "a",
    }  # fmt: skip


def start(path: Path, rules: RuleSet) -> Store:
    """Begin as the alerts process does, and go through what the first seconds bring."""
    clock = FakeClock(T0_NS)
    clock.pass_s(5)
    store = Store(path)
    outbox = Outbox(store, ACTIONS, clock, lambda: 0.5)
    outbox.recover()
    engine = resume_engine(store, rules, DetectionTiming(), store.steady_time())
    assert store.since_ns(clock()) is not None
    position = store.position()
    if isinstance(position, tuple):
        assert isinstance(position[1], int)
    else:
        assert position is None or all(isinstance(seq, int) for _, seq in position.values())
    owed = engine.resume()
    with store.transaction() as db:
        save_progress(db, engine.export(), position)
        outbox.enqueue(db, owed)
        outbox.end_unknown(db, engine.alert_ids())
        outbox.enqueue(db, engine.advance(clock()))
        outbox.enqueue(db, engine.on_message("event/", event("e9", "bark")))
    for action in (FEED, *ACTIONS):
        outbox.expire(action)
        for _ in range(5):
            delivery = outbox.next_delivery(action)
            if isinstance(delivery, Delivery):
                outbox.settle(delivery, Delivered())
    outbox.pending()
    assert isinstance(operations.rows(store), list)
    return store


def flip_bits(raw: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 2, 16, 400))):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)


def flip_in_header(raw: bytearray, chance: random.Random) -> None:
    raw[chance.randrange(100)] = chance.randrange(256)


def cut(raw: bytearray, chance: random.Random) -> None:
    del raw[chance.randrange(len(raw)) :]


def overwrite(raw: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(raw))
    raw[at : at + 512] = chance.choice((b"\0", b"\xff", b"a")) * len(raw[at : at + 512])


def double(raw: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(raw))
    raw[at:at] = raw[:at]


MUTATIONS = (flip_bits, flip_in_header, cut, overwrite, double)


@pytest.mark.slow
@pytest.mark.parametrize("mutate", MUTATIONS)
def test_alerts_start_from_a_file_with_any_damage(
    sound: Path, rules: RuleSet, tmp_path: Path, mutate: Callable[[bytearray, random.Random], None]
) -> None:
    for seed in range(24):
        folder = tmp_path / str(seed)
        folder.mkdir()
        raw = bytearray(sound.read_bytes())
        mutate(raw, random.Random(seed))
        (folder / "a.sqlite").write_bytes(raw)
        start(folder / "a.sqlite", rules).close()


def test_alerts_start_beside_a_damaged_write_ahead_log(
    sound: Path, rules: RuleSet, tmp_path: Path
) -> None:
    writer = Store(tmp_path / "live.sqlite")  # open: its log is not yet in the file
    with writer.transaction() as db:
        save_progress(db, {"n": 1}, ("b1", 3))
    for seed in range(24):
        folder = tmp_path / str(seed)
        folder.mkdir()
        chance = random.Random(seed)
        for suffix in ("", "-wal", "-shm"):
            raw = bytearray((tmp_path / f"live.sqlite{suffix}").read_bytes())
            if suffix and raw:
                chance.choice(MUTATIONS)(raw, chance)
            (folder / f"a.sqlite{suffix}").write_bytes(raw)
        start(folder / "a.sqlite", rules).close()
    writer.close()


VALUES = (
    None, "", "x", "\0", b"\xff\xfe", -1, 2**62, 2**63 - 1, -(2**63), 1e300, float("inf")
)  # fmt: skip


@pytest.mark.slow
def test_alerts_start_with_any_value_in_any_column(
    sound: Path, rules: RuleSet, tmp_path: Path
) -> None:
    """Of the wrong type, too: written past the constraints, as a page that was mixed up has it."""
    number = 0
    with sqlite3.connect(sound) as db:
        tables = {
            name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")]
            for name in ("state", "alerts", "deliveries", "snoozes", "closed_actions")
        }
    for table, columns in tables.items():
        for column in columns:
            for value in VALUES:
                number += 1
                folder = tmp_path / str(number)
                folder.mkdir()
                path = folder / "a.sqlite"
                shutil.copy(sound, path)
                with sqlite3.connect(path) as db:
                    db.execute("PRAGMA ignore_check_constraints = ON")
                    try:
                        db.execute(f"UPDATE OR REPLACE {table} SET {column} = ?", (value,))
                    except sqlite3.Error:  # not even so
                        continue
                db.close()
                start(path, rules).close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    ["[]", "null", "{", '{"v": 1}', "[" * 100_000, '{"now_ns": 1e999}', '"\\ud800"', "7"],
)
@pytest.mark.parametrize("name", ["engine", "position", "since"])
def test_alerts_start_with_any_stored_state(
    sound: Path, rules: RuleSet, tmp_path: Path, name: str, value: str
) -> None:
    path = tmp_path / "a.sqlite"
    shutil.copy(sound, path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE state SET value = ? WHERE name = ?", (value, name))
    db.close()
    start(path, rules).close()
    assert len(list(tmp_path.glob("a.sqlite.damaged-1"))) == 1


def test_alerts_start_with_an_engine_state_whose_words_are_right_and_meaning_is_not(
    sound: Path, rules: RuleSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.sqlite"
    shutil.copy(sound, path)
    store = Store(path)
    state = store.engine_state()
    assert state is not None
    with store.transaction() as db:
        save_progress(db, state | {"instances": [{"rule": "dog"}]}, None)
    store.close()
    store = start(path, rules)
    assert "the state of the rules in" in caplog.text
    assert "Traceback" not in caplog.text
    (kept,) = tmp_path.glob("a.sqlite.engine-damaged")
    assert json.loads(kept.read_text())["instances"] == [{"rule": "dog"}]
    found = states(store)
    ended = [position for position in found if position[1] == "resolved" and position[2] == FEED]
    assert len(ended) >= 40  # of every alert that was firing the end is announced
    store.close()


def test_what_waits_is_taken_over_from_a_database_with_one_bad_row(
    sound: Path, rules: RuleSet, tmp_path: Path
) -> None:
    path = tmp_path / "a.sqlite"
    shutil.copy(sound, path)
    with sqlite3.connect(path) as db:
        before = dict(db.execute("SELECT seq, state FROM deliveries"))
        payload = "UPDATE deliveries SET payload = CAST('{}' AS BLOB) WHERE alert_id = 'a7'"
        db.execute(f"{payload} AND action = 'phone'")
    db.close()
    store = Store(path)
    with store.reading() as db:
        after = dict(db.execute("SELECT seq, state FROM deliveries"))
    lost = set(before) - set(after)
    assert len(lost) == 1
    assert after == {seq: state for seq, state in before.items() if seq not in lost}
    assert store.position() == ("b1", 7)
    assert [rule for rule, _ in operations.snoozes(store, T0_NS)] == ["dog"]
    store.close()


def test_sound_database_is_used_as_it_is(sound: Path, rules: RuleSet, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    shutil.copy(sound, path)
    start(path, rules).close()
    assert list(tmp_path.glob("*.damaged-*")) == []


def test_what_was_set_aside_is_deleted_when_it_is_as_old_as_alerts_may_be(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a[b].sqlite"
    path.write_bytes(b"no database, but alerts of somebody" * 1000)
    wall_s = time.time()
    store, clock = Store(path, wall_s=lambda: wall_s), FakeClock(T0_NS)
    other = tmp_path / "b.sqlite.damaged-1"
    for file in (other, path.with_name(f"{path.name}.damaged-1-wal")):
        file.touch()
    with store.transaction() as db:
        save_progress(db, {}, ("b1", 7))
    store.forget_engine("it is empty")
    outbox = Outbox(store, ACTIONS, clock, kept_s=86_400.0)
    kept = {f"{path.name}.{word}" for word in ("damaged-1", "damaged-1-wal", "engine-damaged")}
    outbox.expire("mail")
    assert {file.name for file in tmp_path.iterdir()} >= kept
    clock.pass_s(90_000)
    wall_s += 90_000
    outbox.expire("mail")
    assert {file.name for file in tmp_path.iterdir()} & kept == set()
    assert other.exists()
    store.close()
