"""Rendezvous hashing: who has a stream, and which streams move."""

from __future__ import annotations

import pytest

from ast_stream.pool.membership import ranked

STREAMS = [f"stream-{n}" for n in range(4000)]


def placed(weights: dict[str, float]) -> dict[str, str]:
    return {stream: ranked(stream, weights)[0] for stream in STREAMS}


@pytest.mark.parametrize("n_workers", [1, 3, 10])
def test_a_worker_that_joins_takes_its_part_and_nothing_else_moves(n_workers: int) -> None:
    weights = {f"worker-{n}": 1.0 for n in range(n_workers)}
    before, after = placed(weights), placed(weights | {"new": 1.0})
    moved = [stream for stream in STREAMS if before[stream] != after[stream]]
    assert all(after[stream] == "new" for stream in moved)
    assert len(moved) / len(STREAMS) == pytest.approx(1 / (n_workers + 1), rel=0.15)


def test_a_worker_that_leaves_gives_up_its_streams_and_nothing_else_moves() -> None:
    weights = {"a": 1.0, "b": 1.0, "c": 1.0}
    before = placed(weights)
    after = placed({"a": 1.0, "c": 1.0})
    moved = {stream for stream in STREAMS if before[stream] != after[stream]}
    assert moved == {stream for stream in STREAMS if before[stream] == "b"}


def test_workers_have_streams_in_proportion_to_their_weights() -> None:
    found = list(placed({"small": 64.0, "large": 256.0}).values())
    assert found.count("large") / found.count("small") == pytest.approx(4.0, rel=0.15)


def test_all_processes_rank_workers_alike() -> None:
    weights = {"c": 2.0, "a": 1.0, "b": 1.0}
    assert ranked("porch", weights) == ranked("porch", dict(sorted(weights.items())))
    assert ranked("porch", weights) == ["c", "b", "a"]  # changes if the hash does
