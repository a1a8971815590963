"""A wall clock that is set while a worker runs: on the monotonic clock nothing has moved."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reactive_model import tones_and_noise
from worker_harness import site

from ast_stream.model.tagger import Tagger
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, parse_time

LENGTH_S = 12
YEAR_S = 365 * 86_400
PCM = tones_and_noise(LENGTH_S)

Times = tuple[int | None, ...]
Facts = tuple[list[object], Times]


def on_monotonic_clock(body: dict[str, Any]) -> Facts:
    """Return what an event message is about, and its times as its stamp puts them there."""
    offset_ns = parse_time(body["published"]) - body["monotonic_ns"]
    times = (body[name] for name in ("onset", "offset", "captured"))
    about = [body[name] for name in ("type", "class", "at_sample", "reason", "clock")]
    return about, tuple(None if time is None else parse_time(time) - offset_ns for time in times)


def events(
    tagger: Tagger, set_at: int, set_by_s: float, *, noticed_after: int = 0, is_killed: bool = False
) -> list[Facts]:
    """Return the events of a worker whose clock is set.

    Args:
        set_at: second at which the clock is set.
        noticed_after: seconds until the capture process notices.
        is_killed: the worker is killed then, and started again.
    """
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        for second in range(LENGTH_S):
            if second == set_at:
                box.set_by_ns = round(set_by_s * NS_PER_SECOND)
                if is_killed:
                    box.kill_worker()
                    box.start_worker("mic")
            if second == set_at + noticed_after:
                box.capture().set_by_ns = box.set_by_ns
            box.play(PCM[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE])
        box.tick(5)
        box.worker.finish()
        return [on_monotonic_clock(body) for body in box.messages()]


def assert_close(times: Times, expected: Times) -> None:
    assert [time is None for time in times] == [time is None for time in expected]
    known = [(one or 0, other or 0) for one, other in zip(times, expected, strict=True)]
    assert all(abs(one - other) < 3_000 for one, other in known)  # the wire has microseconds


@pytest.fixture(scope="module")
def undisturbed(tagger: Tagger) -> list[Facts]:
    found = events(tagger, set_at=0, set_by_s=0.0)
    assert len(found) > 6
    return found


@pytest.mark.slow
@given(
    set_at=st.integers(0, LENGTH_S - 1),
    set_by_s=st.one_of(st.floats(-YEAR_S, YEAR_S), st.floats(-3, 3)).filter(lambda s: abs(s) > 0.2),
    noticed_after=st.integers(0, LENGTH_S),
    is_killed=st.booleans(),
)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_events_lie_on_the_monotonic_clock_where_they_were_however_the_wall_clock_is_set(
    tagger: Tagger,
    undisturbed: list[Facts],
    set_at: int,
    set_by_s: float,
    noticed_after: int,
    is_killed: bool,
) -> None:
    found = events(tagger, set_at, set_by_s, noticed_after=noticed_after, is_killed=is_killed)
    for one, expected in zip(found, undisturbed, strict=True):
        assert one[0] == expected[0]
        assert_close(one[1], expected[1])


def test_event_of_a_killed_worker_ends_by_the_clock_as_it_is_set_now(tagger: Tagger) -> None:
    with site(tagger) as box:
        box.start_capture()
        box.start_worker("mic")
        while not (begun := box.messages()) or begun[-1]["type"] == "end":
            start = box.n_captured()
            box.play(PCM[start : start + SAMPLE_RATE // 4])
        box.kill_worker()
        box.set_by_ns = 3600 * NS_PER_SECOND
        box.start_capture()  # another epoch: nothing derives the event again
        box.start_worker("mic", settings="other")
        box.tick(20, seconds=1.0)
        (ended,) = [body for body in box.messages() if body["reason"] == "restart"]
        (last,) = [body for body in begun if body["id"] == ended["id"]][-1:]
        onset_ns, _, captured_ns = on_monotonic_clock(last)[1]
        assert_close(on_monotonic_clock(ended)[1], (onset_ns, captured_ns, captured_ns))
