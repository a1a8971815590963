"""The capture clock: one straight line, begun anew only for real drift."""

from __future__ import annotations

import random

import pytest

from ast_stream.capture.intake import SETTLE_S, STEP_NS, CaptureClock
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_ns

WALL0 = 1_763_700_000_123_456_789
MONO0 = 77_000_000_000
BLOCK = 1_600
BLOCKS_PER_S = SAMPLE_RATE // BLOCK


def anchored() -> CaptureClock:
    clock = CaptureClock()
    clock.anchor(0, MONO0, WALL0)
    return clock


def run(
    clock: CaptureClock,
    duration_s: float,
    *,
    rate_hz: float = SAMPLE_RATE,
    jitter_ns: int = 0,
    wall_step_ns: int = 0,
    first_block: int = 1,
) -> list[tuple[int, int]]:
    """Feed blocks of a device running at `rate_hz`; return the steps as (sample, ns)."""
    noise = random.Random(0)
    steps = []
    for number in range(first_block, first_block + round(duration_s * BLOCKS_PER_S)):
        sample = number * BLOCK
        late_ns = noise.randrange(jitter_ns) if jitter_ns else 0
        monotonic_ns = MONO0 + round(sample / rate_hz * NS_PER_SECOND) + late_ns
        clock.observe(sample, monotonic_ns, WALL0 - MONO0 + monotonic_ns + wall_step_ns)
        if step_ns := clock.step_ns(sample):
            steps.append((sample, step_ns))
    return steps


def test_times_are_whole_microseconds_at_the_anchor_and_exact_from_there() -> None:
    clock = anchored()
    assert clock.time_ns(0) == 1_763_700_000_123_456_000
    assert clock.time_ns(SAMPLE_RATE * 3_600) == clock.time_ns(0) + 3_600 * NS_PER_SECOND
    assert clock.time_ns(1) - clock.time_ns(0) == 62_500


def test_late_blocks_do_not_move_the_clock() -> None:
    clock = anchored()
    assert run(clock, 120, jitter_ns=90_000_000) == []
    assert clock.time_ns(SAMPLE_RATE) == clock.time_ns(0) + NS_PER_SECOND


def test_time_of_a_sample_does_not_depend_on_block_sizes() -> None:
    whole, halves = anchored(), anchored()
    for sample in range(0, 40 * SAMPLE_RATE, 800):
        monotonic_ns = MONO0 + samples_to_ns(sample)
        if sample % 1_600 == 0:
            whole.observe(sample, monotonic_ns, WALL0 - MONO0 + monotonic_ns)
            whole.step_ns(sample)
        halves.observe(sample, monotonic_ns, WALL0 - MONO0 + monotonic_ns)
        halves.step_ns(sample)
    for sample in (0, 12_345, 639_999):
        assert whole.time_ns(sample) == halves.time_ns(sample)


@pytest.mark.parametrize("ppm", [-100, 100])
def test_a_drifting_device_makes_small_rare_steps_that_follow_it(ppm: int) -> None:
    clock = anchored()
    rate_hz = SAMPLE_RATE * (1 + ppm * 1e-6)
    duration_s = 1_800
    steps = run(clock, duration_s, rate_hz=rate_hz, jitter_ns=5_000_000)
    assert 4 <= len(steps) <= 10
    assert all(STEP_NS < abs(step_ns) < STEP_NS + 5_000_000 for _, step_ns in steps)
    sample = duration_s * SAMPLE_RATE
    true_ns = WALL0 + round(sample / rate_hz * NS_PER_SECOND)
    assert abs(clock.time_ns(sample) - true_ns) < STEP_NS + 10_000_000


def test_a_wall_clock_set_late_becomes_one_step() -> None:
    clock = anchored()
    assert run(clock, 30) == []
    hour_ns = 3_600 * NS_PER_SECOND
    steps = run(clock, 60, wall_step_ns=hour_ns, first_block=301)
    assert len(steps) == 1
    assert steps[0][1] == pytest.approx(hour_ns, abs=1_000)
    assert steps[0][0] <= (30 + SETTLE_S + 1) * SAMPLE_RATE


def test_a_first_block_that_came_late_is_corrected_once() -> None:
    clock = CaptureClock()
    clock.anchor(0, MONO0 + 50_000_000, WALL0 + 50_000_000)
    steps = run(clock, 60)
    assert [round(step_ns / 1e6) for _, step_ns in steps] == [-50]


def test_samples_lost_are_counted_on_the_monotonic_clock() -> None:
    clock = anchored()
    assert clock.samples_until(1_600, MONO0 + 2 * NS_PER_SECOND) == 2 * SAMPLE_RATE - 1_600
    assert clock.samples_until(1_600, MONO0) == 0


def test_rate_is_fitted_when_there_is_enough_to_see() -> None:
    clock = anchored()
    assert clock.rate_hz() is None
    run(clock, 60, rate_hz=16_000.8, jitter_ns=3_000_000)
    rate_hz = clock.rate_hz()
    assert rate_hz is not None
    assert rate_hz == pytest.approx(16_000.8, abs=0.2)
