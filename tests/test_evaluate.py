"""Figures of clips and streams, and the thresholds chosen from them, on cases worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ast_stream.audio.activity import Waveform
from ast_stream.audio.scene import Planted
from ast_stream.messages import EndReason, Event, EventType
from ast_stream.training.evaluation.clips import average_precision, clip_report, clip_scores
from ast_stream.training.evaluation.streams import stream_report
from ast_stream.training.material.streams import (
    Laying,
    ScoredStrip,
    Strip,
    lay_backgrounds,
    lay_takes,
)
from ast_stream.training.material.takes import Take, generated_backgrounds, synthesised_takes
from ast_stream.units import SAMPLE_RATE, seconds_to_samples

WINDOW_S, HOP_S = 2.56, 0.5
LABELS = ("Bark", "Siren")


def _planted(label: str, onset_s: float, offset_s: float) -> Planted:
    return Planted(label, "generated", onset_s, offset_s, -20.0, 12.0)


def _event(kind: EventType, label: str, onset_s: float, at_s: float, end_s: float = 0.0) -> Event:
    reason: EndReason | None = "quiet" if kind == "end" else None
    return Event(
        type=kind,
        id=f"{label}-{onset_s}",
        stream="strip",
        epoch="evaluation",
        index=LABELS.index(label),
        label=label,
        score=0.9,
        peak=0.9,
        mean=None,
        onset_sample=seconds_to_samples(onset_s),
        offset_sample=seconds_to_samples(end_s) if kind == "end" else None,
        uncertainty_s=0.2,
        at_sample=seconds_to_samples(at_s),
        reason=reason,
    )


def _scored(
    truth: list[Planted], rise_s: float = 0.6, duration_s: float = 60.0, floor: float = 0.1
) -> ScoredStrip:
    """Scores of an ideal model: 0.9 while a window holds `rise_s` of a sound, else `floor`."""
    times = np.arange(HOP_S, duration_s + HOP_S / 2, HOP_S)
    scores = np.full((len(times), len(LABELS)), floor, np.float32)
    for sound in truth:
        held = np.minimum(times, sound.offset_s) - np.maximum(times - WINDOW_S, sound.onset_s)
        scores[held >= rise_s, LABELS.index(sound.label)] = 0.9
    strip = Strip(np.zeros(seconds_to_samples(duration_s), np.int16), truth)
    return ScoredStrip(strip, times, scores, [])


def test_clip_figures_count_the_highest_score() -> None:
    takes = [Take(np.ones(400, np.float32), (index,), False) for index in (0, 0, 1, 1)]
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.3], [0.1, 0.8]])
    report = clip_report(takes, scores, LABELS)
    assert report.accuracy == 0.75
    assert report.recall == {"Bark": 0.5, "Siren": 1.0}
    assert report.confusion.tolist() == [[1, 1], [0, 2]]
    assert report.average_precision["Bark"] == 1.0
    assert report.average_precision["Siren"] == pytest.approx((1 + 2 / 3) / 2)
    assert report.mean_average_precision == pytest.approx((1 + 5 / 6) / 2)


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

    take = Take(waveform, (0,), False)
    scores = clip_scores([take], score, round(WINDOW_S * SAMPLE_RATE))
    np.testing.assert_allclose(scores, 0.5)
    assert asked == [1]


def test_clips_shorter_than_a_window_are_padded() -> None:
    take = Take(np.full(8000, 0.5, np.float32), (0,), False)
    scores = clip_scores([take], lambda w: np.full((len(w), 2), 0.25, np.float32), 40_960)
    np.testing.assert_allclose(scores, 0.25)


def test_stream_figures_match_events_to_sounds() -> None:
    truth = [_planted("Bark", 10.0, 11.0), _planted("Bark", 30.0, 31.0), _planted("Siren", 40, 44)]
    events = [
        _event("begin", "Bark", 10.2, 11.5),
        _event("end", "Bark", 10.2, 14.0, 11.3),
        _event("begin", "Bark", 20.0, 21.0),
        _event("end", "Bark", 20.0, 24.0, 22.0),
        _event("begin", "Siren", 39.9, 41.0),
        _event("end", "Siren", 39.9, 43.0, 41.0),
        _event("begin", "Siren", 43.0, 44.0),
        _event("end", "Siren", 43.0, 48.0, 44.2),
    ]
    scored = replace(_scored(truth, duration_s=3600.0), events=events)
    report = stream_report([scored], LABELS)
    bark, siren = report.by_label["Bark"], report.by_label["Siren"]
    assert (bark.n_sounds, bark.n_found, bark.false_alarms) == (2, 1, 1)
    assert bark.recall == 0.5
    assert bark.false_alarms_per_h == 1.0
    assert bark.onset_error_s == pytest.approx(0.2)
    assert bark.offset_error_s == pytest.approx(0.3)
    assert bark.time_to_detect_s == math.inf  # the median of 1.5 s and never
    assert (siren.n_found, siren.fragments, siren.false_alarms) == (1, 1, 0)
    assert siren.onset_bias_s == pytest.approx(-0.1)
    assert siren.time_to_detect_s == pytest.approx(1.0)
    assert (report.overall.n_found, report.overall.n_sounds) == (2, 3)


def test_no_alarm_bounds_the_rate_by_the_rule_of_three() -> None:
    report = stream_report([_scored([], duration_s=7200.0)], LABELS)
    assert report.overall.false_alarms == 0
    assert report.overall.false_alarms_bound_per_h == pytest.approx(1.5)
    assert math.isnan(report.overall.recall)


def test_one_event_over_two_sounds_finds_both() -> None:
    truth = [_planted("Bark", 10.0, 11.0), _planted("Bark", 12.0, 13.0)]
    events = [_event("begin", "Bark", 10.0, 11.0), _event("end", "Bark", 10.0, 16.0, 13.0)]
    figures = stream_report([replace(_scored(truth), events=events)], LABELS).by_label["Bark"]
    assert (figures.n_found, figures.false_alarms, figures.fragments) == (2, 0, 0)


def test_laid_takes_are_where_the_truth_says_at_the_level_it_says() -> None:
    takes = synthesised_takes(0, ["Siren"], 4)
    backgrounds = generated_backgrounds(0, 6, with_speech=False)
    laying = Laying(snr_db=(20.0, 20.0), level_dbfs=(-20.0, -20.0))
    strip = lay_takes(np.random.default_rng(2), takes, backgrounds, ["Siren"], laying)
    assert len(strip.truth) == 4
    samples = strip.pcm / 32_768
    for before, sound in zip([None, *strip.truth[:-1]], strip.truth, strict=True):
        onset, offset = (round(at * SAMPLE_RATE) for at in (sound.onset_s, sound.offset_s))
        inside = np.square(samples[onset:offset]).mean()
        outside = np.square(samples[onset - SAMPLE_RATE : onset]).mean()
        assert 10 * np.log10(inside) == pytest.approx(-20.0, abs=2.0)
        assert outside < inside / 5
        if before is not None:
            assert sound.onset_s - before.offset_s > WINDOW_S + 1.0


def test_laid_backgrounds_hold_no_sound_and_have_their_length() -> None:
    backgrounds = generated_backgrounds(0, 6, with_speech=False)
    strip = lay_backgrounds(np.random.default_rng(0), backgrounds, 20.0)
    assert strip.truth == []
    assert strip.duration_s == 20.0
    assert strip.pcm.any()
