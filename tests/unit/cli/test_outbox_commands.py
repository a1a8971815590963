from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alert_samples import action_settings, firing, states

from ast_stream.alerts.actions.base import Undeliverable
from ast_stream.alerts.outbox import Delivery, Outbox
from ast_stream.alerts.store import Store
from ast_stream.cli.app import run_command_line


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    settings = {
        "state_dir": str(tmp_path),
        "streams": [{"name": "porch", "source": {"type": "stdin"}}],
    }
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "alerts.sqlite")
    outbox = Outbox(store, {"phone": action_settings(), "mail": action_settings()}, time.time_ns)
    with store.transaction() as db:
        outbox.enqueue(db, [firing("a1", "phone"), firing("b2", "phone", "mail")])
    delivery = outbox.next_delivery("phone")
    assert isinstance(delivery, Delivery)
    outbox.settle(delivery, Undeliverable("404"))
    yield store
    store.close()


def test_list_prints_json_lines(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["outbox", "list", "-c", str(config), "--state", "dead", "--json"]
    assert run_command_line(args) == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert (row["alert_id"], row["action"], row["last_error"]) == ("a1", "phone", "404")
    assert row["created"].endswith("Z")


def test_list_prints_a_line_for_each_delivery_why_it_failed_below_and_the_snoozes(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["snooze", "dog", "-c", str(config), "--for", "2h"]) == 0
    assert run_command_line(["outbox", "list", "-c", str(config)]) == 0
    out = capsys.readouterr().out
    assert "dog is snoozed until" in out
    lines = out.splitlines()
    heading = lines[1]  # below the output of `snooze`
    assert " ".join(heading.split()) == "no created (UTC) alert state what action rule"
    below = lines.index("    1 try: 404") - 1
    assert lines[below].split()[3:] == ["a1", "dead", "firing", "phone", "dog"]


def test_errors_of_others_are_shown_as_they_are_and_on_one_line(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with store.transaction() as db:
        db.execute("UPDATE deliveries SET last_error = ?", ("[/b] [red]x[/red]\x1b[31m\nno modem",))
    assert run_command_line(["outbox", "list", "-c", str(config)]) == 0
    out = capsys.readouterr().out
    assert "[/b] [red]x[/red] [31m no modem" in out
    assert "\x1b" not in out


def test_retry_and_drop_change_the_rows(config: Path, store: Store) -> None:
    assert run_command_line(["outbox", "retry", "-c", str(config), "--all"]) == 0
    assert states(store)["a1", "firing", "phone"] == "pending"
    drop = ["outbox", "drop", "-c", str(config), "--all", "--action", "phone"]
    assert run_command_line(drop) == 0
    assert states(store)["a1", "firing", "phone"] == "dropped"
    assert states(store)["b2", "firing", "mail"] == "pending"


def test_rows_must_be_named_or_all_asked_for(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["outbox", "drop", "-c", str(config)]) == 2
    assert "expected numbers of deliveries, or --all" in capsys.readouterr().err


def test_ack_drops_what_is_still_to_be_sent(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["ack", "b2", "-c", str(config)]) == 0
    assert capsys.readouterr().out == "acknowledged; 2 deliveries are dropped\n"
    assert states(store)["b2", "firing", "mail"] == "dropped"


def test_snooze_names_a_near_rule_and_refuses_what_is_no_duration(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["snooze", "dogg", "-c", str(config)]) == 2
    text = "expected the name of a rule, got 'dogg'; did you mean 'dog'?"
    assert text in capsys.readouterr().err
    assert run_command_line(["snooze", "dog", "-c", str(config), "--for", "soon"]) == 2
    assert "--for: expected a duration such as 30s" in capsys.readouterr().err


def test_rule_that_has_never_alerted_can_be_snoozed_also_while_its_file_is_wrong(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with_alerts(config, phone={"type": "log"})
    rules = "groups: [{name: g, rules: [{alert: cat, match: {class: Cat}}, {alert: bird, x: 1}]}]"
    (config.parent / "a.yaml").write_text(f"version: 7\n{rules}")
    assert run_command_line(["snooze", "cat", "-c", str(config)]) == 0
    assert run_command_line(["snooze", "ast_stream_delivery_failed", "-c", str(config)]) == 0
    capsys.readouterr()
    for duration in ("1h", "0s"):
        assert run_command_line(["snooze", "nosuch", "-c", str(config), "--for", duration]) == 2
        assert capsys.readouterr().err.endswith(
            "expected the name of a rule, got 'nosuch'; known: ast_stream_delivery_failed, bird, "
            "cat, dog\n"
        )
    with store.reading() as db:
        assert db.execute("SELECT count(*) FROM snoozes WHERE rule = 'nosuch'").fetchone() == (0,)


@pytest.mark.parametrize(
    "args",
    [
        ["outbox", "list", "--action", "fone"],
        ["outbox", "retry", "--all", "--action", "fone"],
        ["outbox", "drop", "--all", "--action", "fone"],
        ["outbox", "retry", "999"],
        ["outbox", "drop", "999"],
        ["outbox", "retry", "nosuch"],
        ["outbox", "list", "--state", "nosuch"],
        ["ack", "nosuch"],
        ["ack", ""],
    ],
)
def test_name_or_number_that_does_not_exist_is_wrong_usage_and_changes_nothing(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    before = states(store)
    assert run_command_line([*args, "-c", str(config)]) == 2
    assert "expected" in capsys.readouterr().err or args[-1] == "nosuch"
    assert states(store) == before


def test_commands_need_a_process_that_has_run(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["outbox", "list", "-c", str(config)]) == 3
    assert "the alerts process has not run yet" in capsys.readouterr().err


def with_alerts(config: Path, **actions: object) -> None:
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"alerts": {"rules": ["a.yaml"], "actions": actions}}))


def test_message_is_sent_by_every_action_that_firing_alerts_go_to(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with_alerts(config, phone={"type": "log"}, mail={"type": "log", "on": ["resolved"]})
    args = ["outbox", "send", "-c", str(config), "--severity", "critical", "is\x1b this\non?"]
    assert run_command_line(args) == 0
    assert capsys.readouterr().out == "to be sent by phone\n"
    outbox = Outbox(store, {"phone": action_settings()}, time.time_ns)
    delivery = outbox.next_delivery("phone")
    assert isinstance(delivery, Delivery)
    assert delivery.notification.title == "[critical] message"
    assert delivery.notification.text == "is this on?"
    assert isinstance(outbox.next_delivery("feed"), Delivery)
    assert run_command_line(args) == 0
    assert isinstance(outbox.next_delivery("phone"), Delivery)


def test_message_about_one_thing_is_sent_once_an_hour(
    config: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with_alerts(config, phone={"type": "log"})
    args = ["outbox", "send", "-c", str(config), "--rule", "unit_failed", "down", "--about"]
    assert run_command_line([*args, "unit=a"]) == 0
    assert run_command_line([*args, "unit=b"]) == 0
    capsys.readouterr()
    assert run_command_line([*args, "unit=a"]) == 0
    assert capsys.readouterr().out == "was sent within this hour\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--about", "unit"], "--about: expected LABEL=VALUE"),
        (["--rule", "Not a name"], "--rule: expected a name"),
        (["--severity", "bad"], "severity"),
    ],
)
def test_message_that_cannot_be_sent_is_refused(
    config: Path, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_alerts(config, phone={"type": "log"})
    assert run_command_line(["outbox", "send", "-c", str(config), "text", *options]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", " "])
def test_empty_message_is_refused(
    config: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_alerts(config, phone={"type": "log"})
    assert run_command_line(["outbox", "send", "-c", str(config), text]) == 2
    assert "outbox send: expected a message, got an empty text" in capsys.readouterr().err


def test_message_without_anybody_to_deliver_it_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["outbox", "send", "-c", str(config), "text"]) == 2
    assert "nothing is delivered" in capsys.readouterr().err
