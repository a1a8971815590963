"""A pool without NATS: a fixed list of workers, and streams that wait for theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool_of_workers import PoolOfWorkers

WORKERS = ["one", "two"]


@pytest.fixture
def pool(checkpoint: Path) -> Iterator[PoolOfWorkers]:
    folder = Path(tempfile.mkdtemp(prefix="pool-", dir="/tmp"))  # ipc paths are short
    running = PoolOfWorkers(
        folder, checkpoint, n_streams=4, duration_s=14.0, n_captures=1, hop_s=1.0, listed=WORKERS
    )
    try:
        yield running
    finally:
        running.remove()


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_streams_wait_for_a_worker_that_is_killed_and_comes_back(pool: PoolOfWorkers) -> None:
    killed, stays = (pool.add(name) for name in WORKERS)
    pool.wait(lambda: killed.is_ready and stays.is_ready, "the workers")
    pool.start_captures()
    pool.wait(lambda: len(pool.placed()) == len(pool.streams), "a worker for each stream")
    placed = pool.placed()
    assert set(placed.values()) == set(WORKERS)  # by their names: changes if the hash does
    pool.watch(lambda: killed.n_logged > 0)
    killed.kill()
    pool.add(killed.name)
    pool.wait_for_captures()
    assert pool.placed() == placed
    killed.stop()
    stays.stop()
    assert pool.overloaded == []
    assert "\n".join(pool.compare()[:20]) == ""
    assert pool.coverage_problems() == []
    assert pool.figures()["moves"] == 0
