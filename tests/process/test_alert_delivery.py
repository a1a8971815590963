"""Delivery as the alerts process does it: real receivers, a real broker, kills and a user."""

from __future__ import annotations

import base64
import io
import json
import signal
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from alert_process import BOTH, RULE, AlertProcess, alert_process, begin, hook, kinds_of
from home_assistant import check_discovery
from http_receiver import HANG, Received, http_receiver
from mqtt_broker import MOSQUITTO, Broker, Listener, listener, mqtt_broker
from pipeline import wait_for

from ast_stream.alerts.store import Store
from ast_stream.cli.app import run_command_line
from ast_stream.feed import FeedMessage, Subscriber

STATUS = "ast-stream/ast-stream/status"
SENSOR = "ast-stream/ast-stream/porch/bark/state"
DEVICE = "homeassistant/device/ast-stream_stream_porch/config"
needs_mosquitto = pytest.mark.skipif(
    MOSQUITTO is None, reason="needs mosquitto: apt-get install mosquitto"
)


def run(one: AlertProcess, *args: str) -> str:
    """Return what a command of a user on the configuration prints."""
    with redirect_stdout(io.StringIO()) as out:
        assert run_command_line([*args, "-c", str(one.config)]) == 0
    return out.getvalue()


def rows(one: AlertProcess, *args: str) -> list[dict[str, Any]]:
    """Return what `outbox list` shows."""
    return [json.loads(line) for line in run(one, "outbox", "list", "--json", *args).splitlines()]


def n_resolved(one: AlertProcess) -> int:
    return sum(row["transition"] == "resolved" for row in rows(one, "--action", "feed"))


def is_announced(client: Listener, event: str) -> bool:
    """Tell whether an alert that `event` caused was published on the broker."""
    topic = "ast-stream/ast-stream/alerts/dog"
    return any(name == topic and f'"{event}"' in text for name, text, _ in client.got)


def test_killed_before_the_answer_it_is_sent_again_with_the_same_id_and_body() -> None:
    with http_receiver() as receiver, alert_process(hook(receiver), [RULE]) as one:
        begin(one, receiver)
        receiver.script += [HANG]
        one.publish(1, "begin")
        wait_for(lambda: kinds_of(receiver, 1) == {"firing"}, "the request")
        one.stop(signal.SIGKILL)  # the receiver has it, and has not acknowledged it
        one.start()

        def requests() -> list[Received]:
            return [got for got in receiver.got if b'"e1"' in got.raw]

        wait_for(lambda: len(requests()) == 2, "the second")
        first, second = requests()
        assert (first.id, first.raw) == (second.id, second.raw)
        one.publish(1, "end")
        wait_for(lambda: kinds_of(receiver, 1) == BOTH, "its end")


def test_critical_alert_passes_one_that_fails_and_one_that_hangs() -> None:
    rules = [RULE | {"severity": "low"}]
    rules += [
        RULE | {"alert": "glass", "severity": "critical", "match": {"class": "Siren"}},
    ]
    with http_receiver() as receiver, alert_process(hook(receiver, timeout_s=300), rules) as one:
        begin(one, receiver)
        # not in the order of the requests: what failed may be tried again before the next comes
        receiver.by_content |= {b'"e1"': 500, b'"e2"': HANG}
        one.publish(1, "begin")
        wait_for(lambda: kinds_of(receiver, 1) == {"firing"}, "what fails")
        one.publish(2, "begin", stream="hall")
        wait_for(lambda: kinds_of(receiver, 2) == {"firing"}, "what hangs")
        one.publish(3, "begin", name="siren")
        wait_for(lambda: kinds_of(receiver, 3) == {"firing"}, "the critical alert")

        def severities() -> set[str]:
            return {row["severity"] for row in rows(one, "--action", "hook", "--state", "pending")}

        wait_for(lambda: severities() == {"low"}, "its delivery to be written down")
        newest = rows(one, "--action", "hook", "--state", "pending")[0]
        assert (newest["severity"], newest["attempts"]) == ("low", 0)  # the one that still hangs


def test_alert_that_nobody_takes_is_reported_by_another_action() -> None:
    with http_receiver() as dead, http_receiver() as other:
        actions = {name: hook(to)["actions"]["hook"] for name, to in (("hook", dead), ("b", other))}
        with alert_process({"actions": actions}, [RULE]) as one:
            begin(one, dead)
            dead.script += [404]
            one.publish(1, "begin")
            wait_for(lambda: bool(other.got), "the alarm")
            alarm = other.got[0].body["data"]
            assert alarm["alert"]["rule"] == "ast_stream_delivery_failed"
            assert alarm["text"] == (
                "[medium] dog: not delivered by hook: the receiver answered 404; "
                "see ast-stream outbox list"
            )
            (row,) = rows(one, "--state", "dead")
            assert run(one, "outbox", "retry", str(row["seq"])) == "1 delivery is tried again\n"
            wait_for(lambda: not rows(one, "--state", "dead"), "the next try")
            wait_for(lambda: kinds_of(dead, 1) == {"firing"}, "the alert")


