"""The programs and files in examples/ do what they are there to show."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest
from feed_worker import Worker, event
from sample_messages import T0_NS

from ast_stream.cli.app import run_command_line
from ast_stream.units import format_time

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE_S = 60.0
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def first_line(command: list[str | Path], worker: Worker, *, ends: bool = False) -> str:
    """Run a subscriber while barks are published, and return the first line that it prints.

    Args:
        ends: it ends by itself then, which is waited for; else it is killed.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    try:
        for n in range(round(PATIENCE_S * 20)):
            worker.publish(event(n))
            if line := process.stdout.readline():
                assert not ends or process.wait(PATIENCE_S) == 0
                return line
            time.sleep(0.05)
        raise AssertionError("nothing was printed")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_python_subscriber_prints_events_and_remembers_its_position(socket_dir: Path) -> None:
    worker = Worker(socket_dir, "b1")
    position = socket_dir / "position.json"
    endpoint = f"ipc://{socket_dir}/feed.sock"
    command: list[str | Path] = [sys.executable, EXAMPLES / "subscriber.py", endpoint]
    try:
        line = first_line(
            [*command, "--class", "bark", "--position", position, "--count", "1"],
            worker,
            ends=True,  # the position is written behind the line
        )
    finally:
        worker.close()
    assert line == f"porch bark begin {format_time(T0_NS)}\n"
    boot, seq = json.loads(position.read_text())
    assert boot == "b1"
    assert seq > 0


needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or not Path("/usr/include/zmq.h").exists(),
    reason="needs a C compiler and libzmq3-dev",
)


@needs_compiler
def test_subscriber_in_c_prints_events(socket_dir: Path) -> None:
    program = socket_dir / "subscriber"
    flags = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", program, EXAMPLES / "subscriber.c", "-lzmq"], check=True)
    worker = Worker(socket_dir, "b1")
    try:
        line = first_line([program, f"ipc://{socket_dir}/feed.sock", "event/bark/"], worker)
    finally:
        worker.close()
    topic, body = line.split(" ", 1)
    assert topic == "event/bark/porch/"
    assert json.loads(body)["class"] == "bark"


def test_scores_and_events_of_the_generated_scene_are_printed() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "score_and_detect.py"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"\d+ classes, windows of 2\.56 s", lines[0])
    assert lines[1].endswith("  Alarm")
    events = (line.split("  ")[-1] for line in lines[4:])
    # beeps with long pauses may be several events
    assert [label for label, _ in groupby(events)] == [
        "Alarm",
        "Telephone dialing, DTMF",
        "Smoke detector, smoke alarm",
        "Telephone bell ringing",
    ]


@pytest.mark.parametrize("name", ["night-watch", "several-microphones"])
def test_an_example_is_free_of_mistakes_and_its_rules_do_what_their_tests_say(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = EXAMPLES / name
    config, rules = str(folder / "config.yaml"), str(folder / "rules.yaml")
    assert run_command_line(["check-config", "--no-speed", config]) == 0
    assert "warning" not in capsys.readouterr().out
    assert run_command_line(["rules", "check", "--strict", "--config", config, rules]) == 0
    assert run_command_line(["rules", "test", str(folder / "rules-tests.yaml")]) == 0
