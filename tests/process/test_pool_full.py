"""Workers that are full: a stream goes to the second choice, and returns when there is room."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats_server import needs_nats
from pool_of_workers import PoolOfWorkers

from ast_stream.pool.membership import ranked

pytestmark = needs_nats


@pytest.fixture
def pool(checkpoint: Path) -> Iterator[PoolOfWorkers]:
    folder = Path(tempfile.mkdtemp(prefix="pool-", dir="/tmp"))  # ipc paths are short
    running = PoolOfWorkers(
        folder,
        checkpoint,
        n_streams=2,
        duration_s=400.0,  # ended by the test
        n_captures=2,
        hop_s=1.0,
        max_streams=1,
    )
    try:
        running.nats.start()
        yield running
    finally:
        running.remove()


def names_ranked(stream: str, other: str) -> tuple[str, str, str]:
    """Return workers of whom one stream prefers the last, and both else the first."""
    for first, second, last in itertools.permutations([f"gpu-{n}" for n in range(20)], 3):
        weights = {first: 1.0, second: 1.0, last: 1.0}
        wanted = [last, first], [first, second]
        if (ranked(stream, weights)[:2], ranked(other, weights)[:2]) == wanted:
            return first, second, last
    raise AssertionError("no such names")


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_stream_whose_worker_is_full_goes_to_the_second_and_returns(pool: PoolOfWorkers) -> None:
    one, other = pool.streams
    first, second, last = names_ranked(one, other)
    for name in (first, second):
        pool.add(name)
    pool.wait(lambda: all(worker.is_ready for worker in pool.members.values()), "the workers")
    pool.start_captures(0)
    pool.wait(lambda: pool.placed().get(one) == first, "a worker for the first stream")
    pool.start_captures(1)
    pool.wait(lambda: pool.placed().get(other) == second, "the second choice")
    pool.add(last)  # it takes the first stream, and makes room
    pool.wait(lambda: pool.placed() == {one: last, other: first}, "the return to the first")
    pool.wait(lambda: pool.members[first].n_logged > 0, "an event of it")
    for capture in pool.captures:
        capture.terminate()
        assert capture.wait(60) == 0
    assert all(worker.stop() == 0 for worker in pool.members.values())
    # the rest of the recordings was not played; what was heard is what one worker hears
    assert [text for text in pool.compare() if ": missing (" not in text] == []
    assert pool.figures()["takeovers"] == 0
