"""The feed while its publisher is killed and its readers are stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ast_stream.feed import FeedMessage, Subscriber

SCRIPT = Path(__file__).parents[1] / "support" / "feed_worker.py"
ROOT = SCRIPT.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LONG_S = 120.0  # only a failing test waits as long
DISCONNECTED_AFTER_S = 3.0  # by the heartbeat of the publisher, with time to spare


def publisher(folder: Path, n_events: int, pause_s: float) -> subprocess.Popen[str]:
    args = [sys.executable, str(SCRIPT), str(folder), str(n_events), str(pause_s)]
    return subprocess.Popen(args, env=ENVIRONMENT, text=True)


def test_no_event_is_lost_or_doubled_by_killing_the_publisher(
    socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    n_events, rng = 400, random.Random(1)
    seen: list[int] = []
    with Subscriber(f"ipc://{socket_dir}/feed.sock", after="oldest") as reader:
        for kill_at in sorted(rng.sample(range(20, n_events - 20), 3)):
            processes.append(publisher(socket_dir, n_events, 0.002))
            read_until(reader, seen, kill_at)
            processes[-1].kill()
            processes[-1].wait()
        processes.append(publisher(socket_dir, n_events, 0.002))
        read_until(reader, seen, n_events)
        assert reader.receive(0.2) is None
    assert seen == list(range(1, n_events + 1))


def read_until(reader: Subscriber, seen: list[int], last: int) -> None:
    while not seen or seen[-1] < last:
        message = reader.receive(LONG_S)
        assert isinstance(message, FeedMessage), message
        seen.append(message.body["at_sample"])


def test_a_stopped_reader_gets_what_it_missed(
    socket_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    n_events = 3000
    processes.append(publisher(socket_dir, n_events, 0.001))
    args = ["subscribe", "--endpoint", f"ipc://{socket_dir}/feed.sock", "--replay"]
    reader = subprocess.Popen(
        [sys.executable, "-m", "ast_stream.cli", *args, "--count", str(n_events)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    processes.append(reader)
    assert reader.stdout is not None
    lines = [reader.stdout.readline()]
    reader.send_signal(signal.SIGSTOP)
    time.sleep(DISCONNECTED_AFTER_S)
    reader.send_signal(signal.SIGCONT)
    assert reader.stderr is not None
    lines += reader.stdout.read().splitlines()  # not communicate(): it leaves out what is buffered
    errors = reader.stderr.read()
    reader.wait(LONG_S)
    assert [json.loads(line)["at_sample"] for line in lines] == list(range(1, n_events + 1))
    assert reader.returncode == 0
    assert "Traceback" not in errors