@pytest.mark.parametrize("meanwhile", ["it runs", "it restarts", "it is down"])
def test_after_a_snooze_only_what_still_fires_is_announced(meanwhile: str) -> None:
    rule = RULE | {"actions": ["hook", "pager"]}
    with http_receiver() as receiver, http_receiver() as pager:
        actions = hook(receiver)["actions"]
        actions |= {"pager": hook(pager, on=["firing"])["actions"]["hook"]}
        with alert_process({"actions": actions}, [rule]) as one:
            begin(one, receiver)
            n_probes = len(rows(one, "--action", "pager"))
            run(one, "snooze", "dog", "--for", "1h")
            one.publish(1, "begin", "end")
            one.publish(2, "begin")
            one.publish(3, "begin", stream="hall")
            wait_for(
                lambda: len(rows(one, "--action", "pager")) == n_probes + 3, "what is held back"
            )
            n_before = n_resolved(one)
            if meanwhile != "it runs":
                one.stop()
            one.publish(3, "end", stream="hall")
            if meanwhile == "it runs":
                wait_for(lambda: n_resolved(one) > n_before, "the end of one")
            run(one, "snooze", "dog", "--for", "1s")
            if meanwhile == "it is down":
                wait_for(lambda: "snoozed until" not in run(one, "outbox", "list"), "its end")
            if meanwhile != "it runs":
                one.start()
            for where in (receiver, pager):
                wait_for(lambda: kinds_of(where, 2) == {"firing"}, "what still fires")  # noqa: B023
                assert (kinds_of(where, 1), kinds_of(where, 3)) == (set(), set())


def test_user_snoozes_acknowledges_and_drops_while_the_process_runs() -> None:
    with http_receiver() as receiver, alert_process(hook(receiver), [RULE]) as one:
        begin(one, receiver)
        run(one, "snooze", "dog", "--for", "1h")
        one.publish(1, "begin")
        one.publish(2, "begin", stream="hall")
        held = ("--state", "pending", "--action", "hook")  # what the feed says is quick to go
        wait_for(lambda: len(rows(one, *held)) == 2, "what is held back")
        first, second = rows(one, *held)
        assert run(one, "ack", second["alert_id"]) == "acknowledged; 1 delivery is dropped\n"
        run(one, "outbox", "drop", str(first["seq"]))
        one.publish(3, "begin", stream="yard")
        wait_for(lambda: len(rows(one, *held)) == 1, "another")
        run(one, "snooze", "dog", "--for", "0s")
        wait_for(lambda: kinds_of(receiver, 3) == {"firing"}, "what was held back")
        assert kinds_of(receiver, 1) | kinds_of(receiver, 2) == set()


def test_snooze_that_has_expired_lets_out_what_still_fires() -> None:
    with http_receiver() as receiver, alert_process(hook(receiver), [RULE]) as one:
        begin(one, receiver)
        run(one, "snooze", "dog", "--for", "1h")
        one.publish(1, "begin")
        wait_for(lambda: len(rows(one, "--state", "pending", "--action", "hook")) == 1, "the row")
        assert kinds_of(receiver, 1) == set()
        run(one, "snooze", "dog", "--for", "1s")
        wait_for(lambda: kinds_of(receiver, 1) == {"firing"}, "the end of the snooze")


def test_actions_that_cannot_be_used_stop_no_other_and_are_named(tmp_path: Path) -> None:
    secret = tmp_path / "hook.key"
    with http_receiver() as receiver, http_receiver() as signed:
        section = hook(receiver)
        section["actions"] |= {
            "phone": {"type": "apprise", "urls_env": "NOT_SET_ANYWHERE"},
            "late": hook(signed, secret_file=str(secret))["actions"]["hook"],
            "home": {"type": "mqtt", "host": "127.0.0.1", "username": "u", "password_env": "NO_PW"},
        }
        section["heartbeat"] = {"action": "phone", "interval_s": 1}
        rule = RULE | {"actions": ["hook", "phone", "late"]}
        with alert_process(section, [rule]) as one:
            begin(one, receiver)
            assert "Traceback" not in one.log
            text = "the action phone cannot be used: expected the environment variable NOT_SET_ANYW"
            assert text in one.log
            assert "the action home cannot be used: " in one.log
            endpoint = f"ipc://{one.folder}/alerts.sock"
            with Subscriber(endpoint, topics=["status/alerts/"]) as reader:
                items = reader.messages()
                status = next(item.body for item in items if isinstance(item, FeedMessage))
            failing = {item["action"]: item for item in status["failing"]}
            assert set(failing) == {"phone", "late", "home"}
            assert failing["phone"]["waiting"] > 0
            assert failing["home"]["text"] == (
                "alerts are not delivered by home: it cannot be used: expected the environment "
                "variable NO_PW, got none"
            )
            secret.write_text("whsec_" + base64.b64encode(b"k" * 32).decode())
            wait_for(lambda: bool(signed.got), "what waited for the secret")


