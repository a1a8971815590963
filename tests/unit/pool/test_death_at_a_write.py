"""A worker of a pool that dies behind any of its writes leaves its streams to another one."""

from __future__ import annotations

import pytest
from deadly_writes import DiedError, Writes, counted_writes
from reactive_model import tones_and_noise
from simulated_pool import SimulatedPool, SimulatedWorker

from ast_stream.coverage.ledger import read_all_spans
from ast_stream.model.tagger import Tagger
from ast_stream.units import SAMPLE_RATE

STREAM = "mic-0"
N_STEPS = 25  # in which it saves more than once


def new_pool(tagger: Tagger) -> SimulatedPool:
    pool = SimulatedPool(tagger, 2)
    pool.listen({STREAM: tones_and_noise(12.0)})
    pool.step_until(lambda: pool.mics[STREAM].ring.acked > 3 * SAMPLE_RATE)
    return pool


def holder(pool: SimulatedPool) -> SimulatedWorker:
    return next(worker for worker in pool.workers if worker.name == pool.holder(STREAM))


def step_until_it_dies(
    pool: SimulatedPool, writes: Writes, dies_behind: int | str | None, n_steps: int = N_STEPS
) -> None:
    """Let the worker of the stream die behind a write, if that comes in time."""
    worker = holder(pool)
    writes.begin(dies_behind, pool.folder / worker.name)
    try:
        pool.step(n_steps)
    except DiedError:
        worker.kill()
    writes.is_counting = False


@pytest.mark.slow
@pytest.mark.parametrize("is_leaving", [False, True])
def test_worker_that_dies_behind_any_write_is_replaced_with_the_same_events_and_no_gap(
    tagger: Tagger, is_leaving: bool
) -> None:
    with counted_writes() as writes:
        number, n_writes = 0, 1
        while number <= n_writes:
            pool = new_pool(tagger)
            try:
                if is_leaving:
                    holder(pool).leave()
                step_until_it_dies(pool, writes, number or None)
                n_writes = n_writes if number else len(writes.done)
                pool.finish()
                assert pool.problems() == [], f"behind write {number} of {n_writes}"
            finally:
                pool.close()
            number += 1
        assert n_writes > 4  # ledger and journal, more than once


def test_gap_that_the_next_worker_finds_has_nothing_that_the_one_before_had_acknowledged(
    tagger: Tagger,
) -> None:
    """The record that came with an acknowledgement may be older than that by ten seconds."""
    pool = SimulatedPool(tagger, 2)
    try:
        pool.listen({STREAM: tones_and_noise(110.0)})
        mic = pool.mics[STREAM]
        pool.step_until(lambda: mic.ring.acked > 9 * SAMPLE_RATE)
        first = holder(pool)
        (second,) = (worker for worker in pool.workers if worker is not first)
        first.kill()
        acked = mic.ring.acked
        second.is_stopped = True
        pool.step_until(lambda: mic.ring.oldest > acked - 4 * SAMPLE_RATE)
        second.is_stopped = False
        pool.step_until(lambda: mic.ring.acked > acked)
        assert second.worker is not None
        assert second.worker._report.placed["continued"] == 1
        assert not [body for body in second.published() if body["topic"].startswith("gap/")]
        spans = read_all_spans([worker.coverage for worker in pool.workers])[STREAM]
        assert {span.kind for span in spans} == {"listened"}
    finally:
        pool.close()
