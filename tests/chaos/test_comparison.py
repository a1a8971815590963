"""The comparison finds what is lost without a record: else a run under faults shows nothing."""

import pytest
from comparison import Comparison, Epoch, check_time, compare_gaps
from ring_tap import Recording

HOLES = [(16_000, 48_000, "device_lost"), (80_000, 81_600, "overflow")]


def _gap(start: int, samples: int, reason: str = "device_lost") -> dict[str, object]:
    return {"start": start, "samples": samples, "reason": reason}


@pytest.mark.parametrize(
    ("gaps", "unexplained"),
    [
        ([_gap(16_000, 32_000), _gap(80_000, 1_600, "overflow")], 0),
        ([_gap(16_000, 2_000), _gap(18_000, 30_000), _gap(80_000, 1_600, "overflow")], 0),
        ([_gap(16_000, 32_000)], 1_600),  # one is not told
        ([_gap(16_000, 31_999), _gap(80_000, 1_600, "overflow")], 63_999),  # a sample is missing
        ([_gap(16_000, 32_000), _gap(80_000, 1_600, "stalled")], 3_200),  # another reason
    ],
)
def test_gap_records_that_are_not_the_holes_are_found(
    gaps: list[dict[str, object]], unexplained: int
) -> None:
    comparison = Comparison()
    epoch = Epoch("mic", "ab" * 16, gaps=gaps, recording=Recording(holes=HOLES, end=100_000))
    compare_gaps(epoch, 90_000, comparison)
    assert comparison.unexplained == unexplained
    assert bool(comparison.problems) is (unexplained > 0)
    assert sum(comparison.explained.values()) == sum(int(str(gap["samples"])) for gap in gaps)


def test_a_hole_that_is_not_decided_yet_needs_no_record() -> None:
    comparison = Comparison()
    epoch = Epoch("mic", "ab" * 16, recording=Recording(holes=HOLES, end=100_000))
    compare_gaps(epoch, 15_000, comparison)
    assert comparison.problems == []


@pytest.mark.parametrize(("late_s", "unexplained"), [(0.2, 0), (1.0, 16_000), (-1.0, 0)])
def test_time_that_is_in_no_record_is_found(late_s: float, unexplained: int) -> None:
    lateness_s = [5.0 + 0.1 * (place % 3) for place in range(20)]
    lateness_s += [late + late_s for late in lateness_s]
    comparison = Comparison()
    check_time("mic", Recording(end=640_000, lateness_s=lateness_s), comparison)
    assert comparison.unexplained == unexplained
    assert bool(comparison.problems) is (abs(late_s) > 0.5)
