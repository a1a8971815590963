"""Averaged scores: the same live and in arrays, undisturbed by kills, and new after a gap."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reactive_model import tones_and_noise

from ast_stream.detect import Detector
from ast_stream.detect.decision import FORGOTTEN, Decision, SlotNames
from ast_stream.detect.parameters import (
    DecisionParameters,
    ModelFacts,
    ema_alpha,
    resolve_parameters,
)
from ast_stream.detect.stream_events import smooth
from ast_stream.messages.audio import Pcm16
from ast_stream.messages.event import Gap, Scores
from ast_stream.model.metadata import StoredOnsetFit
from ast_stream.model.tagger import Tagger
from ast_stream.settings.detection import ClassSettings, DetectionDefaults, DetectionSettings

HOP_S = 0.25
FACTS = ModelFacts(["Bark", "Rain"], 2.56, [0.5] * 2, [0.5] * 2, [0.5] * 2, [0.1] * 2, [0.75] * 2)


@pytest.fixture(scope="module")
def pcm() -> Pcm16:
    return tones_and_noise(8.0)


def scores_of(tagger: Tagger, pcm: Pcm16, smoothing_s: float) -> list[Scores]:
    seen: list[Scores] = []
    detector = Detector(
        tagger,
        DetectionSettings(defaults=DetectionDefaults(smoothing_s=smoothing_s)),
        hop_s=HOP_S,
        on_scores=seen.append,
    )
    detector.open("mic", "epoch")
    detector.push("mic", 0, pcm)
    detector.run()
    return seen


def parameters(smoothing_s: float | None, facts: ModelFacts = FACTS) -> DecisionParameters:
    return resolve_parameters(
        DetectionSettings(defaults=DetectionDefaults(smoothing_s=smoothing_s)), facts, HOP_S
    )


def _smooth(scores: np.ndarray, alpha: np.float32) -> np.ndarray:
    return smooth(scores[:, None], np.array([alpha]))[:, 0]


@pytest.mark.parametrize("hop_s", [0.1, 0.25, 0.5])
def test_a_step_is_followed_at_the_time_constant_whatever_the_hop(hop_s: float) -> None:
    steps = _smooth(np.array([0.0] + [1.0] * 40, np.float32), ema_alpha(0.5, hop_s))
    after_s = np.arange(41) * hop_s
    np.testing.assert_allclose(steps, 1 - np.exp(-after_s / 0.5), atol=1e-5)


def test_without_smoothing_scores_stay_as_they_are() -> None:
    scores = np.array([0.2, 0.9, 0.1], np.float32)
    np.testing.assert_array_equal(_smooth(scores, ema_alpha(0.0, HOP_S)), scores)


def test_first_window_counts_whole_and_old_sounds_are_forgotten() -> None:
    alpha = ema_alpha(0.5, HOP_S)
    averages = _smooth(np.array([0.8] + [0.0] * 20, np.float32), alpha)
    assert averages[0] == np.float32(0.8)
    is_kept = averages >= FORGOTTEN
    assert 0 < is_kept.sum() < 20
    last = int(is_kept.sum())  # the first one below is still published, then there is nothing
    assert averages[last] > 0
    assert not averages[last + 1 :].any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    smoothing_s=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    first=st.integers(0, 30),
)
def test_decision_stage_averages_streams_as_arrays_to_the_last_bit(
    seed: int, smoothing_s: float, first: int
) -> None:
    rng = np.random.default_rng(seed)
    n_windows, n_streams = 40, 3
    scores = rng.uniform(0, 1, (n_streams, n_windows, 2)).astype(np.float32) ** 4
    names = SlotNames(n_streams)
    slots = np.array([names.add(f"s{number}", "epoch") for number in range(n_streams)])
    decision = Decision(parameters(smoothing_s), names)
    starts = np.array([0, first, 0])  # the second stream has a gap
    seen = np.stack(
        [
            decision.average(slots, scores[:, window], starts == window)
            for window in range(n_windows)
        ],
        axis=1,
    )
    alpha = ema_alpha(smoothing_s, HOP_S)
    for stream in (0, 2):
        for index in range(2):
            expected = _smooth(scores[stream, :, index], alpha)
            np.testing.assert_array_equal(seen[stream, :, index], expected)
    np.testing.assert_array_equal(seen[1, first:, 0], _smooth(scores[1, first:, 0], alpha))


def test_published_scores_are_those_that_decide(tagger: Tagger, pcm: Pcm16) -> None:
    plain, averaged = scores_of(tagger, pcm, 0.0), scores_of(tagger, pcm, 0.5)
    alpha = ema_alpha(0.5, HOP_S)
    raw = np.stack([scores.scores for scores in plain])
    for index in range(raw.shape[1]):
        expected = _smooth(raw[:, index], alpha)
        np.testing.assert_array_equal([scores.scores[index] for scores in averaged], expected)


def test_nothing_is_carried_across_a_gap(tagger: Tagger, pcm: Pcm16) -> None:
    seen: list[Scores] = []
    detector = Detector(
        tagger,
        DetectionSettings(defaults=DetectionDefaults(smoothing_s=2.0)),
        hop_s=HOP_S,
        on_scores=seen.append,
    )
    detector.open("mic", "epoch")
    detector.push("mic", 0, pcm)
    detector.run()
    n_before, lost = len(seen), 16_000 * 3
    detector.gap(Gap("mic", "epoch", len(pcm), lost, "overrun"))
    n_before = len(seen)  # the rest of the window was scored on
    detector.push("mic", len(pcm) + lost, pcm[-32_000:])
    detector.run()
    fresh = scores_of(tagger, pcm[-32_000:], 2.0)
    np.testing.assert_allclose(seen[n_before].scores, fresh[0].scores, atol=1e-5)


def test_state_holds_averages_of_heard_classes_only() -> None:
    names = SlotNames(1)
    slots = np.array([names.add("mic", "epoch")])
    decision = Decision(parameters(0.5), names)
    decision.average(slots, np.array([[0.7, 0.004]], np.float32), np.array([True]))
    state = decision.export(int(slots[0]))
    assert {index: value.average for index, value in state.items()} == {0: pytest.approx(0.7)}
    other = Decision(parameters(0.5), names)
    other.restore(int(slots[0]), state)
    following = np.array([[0.1, 0.1]], np.float32)
    np.testing.assert_array_equal(
        other.average(slots, following, np.array([False])),
        decision.average(slots, following, np.array([False])),
    )


def test_smoothing_is_the_checkpoints_unless_the_settings_say_otherwise() -> None:
    facts = replace(FACTS, smoothing_s=[0.5, 0.0])
    half_s, one_s = 1 - math.exp(-0.5), 1 - math.exp(-0.25)
    assert parameters(None, facts).ema_alpha.tolist() == pytest.approx([half_s, 1.0])
    assert parameters(0.0, facts).ema_alpha.tolist() == [1.0, 1.0]
    assert parameters(1.0, facts).ema_alpha.tolist() == pytest.approx([one_s, one_s])
    assert parameters(None).ema_alpha.tolist() == [1.0, 1.0]
    of_class = DetectionSettings(classes={"Rain": ClassSettings(smoothing_s=0.5)})
    alphas = resolve_parameters(of_class, FACTS, HOP_S).ema_alpha
    assert alphas.tolist() == pytest.approx([1.0, half_s])


def test_onset_fits_hold_for_their_smoothing_only() -> None:
    fit = StoredOnsetFit(
        rise_s=0.4, before_s=0.0, first_s=-0.1, lowest_s=0.1, highest_s=0.9, within_s=0.2
    )
    facts = replace(FACTS, smoothing_s=[0.5, 0.0], onset_fits=[fit, fit], fitted_hop_s=HOP_S)
    assert parameters(None, facts).onset_fits.is_fitted.tolist() == [True, True]
    assert parameters(0.5, facts).onset_fits.is_fitted.tolist() == [True, False]
    assert parameters(0.0, facts).onset_fits.is_fitted.tolist() == [False, True]


def test_a_class_that_is_not_averaged_stays_as_it_is_beside_one_that_is() -> None:
    names = SlotNames(1)
    slots = np.array([names.add("mic", "epoch")])
    facts = replace(FACTS, smoothing_s=[0.5, 0.0])
    decision = Decision(parameters(None, facts), names)
    decision.average(slots, np.array([[0.9, 0.9]], np.float32), np.array([True]))
    seen = decision.average(slots, np.array([[0.1, 0.1]], np.float32), np.array([False]))
    assert seen[0, 0] > 0.3
    assert seen[0, 1] == np.float32(0.1)
    assert set(decision.export(int(slots[0]))) == {0}  # nothing is kept of the other
