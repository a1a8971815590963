"""Figures of clips and streams, and laid soundscapes, on cases worked by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from soundscape_cases import LABELS, WINDOW_S, begin_and_end, ideal_soundscape, reference

from ast_stream.audio.activity import Waveform
from ast_stream.evaluation.clip_figures import average_precision, clip_report, clip_scores
from ast_stream.evaluation.scoring import MeasureSettings, mixed_spec
from ast_stream.evaluation.stream_figures import measure_streams, negatives_report
from ast_stream.messages.event import Event
from ast_stream.soundscape.backgrounds import generated_backgrounds
from ast_stream.soundscape.mixing import (
    Disturbances,
    ReferenceEvent,
    Soundscape,
    SoundscapeSpec,
    mix_backgrounds,
    mix_soundscape,
)
from ast_stream.soundscape.soundbank import Foreground, generated_foregrounds
from ast_stream.units import SAMPLE_RATE


def test_clip_figures_count_the_highest_score() -> None:
    foregrounds = [Foreground(np.ones(400, np.float32), (index,), False) for index in (0, 0, 1, 1)]
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.3], [0.1, 0.8]])
    report = clip_report(foregrounds, scores, LABELS)
    assert report.accuracy == 0.75
    assert report.recall == {"Bark": 0.5, "Siren": 1.0}
    assert report.confusion.tolist() == [[1, 1], [0, 2]]
    assert report.average_precision["Bark"] == 1.0
    assert report.average_precision["Siren"] == pytest.approx((1 + 2 / 3) / 2)
    assert report.mean_average_precision == pytest.approx((1 + 5 / 6) / 2)


def test_a_clip_of_two_classes_is_named_right_by_either() -> None:
    foregrounds = [
        Foreground(np.ones(400, np.float32), classes, False) for classes in ((0, 1), (0,), (1, 0))
    ]
    scores = np.array([[0.4, 0.6], [0.3, 0.5], [0.7, 0.1]])
    report = clip_report(foregrounds, scores, LABELS)
    assert report.accuracy == pytest.approx(2 / 3)
    assert report.recall == {"Bark": pytest.approx(2 / 3), "Siren": 1.0}
    assert report.average_precision == {"Bark": 1.0, "Siren": pytest.approx((1 + 2 / 3) / 2)}
    assert report.confusion.tolist() == [[1, 1], [0, 1]]


def test_average_precision_without_positives_is_not_a_number() -> None:
    assert math.isnan(average_precision(np.zeros(3, np.bool_), np.arange(3.0)))


def test_clip_scores_ask_only_windows_that_hold_the_sound() -> None:
    waveform = np.zeros(5 * SAMPLE_RATE, np.float32)
    waveform[: SAMPLE_RATE // 2] = 0.5
    asked: list[int] = []

    def score(windows: Waveform) -> Waveform:
        asked.append(len(windows))
        assert (windows[:, :100] != 0).any()
        return np.full((len(windows), 2), 0.5, np.float32)

    foreground = Foreground(waveform, (0,), False)
    scores = clip_scores([foreground], score, round(WINDOW_S * SAMPLE_RATE))
    np.testing.assert_allclose(scores, 0.5)
    assert asked == [1]


def test_clips_shorter_than_a_window_are_padded() -> None:
    foreground = Foreground(np.full(8000, 0.5, np.float32), (0,), False)
    scores = clip_scores([foreground], lambda w: np.full((len(w), 2), 0.25, np.float32), 40_960)
    np.testing.assert_allclose(scores, 0.25)


@pytest.mark.slow
def test_stream_figures_count_what_was_found_and_what_was_not_there() -> None:
    truth = [
        reference("Bark", 10.0, 11.0),
        reference("Bark", 30.0, 31.0),
        reference("Siren", 40, 44),
    ]
    events = [
        *begin_and_end("Bark", 10.2, 11.3, 11.5, 14.0),
        *begin_and_end("Bark", 20.0, 22.0, 21.0, 24.0),
        *begin_and_end("Siren", 39.9, 41.0, 41.0, 43.0),
        *begin_and_end("Siren", 43.0, 44.2, 44.0, 48.0),
    ]
    scored = ideal_soundscape(truth, duration_s=3600.0, events=events)
    report = measure_streams([scored], LABELS).report
    bark, siren = report.by_label["Bark"], report.by_label["Siren"]
    assert (bark.n_sounds, bark.n_found, bark.recall.value) == (2, 1, 0.5)
    assert (bark.false_alarms.count, bark.false_alarms.per_h) == (1, 1.0)
    assert bark.timing.onset.median_absolute_s == pytest.approx(0.2)
    assert bark.timing.offset.median_absolute_s == pytest.approx(0.3)
    assert bark.timing.detect_p50_s.value == math.inf  # the median of 1.5 s and never
    assert (siren.n_found, siren.false_alarms.count) == (1, 0)
    assert siren.timing.events_per_sound == 2.0
    assert siren.timing.onset.bias_s == pytest.approx(-0.1)
    assert siren.timing.offset.bias_s == pytest.approx(0.2)
    assert siren.timing.detect_p50_s.value == pytest.approx(1.0)
    assert (report.n_found, report.n_sounds) == (2, 3)
    assert report.recall.value == pytest.approx(2 / 3)
    assert report.mean_recall == pytest.approx(0.75)
    assert report.false_alarms_per_class.per_h == 0.5


def test_no_alarm_bounds_the_rate_by_the_rule_of_three() -> None:
    overall, by_label = negatives_report([ideal_soundscape([], duration_s=7200.0)], LABELS)
    assert overall.count == 0
    assert overall.bound_per_h == pytest.approx(1.5, abs=0.01)
    assert by_label["Bark"].per_h == 0.0


def test_an_alarm_in_negative_audio_is_counted_for_its_class() -> None:
    soundscape = ideal_soundscape(
        [], duration_s=1800.0, events=begin_and_end("Siren", 5.0, 6.0, 6.0, 9.0)
    )
    overall, by_label = negatives_report([soundscape, soundscape], LABELS)
    assert (overall.count, overall.per_h) == (2, 2.0)
    assert (by_label["Bark"].count, by_label["Siren"].count) == (0, 2)


@pytest.mark.slow
def test_a_class_without_sounds_has_no_figures_but_its_false_alarms_count() -> None:
    events = [*begin_and_end("Siren", 5.0, 6.0, 6.0, 9.0)]
    scored = ideal_soundscape([reference("Bark", 10.0, 11.0)], duration_s=3600.0, events=events)
    report = measure_streams([scored], LABELS).report
    assert set(report.by_label) == {"Bark"}
    assert report.false_alarms.count == 1
    assert {label: rate.count for label, rate in report.false_alarms_by_label.items()} == {
        "Bark": 0,
        "Siren": 1,
    }


def test_laid_takes_are_where_the_truth_says_at_the_level_it_says() -> None:
    foregrounds = generated_foregrounds(0, ["Siren"], 4)
    backgrounds = generated_backgrounds(0, 6, with_speech=False)
    spec = SoundscapeSpec(snr_db=(20.0, 20.0), level_dbfs=(-20.0, -20.0))
    soundscape = mix_soundscape(np.random.default_rng(2), foregrounds, backgrounds, ["Siren"], spec)
    assert len(soundscape.truth) == 4
    samples = soundscape.pcm / 32_768
    for before, sound in zip([None, *soundscape.truth[:-1]], soundscape.truth, strict=True):
        onset, offset = (round(time_s * SAMPLE_RATE) for time_s in (sound.onset_s, sound.offset_s))
        inside = np.square(samples[onset:offset]).mean()
        outside = np.square(samples[onset - SAMPLE_RATE : onset]).mean()
        assert 10 * np.log10(inside) == pytest.approx(-20.0, abs=2.0)
        assert outside < inside / 5
        if before is not None:
            assert sound.onset_s - before.offset_s > WINDOW_S + 1.0


def test_laid_backgrounds_hold_no_sound_and_have_their_length() -> None:
    backgrounds = generated_backgrounds(0, 6, with_speech=False)
    soundscape = mix_backgrounds(np.random.default_rng(0), backgrounds, 20.0)
    assert soundscape.truth == []
    assert soundscape.duration_s == 20.0
    assert soundscape.pcm.any()


@pytest.mark.parametrize("gap_s", [None, (30.0, 40.0)])
def test_sounds_lie_as_far_apart_as_asked_but_a_quarter_closer_than_a_window(
    gap_s: tuple[float, float] | None,
) -> None:
    settings = MeasureSettings(gap_s=gap_s)
    spec = mixed_spec(WINDOW_S, settings)
    truth = _mixed(spec, seed=3).truth
    gaps = [after.onset_s - before.offset_s for before, after in itertools.pairwise(truth)]
    low, high = gap_s or (WINDOW_S + 0.5, WINDOW_S + 2.5)
    far = [gap for gap in gaps if gap > WINDOW_S]
    assert far
    assert all(low - 0.01 <= gap <= high + 0.01 for gap in far)
    assert all(gap <= WINDOW_S + 0.01 or gap >= low - 0.01 for gap in gaps)


def test_a_take_of_two_classes_is_a_sound_of_each_at_the_same_place() -> None:
    (foreground, *_) = generated_foregrounds(0, ["Siren"], 1)
    foregrounds = [
        Foreground(foreground.waveform, classes, False, "both.wav")
        for classes in ((0, 1), (1, 0), (1,))
    ]
    backgrounds = generated_backgrounds(0, 3, with_speech=False)
    spec = SoundscapeSpec(disturbances=Disturbances(dropout_prob=1.0, level_step_prob=1.0))
    soundscape = mix_soundscape(np.random.default_rng(0), foregrounds, backgrounds, LABELS, spec)
    spans = [(sound.onset_s, sound.offset_s) for sound in soundscape.truth]
    assert sorted(sound.label for sound in soundscape.truth) == ["Bark"] * 2 + ["Siren"] * 3
    assert len(set(spans)) == 3
    assert sum(part.kind == "background" for part in soundscape.backgrounds) == 3
    gaps = np.diff(sorted({onset_s for onset_s, _ in spans})) - (spans[0][1] - spans[0][0])
    assert (gaps >= spec.gap_s[0] + spec.same_class_gap_s - 0.01).all()
    one = ideal_soundscape(soundscape.truth, duration_s=soundscape.duration_s)
    found = [event for sound in soundscape.truth for event in _event_of(sound)]
    report = measure_streams([replace(one, events=found)], LABELS).report
    assert (report.n_found, report.n_sounds, report.false_alarms.count) == (5, 5, 0)


def _event_of(sound: ReferenceEvent) -> list[Event]:
    return begin_and_end(
        sound.label, sound.onset_s, sound.offset_s, sound.onset_s + 1, sound.offset_s + 1
    )


def _mixed(spec: SoundscapeSpec, seed: int = 0) -> Soundscape:
    foregrounds = generated_foregrounds(0, ["Siren", "Alarm"], 8)
    backgrounds = generated_backgrounds(0, 6, with_speech=False)
    return mix_soundscape(
        np.random.default_rng(seed), foregrounds, backgrounds, ["Siren", "Alarm"], spec
    )


@pytest.mark.slow
def test_the_same_seed_mixes_the_same_soundscape() -> None:
    spec = SoundscapeSpec(
        close_prob=0.5, disturbances=Disturbances(dropout_prob=0.5, level_step_prob=0.5)
    )
    first, again, other = _mixed(spec), _mixed(spec), _mixed(spec, seed=1)
    np.testing.assert_array_equal(first.pcm, again.pcm)
    assert (first.truth, first.backgrounds) == (again.truth, again.backgrounds)
    assert first.truth != other.truth


def test_gaps_lie_on_both_sides_of_the_window() -> None:
    truth = _mixed(
        SoundscapeSpec(close_gap_s=(0.3, WINDOW_S), close_prob=0.5, same_class_gap_s=0.0)
    ).truth
    gaps = [after.onset_s - before.offset_s for before, after in itertools.pairwise(truth)]
    assert min(gaps) >= 0.3
    n_close = sum(gap < WINDOW_S for gap in gaps)
    assert 3 <= n_close <= len(gaps) - 3


def test_neighbours_of_one_class_are_laid_where_asked() -> None:
    def n_neighbours(ratio: float) -> int:
        labels = [sound.label for sound in _mixed(SoundscapeSpec(same_class_prob=ratio)).truth]
        return sum(before == after for before, after in itertools.pairwise(labels))

    assert n_neighbours(1.0) == 14  # all of the one class, then all of the other
    assert n_neighbours(0.0) < 12


def test_dropouts_are_silent_and_clear_of_the_sounds() -> None:
    soundscape = _mixed(SoundscapeSpec(disturbances=Disturbances(dropout_prob=1.0)))
    dropouts = [part for part in soundscape.backgrounds if part.kind == "dropout"]
    assert len(dropouts) == len(soundscape.truth)
    for part in dropouts:
        start, stop = (round(time_s * SAMPLE_RATE) for time_s in (part.start_s, part.stop_s))
        assert not soundscape.pcm[start:stop].any()
        assert all(
            part.stop_s < sound.onset_s or part.start_s >= sound.offset_s
            for sound in soundscape.truth
        )


def test_level_steps_change_the_background_and_not_the_sounds() -> None:
    plain = _mixed(SoundscapeSpec())
    stepped = _mixed(SoundscapeSpec(disturbances=Disturbances(level_step_prob=1.0)))
    (first, *_), steps = (
        stepped.truth,
        [part for part in stepped.backgrounds if part.kind == "step"],
    )
    assert len(steps) == len(stepped.truth)
    assert steps[0].stop_s < first.onset_s
    changed = stepped.pcm[: round(steps[0].stop_s * SAMPLE_RATE) - 1].astype(float)
    same = plain.pcm[: len(changed)].astype(float)
    change_db = 10 * np.log10(np.square(changed).mean() / np.square(same).mean())
    assert steps[0].level_dbfs is not None
    level = first.level_dbfs - first.snr_db
    assert change_db == pytest.approx(steps[0].level_dbfs - level, abs=0.5)
    onset, offset = (round(time_s * SAMPLE_RATE) for time_s in (first.onset_s, first.offset_s))
    np.testing.assert_array_equal(stepped.pcm[onset:offset], plain.pcm[onset:offset])


def test_a_planted_sound_says_which_clip_it_was() -> None:
    clips = {sound.clip for sound in _mixed(SoundscapeSpec()).truth}
    assert len(clips) == 16
    assert {clip.rsplit("-", 2)[0] for clip in clips} == {"co_alarm", "siren"}


def test_the_class_that_a_recording_is_expected_to_hold_is_no_false_alarm_there() -> None:
    heard = ideal_soundscape(
        [], duration_s=1800.0, events=begin_and_end("Siren", 5.0, 6.0, 6.0, 9.0)
    )
    held = dataclasses.replace(heard, expected_label="Siren")
    overall, by_label = negatives_report([heard, held], LABELS)
    assert overall.count == by_label["Siren"].count == 1
    assert (by_label["Siren"].hours, by_label["Bark"].hours) == (0.5, 1.0)
    barked = dataclasses.replace(held, expected_label="Bark")
    assert negatives_report([barked], LABELS)[0].count == 1
