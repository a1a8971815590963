"""The window formulas, checked against simulated windows whose rise time is known."""

import numpy as np
import pytest

from ast_stream.detect.boundaries import WindowGeometry, locate_offset, locate_onset
from ast_stream.detect.state import NEVER

GEOMETRY = WindowGeometry(window=40_960, hop=4_000)
RISE_ON, RISE_OFF = 6_400, 4_800


def crossings(onset: int, offset: int, phase: int) -> tuple[int, int]:
    """Return t_up and t_down of a sound seen once the window holds `RISE_ON` samples of it."""
    ends = np.arange(phase, offset + 3 * GEOMETRY.window, GEOMETRY.hop)
    held = np.minimum(ends, offset) - np.maximum(ends - GEOMETRY.window, onset)
    t_up = int(ends[np.argmax(held >= RISE_ON)])
    after = ends[(ends > t_up) & (held < RISE_OFF)]
    return t_up, int(after[0])


def test_boundaries_have_no_bias_over_all_phases_of_the_hop() -> None:
    rng = np.random.default_rng(5)
    onset_errors, offset_errors = [], []
    for _ in range(400):
        onset = int(rng.integers(100_000, 200_000))
        offset = onset + int(rng.integers(RISE_ON, 120_000))
        t_up, t_down = crossings(onset, offset, int(rng.integers(0, GEOMETRY.hop)))
        found = locate_onset(
            GEOMETRY, t_up, RISE_ON, uncertainty=0, earliest=0, first_scored=NEVER, audio_end=10**9
        )
        end = locate_offset(GEOMETRY, found.sample, t_down, RISE_ON, RISE_OFF, audio_end=10**9)
        onset_errors.append(found.sample - onset)
        if end.is_reliable:
            offset_errors.append(end.sample - offset)
    for errors in (onset_errors, offset_errors):
        assert abs(np.mean(errors)) < GEOMETRY.hop / 10
        assert np.max(np.abs(errors)) <= GEOMETRY.hop / 2


def test_onset_stays_between_the_event_before_and_the_window_that_saw_it() -> None:
    onset = locate_onset(
        GEOMETRY,
        44_000,
        RISE_ON,
        uncertainty=0,
        earliest=40_000,
        first_scored=NEVER,
        audio_end=10**9,
    )  # fmt: skip
    assert onset.sample == 40_000


def test_onset_is_as_uncertain_as_was_said() -> None:
    onset = locate_onset(
        GEOMETRY,
        44_000,
        RISE_ON,
        uncertainty=3_600,
        earliest=0,
        first_scored=NEVER,
        audio_end=10**9,
    )
    assert onset.uncertainty_s == pytest.approx(3_600 / 16_000)


def test_onset_before_the_first_window_is_as_uncertain_as_it_really_is() -> None:
    onset = locate_onset(
        GEOMETRY, 16_000, RISE_ON, uncertainty=0, earliest=0, first_scored=16_000, audio_end=10**9
    )
    assert onset.sample == (16_000 - RISE_ON) // 2
    assert onset.uncertainty_s == pytest.approx(((16_000 - RISE_ON) / 2 + 2_000) / 16_000)


def test_offset_is_never_before_what_the_onset_already_needed() -> None:
    end = locate_offset(GEOMETRY, 100_000, 120_000, RISE_ON, RISE_OFF, audio_end=10**9)
    assert end.sample == 100_000 + RISE_ON
    assert not end.is_reliable


def test_sound_that_lasts_to_the_end_of_the_audio_ends_there() -> None:
    end = locate_offset(GEOMETRY, 100_000, NEVER, RISE_ON, RISE_OFF, audio_end=150_000)
    assert end.sample == 150_000
    assert not end.is_reliable
