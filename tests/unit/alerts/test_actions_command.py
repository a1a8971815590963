from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from alert_samples import notification

from ast_stream.alerts.actions.base import Delivered, Failed, Undeliverable
from ast_stream.alerts.actions.command import MAX_OUTPUT_BYTES, CommandRunner
from ast_stream.settings.alerts import CommandAction


def shell(
    script: str, *arguments: str, timeout_s: float = 10.0, **options: object
) -> CommandRunner:
    argv = ["/bin/sh", "-c", script, "sh", *arguments]
    return CommandRunner(
        "run",
        CommandAction.model_validate(
            {"type": "command", "argv": argv, "timeout_s": timeout_s} | options
        ),
    )


def test_program_gets_the_alert_as_json_on_standard_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert shell('cat > "$1"', str(out)).deliver(notification()) == Delivered()
    assert json.loads(out.read_text()) == notification().to_json()


def test_program_sees_only_the_environment_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANTED", "1")
    monkeypatch.setenv("SECRET", "2")
    out = tmp_path / "out"
    shell('env > "$1"; pwd >> "$1"', str(out), pass_env=["WANTED"]).deliver(notification())
    lines = out.read_text().splitlines()
    assert "WANTED=1" in lines
    assert "AST_STREAM_RULE=dog" in lines
    assert "AST_STREAM_KIND=firing" in lines
    assert lines[-1] == "/"
    assert not any(line.startswith("SECRET") for line in lines)


def test_exit_code_decides_what_came_of_it() -> None:
    assert shell("exit 75").deliver(notification()) == Failed("exit code 75", is_down=True)
    refused = shell("echo 'no\nmodem' >&2; exit 4").deliver(notification())
    assert refused == Undeliverable("exit code 4: no modem")
    killed = shell("kill -9 $$").deliver(notification())
    assert killed == Undeliverable("killed by signal 9")


def test_program_that_is_not_there_is_refused() -> None:
    settings = CommandAction(type="command", argv=["/no/such/program"])
    outcome = CommandRunner("run", settings).deliver(notification())
    assert outcome == Undeliverable("cannot run /no/such/program: No such file or directory")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may be there to reap what a killed program left


def gone(pid: int) -> bool:
    for _ in range(6000):
        if not is_running(pid):
            return True
        time.sleep(0.01)
    return False


def test_program_that_runs_too_long_is_killed_with_all_it_has_started(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    script = 'sleep 60 & echo $! > "$1"; trap "" TERM; wait'
    outcome = shell(script, str(out), timeout_s=2.0).deliver(notification())
    assert outcome == Failed("ran longer than 2 s and was killed")
    assert gone(int(out.read_text()))


def test_child_that_keeps_the_output_open_does_not_hold_up_the_end(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    outcome = shell('sleep 60 & echo $! > "$1"', str(out)).deliver(notification())
    assert outcome == Delivered()
    assert gone(int(out.read_text()))


def test_program_that_does_not_read_or_says_too_much_is_no_trouble() -> None:
    too_much = f"head -c {4 * MAX_OUTPUT_BYTES} /dev/zero | tr '\\0' 'x'; exit 1"
    outcome = shell(too_much).deliver(notification())
    assert outcome == Undeliverable("exit code 1: " + "x" * 200)


def test_nothing_of_an_alert_gets_into_the_arguments(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shell('echo "$0 $*" > "$1"', str(out), "{rule}", "$(id)").deliver(notification())
    assert out.read_text() == f"sh {out} {{rule}} $(id)\n"
