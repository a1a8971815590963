"""The sound detection score, worked by hand and by its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream.evaluation.matching import Spans, spans_of
from ast_stream.evaluation.psds import (
    PSDS1,
    PSDS2,
    Criteria,
    class_curve,
    mean_curve,
    psds,
    sweep,
)

HOUR = np.array([3600.0])
BARKS = [(100.0 * k, 100.0 * k + 2, 0.9) for k in range(1, 5)]
RAIN = [(100.0 * k + 50, 100.0 * k + 60, 0.9) for k in range(1, 3)]
TRUTH = {"Bark": spans_of(BARKS), "Rain": spans_of(RAIN)}


def score(detected: dict[str, Spans], criteria: Criteria) -> float:
    sweeps = {
        label: sweep(
            [detected[label].at_least],
            np.unique(detected[label].confidence).tolist(),
            [TRUTH],
            label,
            criteria,
        )
        for label in TRUTH
    }
    return psds(sweeps, HOUR, criteria)


@pytest.mark.parametrize("criteria", [PSDS1, PSDS2])
def test_perfect_detections_score_one_and_none_score_zero(criteria: Criteria) -> None:
    assert score(TRUTH, criteria) == pytest.approx(1.0)
    assert score({label: spans_of([]) for label in TRUTH}, criteria) == 0.0


def test_no_classes_have_no_score() -> None:
    assert math.isnan(psds({}, HOUR, PSDS1))


def test_false_alarms_below_all_true_confidences_cost_nothing() -> None:
    false = [(1000.0 + 10 * k, 1001.0 + 10 * k, 0.5) for k in range(10)]
    assert score(TRUTH | {"Bark": spans_of(BARKS + false)}, PSDS1) == pytest.approx(1.0)


def test_false_alarms_above_them_push_the_curve_to_the_right() -> None:
    false = [(1000.0 + 10 * k, 1001.0 + 10 * k, 0.95) for k in range(10)]
    only_barks = Criteria(detection=0.7, sound=0.7)
    swept = sweep([spans_of(BARKS + false).at_least], [0.9, 0.95], [TRUTH], "Bark", only_barks)
    assert psds({"Bark": swept}, HOUR, only_barks) == pytest.approx(0.9)  # found from 10/h to 100/h
    recall, false_per_h = class_curve(swept, HOUR, only_barks)
    np.testing.assert_allclose(recall, [0.0, 1.0])
    np.testing.assert_allclose(false_per_h, [0.0, 10.0])


def test_unequal_classes_lose_their_spread() -> None:
    half = TRUTH | {"Bark": spans_of(BARKS[:2])}
    assert score(half, PSDS1) == pytest.approx(0.75 - 0.25)
    assert score(half, Criteria(0.7, 0.7, spread_weight=0.0)) == pytest.approx(0.75)


def test_confusions_with_another_class_count_beyond_being_false() -> None:
    confused = spans_of([*BARKS, (155.0, 156.0, 0.95)])  # on the rain
    swept = sweep([confused.at_least], [0.9, 0.95], [TRUTH], "Bark", PSDS2)
    assert swept.n_crossed[0, :, 0].tolist() == [1.0, 1.0]
    _, false_per_h = class_curve(swept, HOUR, PSDS2)
    assert false_per_h[-1] == pytest.approx(1.0 + 0.5 * 3600 / 20)  # 20 s of rain


def test_a_curve_holds_until_its_next_point() -> None:
    steep = np.array([0.0, 1.0]), np.array([0.0, 10.0])
    flat = np.array([0.5]), np.array([0.0])
    recall, rates = mean_curve([steep, flat], Criteria(0.7, 0.7, spread_weight=0.0))
    np.testing.assert_allclose(rates, [0.0, 10.0])
    np.testing.assert_allclose(recall, [0.25, 0.75])


@given(
    st.lists(st.tuples(st.integers(0, 3500), st.integers(1, 9)), max_size=12),
    st.integers(1, 3),
)
def test_counting_a_soundscape_twice_is_two_such_soundscapes(
    rows: list[tuple[int, int]], times: int
) -> None:
    detected = spans_of([(onset_s, onset_s + 1.5, confidence / 10) for onset_s, confidence in rows])
    thresholds = [k / 10 for k in range(1, 10)]
    one = {"Bark": sweep([detected.at_least], thresholds, [TRUTH], "Bark", PSDS2)}
    several = {
        "Bark": sweep([detected.at_least] * times, thresholds, [TRUTH] * times, "Bark", PSDS2)
    }
    together = psds(several, np.repeat(HOUR, times), PSDS2)
    assert together == pytest.approx(psds(one, HOUR, PSDS2))
    assert psds(one, HOUR, PSDS2, np.array([float(times)])) == pytest.approx(together)
