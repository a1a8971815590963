"""Calls that may never return, and iterators that are read ahead."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from ast_stream.runtime.background import in_background, read_ahead


def test_a_call_in_the_background_hands_over_results_and_errors() -> None:
    assert in_background(lambda: 7).result(30.0) == 7
    failing = in_background(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        failing.result(30.0)


def test_a_call_that_does_not_return_can_be_waited_for_again() -> None:
    release = threading.Event()
    call = in_background(lambda: release.wait(30))
    with pytest.raises(TimeoutError):
        call.result(0.01)
    release.set()
    assert call.result(30.0)


def test_a_call_that_hangs_does_not_keep_the_process() -> None:
    release = threading.Event()
    in_background(lambda: release.wait(30))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "background call"]
    assert thread.daemon
    release.set()
    thread.join(30)


def test_what_is_read_ahead_comes_in_order_and_its_error_behind_it() -> None:
    def read() -> Iterator[int]:
        yield from range(20)
        raise OSError("the disk is gone")

    ahead = read_ahead(read, 3)
    assert list(itertools.islice(ahead, 20)) == list(range(20))
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert list(read_ahead(lambda: iter(()), 1)) == []


@pytest.mark.parametrize("n_ahead", [1, 2, 8])
def test_reading_ahead_stays_within_its_limit_and_ends_when_no_more_is_wanted(n_ahead: int) -> None:
    n_read, is_closed, may_wait = 0, threading.Event(), threading.Event()

    def read() -> Iterator[int]:
        nonlocal n_read
        try:
            for number in range(1_000_000):
                if n_read > n_ahead:
                    may_wait.set()
                n_read += 1
                yield number
        finally:
            is_closed.set()

    ahead = read_ahead(read, n_ahead)
    assert next(ahead) == 0
    assert may_wait.wait(30)  # one that was taken, those that wait, and one more in the hand
    assert n_read <= n_ahead + 2
    ahead.close()  # type: ignore[attr-defined]
    assert is_closed.is_set()
