"""`ast-stream subscribe`: JSON lines for programs, lines for people, and quiet ends."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feed_worker import Worker, event
from ports import free_ports
from sample_messages import event_message, gap_message, health, scores_header

from ast_stream.cli.subscribe import feed_line, show_json
from ast_stream.feed import FeedMessage, Missed
from ast_stream.transport.authenticator import Authenticator
from ast_stream.transport.curve import make_key
from ast_stream.transport.sockets import Sockets
from ast_stream.units import parse_time

ROOT = Path(__file__).parents[3]
LONG_S = 60.0  # only a failing test waits as long
ONSET_NS = parse_time("2026-11-20T10:00:29.640Z")
BODY: dict[str, Any] = {
    "v": 1,
    "boot": "b1",
    "seq": 4,
    "stream": "porch",
    "published": "2026-11-20T10:00:31.250000Z",
}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Show times of day in one zone everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def worker(socket_dir: Path) -> Iterator[Worker]:
    found = Worker(socket_dir, "b1")
    yield found
    found.close()


def command(folder: Path, *args: str, **options: Any) -> subprocess.Popen[str]:
    if "--endpoint" not in args and "-c" not in args:
        args = (*args, "--endpoint", f"ipc://{folder}/feed.sock")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(
        [sys.executable, "-m", "ast_stream.cli", "subscribe", *args],
        cwd=ROOT,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        **pipes,
    )


def finished(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """Return the lines and the errors of a process that ended well."""
    output, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, errors
    return output.splitlines(), errors


def test_events_and_gaps_come_as_json_lines_from_the_log_on(
    worker: Worker, socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    worker.publish(event(1), event(2, "end"))
    processes.append(command(socket_dir, "--replay", "--count", "2"))
    lines, errors = finished(processes[0])
    first, second = (json.loads(line) for line in lines)
    assert first["topic"] == "event/bark/porch/"
    assert (first["id"], first["boot"], first["previous"]) == ("id1", "b1", 0)
    assert (second["type"], second["previous"]) == ("end", first["seq"])
    assert errors == ""


def test_topics_classes_and_streams_are_chosen(
    worker: Worker, socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    worker.publish(
        event(1, label="Barking"),
        event(2),
        event(3, stream="yard"),
        event(4, label="Siren"),
        event(5),
    )
    chosen = ["event/bark", "--class", "Bark", "--stream", "porch", "--replay", "--count", "2"]
    processes.append(command(socket_dir, *chosen))
    lines, _ = finished(processes[0])
    assert [json.loads(line)["id"] for line in lines] == ["id2", "id5"]


def test_endpoints_are_taken_from_the_configuration(
    worker: Worker, socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    worker.publish(event(1))
    config = socket_dir / "config.yaml"
    config.write_text(
        f"runtime_dir: {socket_dir}\nstreams: [{{name: porch, source: {{type: stdin}}}}]\n"
    )
    mistaken = ["evnt/bark", "event", "--stream", "porsh", "--stream", "porch"]
    processes.append(command(socket_dir, *mistaken, "-c", str(config), "--replay", "--count", "1"))
    lines, errors = finished(processes[0])
    assert json.loads(lines[0])["id"] == "id1"
    assert "there is no topic that begins with 'evnt'; did you mean 'event'?" in errors
    assert "there is no stream 'porsh'; did you mean 'porch'?" in errors


@pytest.mark.slow
def test_waiting_is_said_on_stderr_and_ends_when_the_publisher_comes(
    socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(command(socket_dir, "--replay", "--count", "1"))
    assert processes[0].stderr is not None
    waiting = processes[0].stderr.readline()
    assert waiting == f"waiting for a publisher at ipc://{socket_dir}/feed.sock\n"
    worker = Worker(socket_dir, "b1")
    try:
        worker.publish(event(1))
        lines, errors = finished(processes[0])
    finally:
        worker.close()
    assert len(lines) == 1
    assert errors == f"connected to ipc://{socket_dir}/feed.sock\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly(
    socket_dir: Path, processes: list[subprocess.Popen[str]], number: signal.Signals
) -> None:
    processes.append(command(socket_dir))
    assert processes[0].stderr is not None
    processes[0].stderr.readline()
    processes[0].send_signal(number)
    assert finished(processes[0]) == ([], "")


def test_a_closed_pipe_ends_it_quietly_also_when_nothing_happens(
    worker: Worker, socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    worker.publish(event(1))
    processes.append(command(socket_dir, "--replay"))
    assert processes[0].stdout is not None
    assert processes[0].stderr is not None
    processes[0].stdout.readline()
    processes[0].stdout.close()
    assert processes[0].wait(LONG_S) == 0
    assert processes[0].stderr.read() == ""


def test_a_terminal_gets_lines_for_people(
    worker: Worker, socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    worker.publish(event(1))
    terminal, output = pty.openpty()
    processes.append(command(socket_dir, "--replay", "--count", "1", stdout=output))
    os.close(output)
    shown = b""
    while b"\n" not in shown and select.select([terminal], [], [], LONG_S)[0]:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    assert b"Bark" in shown
    assert b"\x1b[" in shown
    assert b"{" not in shown


def test_impossible_endpoint_is_wrong_usage(
    socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(command(socket_dir, "--endpoint", "tcp://example.org:5555"))
    _, errors = processes[0].communicate(timeout=LONG_S)
    assert processes[0].returncode == 2
    assert "transport.curve" in errors
    assert "Traceback" not in errors


def test_a_publisher_that_asks_for_a_key_says_so_and_how_to_give_one(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_ports()}"
    authenticator = Authenticator(make_key(), tmp_path / "allowed.json")
    sockets = Sockets()
    try:
        sockets.bind("pub", endpoint, hwm=8, authenticator=authenticator)
        processes.append(command(tmp_path, "--endpoint", endpoint))
        assert processes[0].stderr is not None
        said = processes[0].stderr.readline()
        if said.startswith("waiting"):  # which it is until the refusal has come
            said = processes[0].stderr.readline()
    finally:
        sockets.close()
    assert said.startswith(f"{endpoint} refuses the connection: it asks for a CURVE key; give one")
    assert "--client-key" in said


def test_scores_are_printed_as_a_rounded_list(capsys: pytest.CaptureFixture[str]) -> None:
    scores = np.array([0.1, 0.98765], np.float16)
    show_json(FeedMessage("scores/porch/", {"seq": 3}, scores))
    assert json.loads(capsys.readouterr().out) == {
        "topic": "scores/porch/",
        "seq": 3,
        "scores": [0.1, 0.9878],
    }


def test_missed_messages_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show_json(Missed(("b1", 4), ("b1", 9), "gone"))
    assert json.loads(capsys.readouterr().out) == {
        "topic": "missed/",
        "after": ["b1", 4],
        "upto": ["b1", 9],
        "reason": "gone",
    }


@pytest.mark.parametrize(
    ("topic", "extra", "line"),
    [
        (
            "event/bark/porch/",
            event_message(score=0.831, onset_ns=ONSET_NS, uncertainty_s=0.25).to_json(),
            "10:00:31.2  porch         begin   Bark  score 0.83  since 10:00:29.6 ± 0.25 s",
        ),
        (
            "event/bark/porch/",
            event_message(
                type="end", score=0.2, duration_s=3.25, peak=0.91, mean=0.744, reason="quiet"
            ).to_json(),
            "10:00:31.2  porch         end     Bark  3.25 s, peak 0.91, mean 0.74, quiet",
        ),
        (
            "gap/porch/",
            gap_message(duration_s=2.0, reason="device_lost").to_json(),
            "10:00:31.2  porch         gap     2.00 s lost: device_lost",
        ),
        (
            "health/porch/",
            health(state="missing", detail="no device", gaps=2).to_json(),
            "10:00:31.2  porch         health  missing, detail no device, gaps 2",
        ),
        (
            "event/x/porch/",
            {"type": "begin"},
            '10:00:31.2  porch         event/x/porch/ {"type": "begin"}',
        ),
        (
            "other/x/",
            {"a": [1]},
            '10:00:31.2  porch         other/x/ {"a": [1]}',
        ),
    ],
)
def test_lines_for_people(topic: str, extra: dict[str, Any], line: str) -> None:
    assert feed_line(FeedMessage(topic, BODY | extra)).plain == line


def test_line_of_scores_names_the_best() -> None:
    scores = np.array([0.1, 0.5, 0.3], np.float16)
    body = BODY | scores_header().to_json()
    line = feed_line(FeedMessage("scores/porch/", body, scores)).plain
    assert line == "10:00:31.2  porch         scores  1: 0.50  2: 0.30  0: 0.10"


def test_line_of_missed_messages_says_why() -> None:
    assert feed_line(Missed(None, ("b1", 9), "gone")).plain == "missed messages up to 9: gone"