@needs_mosquitto
def test_killed_process_is_offline_on_the_broker_until_it_is_back(tmp_path: Path) -> None:
    with mqtt_broker(tmp_path) as broker, http_receiver() as receiver:
        section = hook(receiver)
        section["actions"]["ha"] = {
            "type": "mqtt",
            "host": "127.0.0.1",
            "port": broker.port,
            "node": "ast-stream",
        }
        with alert_process(section, [RULE]) as one, listener(broker.port) as client:
            begin(one, receiver)
            one.publish(1, "begin")
            wait_for(lambda: client.last(SENSOR) == "ON", "the sensor")
            check_discovery(DEVICE, client.last(DEVICE) or "")
            one.stop(signal.SIGKILL)
            wait_for(lambda: client.last(STATUS) == "offline", "the last will")
            one.start()
            wait_for(lambda: client.last(STATUS) == "online", "its return")
            assert one.stop() == 0
            wait_for(lambda: client.last(STATUS) == "offline", "the goodbye")


@needs_mosquitto
def test_broker_that_is_absent_at_the_start_gets_everything_once_it_is_there(
    tmp_path: Path,
) -> None:
    broker = Broker(tmp_path)
    with http_receiver() as receiver:
        section = hook(receiver)
        section["actions"]["ha"] = {
            "type": "mqtt",
            "host": "127.0.0.1",
            "port": broker.port,
            "node": "ast-stream",
            "timeout_s": 0.5,
        }
        with alert_process(section, [RULE | {"actions": ["hook", "ha"]}]) as one:
            begin(one, receiver)
            one.publish(1, "begin")
            wait_for(lambda: kinds_of(receiver, 1) == {"firing"}, "the other action")
            wait_for(lambda: "Connection refused" in one.log, "the complaint")
            broker.start()
            try:
                with listener(broker.port) as client:
                    wait_for(lambda: client.last(SENSOR) == "ON", "the sensor")
                    one.publish(2, "begin", stream="hall")  # what gets there takes the rest along
                    for event in ("e1", "e2"):
                        wait_for(lambda event=event: is_announced(client, event), event)  # type: ignore[misc]
                    check_discovery(DEVICE, client.last(DEVICE) or "")
            finally:
                broker.kill()


def test_apprise_notifies_a_service_of_its_own(tmp_path: Path) -> None:
    with http_receiver() as receiver, http_receiver() as service:
        urls = tmp_path / "urls"
        urls.write_text(service.url.replace("http://", "json://").split("?")[0])
        section = hook(receiver)
        section["actions"]["chat"] = {
            "type": "apprise",
            "urls_file": str(urls),
            "on": ["firing"],
        }
        with alert_process(section, [RULE | {"actions": ["hook", "chat"]}]) as one:
            begin(one, receiver)
            one.publish(1, "begin")
            wait_for(lambda: bool(service.got), "the message")
        assert service.got[0].body["title"] == "[medium] dog"


def test_program_runs_only_where_programs_are_allowed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = {"type": "command", "argv": ["/bin/sh", "-c", f"cat >> {out}"]}
    with http_receiver() as receiver:
        section = hook(receiver)
        section["actions"]["siren"] = program
        rules = [RULE | {"actions": ["hook", "siren"]}]
        with alert_process(section, rules) as one:
            one.start()
            assert one.wait() == 78
            assert "action 'siren' runs a program: needs alerts.allow_exec: true" in one.log
        with alert_process(section | {"allow_exec": True}, rules) as one:
            begin(one, receiver)
            one.publish(1, "begin")
            wait_for(lambda: out.exists() and '"e1"' in out.read_text(), "the program")


def test_two_processes_on_one_database_are_refused(tmp_path: Path) -> None:
    with http_receiver() as receiver:
        section = hook(receiver) | {"state_file": str(tmp_path / "alerts.sqlite")}
        with alert_process(section, [RULE]) as one, alert_process(section, [RULE]) as other:
            begin(one, receiver)
            other.start()
            assert other.wait() == 3
            assert f"the alert database {tmp_path}/alerts.sqlite is in use" in other.log


def test_damaged_database_is_set_aside_in_one_sentence() -> None:
    with http_receiver() as receiver, alert_process(hook(receiver), [RULE]) as one:
        path = one.folder / "state" / "alerts.sqlite"
        Store(path).close()
        path.write_bytes(path.read_bytes()[:4096] + b"\xa5" * 16_384)
        begin(one, receiver)
        (line,) = [line for line in one.log.splitlines() if "alerts.sqlite" in line]
        assert f"the alert database {path} is damaged (" in line
        assert "it is kept as alerts.sqlite.damaged-1, and a new one begins with 0 of its" in line
        assert "Traceback" not in one.log


def test_process_that_is_stopped_while_a_receiver_hangs_ends_and_sends_it_next_time() -> None:
    with http_receiver() as receiver, alert_process(hook(receiver), [RULE]) as one:
        begin(one, receiver)
        receiver.script += [HANG]
        one.publish(1, "begin")
        wait_for(lambda: kinds_of(receiver, 1) == {"firing"}, "the request")
        assert one.stop() == 0
        n_got = len(receiver.got)
        one.start()
        wait_for(lambda: len(receiver.got) > n_got, "the second try")
        assert receiver.got[-1].id == receiver.got[n_got - 1].id
