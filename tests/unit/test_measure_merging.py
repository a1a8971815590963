"""The figures of scripts/measure_merging.py, of scenes that are known."""

from __future__ import annotations

import measure_merging
import pytest
from measure_merging import Arrival, HeardEvent, Scene, Sounded

BARK = ("Bark",)


def heard(microphone: int, onset_s: float, sound: int | None, peak: float = 0.9) -> HeardEvent:
    return HeardEvent(microphone, "Bark", onset_s, onset_s + 1, peak, onset_s + 1, sound, sound)


def sounded(*microphones: int, onset_s: float, labels: tuple[str, ...] = BARK) -> Sounded:
    arrivals = {one: Arrival(onset_s + one / 100, -30, 10 - one) for one in microphones}
    return Sounded("a.wav", labels, 1.0, arrivals)


SCENE = Scene(
    1.0,
    3600.0,
    [
        sounded(0, 1, 2, onset_s=10),
        sounded(0, 1, onset_s=20),
        sounded(3, onset_s=30),
        sounded(0, 1, onset_s=40, labels=()),
    ],
    [
        heard(0, 10, 0), heard(1, 10.1, 0, 0.8), heard(2, 12, 0),  # the third hears its end alone
        heard(1, 20, 1),
        heard(3, 30, 2),
        HeardEvent(0, "Bark", 40, 41, 0.5, 41, None, 3),
        HeardEvent(1, "Bark", 40, 41, 0.5, 41, None, 3),
        HeardEvent(2, "Bark", 50, 51, 0.5, 51, None, None),
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    ("within_s", "heard_by", "n_alerts", "n_false", "found"),
    [
        (None, 1, 8, 3, (2, 1)),
        (1.0, 1, 6, 2, (2, 1)),
        (1.0, 2, 2, 1, (1, 0)),
        (2.0, 3, 1, 0, (1, 0)),
    ],
)
def test_alerts_are_counted_as_rules_merge(
    within_s: float | None, heard_by: int, n_alerts: int, n_false: int, found: tuple[int, int]
) -> None:
    one = measure_merging.alerts_of([SCENE], 4, within_s=within_s, heard_by=heard_by)
    assert (one.n_alerts, one.n_false) == (n_alerts, n_false)
    assert (one.found_shared, one.found_lone) == found


def test_false_alerts_have_the_cause_that_sounds_beside_them() -> None:
    one = measure_merging.alerts_of([SCENE], 4, within_s=1.0)
    assert one.n_false_by == {"shared": 1, "background": 1}


def test_all_tables_can_be_written() -> None:
    text = measure_merging.text_of([SCENE], ["command"], 1.0, chance_sounds=500)
    assert "| all | 2 | 1 | 1.90 s | 33% | 33% | 33% | 33% | 100% | 100% |" in text
    assert "| 4 | 1 | one for a sound | 6 | 2 of 2 | 1 of 1 | 2.0 |" in text
