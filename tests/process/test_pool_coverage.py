"""The coverage of a pool: of all workers together, and named where one cannot be asked."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats_server import needs_nats
from pool_of_workers import Member, PoolOfWorkers

from ast_stream.coverage.spans import HEARD
from ast_stream.units import SAMPLE_RATE

pytestmark = needs_nats
DURATION_S = 30.0


@pytest.fixture
def pool(checkpoint: Path) -> Iterator[PoolOfWorkers]:
    folder = Path(tempfile.mkdtemp(prefix="pool-", dir="/tmp"))  # ipc paths are short
    running = PoolOfWorkers(
        folder, checkpoint, n_streams=3, duration_s=DURATION_S, n_captures=1, hop_s=1.0, dead_s=3.0
    )
    try:
        running.nats.start()
        yield running
    finally:
        running.remove()


def coverage(member: Member) -> dict[str, dict[str, Any]]:
    """Return what the command says at a worker, by stream."""
    command = [sys.executable, "-m", "ast_stream.cli", "coverage", "--json", "-c"]
    shown = subprocess.run([*command, member.config], capture_output=True, check=True, text=True)
    return {body["stream"]: body for body in map(json.loads, shown.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_time_at_another_worker_is_never_missing(pool: PoolOfWorkers) -> None:
    goes, stays = pool.add("goes"), pool.add("stays")
    pool.wait(lambda: goes.is_ready and stays.is_ready, "the workers")
    pool.start_captures()
    pool.wait(lambda: len(pool.placed()) == len(pool.streams), "a worker for each stream")
    assert set(pool.placed().values()) == {"goes", "stays"}
    pool.watch(lambda: goes.n_logged > 0)
    goes.kill()
    pool.watch(lambda: set(pool.placed().values()) == {"stays"})
    pool.add("goes")
    pool.wait(lambda: goes.is_ready, "the killed worker")
    pool.watch(lambda: "goes" in pool.placed().values())
    pool.wait_for_captures()
    expected = round(DURATION_S * SAMPLE_RATE)
    for member in (goes, stays):
        found = coverage(member)
        assert set(found) == set(pool.streams)
        for body in found.values():
            assert body["not_asked"] == {}
            assert sum(body["samples"][kind] for kind in HEARD) == expected
            assert body["samples"]["total"] == expected
            assert body["samples"]["elsewhere"] == 0
    stays.kill()
    for body in coverage(goes).values():
        assert body["not_asked"] == {"stays": "it does not answer"}
        assert body["samples"]["missing"] == 0
        assert set(body["reasons"]) <= {"elsewhere"}
        assert set(body["reasons"].get("elsewhere", {})) <= {"stays"}
    pool.nats.kill()
    for body in coverage(goes).values():
        assert "another worker" in body["not_asked"]
        assert body["samples"]["missing"] == 0
