"""A pool of real workers, captures, keys and NATS: whoever dies or leaves changes no event."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_command import run_command
from nats_server import needs_nats
from pool_of_workers import Member, PoolOfWorkers

from ast_stream.feed import FeedMessage, Subscriber

pytestmark = needs_nats
N_STREAMS = 4


@pytest.fixture
def pool(checkpoint: Path) -> Iterator[PoolOfWorkers]:
    folder = Path(tempfile.mkdtemp(prefix="pool-", dir="/tmp"))  # ipc paths are short
    running = PoolOfWorkers(
        folder,
        checkpoint,
        n_streams=N_STREAMS,
        duration_s=36.0,
        n_captures=1,
        hop_s=1.0,
        has_keys=True,
        dead_s=3.0,
    )
    try:
        running.nats.start()
        yield running
    finally:
        running.remove()


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_workers_that_die_stop_come_back_and_leave_change_no_event(pool: PoolOfWorkers) -> None:
    killed, stopped, stays = (pool.add(f"worker-{n}") for n in range(3))
    pool.wait(lambda: all(one.is_ready for one in pool.members.values()), "the workers")
    pool.start_alerts()
    firings = Firings(pool)
    pool.start_captures()
    pool.wait(lambda: len(pool.placed()) == N_STREAMS, "a worker for each stream")
    killed.kill()
    pool.watch(lambda: killed.name not in pool.placed().values())
    stopped.signal(signal.SIGSTOP)
    pool.watch(lambda: set(pool.placed().values()) == {stays.name})
    stopped.signal(signal.SIGCONT)
    pool.watch(lambda: stopped.name in pool.placed().values())
    living = {killed.name: False, stopped.name: True, stays.name: True}
    pool.wait(lambda: alive(stays) == living, "the stopped one to be known as back")
    found = {} if pool.has_ended else status_of_captures(pool)
    assert stopped.stop() == 0
    pool.wait_for_captures()
    pool.add(killed.name)  # its log may have events that another one has ended
    pool.wait(lambda: killed.is_ready, "the killed worker")
    killed.stop()
    stays.stop()
    assert pool.overloaded == []  # so few windows are scored on the busiest machine
    assert "\n".join(pool.compare()[:20]) == ""
    assert pool.coverage_problems() == []
    assert pool.figures()["takeovers"] > 0
    assert {one["worker"] for one in found.values()} <= {stopped.name, stays.name}
    assert not found or sum(one["takeovers"] for one in found.values()) > 0
    events = firings.close()
    assert {stream for stream, _ in events} == set(pool.streams)
    assert len(set(events)) == len(events)  # none was alerted of twice


class Firings:
    """What the alerts process says on its feed, in a thread."""

    def __init__(self, pool: PoolOfWorkers) -> None:
        self._found: list[tuple[str, str]] = []
        self._feed = Subscriber(pool.alerts_feed, topics=["alert/"])
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def close(self) -> list[tuple[str, str]]:
        """Return stream and first event of each alert that fired."""
        self._feed.stop()
        self._thread.join()
        return self._found

    def _read(self) -> None:
        for item in self._feed.messages():
            if isinstance(item, FeedMessage) and item.body["state"] == "firing":
                self._found.append((item.body["group"]["stream"], item.body["events"][0]))
        self._feed.close()


def status_of_captures(pool: PoolOfWorkers) -> dict[str, Any]:
    """Return where the streams are, as `status` says on their box; nothing if they are over."""
    config = pool.folder / "capture-0" / "config.yaml"
    body: dict[str, Any] = {}

    def is_healthy() -> bool:  # a stream on its way to another worker is not, for a moment
        listed = run_command("status", "--json", "-c", config)
        body.update(json.loads(listed.stdout))
        return pool.has_ended or bool(body["healthy"])

    pool.wait(is_healthy, "the box of the streams to be healthy")
    if pool.has_ended:
        return {}
    return {name: one["placement"] for name, one in body["captures"].items()}


def alive(member: Member) -> dict[str, bool]:
    """Return which workers live, as the command says."""
    listed = run_command("fleet", "pool", "--json", "-c", member.config)
    return {name: one["alive"] for name, one in json.loads(listed.stdout)["workers"].items()}
