"""Delays between attempts: doubling, bounded, forgotten after a success."""

from __future__ import annotations

from ast_stream.runtime.backoff import Backoff
from ast_stream.runtime.supervisor import FIRST_DELAY_S, HEALTHY_S, MAX_DELAY_S


def test_delays_double_up_to_the_limit_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(0.5, 5.0)
    assert [backoff.next_s() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.delay_s == 0.5
    assert backoff.next_s() == 0.5
    assert backoff.delay_s == 1.0


def test_jitter_makes_a_delay_longer_or_shorter_and_not_the_next_one() -> None:
    units = iter([0.0, 0.5, 0.75, 0.0])
    backoff = Backoff(1.0, 8.0, jitter=0.5, random_unit=lambda: next(units))
    assert [backoff.next_s() for _ in range(3)] == [0.5, 2.0, 5.0]
    assert backoff.delay_s == 8.0
    assert backoff.jittered_s(10.0) == 5.0


def test_one_failure_may_have_a_limit_of_its_own() -> None:
    backoff = Backoff(0.2, 1.0)
    assert [backoff.next_s() for _ in range(4)] == [0.2, 0.4, 0.8, 1.0]
    assert backoff.next_s(max_s=60.0) == 2.0
    assert backoff.next_s() == 1.0


def test_delay_of_the_supervisor_is_forgotten_after_a_healthy_run() -> None:
    backoff = Backoff(FIRST_DELAY_S, MAX_DELAY_S, HEALTHY_S)
    assert [backoff.after_run(1.0) for _ in range(7)] == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    assert backoff.after_run(30.0) == 0.5
    assert backoff.after_run(1.0) == 1.0
