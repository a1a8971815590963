"""Streams go from worker to worker, in any order of turns, and every event is found once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from reactive_model import tones_and_noise
from simulated_pool import HOP_S, SimulatedPool

from ast_stream.model.tagger import Tagger
from ast_stream.pool.directory import PoolDirectory
from ast_stream.pool.membership import ranked
from ast_stream.units import seconds_to_samples

STREAMS = [f"mic-{n}" for n in range(4)]


@pytest.fixture
def pool(tagger: Tagger) -> Iterator[SimulatedPool]:
    pool = SimulatedPool(tagger, 3)
    try:
        pool.listen({name: tones_and_noise(30.0, seed=n) for n, name in enumerate(STREAMS)})
        yield pool
    finally:
        pool.close()


def test_undisturbed_workers_find_every_event(pool: SimulatedPool) -> None:
    pool.finish()
    assert pool.problems() == []


def test_many_streams_that_begin_at_once_are_scored_in_time(tagger: Tagger) -> None:
    pool = SimulatedPool(tagger, 1)
    try:
        # by the first windows of a stream nothing is decided yet: they count all the same
        pool.listen({f"mic-{n}": tones_and_noise(6.0, seed=n) for n in range(40)})
        pool.step(50)
        (worker,) = pool.workers
        assert worker.worker is not None
        lags_s = [health.lag_s for health in worker.worker.healths()]
        assert len(lags_s) == 40
        assert max(lag_s or 0.0 for lag_s in lags_s) < 2.0
    finally:
        pool.close()


def test_a_worker_that_lost_a_stream_before_it_heard_any_goes_on_with_what_the_next_one_found(
    pool: SimulatedPool,
) -> None:
    pool.step_until(lambda: all(pool.holder(name) for name in STREAMS))
    first = next(one for one in pool.workers if one.name == pool.holder(STREAMS[0]))
    first.kill()
    pool.step_until(lambda: pool.claimant(STREAMS[0]) != first.name)
    second = next(one for one in pool.workers if one.name == pool.claimant(STREAMS[0]))
    second.is_stopped = True  # it has asked for the ring, and had no answer
    pool.step_until(lambda: pool.holder(STREAMS[0]) not in ("", first.name, second.name))
    pool.step_until(lambda: pool.mics[STREAMS[0]].ring.acked > 0)
    second.is_stopped = False
    pool.step_until(lambda: pool.holder(STREAMS[0]) == second.name)
    pool.finish()
    assert pool.problems() == []


def test_a_worker_that_dies_when_it_was_told_of_the_end_leaves_the_last_events_to_another(
    pool: SimulatedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pcm = tones_and_noise(20.0)
    (loud,) = np.nonzero(np.abs(pcm) > 3000)
    n_hops = loud[-1] // seconds_to_samples(HOP_S)
    # it ends in a tone, on a whole hop: all is acknowledged before anybody knows of the end
    pool.listen({STREAMS[0]: pcm[: n_hops * seconds_to_samples(HOP_S)]})
    mic = pool.mics[STREAMS[0]]
    pool.step_until(lambda: mic.ring.next > len(mic.pcm) - seconds_to_samples(1.0))
    first = next(one for one in pool.workers if one.name == pool.holder(mic.name))
    with monkeypatch.context() as patch:
        patch.setattr(mic.server, "answer", lambda *_: None)  # what it asks is lost
        pool.step_until(lambda: mic.ring.acked == len(mic.pcm))
    while not mic.server.end_delivered:  # it is told while it is stopped
        first.is_stopped = False
        pool.step()
        first.is_stopped = True
        pool.step()
    assert pool.has_open_event(first, mic.name)
    first.kill()
    pool.step_until(lambda: pool.is_over)
    found = pool.bodies(mic.name)
    assert {one["id"] for one in found if one["type"] == "end"} == {one["id"] for one in found}
    pool.finish()
    assert pool.problems() == []


def test_a_stream_whose_worker_is_full_goes_to_the_second_and_returns_when_there_is_room(
    tagger: Tagger,
) -> None:
    pool = SimulatedPool(tagger, 2, capacity=2)
    try:
        weights = {"worker-0": 2.0, "worker-1": 2.0}
        names = (f"mic-{n}" for n in range(100))
        alike = [name for name in names if ranked(name, weights)[0] == "worker-0"][:3]
        durations_s = (12.0, 12.0, 40.0)
        pool.listen(
            {
                name: tones_and_noise(duration_s, seed=n)
                for n, (name, duration_s) in enumerate(zip(alike, durations_s, strict=True))
            }
        )
        pool.step_until(lambda: all(pool.holder(name) for name in alike))
        assert [pool.holder(name) for name in alike] == ["worker-0", "worker-0", "worker-1"]
        pool.step_until(lambda: pool.mics[alike[0]].is_over)
        ended_s = pool.now_s
        pool.step_until(lambda: pool.holder(alike[2]) == "worker-0")
        assert pool.now_s - ended_s < 10.0  # the time of streams to be forgotten, and to move
        pool.finish()
        assert pool.problems() == []
    finally:
        pool.close()


def test_a_worker_that_wakes_up_when_its_time_to_leave_is_over_ends_no_event_of_another(
    pool: SimulatedPool,
) -> None:
    pool.step_until(lambda: all(mic.ring.acked > 0 for mic in pool.mics.values()))
    first = next(one for one in pool.workers if one.name == pool.holder(STREAMS[0]))
    first.leave()
    first.is_stopped = True  # before it has said so to anybody
    pool.step_until(lambda: pool.holder(STREAMS[0]) != first.name)
    pool.step(200)
    pool.finish()
    assert pool.problems() == []


def test_a_worker_that_comes_back_when_the_capture_process_did_ends_nothing_a_second_time(
    pool: SimulatedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = STREAMS[0]
    pool.step_until(lambda: pool.mics[name].ring.acked > 0)
    first = next(one for one in pool.workers if one.name == pool.holder(name))
    pool.step_until(lambda: pool.has_open_event(first, name))
    first.kill()
    pool.step_until(lambda: pool.holder(name) not in ("", first.name))
    pool.step(50)
    with monkeypatch.context() as patch:
        patch.setattr(PoolDirectory, "owner", lambda *_: "unknown")  # NATS does not answer
        pool.restart_capture(name)
        first.start()
        pool.step_until(lambda: pool.holder(name) == first.name)
        pool.step(50)
    pool.finish()
    ends = [body["id"] for body in pool.bodies(name) if body["type"] == "end"]
    begun = {body["id"] for body in pool.bodies(name) if body["type"] == "begin"}
    assert sorted(set(ends)) == sorted(begun)
    assert len(ends) == len(set(ends))
