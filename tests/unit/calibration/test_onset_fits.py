"""Onsets from the scores around the crossing: fitted, stored, used, and only where they hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_stream.calibration.onsets import MIN_FITTED, Crossing, fit_onset
from ast_stream.detect.boundaries import logits_above
from ast_stream.detect.decision import Decision, SlotNames
from ast_stream.detect.parameters import DecisionParameters, model_facts, resolve_parameters
from ast_stream.errors import CheckpointError
from ast_stream.messages.event import Event
from ast_stream.model.metadata import METADATA, Metadata, StoredOnsetFit, read_metadata
from ast_stream.settings.detection import DetectionDefaults, DetectionSettings
from ast_stream.units import SAMPLE_RATE

WINDOW_S, HOP_S, THRESHOLD = 2.56, 0.5, 0.6
HOP = 8_000
FIT = StoredOnsetFit(
    rise_s=0.4, before_s=0.02, first_s=0.1, lowest_s=0.1, highest_s=0.9, within_s=0.25
)


def _crossings(count: int, *, noise_s: float = 0.0, is_informative: bool = True) -> list[Crossing]:
    """Sounds whose logit rises by 8 a second, from 0.35 s into the window on."""
    rng = np.random.default_rng(4)
    found = []
    for phase in rng.uniform(0, HOP_S, count):  # how long ago the threshold was crossed
        at_threshold = float(np.log(THRESHOLD / (1 - THRESHOLD)))
        first, before = at_threshold + 8 * phase, at_threshold + 8 * (phase - HOP_S)
        if not is_informative:
            first, before = at_threshold + 3, at_threshold - 3
        rise_s = 0.35 + phase - HOP_S / 2 + noise_s * rng.standard_normal()
        found.append(Crossing(rise_s, *(1 / (1 + np.exp(-z)) for z in (before, first))))
    return found


def _parameters(
    hop_s: float = HOP_S, window_s: float = WINDOW_S, **stored: StoredOnsetFit
) -> DecisionParameters:
    metadata = Metadata(
        window_s=WINDOW_S,
        hop_s=HOP_S,
        onset_thresholds={"Bark": THRESHOLD, "Siren": THRESHOLD},
        onset_fits={"Bark": FIT} | stored,
    )
    settings = DetectionSettings(defaults=DetectionDefaults(confirm_s=1.0))
    return resolve_parameters(settings, model_facts(["Bark", "Siren"], window_s, metadata), hop_s)


def _decision() -> Decision:
    names = SlotNames(1)
    names.add("mic", "ab" * 8)
    return Decision(_parameters(), names)


def _feed(decision: Decision, rows: npt.ArrayLike, first_hop: int = 40) -> list[Event]:
    events = []
    for number, row in enumerate(np.asarray(rows, np.float32)):
        end = np.array([(first_hop + number) * HOP])
        events += decision.step(
            np.array([0]), end, row[None],
            context_starts=np.array([0]), first_scored=np.array([HOP]), audio_ends=end,
        )  # fmt: skip
    return events


def test_scores_around_the_crossing_tell_where_between_two_hops_a_sound_began() -> None:
    fitted = fit_onset(_crossings(60, noise_s=0.02), THRESHOLD, WINDOW_S)
    assert fitted is not None
    assert fitted.error_s < 0.03
    assert fitted.error_without_s > 0.1  # a quarter of a hop
    assert fitted.fit.within_s < 0.1
    assert fitted.n_measured == 60


def test_scores_that_tell_nothing_are_not_used() -> None:
    assert fit_onset(_crossings(60, is_informative=False), THRESHOLD, WINDOW_S) is None


def test_few_sounds_prove_no_fit() -> None:
    assert fit_onset(_crossings(MIN_FITTED - 1), THRESHOLD, WINDOW_S) is None


def test_a_few_wild_sounds_do_not_move_the_onsets_of_the_others() -> None:
    sounds = _crossings(60)
    wild = [
        Crossing(1.28, sound.before, sound.first) if n % 10 == 0 else sound
        for n, sound in enumerate(sounds)
    ]
    fitted = fit_onset(wild, THRESHOLD, WINDOW_S)
    assert fitted is not None
    assert fitted.error_s < 0.05


def test_an_event_begins_where_its_scores_say() -> None:
    before, first = 0.3, 0.9
    begin = _feed(_decision(), [[0.0, 0.0], [before, before], [first, first], [0.95, 0.95]])
    t_up = 42 * HOP
    z_before, z_first = logits_above([before, first], THRESHOLD)
    rise_s = 0.4 + 0.02 * z_before + 0.1 * z_first
    bark, siren = begin
    assert bark.onset_sample == pytest.approx(t_up - HOP // 2 - rise_s * SAMPLE_RATE, abs=1)
    assert bark.uncertainty_s == 0.25
    assert siren.onset_sample == t_up - HOP // 2 - 8_000  # half a second is assumed
    assert siren.uncertainty_s == pytest.approx(0.25 + 0.125)


def test_no_onset_lies_beyond_what_was_measured() -> None:
    fits = _parameters(Bark=FIT.model_copy(update={"first_s": 1.0})).onset_fits
    rise, within = fits.rise(0, 0.0, 0.999)
    assert float(rise) == 0.9 * SAMPLE_RATE
    assert float(within) == 0.25 * SAMPLE_RATE
    assert _parameters().longest_rise.tolist() == [14_400, 8_000]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_checkpoint_whose_fit_is_no_time_is_refused(tmp_path: Path, value: float) -> None:
    written = json.dumps({"onset_fits": {"Bark": FIT.model_dump() | {"highest_s": value}}})
    (tmp_path / METADATA).write_text(written)
    with pytest.raises(CheckpointError, match=r"onset_fits\.Bark\.highest_s"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(("hop_s", "window_s"), [(0.25, WINDOW_S), (HOP_S, 2.0)])
def test_a_fit_holds_for_its_hop_and_window_only(hop_s: float, window_s: float) -> None:
    assert not _parameters(hop_s, window_s).onset_fits.is_fitted.any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.2, 0.55, 0.7, 0.95]), min_size=1, max_size=50),
    cut=st.integers(0, 50),
)
def test_exported_state_finds_the_same_onsets(scores: list[float], cut: int) -> None:
    rows = np.column_stack([scores, scores[::-1]])
    whole = _feed(_decision(), rows)
    first, second = _decision(), _decision()
    events = _feed(first, rows[:cut])
    second.restore(0, first.export(0))
    assert events + _feed(second, rows[cut:], first_hop=40 + cut) == whole
