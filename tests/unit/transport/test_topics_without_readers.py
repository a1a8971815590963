"""What nobody subscribes to is not published; who comes and goes is followed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ports import free_ports
from sample_messages import EPOCH, STREAM, worker_status

from ast_stream.machine_clock import read_clocks
from ast_stream.messages.event import FeedMessage, Scores
from ast_stream.sample_clock import SampleClock
from ast_stream.transport.event_log import EventLog
from ast_stream.transport.publisher import DeduplicatingPublisher, FeedPublisher
from ast_stream.transport.sockets import Listener, Socket, Sockets

WAIT_S = 60.0  # a limit, not a duration
SCORES = f"scores/{STREAM}/".encode()
READER = """
import sys, zmq
sub = zmq.Context().socket(zmq.SUB)
sub.connect(sys.argv[1])
sub.subscribe(b"scores/")
print("subscribed", flush=True)
sub.recv()
"""


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(request: pytest.FixtureRequest, socket_dir: Path) -> str:
    if request.param == "ipc":
        return f"ipc://{socket_dir}/feed.sock"
    return f"tcp://127.0.0.1:{free_ports()}"


def eventually(holds: Callable[[], object]) -> bool:
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        if holds():
            return True
        time.sleep(0.01)
    return bool(holds())


class Feed:
    """A publisher of scores on a real socket."""

    def __init__(self, pub: Listener, folder: Path) -> None:
        log = EventLog(folder)
        self.messages = FeedPublisher(pub, log, "b1")
        self._publisher = DeduplicatingPublisher(self.messages, log, "model", read_clocks)
        self._clock = SampleClock.from_start(0)
        self.end = 0

    def score(self) -> None:
        self.end += 8000
        scores = Scores(STREAM, EPOCH, self.end, np.zeros(2, np.float32))
        self._publisher.publish_scores(scores, self._clock)

    @property
    def n_scores(self) -> int:
        return self.messages.messages["scores"]


def received(sub: Socket, n_messages: int) -> list[FeedMessage]:
    """Return so many messages, and what else comes right behind them."""
    found: list[FeedMessage] = []
    while frames := sub.receive(round(1000 * WAIT_S) if len(found) < n_messages else 200):
        found.append(FeedMessage.decode(frames))
    return found


def test_a_topic_has_a_reader_from_the_first_subscription_to_the_last_disconnect(
    sockets: Sockets, endpoint: str
) -> None:
    pub = sockets.bind("pub", endpoint, 100)
    assert not pub.has_reader(SCORES)
    events = sockets.connect("sub", endpoint, 100)
    events.subscribe("event/")
    assert eventually(lambda: pub.has_reader(b"event/bark/porch/"))
    assert not pub.has_reader(SCORES)
    one, all_topics = (sockets.connect("sub", endpoint, 100) for _ in range(2))
    one.subscribe(SCORES.decode())
    assert eventually(lambda: pub.has_reader(SCORES))
    assert not pub.has_reader(b"scores/elsewhere/")
    all_topics.subscribe("")
    assert eventually(lambda: pub.has_reader(b"scores/elsewhere/"))
    sockets.forget(all_topics)
    assert eventually(lambda: not pub.has_reader(b"scores/elsewhere/"))
    assert pub.has_reader(SCORES)
    sockets.forget(one)
    assert eventually(lambda: not pub.has_reader(SCORES))
    assert pub.has_reader(b"event/bark/porch/")


def test_a_reader_that_is_killed_is_one_no_more(sockets: Sockets, endpoint: str) -> None:
    pub = sockets.bind("pub", endpoint, 100)
    with subprocess.Popen(
        [sys.executable, "-c", READER, endpoint], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "subscribed\n"
        assert eventually(lambda: pub.has_reader(SCORES))
        process.kill()
        assert eventually(lambda: not pub.has_reader(SCORES))


def test_scores_that_nobody_reads_are_not_published_and_take_no_number(
    sockets: Sockets, endpoint: str, tmp_path: Path
) -> None:
    pub = sockets.bind("pub", endpoint, 100)
    feed = Feed(pub, tmp_path)
    everything = sockets.connect("sub", endpoint, 100)
    everything.subscribe("status/")
    assert eventually(lambda: pub.has_reader(b"status/worker/"))
    feed.messages.publish(worker_status())
    feed.score()
    feed.score()
    assert feed.n_scores == 0
    feed.messages.publish(worker_status())
    assert [message.position[1] for message in received(everything, 2)] == [1, 2]

    everything.subscribe("scores/")
    assert eventually(lambda: pub.has_reader(SCORES))
    feed.score()
    feed.messages.publish(worker_status())
    feed.score()
    late = received(everything, 3)
    assert [message.kind for message in late] == ["scores", "status", "scores"]
    assert [message.position[1] for message in late] == [3, 4, 5], "no number is missing"
    ends = [message.body["end_sample"] for message in late if message.kind == "scores"]
    assert ends == [24_000, 32_000], "those before the subscription never were"
