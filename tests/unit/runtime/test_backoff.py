"""Delays between attempts: doubling, bounded, forgotten after a success."""

from __future__ import annotations

from ast_stream.runtime.backoff import Backoff


def test_delays_double_up_to_the_limit_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(0.5, 5.0)
    assert [backoff.next_s() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.delay_s == 0.5
    assert backoff.next_s() == 0.5
    assert backoff.delay_s == 1.0


def test_one_failure_may_have_a_limit_of_its_own() -> None:
    backoff = Backoff(0.2, 1.0)
    assert [backoff.next_s() for _ in range(4)] == [0.2, 0.4, 0.8, 1.0]
    assert backoff.next_s(max_s=60.0) == 2.0
    assert backoff.next_s() == 1.0
