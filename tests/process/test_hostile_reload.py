"""Configurations made to break their reader: refused at a start, and harmless at a reload."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import processes_of
from whole_files import write_whole

LIMIT_S = 90
CONFIG = """
runtime_dir: run
state_dir: state
streams: [{name: yard, source: {type: scene, duration_s: 3600}}]
alerts: {rules: [rules.yaml], actions: {log: {type: log}}}
"""
RULES = "version: 1\ngroups: [{name: g, rules: [{alert: siren, match: {class: Siren}}]}]\n"
CHAINED = "\n".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 1}]" for n in range(500))
MULTIPLIED = "\n".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9 if n else 1}]" for n in range(30))
PROCESSES = ("run", "worker", "capture", "alerts")
HOSTILE = {
    "chained aliases": CONFIG + CHAINED,
    "multiplied aliases": CONFIG + MULTIPLIED,
    "endless hold": CONFIG + "detection: {defaults: {hold_s: 1e300}}",
    "endless hop": CONFIG + "model: {hop_s: 1e308}",
    "nesting": CONFIG + "x: " + "[" * 20_000,
    "a character": CONFIG + 'model: {checkpoint: "a\\0\\uD800"}',
    "an escape": CONFIG + 'x: "\\U99999999"',
}


def cli(*args: str) -> list[str]:
    return [sys.executable, "-m", "ast_stream.cli", *args]


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("run", ("chained aliases", "endless hold", "a character")),
        ("worker", ("endless hold",)),  # all have the same reader, and it takes long to start
        ("capture", ("chained aliases",)),
        ("alerts", ("a character",)),
    ],
)
def test_what_is_made_to_break_the_reader_is_refused_at_the_start(
    command: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    config = tmp_path / "config.yaml"
    options = ["--stream", "yard"] if command == "capture" else []
    for name in names:
        config.write_text(HOSTILE[name])
        done = subprocess.run(
            cli(command, "-c", str(config), *options),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 78, (name, done.stderr)
        assert "Traceback" not in done.stderr
        assert all(line.startswith(f"{config}:") for line in done.stderr.splitlines()), done.stderr


def test_no_reload_stops_a_process(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    config, log = tmp_path / "config.yaml", tmp_path / "log"
    config.write_text(CONFIG)
    with log.open("w") as output:
        run = subprocess.Popen(cli("run", "-c", str(config)), stdout=output, stderr=output)
    try:
        # the worker and the alerts process say so themselves, the capture process by its audio
        wait(lambda: log.read_text().count("ready:") == 2, log)
        wait(lambda: "stream yard: epoch" in log.read_text(), log)
        started = log.read_text().count(" started")
        for text in [*HOSTILE.values(), None]:
            before = [answers(log, name) for name in PROCESSES]
            if text is None:
                config.unlink()
                os.mkfifo(config)
            else:
                config.write_text(text)
            for pid in processes_of(config):
                os.kill(pid, signal.SIGHUP)
            for name, n_before in zip(PROCESSES, before, strict=True):
                wait(lambda: answers(log, name) > n_before, log)  # noqa: B023
        config.unlink()
        config.write_text(CONFIG)
        # a configuration that is right, and rules that are not: children read them by themselves
        write_whole(tmp_path / "rules.yaml", CHAINED)
        wait(lambda: "the rules in force stay as they were" in log.read_text(), log)
        write_whole(tmp_path / "rules.yaml", RULES)
        run.send_signal(signal.SIGHUP)
        wait(lambda: all("read again" in last(log, name) for name in PROCESSES), log)
        assert run.poll() is None
        assert log.read_text().count(" started") == started
        assert "Traceback" not in log.read_text()
    finally:
        run.terminate()
        assert run.wait(LIMIT_S) == 0


def answers(log: Path, process: str) -> int:
    """Return how often a process has logged the outcome of a reload."""
    return sum(
        f" {process}: settings " in line and ("read again" in line or "kept as" in line)
        for line in log.read_text().splitlines()
    )


def last(log: Path, process: str) -> str:
    found = [line for line in log.read_text().splitlines() if f" {process}: settings " in line]
    return found[-1] if found else ""


def wait(is_so: Callable[[], bool], log: Path) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end_s, log.read_text()[-3000:]
        time.sleep(0.1)
