"""A signal to stop at any moment of a start: the code of an orderly end, and nothing left."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import processes_of

LIMIT_S = 60
# from the moment that signals can be handled
DELAYS_S = (0.0, 0.1, 0.3, 0.7, 1.5)
DELAYS_WITH_MODEL_S = (*DELAYS_S, 3.0, 6.0)
CONFIG = """
runtime_dir: run
state_dir: state
streams: [{name: yard, source: {type: scene, duration_s: 600}}]
alerts: {rules: [rules.yaml], actions: {log: {type: log}}}
"""
RULES = "version: 1\ngroups: [{name: g, rules: [{alert: siren, match: {class: Siren}}]}]\n"


SIGNALS = (signal.SIGTERM, signal.SIGINT)  # in turns


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(RULES)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def start(*args: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "ast_stream.cli", *args],
        start_new_session=True,  # no terminal, as under systemd
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not takes_signals(process.pid):
        assert process.poll() is None
        time.sleep(0.002)
    return process


def takes_signals(pid: int) -> bool:
    """Tell whether our code has begun: before, the interpreter itself ends by the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught & 1 << (signal.SIGTERM - 1))


every_process = pytest.mark.parametrize(
    "args",
    [("run",), ("worker",), ("capture", "--stream", "yard"), ("alerts",)],
    ids=lambda args: args[0],
)


@every_process
def test_reloads_asked_for_while_a_process_starts_end_nothing(
    args: tuple[str, ...], config: Path
) -> None:
    process = start(args[0], "-c", str(config), *args[1:])
    for delay_s in (0.0, 0.2, 0.4, 1.0):
        time.sleep(delay_s)
        assert process.poll() is None, (delay_s, process.communicate())
        process.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    process.terminate()
    _, errors = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors


@every_process
def test_a_process_that_is_stopped_while_it_starts_ends_in_order(
    args: tuple[str, ...], config: Path
) -> None:
    delays_s = DELAYS_WITH_MODEL_S if args[0] in ("run", "worker") else DELAYS_S
    for delay_s, number in zip(delays_s, itertools.cycle(SIGNALS), strict=False):
        process = start(args[0], "-c", str(config), *args[1:])
        time.sleep(delay_s)
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, "Traceback" in errors) == (0, False), (delay_s, errors)
        assert processes_of(config) == {}, delay_s


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("args", [("demo", "--duration", "60"), ("evaluate", "nothing.csv")])
def test_a_command_that_is_cut_short_says_so_by_its_code(
    args: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    for delay_s in DELAYS_S[:3]:
        process = start(*args)
        time.sleep(delay_s)
        process.send_signal(number)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, "Traceback" in errors) == (code, False), (delay_s, errors)
