"""Times of samples: one line for each anchor, whatever the blocks."""

from hypothesis import given
from hypothesis import strategies as st

from ast_stream.machine_clock import SET_NS, Moment
from ast_stream.sample_clock import Anchor, SampleClock
from ast_stream.units import MAX_TIME_NS, NS_PER_SECOND, format_time, parse_time, samples_to_ns

START_NS = parse_time("2026-11-20T10:00:00Z")


def moment(wall_ns: int, set_by_ns: int = 0) -> Moment:
    """Return a moment by a wall clock that was set by so much since the machine started."""
    return Moment(wall_ns, wall_ns - set_by_ns - START_NS + NS_PER_SECOND)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50), st.integers(0, 2**30))
def test_time_of_a_sample_does_not_depend_on_how_audio_was_cut(
    lengths: list[int], sample: int
) -> None:
    in_blocks, whole = SampleClock(), SampleClock()
    start = 0
    for length in lengths:
        # what a capture process sends: rounded to microseconds
        in_blocks.observe(start, moment(round((START_NS + samples_to_ns(start)) / 1000) * 1000))
        start += length
    whole.observe(0, moment(START_NS))
    assert in_blocks.time_ns(sample) == whole.time_ns(sample)


def test_clock_follows_where_the_capture_clock_was_set_anew() -> None:
    clock = SampleClock()
    clock.observe(0, moment(START_NS))
    clock.observe(16_000, moment(START_NS + 11 * NS_PER_SECOND))
    assert clock.time_ns(8_000) == START_NS + NS_PER_SECOND // 2
    assert clock.time_ns(32_000) == START_NS + 12 * NS_PER_SECOND


def test_clock_extrapolates_before_its_first_anchor() -> None:
    clock = SampleClock()
    clock.observe(16_000, moment(START_NS))
    assert clock.time_ns(0) == START_NS - NS_PER_SECOND


def test_clock_keeps_a_bounded_number_of_anchors() -> None:
    clock = SampleClock()
    for n_seconds in range(1000):
        clock.observe(n_seconds * 16_000, moment(START_NS + 2 * n_seconds * NS_PER_SECOND))
    assert len(clock.anchors) == 256
    assert clock.time_ns(999 * 16_000) == START_NS + 2 * 999 * NS_PER_SECOND


def test_sample_at_is_the_inverse_and_never_before_the_first_sample() -> None:
    clock = SampleClock()
    clock.observe(0, moment(START_NS))
    clock.observe(16_000, moment(START_NS + 11 * NS_PER_SECOND))
    for sample in (0, 8_000, 16_000, 32_000):
        assert clock.sample_at(clock.time_ns(sample)) == sample
    assert clock.sample_at(START_NS - NS_PER_SECOND) == 0


def test_times_before_the_clock_was_set_are_told_by_the_clock_as_it_is_set_now() -> None:
    hour_ns = 3600 * NS_PER_SECOND
    before, after = moment(START_NS), moment(START_NS + hour_ns, set_by_ns=hour_ns)
    clock = SampleClock()
    clock.observe(0, before)
    assert clock.time_ns(16_000, seen_from=before) == START_NS + NS_PER_SECOND
    assert clock.time_ns(16_000, seen_from=after) == START_NS + hour_ns + NS_PER_SECOND


def test_jitter_of_two_clocks_that_are_read_in_turn_moves_no_time() -> None:
    clock = SampleClock()
    clock.observe(0, moment(START_NS))
    jitter_ns = SET_NS // 2
    assert clock.time_ns(0, seen_from=moment(START_NS + jitter_ns, jitter_ns)) == START_NS


def test_samples_however_far_away_have_a_time_that_can_be_written() -> None:
    now_ns = 1_700_000_000 * NS_PER_SECOND
    clock = SampleClock([Anchor(2**50, now_ns, 0)])
    assert clock.time_ns(2**53) == MAX_TIME_NS
    assert clock.time_ns(0, Moment(0, now_ns)) == 0
    assert [format_time(clock.time_ns(sample))[:4] for sample in (0, 2**53)] == ["1970", "2200"]
