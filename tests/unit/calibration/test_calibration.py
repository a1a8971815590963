"""Thresholds by budget, Platt scalings and rise times, on score soundscapes made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.calibration.budgets import Budget, Budgets, per_hour
from ast_stream.calibration.onsets import MIN_MEASURED, Rises, clearly_above, measure_rises
from ast_stream.calibration.platt import fit, platt_scores
from ast_stream.calibration.scores import LogitStream
from ast_stream.calibration.thresholds import (
    CANDIDATES,
    DEFAULT_TIMING,
    HIGHEST,
    LOWEST,
    ClassCalibration,
    ThresholdSweep,
    Timing,
    calibrate_classes,
    first_within,
    sweep_thresholds,
    timing_parameters,
    timings,
)
from ast_stream.model.metadata import PlattScaling
from ast_stream.soundscape.mixing import ReferenceEvent

WINDOW_S, HOP_S = 2.56, 0.5
LABELS = ("Bark", "Siren")
IDENTITY = PlattScaling()
SILENCE = -6.0  # logit of what is not there


def _logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


def _planted(
    onset_s: float, offset_s: float, label: str = "Bark", snr_db: float = 12
) -> ReferenceEvent:
    return ReferenceEvent(label, "generated", onset_s, offset_s, -20.0, snr_db)


def _quiet(duration_s: float) -> LogitStream:
    times = np.arange(HOP_S, duration_s + HOP_S / 2, HOP_S)
    logits = np.full((len(times), len(LABELS)), SILENCE, np.float32)
    return LogitStream(times, logits, (), duration_s)


def _with_bursts(scores: list[float], duration_s: float = 3600.0) -> LogitStream:
    """Sound-free audio in which Bark scores so high for three windows, once for each score."""
    stream = _quiet(duration_s)
    for number, score in enumerate(scores):
        stream.logits[20 * number + 10 : 20 * number + 13, 0] = _logit(score)
    return stream


def _ideal(
    truth: list[ReferenceEvent], scores: list[float], rise_s: float = 0.6, duration_s: float = 120.0
) -> LogitStream:
    """Scores of a model that sees a sound while a window holds `rise_s` of it."""
    stream = replace(_quiet(duration_s), truth=tuple(truth))
    for sound, score in zip(truth, scores, strict=True):
        times = stream.times_s
        held = np.minimum(times, sound.offset_s) - np.maximum(times - WINDOW_S, sound.onset_s)
        stream.logits[held >= rise_s, LABELS.index(sound.label)] = _logit(score)
    return stream


def _swept(
    positives: list[LogitStream],
    negatives: list[LogitStream],
    score_map: PlattScaling = IDENTITY,
    timing: Timing = DEFAULT_TIMING,
    thresholds: np.ndarray = CANDIDATES,
    label: str = "Bark",
) -> ThresholdSweep:
    by_timing = {timing: timing_parameters(WINDOW_S, HOP_S, timing)}
    index = LABELS.index(label)
    return sweep_thresholds(index, label, positives, negatives, score_map, by_timing, thresholds)[
        timing
    ]


def _rises(stream: LogitStream, threshold: float, timing: Timing = DEFAULT_TIMING) -> Rises:
    sweep = _swept([stream], [], timing=timing, thresholds=np.array([threshold]))
    return measure_rises(sweep.at(threshold), threshold)


def _barks(count: int) -> list[ReferenceEvent]:
    return [_planted(5.13 + 8.1 * k, 7.13 + 8.1 * k) for k in range(count)]


def test_the_threshold_is_the_lowest_that_keeps_the_budget() -> None:
    positives = _ideal(_barks(4), [0.95, 0.9, 0.8, 0.45])
    loud = [0.96] * 10  # enough to be counted, and not left to chance
    curve = _swept([positives], [_with_bursts([*loud, 0.7, 0.5, 0.3])])
    for budget_per_h, above, found in ((10.0, 0.7, 3), (11.0, 0.5, 3), (12.0, 0.3, 4)):
        choice = curve.choose(per_hour(budget_per_h))
        below = CANDIDATES[above >= CANDIDATES].max()
        assert choice.is_met
        assert choice.threshold == CANDIDATES[below < CANDIDATES].min()
        assert (choice.n_found, choice.n_sounds) == (found, 4)
        assert choice.false_negatives == int(budget_per_h)
    assert curve.choose(per_hour(13.0)).threshold == LOWEST


def test_false_alarms_are_counted_by_event_and_not_by_window() -> None:
    negatives = _quiet(3600.0)
    negatives.logits[100:160, 0] = 3.0  # one alarm, half a minute long
    negatives.logits[103, 0] = negatives.logits[140, 0] = SILENCE  # too short a pause to end it
    curve = _swept([], [negatives])
    assert curve.choose(per_hour(1.0)).false_negatives == 1
    assert curve.choose(per_hour(1.0)).is_met


def test_negatives_that_may_hold_a_class_count_for_the_others_only() -> None:
    barking = replace(_with_bursts([0.9]), expected_label="Bark")
    own = _swept([], [barking, _with_bursts([])])
    assert own.choose(per_hour(0.1)).threshold == LOWEST
    assert own.hours_negative == 1.0
    siren = replace(barking, expected_label="Siren")
    other = _swept([], [siren])
    assert other.choose(per_hour(0.1)).threshold > 0.9
    assert other.hours_negative == 1.0


def test_a_single_high_window_is_no_alarm() -> None:
    negatives = _quiet(3600.0)
    negatives.logits[100, 0] = 5.0
    curve = _swept([], [negatives])
    assert curve.choose(per_hour(0.1)).threshold == LOWEST


def test_alarms_among_other_sounds_keep_the_budget_too() -> None:
    siren = _planted(1000.0, 1003.0, "Siren")
    among = _ideal([siren, *_barks(3)], [0.99, 0.95, 0.95, 0.95], duration_s=3600.0)
    siren_windows = (among.times_s > 1001.0) & (among.times_s < 1004.0)
    among.logits[siren_windows, 0] = _logit(0.6)  # Bark answers to the siren
    curve = _swept([among], [_quiet(3600.0)])
    strict, lenient = curve.choose(per_hour(0.5)), curve.choose(per_hour(1.0))
    assert strict.threshold > 0.6 > lenient.threshold
    assert (strict.false_among, lenient.false_among) == (0, 1)
    assert strict.n_found == lenient.n_found == 3
    apart = curve.choose(per_hour(0.5), among=per_hour(1.0))
    assert (apart.threshold, apart.false_among) == (lenient.threshold, 1)


def test_a_budget_that_no_threshold_keeps_is_said() -> None:
    negatives = _with_bursts([0.999, 0.999])
    one = _calibrated([_ideal(_barks(2), [0.9995, 0.9995])], [negatives], per_hour(0.5))
    assert not one.choice.is_met
    assert one.choice.threshold == HIGHEST
    assert one.remarks()[0].startswith("the budget of 0.5/h cannot be met at any threshold")


def test_a_class_without_sounds_gets_its_threshold_from_false_alarms_alone() -> None:
    one = _calibrated([], [_with_bursts([0.8])], per_hour(0.5))
    assert one.choice.threshold > 0.8
    assert one.score_map == IDENTITY
    assert (one.rise_on, one.rise_off) == (None, None)
    assert "there are no examples of it" in one.remarks()[0]


def test_low_recall_is_said() -> None:
    positives = _ideal(_barks(4), [0.95, 0.3, 0.3, 0.3])
    curve = _swept([positives], [_with_bursts([0.9])])
    choice = curve.choose(per_hour(0.5))
    remarks = ClassCalibration("Bark", IDENTITY, DEFAULT_TIMING, choice, (), None, None).remarks()
    assert remarks[0] == "finds 1 of 4 sounds (25%), fewer than 50%"


def test_short_negative_audio_cannot_claim_the_budget() -> None:
    day = Budget(1 / 24, "1/day")
    one = _calibrated([_ideal(_barks(4), [0.95] * 4)], [_quiet(7200.0)], day)
    assert one.bound_per_h == pytest.approx(1.498, abs=1e-3)
    assert one.remarks()[-1] == (
        "2 h heard, no false alarm: the rate is below 1.5/h with 95 %; "
        "to claim 1/day you need 72 h without any"
    )


def test_misses_are_reported_by_snr() -> None:
    truth = [
        replace(sound, snr_db=snr) for sound, snr in zip(_barks(3), (3.0, 8.0, 15.0), strict=True)
    ]
    positives = _ideal(truth, [0.4, 0.95, 0.95])
    curve = _swept([positives], [_with_bursts([0.6])])
    choice = curve.choose(per_hour(0.5))
    bands = [choice.found_between(*band) for band in ((0, 6), (6, 12), (12, 20))]
    assert bands == [(0, 1), (1, 1), (1, 1)]


def _calibrated(
    positives: list[LogitStream],
    negatives: list[LogitStream],
    budget: Budget,
    longest_smoothing_s: float = 0.0,
) -> ClassCalibration:
    by_timing = timings(WINDOW_S, HOP_S, max_smoothing_s=longest_smoothing_s)
    (one,) = calibrate_classes(LABELS, ["Bark"], positives, negatives, Budgets(budget), by_timing)
    return one


@pytest.mark.slow
def test_a_longer_confirmation_is_taken_where_it_finds_clearly_more() -> None:
    # barks of 4 s are seen for longer than the bursts, which are louder
    long_barks = [_planted(5.13 + 12.1 * k, 9.13 + 12.1 * k) for k in range(24)]
    faint = [_ideal(long_barks, [0.7] * 24, duration_s=400.0)]
    one = _calibrated(faint, [_with_bursts([0.9, 0.9])], per_hour(0.5))
    # bursts of three windows are no more
    assert (one.timing.confirm_s, one.choice.n_found) == (3.0, 24)
    assert one.choice.threshold < 0.7
    loud = [_ideal(long_barks, [0.95] * 24, duration_s=400.0)]
    assert _calibrated(loud, [_with_bursts([0.9, 0.9])], per_hour(0.5)).timing.confirm_s == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("n_more", "confirm_s"), [(6, 0.75), (2, 0.5)])
def test_knowing_half_a_second_later_must_find_more_than_four_of_forty(
    n_more: int, confirm_s: float
) -> None:
    long_barks = [_planted(5.13 + 12.1 * k, 9.13 + 12.1 * k) for k in range(40)]
    scores = [0.95] * (40 - n_more) + [0.8] * n_more
    glitch = _quiet(3600.0)
    glitch.logits[500, 0] = _logit(0.9)  # one window
    one = _calibrated([_ideal(long_barks, scores, duration_s=600.0)], [glitch], per_hour(0.5))
    assert one.timing.confirm_s == confirm_s


@pytest.mark.slow
def test_averages_are_taken_where_they_are_known_sooner_than_two_windows() -> None:
    # a short average bears a threshold below the glitch and is above it with the next window
    long_barks = [_planted(5.13 + 12.1 * k, 9.13 + 12.1 * k) for k in range(24)]
    faint = [_ideal(long_barks, [0.88] * 24, duration_s=400.0)]
    glitch = _quiet(3600.0)
    glitch.logits[500, 0] = _logit(0.9)
    plain = _calibrated(faint, [glitch], per_hour(0.5))
    averaged = _calibrated(faint, [glitch], per_hour(0.5), longest_smoothing_s=0.25)
    assert plain.timing == (0.75, 0.0)
    assert averaged.timing == (0.5, 0.25)
    assert averaged.choice.n_found == plain.choice.n_found == 24
    assert averaged.choice.threshold < 0.88


def test_delays_are_from_the_onset_to_the_window_that_confirms() -> None:
    sounds = [_planted(5.13, 9.13), _planted(20.13, 24.13), _planted(40.13, 44.13)]
    stream = _ideal(sounds, [0.9, 0.3, 0.9], duration_s=60.0)
    at = np.array([0.5])
    one, two = (
        _swept([stream], [], timing=Timing(confirm_s, 0.0), thresholds=at).delays_s(0.5)
        for confirm_s in (0.5, DEFAULT_TIMING.confirm_s)
    )
    assert len(one) == len(two) == 2  # of those that are found
    np.testing.assert_allclose(two - one, HOP_S)
    assert (one > 0).all()
    assert not len(_swept([stream], [], thresholds=at, label="Siren").delays_s(0.5))


def test_a_few_sounds_cannot_ask_for_a_longer_confirmation() -> None:
    faint = [_ideal([_planted(5.13, 9.13)], [0.7])]
    assert _calibrated(faint, [_with_bursts([0.9])], per_hour(0.5)).timing == (0.75, 0.0)


@pytest.mark.parametrize(
    ("hop_s", "longest_s", "expected"),
    [(HOP_S, 4.0, (0.75, 0.0)), (HOP_S, 0.5, (0.5, 0.0)), (0.01, 4.0, (0.5, 0.0))],
)
def test_too_few_sounds_to_choose_by_are_not_averaged(
    hop_s: float, longest_s: float, expected: tuple[float, float]
) -> None:
    by_timing = timings(WINDOW_S, hop_s, longest_s)
    (one,) = calibrate_classes(
        LABELS, ["Bark"], [], [_quiet(60.0)], Budgets(per_hour(0.5)), by_timing
    )
    assert one.timing == expected


@pytest.mark.parametrize(
    ("hop_s", "longest_s", "spans"),
    [(0.5, 4.0, [0.5, 0.75, 2.0, 3.0, 4.0]), (0.5, 2.5, [0.5, 0.75, 2.0]), (0.5, 0.3, [0.3]),
     (0.04, 4.0, [0.5, 0.75, 2.0])],
)  # fmt: skip
def test_spans_of_confirmation_stay_within_what_is_asked_and_possible(
    hop_s: float, longest_s: float, spans: list[float]
) -> None:
    by_timing = timings(WINDOW_S, hop_s, longest_s, 0.0)
    assert [timing.confirm_s for timing in by_timing] == spans


def test_averages_that_outlast_a_sound_have_a_negative_rise_off() -> None:
    truth = [_planted(10.13 + 14.1 * k, 15.13 + 14.1 * k) for k in range(6)]
    stream = _ideal(truth, [0.99] * 6, rise_s=0.1, duration_s=120.0)
    before, after = (_rises(stream, 0.4, Timing(0.5, constant)).off for constant in (0.0, 1.0))
    assert before is not None
    assert after is not None
    assert before.median_s > 0 > after.median_s
    assert after.n_measured == 6


bursts = st.lists(st.floats(0.05, 0.995), max_size=12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(false=bursts, found=bursts, tight=st.floats(0.1, 12), more=st.floats(0, 12))
def test_a_lower_budget_never_lowers_a_threshold(
    false: list[float], found: list[float], tight: float, more: float
) -> None:
    curve = _swept([_ideal(_barks(len(found)), found)], [_with_bursts(false)])
    strict, lenient = curve.choose(per_hour(tight)), curve.choose(per_hour(tight + more))
    assert strict.threshold >= lenient.threshold
    assert strict.n_found <= lenient.n_found
    assert strict.false_negatives <= max(lenient.false_negatives, 0 if strict.is_met else 12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    false=st.lists(st.floats(0.3, 0.95), min_size=11, max_size=24),
    found=st.lists(st.floats(0.3, 0.95), min_size=1, max_size=8),
    scale=st.floats(0.7, 1.5),
    bias=st.floats(-0.3, 0.3),
)
def test_a_score_map_moves_thresholds_and_keeps_what_they_find(
    false: list[float], found: list[float], scale: float, bias: float
) -> None:
    step = 0.12  # of the logits, so that scores differ by more than two candidates do
    false, found = (
        [1 / (1 + np.exp(-step * round(_logit(s) / step))) for s in part] for part in (false, found)
    )
    positives, negatives = _ideal(_barks(len(found)), found), _with_bursts(false)
    score_map = PlattScaling(scale=scale, bias=bias)
    curves = [_swept([positives], [negatives], affine) for affine in (IDENTITY, score_map)]
    for budget_per_h in (10.0, 14.0):  # so many that their tail is not asked
        plain, mapped = (curve.choose(per_hour(budget_per_h)) for curve in curves)
        if LOWEST in (plain.threshold, mapped.threshold):
            continue  # the lowest allowed is no choice by false alarms
        if not (plain.is_met and mapped.is_met):
            continue  # the map may lift a false event above the highest threshold
        assert mapped.false_negatives == plain.false_negatives
        assert (mapped.is_found == plain.is_found).all()


def test_pooling_one_fold_is_that_fold_and_order_does_not_matter() -> None:
    first, second = _ideal(_barks(4), [0.9, 0.8, 0.5, 0.7]), _ideal(_barks(2), [0.6, 0.95])
    negatives = [_with_bursts([0.65, 0.4])]
    budget = per_hour(1.0)
    both = _calibrated([first, second], negatives, budget)
    turned = _calibrated([second, first], negatives, budget)
    assert both.choice.n_sounds == 6
    assert both.choice.threshold == turned.choice.threshold
    assert both.score_map == turned.score_map
    assert both.rise_on == turned.rise_on


def test_negatives_may_be_heard_in_pieces() -> None:
    whole = _swept([], [_with_bursts([0.7, 0.4], 3600.0)])
    pieces = [_with_bursts([0.7], 1800.0), _with_bursts([0.4], 1800.0)]
    parts = _swept([], pieces)
    assert parts.hours_negative == whole.hours_negative == 1.0
    np.testing.assert_array_equal(parts.false_negatives, whole.false_negatives)


def test_rise_times_of_an_ideal_model_are_measured() -> None:
    stream = _ideal(_barks(8), [0.95] * 8)
    on, off, _ = _rises(stream, 0.6)
    assert on is not None
    assert off is not None
    assert on.median_s == pytest.approx(0.6, abs=HOP_S / 4)
    assert off.median_s == pytest.approx(0.6, abs=HOP_S / 4)
    assert on.spread_s < HOP_S / 2
    assert (on.n_measured, off.n_measured) == (8, 8)


def test_rise_times_of_few_sounds_stay_unmeasured() -> None:
    few = MIN_MEASURED - 1
    stream = _ideal(_barks(few), [0.95] * few)
    assert _rises(stream, 0.6)[:2] == (None, None)


def test_sounds_found_by_luck_do_not_drag_the_rise_times() -> None:
    clear, lucky = 6, 10
    truth = [_planted(10.13 + 14.1 * k, 15.13 + 14.1 * k) for k in range(clear + lucky)]
    stream = _ideal(truth, [0.95] * clear + [0.5] * lucky, duration_s=300.0)
    for sound in truth[clear:]:  # hovers below the threshold and crosses it late, for two windows
        late = np.flatnonzero(stream.times_s > sound.onset_s + 4.0)[:2]
        stream.logits[late, 0] = _logit(0.65)
    on, off, _ = _rises(stream, 0.6)
    assert on is not None
    assert off is not None
    assert on.n_measured == off.n_measured == clear
    assert on.median_s == pytest.approx(0.6, abs=HOP_S / 4)


def test_a_rise_time_never_exceeds_three_quarters_of_the_window() -> None:
    truth = [_planted(10.13 + 14.1 * k, 15.13 + 14.1 * k) for k in range(6)]
    stream = _ideal(truth, [0.95] * 6, rise_s=2.2, duration_s=120.0)
    on = _rises(stream, 0.6).on
    assert on is not None
    assert on.median_s == pytest.approx(0.75 * WINDOW_S)


def test_a_threshold_with_no_room_above_it_still_has_rise_times() -> None:
    stream = _ideal(_barks(8), [0.95] * 8)
    on, off, _ = _rises(stream, 0.94)
    assert clearly_above(0.94) > 0.95
    assert on is not None
    assert off is not None
    assert on.n_measured == off.n_measured == 8


def test_clearly_above_is_one_logit_above() -> None:
    assert _logit(clearly_above(0.6)) == pytest.approx(_logit(0.6) + 1.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n_examples=st.integers(1, 200),
    middle=st.floats(-8, 8),
    spread=st.floats(0.01, 8),
)
def test_a_fitted_map_never_turns_scores_around(
    seed: int, n_examples: int, middle: float, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    positives, negatives = rng.normal(middle, spread, 50), rng.normal(0, spread, 200)
    scale, bias = fit(positives, negatives, n_examples)
    assert 0.1 <= scale <= 10.0
    logits = np.sort(rng.normal(0, 5, 100)).astype(np.float32)
    scores = platt_scores(logits, PlattScaling(scale=scale, bias=bias))
    assert (np.diff(scores) >= 0).all()


def test_a_map_undoes_a_wrong_scale_and_bias() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-2.2, 2.0, 200_000)  # well calibrated logits, then distorted
    is_positive = rng.random(len(truth)) < 1 / (1 + np.exp(-truth))
    ratio = is_positive.mean()
    distorted = (truth - 1.0) / 0.8
    scale, bias = fit(distorted[is_positive], distorted[~is_positive], 100_000)
    # positives weigh a tenth of all, whatever their share, which moves the bias alone
    expected_bias = 1.0 + _logit(0.1) - _logit(float(ratio))
    assert scale == pytest.approx(0.8, abs=0.02)
    assert bias == pytest.approx(expected_bias, abs=0.05)


# scale and bias by Newton's method with halved steps, which this repository had of its own:
# git show bb427e1:ast_stream/calibration/platt.py; in test_a_map_is_that_of_newtons_method its
# `fit` in place of scipy's gives these
NEWTON = [
    (1.0225710096, -0.0024654119),
    (1.1097790051, -0.0385063123),
    (0.6778542509, -0.3362423318),
    (0.3162516282, -0.8010105409),
    (0.1509056532, -1.0666933277),
]
MAP_TOLERANCE = 1e-5  # a checkpoint stores four decimals


@pytest.mark.parametrize("seed", range(len(NEWTON)))
def test_a_map_is_that_of_newtons_method(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positives, negatives = rng.normal(2 - seed, 1 + seed, 50), rng.normal(-4, 1 + seed, 500)
    found = fit(positives, negatives, 12 * seed + 1)
    assert found == pytest.approx(NEWTON[seed], abs=MAP_TOLERANCE)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        ((-1.0, 1.0), (3.0, -3.0), (0.1, -2.2082949)),
        ((-0.02, 0.06), (-0.08, 0.03), (10, -2.0414013)),
    ],
)
def test_a_map_at_the_limit_of_its_scale_has_the_bias_of_that_scale(
    positives: tuple[float, float], negatives: tuple[float, float], expected: tuple[float, float]
) -> None:
    n_examples = 100_000 if expected[0] < 1 else 1_000_000
    found = fit(np.linspace(*positives, 20), np.linspace(*negatives, 20), n_examples)
    assert found == pytest.approx(expected, abs=MAP_TOLERANCE)


def test_few_examples_hardly_move_the_map() -> None:
    rng = np.random.default_rng(1)
    positives, negatives = rng.normal(1.0, 1.0, 300), rng.normal(0.0, 1.0, 3000)
    few, many = (fit(positives, negatives, n) for n in (2, 2000))
    assert abs(few[0] - 1) + abs(few[1]) < 0.5 * (abs(many[0] - 1) + abs(many[1]))


def test_few_false_alarms_at_low_thresholds_say_how_rare_they_are_at_higher_ones() -> None:
    rng = np.random.default_rng(0)
    logits = np.log(CANDIDATES / (1 - CANDIDATES))
    rates_per_h = []
    for _ in range(200):
        # peaks over 0.2: 30 an hour, exponential over the logits with mean 0.5, heard for 3 h
        peaks = logits[0] + rng.exponential(0.5, rng.poisson(90))
        counts = (peaks[:, None] >= logits).sum(axis=0)
        chosen = logits[first_within(CANDIDATES, counts, per_hour(0.05), 3.0)]
        rates_per_h.append(30 * np.exp(-(chosen - logits[0]) / 0.5))
    assert 0.02 < np.median(rates_per_h) < 0.1
    # what none was heard at is far above that, since nothing below one in 3 h can be heard
    assert np.quantile(rates_per_h, 0.9) < 0.3


def test_a_budget_that_many_alarms_keep_is_met_by_counting() -> None:
    counts = np.arange(len(CANDIDATES))[::-1]
    assert counts[first_within(CANDIDATES, counts, per_hour(10), 2.0)] == 20
    assert first_within(CANDIDATES, np.full(len(CANDIDATES), 30), per_hour(0.1), 2.0) == len(
        CANDIDATES
    )
    assert first_within(CANDIDATES, np.zeros(len(CANDIDATES), np.int64), per_hour(0.1), 2.0) == 0
