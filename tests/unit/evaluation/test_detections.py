"""Which event found which sound, when it was known, and what other thresholds would give."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soundscape_cases import (
    HIGH,
    HOP_S,
    LOW,
    WINDOW_S,
    begin_and_end,
    ideal_soundscape,
    parameters,
    reference,
)

from ast_stream.evaluation.curves import (
    THRESHOLDS,
    ThresholdCurve,
    decide_at_thresholds,
    published_spans,
    threshold_curve,
)
from ast_stream.evaluation.matching import Detection, detections, match, match_soundscape
from ast_stream.evaluation.scoring import ScoredSoundscape
from ast_stream.evaluation.stream_figures import (
    detection_delays,
    offset_errors,
    onset_errors,
    timing,
)
from ast_stream.units import seconds_to_samples

TRUTH = [
    reference("Bark", 10.0, 11.0),
    reference("Bark", 12.0, 13.0),
    reference("Bark", 30.0, 34.0),
]


def detected(onset_s: float, offset_s: float) -> Detection:
    return Detection("Bark", onset_s, offset_s, 0.9, onset_s + 1.0, offset_s + 2.0)


def test_an_event_finds_every_sound_that_it_overlaps() -> None:
    matched = match(TRUTH, [detected(10.5, 12.5)])
    assert [len(sound.detections) for sound in matched.sounds] == [1, 1, 0]
    assert [sound.is_first for sound in matched.sounds] == [True, False, True]
    assert [sound.is_last for sound in matched.sounds] == [False, True, True]
    assert timing([matched]).sounds_per_event == 2.0


def test_an_event_beside_a_sound_finds_it_only_if_it_is_near_and_overlaps_no_other() -> None:
    assert match(TRUTH, [detected(13.4, 14.0)]).sounds[1].detections
    assert match(TRUTH, [detected(13.6, 14.0)]).false_alarms
    assert not match(TRUTH, [detected(10.2, 11.8)]).sounds[1].detections


def test_events_within_one_sound_are_fragments_not_false_alarms() -> None:
    matched = match(TRUTH, [detected(30.0, 31.0), detected(32.0, 34.0)])
    assert not matched.false_alarms
    assert timing([matched]).events_per_sound == 2.0


def test_a_merged_sound_has_no_time_to_detect_and_a_missed_one_never() -> None:
    matched = match(TRUTH, [detected(10.5, 12.5)])
    assert detection_delays(matched.sounds) == [1.5, math.inf]
    assert onset_errors(matched.sounds) == [0.5]
    assert offset_errors(matched.sounds) == [-0.5]


def test_an_event_that_had_begun_before_the_sound_was_known_at_once() -> None:
    matched = match(TRUTH, [detected(28.0, 33.0)])
    assert detection_delays(matched.sounds)[-1] == 0.0


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=8))
def test_every_event_finds_a_sound_or_is_a_false_alarm(rows: list[tuple[int, int]]) -> None:
    events = [detected(onset / 10, (onset + length) / 10) for onset, length in rows]
    matched = match(TRUTH, events)
    used = {id(event) for sound in matched.sounds for event in sound.detections}
    assert len(used) + len(matched.false_alarms) == len(events)
    assert not used & {id(event) for event in matched.false_alarms}


def test_the_end_of_a_soundscape_bounds_the_times_of_detection() -> None:
    soundscape = ideal_soundscape(
        TRUTH, duration_s=35.0, events=begin_and_end("Bark", 30, 34, 31.0, 37.5)
    )
    (event,) = detections(soundscape, "Bark")
    assert (event.known_s, event.ended_s) == (31.0, 35.0)


def test_uncorrected_times_are_those_of_the_windows_that_crossed() -> None:
    # a window of 2.56 s every 0.5 s holds 0.6 s of the sound from 30.6 s on: at 31.0 s; it still
    # does so until 34 + 2.56 - 0.6 = 35.96 s: 36.0 s is the first window below
    soundscape = ideal_soundscape(
        [reference("Bark", 30.0, 34.0)], events=begin_and_end("Bark", 30.1, 33.9, 31.5, 37.0)
    )
    times = timing([match_soundscape(soundscape, "Bark")])
    assert times.onset.bias_s == pytest.approx(0.1)
    assert times.raw_onset.bias_s == pytest.approx(1.0)
    assert times.offset.bias_s == pytest.approx(-0.1)
    assert times.raw_offset.bias_s == pytest.approx(2.0)
    assert times.detect_p50_s.value == pytest.approx(1.5)


def curve_of(
    soundscape: ScoredSoundscape, label: str = "Bark", thresholds: np.ndarray = THRESHOLDS
) -> ThresholdCurve:
    events = decide_at_thresholds([soundscape], [label], thresholds)[label]
    return threshold_curve([soundscape], label, events, thresholds)


def test_spans_at_any_threshold_are_corrected_for_the_window() -> None:
    soundscape = ideal_soundscape([reference("Bark", 30.0, 34.0)])
    thresholds = np.array([LOW / 2, 0.5, 0.95])
    (events,) = decide_at_thresholds([soundscape], ["Bark"], thresholds)["Bark"]
    spans = published_spans(events.of_classes(1))
    assert spans.onset_s == pytest.approx([30.0], abs=HOP_S / 2)
    assert spans.offset_s == pytest.approx([34.0], abs=HOP_S / 2)
    assert len(published_spans(events.of_classes(2))) == 0
    assert len(published_spans(events.of_classes(0))) == 1  # of everything


def test_the_curve_of_an_ideal_model_finds_everything_without_false_alarms() -> None:
    curve = curve_of(ideal_soundscape(TRUTH))
    between = (curve.thresholds > LOW) & (curve.thresholds < HIGH)
    assert (curve.recall[between] == 1.0).all()
    assert (curve.false_per_h[between] == 0.0).all()
    assert curve.recall_within(0.1) == 1.0
    assert curve.recall[-1] == 0.0


@pytest.mark.parametrize(("n_low_beyond_hold", "n_false"), [(0, 2), (1, 3)])
def test_false_alarms_within_the_hold_are_one(n_low_beyond_hold: int, n_false: int) -> None:
    soundscape = ideal_soundscape(TRUTH, duration_s=3600.0)
    bark = soundscape.scores[:, 0]
    hold = -(-int(parameters().hold[0]) // seconds_to_samples(HOP_S))
    first = 2000
    second = first + 3 + hold + n_low_beyond_hold
    for start in (first, second, 4000):
        bark[start : start + 3] = 0.8
    bark[5000] = 0.8  # a single window is not confirmed
    curve = curve_of(soundscape, thresholds=np.array([0.5, 0.85]))
    np.testing.assert_allclose(curve.false_per_h, [n_false, 0.0])


def test_one_event_of_everything_is_no_way_around_false_alarms() -> None:
    soundscape = ideal_soundscape(TRUTH, duration_s=500.0)  # shorter than an event may last
    soundscape.scores[300:303, 0] = soundscape.scores[600:603, 0] = 0.5
    curve = curve_of(soundscape, thresholds=np.array([LOW / 2, 0.4, 0.6]))
    np.testing.assert_allclose(curve.false_per_h, [2 * 7.2, 2 * 7.2, 0.0])


@pytest.mark.slow
def test_an_event_of_everything_ends_after_ten_minutes_as_live() -> None:
    soundscape = ideal_soundscape(TRUTH, duration_s=3600.0)
    curve = curve_of(soundscape, thresholds=np.array([LOW / 2]))
    assert curve.false_per_h[0] == 5.0  # the first of the six holds sounds


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_a_lower_threshold_never_finds_less(seed: int) -> None:
    soundscape = ideal_soundscape(TRUTH)
    soundscape.scores[:] = np.random.default_rng(seed).random(soundscape.scores.shape)
    recall = curve_of(soundscape).recall
    assert (np.diff(recall) <= 0).all()


def test_a_second_class_is_false_where_it_fires_on_the_first() -> None:
    soundscape = ideal_soundscape(TRUTH, duration_s=3600.0)
    soundscape.scores[:, 1] = soundscape.scores[:, 0]
    curve = curve_of(soundscape, "Siren", np.array([0.5]))
    assert curve.false_per_h[0] == pytest.approx(2.0)  # the first two barks are one to a window
    assert TRUTH[1].onset_s - TRUTH[0].offset_s < WINDOW_S
