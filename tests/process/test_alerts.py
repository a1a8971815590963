"""The alerts process among kills, full disks, changed rules and receivers that misbehave."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from alert_process import (
    BOTH,
    RULE,
    AlertProcess,
    alert_process,
    begin,
    bodies,
    hook,
    kinds_of,
)
from damage import make_strange
from feed_worker import Worker
from http_receiver import HANG, HttpReceiver, http_receiver
from pipeline import wait_for
from whole_files import write_whole

from ast_stream.alerts.delivery import DELIVERY_POINTS
from ast_stream.alerts.store import Store
from ast_stream.feed import FeedMessage, Subscriber

POINTS = (
    *("evaluated", "committing", "committed"),
    *(f"{action} {end}" for action in ("feed", "hook") for end in DELIVERY_POINTS),
)


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with http_receiver() as running:
        yield running


@pytest.fixture
def running(receiver: HttpReceiver) -> Iterator[AlertProcess]:
    with alert_process(hook(receiver), [RULE]) as one:
        yield one


def ids_of(receiver: HttpReceiver, n: int, kind: str) -> set[str]:
    return {
        body["id"]
        for body in bodies(receiver)
        if f"e{n}" in body["data"]["alert"]["events"] and body["data"]["kind"] == kind
    }


@pytest.mark.parametrize("kind", ["folder", "FIFO", "garbage"])
@pytest.mark.parametrize("name", ["alerts.sqlite", "alerts.sqlite.lock"])
def test_whatever_is_in_the_place_of_its_database_it_starts_and_delivers(
    running: AlertProcess, receiver: HttpReceiver, name: str, kind: str
) -> None:
    (running.folder / "state").mkdir()
    if kind == "garbage":
        (running.folder / "state" / name).write_bytes(b"\xa5" * 5000)
    else:
        make_strange(running.folder / "state" / name, kind)
    begin(running, receiver)
    assert "Traceback" not in running.log
    assert running.log.count("alerts.sqlite.") >= (0 if kind == "garbage" else 1)


def test_killed_at_every_step_no_alert_is_lost_or_sent_under_two_ids(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    begin(running, receiver)
    running.stop(signal.SIGKILL)
    n_events = 0
    for point in POINTS:
        n_events += 1
        running.publish(n_events, "begin", "end")  # while nobody listens
        running.start(point)
        wait_for(lambda: running.process is not None and running.process.poll() is not None, point)
        assert running.wait() == -signal.SIGKILL, (point, running.log)
    running.start()
    for n in range(1, n_events + 1):
        wait_for(lambda n=n: kinds_of(receiver, n) == BOTH, f"event {n}")  # type: ignore[misc]
        for kind in BOTH:
            assert len(ids_of(receiver, n, kind)) <= 1
    assert running.stop() == 0


def test_pending_duration_and_firing_alerts_survive_a_kill(receiver: HttpReceiver) -> None:
    rules = [RULE | {"for": "3s"}, RULE | {"alert": "any"}]
    with alert_process(hook(receiver), rules) as running:
        begin(running, receiver)
        running.publish(1, "begin")
        wait_for(lambda: "firing" in kinds_of(receiver, 1), "the plain rule")
        running.stop(signal.SIGKILL)
        running.publish(1, *["update"] * 10)
        running.start()
        running.publish(1, "end")
        wait_for(lambda: kinds_of(receiver, 1, "any") == BOTH, "the end of the plain rule")
        wait_for(lambda: kinds_of(receiver, 1, "dog") == BOTH, "the rule that waited")
    assert len(ids_of(receiver, 1, "resolved")) == 2


def test_events_of_a_worker_that_ended_before_it_was_asked_come_from_the_next(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    begin(running, receiver)
    with running.worker.lock:  # its thread is between two questions
        running.worker.queries = None  # it answers no more, as one that is about to end
    running.worker.publish(running.event(1, "begin"), arrives=False)
    running.publish(1, "end")
    running.worker.close()
    time.sleep(6.0)  # longer than a reader asks that would rather be up to date than complete
    assert kinds_of(receiver, 1) == set()
    running.worker = Worker(running.folder, "b2")
    wait_for(lambda: kinds_of(receiver, 1) == BOTH, "the messages of the first worker")
    assert "missed" not in running.log


def test_first_start_takes_what_comes_after_it_and_nothing_older(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    running.publish(1, "begin", "end")
    begin(running, receiver)
    assert kinds_of(receiver, 1) == set()


def test_alerts_are_published_on_a_feed_of_their_own(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    endpoint = f"ipc://{running.folder}/alerts.sock"
    with Subscriber(endpoint, topics=["alert/", "status/alerts/"]) as reader:
        begin(running, receiver)
        assert reader.receive(20) is not None  # it is connected
        running.publish(1, "begin", "end")
        found: list[tuple[str, str]] = []
        for message in reader.messages():
            assert isinstance(message, FeedMessage)
            if message.body.get("events") == ["e1"]:
                found.append((message.topic, message.body["state"]))
            if len(found) == 2:
                break
    assert found == [("alert/medium/dog/", "firing"), ("alert/medium/dog/", "resolved")]


def test_alerts_are_operated_over_a_socket_of_their_own(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    begin(running, receiver)
    endpoint = ("--endpoint", f"ipc://{running.folder}/admin.sock")
    receiver.script += [500] * 1000  # what is to be sent waits
    running.publish(1, "begin")

    def alert_id() -> str:
        lines = outbox_lines(running)
        return next((line["alert_id"] for line in lines if line["state"] == "pending"), "")

    wait_for(lambda: alert_id() != "", "a delivery that waits")
    done = command("ack", alert_id(), *endpoint)
    assert "acknowledged; 1 delivery is dropped" in done.stdout
    assert "snoozed until" in command("snooze", "dog", "--for", "1h", *endpoint).stdout
    assert command("snooze", "cat", *endpoint).returncode == 1
    assert "is acknowledged by process" in running.log
    assert "rule dog is snoozed for 3600 s by process" in running.log


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "ast_stream.cli", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def outbox_lines(running: AlertProcess) -> list[dict[str, Any]]:
    done = command("outbox", "list", "-c", str(running.config), "--action", "hook", "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_receiver_that_asks_for_a_pause_gets_everything() -> None:
    with http_receiver() as receiver, alert_process(hook(receiver), [RULE]) as running:
        begin(running, receiver)
        receiver.script += [(429, {"Retry-After": "1"})]
        running.publish(1, "begin", "end")
        running.publish(2, "begin", "end")
        wait_for(lambda: kinds_of(receiver, 1) == kinds_of(receiver, 2) == BOTH, "both alerts")


def test_one_receiver_that_hangs_holds_up_nobody_else() -> None:
    with http_receiver() as hanging, http_receiver() as quick:
        hanging.by_content[b""] = HANG  # whatever it is sent, however often
        both = {"hook": hanging, "quick": quick}
        actions = {name: hook(receiver)["actions"]["hook"] for name, receiver in both.items()}
        rule = RULE | {"actions": ["hook", "quick"]}
        with alert_process({"actions": actions}, [rule]) as running:
            begin(running, quick)
            running.publish(1, "begin", "end")
            wait_for(lambda: kinds_of(quick, 1) == BOTH, "the quick receiver")
            assert hanging.got
            states = {line["state"] for line in outbox_lines(running)}
            assert states <= {"pending", "superseded"}, "none is done"


def test_rules_are_replaced_when_their_file_changes_and_on_sighup(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    begin(running, receiver)
    running.publish(1, "begin")
    wait_for(lambda: kinds_of(receiver, 1) == {"firing"}, "the alert")
    write_whole(running.rules, '{"version": 1, "groups": [{"name": "x", "rulez": []}]}')
    wait_for(lambda: "the rules in force stay as they were" in running.log, "the refusal")
    assert f"{running.rules}:1:" in running.log
    assert "'rulez'; did you mean 'rules'?" in running.log
    running.publish(2, "begin", stream="hall")
    wait_for(lambda: kinds_of(receiver, 2) == {"firing"}, "the old rules")
    running.write_rules([RULE | {"alert": "any_dog"}])
    assert running.process is not None
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: kinds_of(receiver, 1) == BOTH, "the end of an alert whose rule is gone")
    running.publish(3, "begin", stream="yard")
    wait_for(lambda: kinds_of(receiver, 3, "any_dog") == {"firing"}, "the new rule")
    assert kinds_of(receiver, 3, "dog") == set()
    assert running.stop() == 0


def test_full_disk_delays_alerts_and_loses_none(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    begin(running, receiver)
    other = sqlite3.connect(running.folder / "state" / "alerts.sqlite", isolation_level=None)
    # a trigger that fails is to the process what a full disk is: nothing can be committed
    other.execute(
        "CREATE TRIGGER full BEFORE INSERT ON deliveries BEGIN"
        " SELECT RAISE(ABORT, 'database or disk is full'); END"
    )
    running.publish(1, "begin", "end")
    wait_for(lambda: "database or disk is full; trying again" in running.log, "the complaint")
    other.execute("DROP TRIGGER full")
    other.close()
    wait_for(lambda: kinds_of(receiver, 1) == BOTH, "the alert")


def test_position_state_and_deliveries_are_where_they_were_after_a_clean_stop(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    begin(running, receiver)
    running.publish(1, "begin")
    wait_for(lambda: kinds_of(receiver, 1) == {"firing"}, "the alert")
    assert running.stop() == 0
    store = Store(running.folder / "state" / "alerts.sqlite")
    assert store.position() == running.worker.publisher.durable_position
    store.close()
    n_got = len(receiver.got)
    running.start()
    running.publish(1, "end")
    wait_for(lambda: kinds_of(receiver, 1) == BOTH, "its end")
    assert len(receiver.got) == n_got + 1


def test_heartbeat_goes_out_while_the_worker_is_heard() -> None:
    with http_receiver() as receiver:
        section = hook(receiver) | {"heartbeat": {"action": "hook", "interval_s": 1}}
        with alert_process(section, [RULE]) as running:
            running.start()
            wait_for(
                lambda: any(body["data"]["kind"] == "heartbeat" for body in bodies(receiver)),
                "a heartbeat",
            )
            running.worker.close()
            wait_for(lambda: "no heartbeat: the worker is silent" in running.log, "the silence")
            running.worker = type(running.worker)(running.folder, "b2")


def test_second_process_on_one_configuration_is_refused(
    running: AlertProcess, receiver: HttpReceiver
) -> None:
    begin(running, receiver)
    first, running.process = running.process, None
    running.start()
    assert running.wait() == 3
    assert "is in use by another process" in running.log
    running.process = first


def test_rules_that_are_wrong_end_the_process_with_78(receiver: HttpReceiver) -> None:
    with alert_process(hook(receiver), [RULE | {"actions": ["phone"]}]) as running:
        running.start()
        assert running.wait() == 78
        assert "phone" in running.log


def test_configuration_without_rules_is_refused(receiver: HttpReceiver) -> None:
    with alert_process(hook(receiver) | {"rules": []}, []) as running:
        running.start()
        assert running.wait() == 78
        assert "alerts.rules: expected at least one rule file" in running.log


def test_state_file_can_be_elsewhere(receiver: HttpReceiver, tmp_path: Any) -> None:
    place = tmp_path / "elsewhere.sqlite"
    with alert_process(hook(receiver) | {"state_file": str(place)}, [RULE]) as running:
        begin(running, receiver)
        assert place.exists()
        assert json.loads(running.config.read_text())["alerts"]["state_file"] == str(place)
