"""Calls that may never return."""

from __future__ import annotations

import threading

import pytest

from ast_stream.runtime.background import in_background


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
