from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ast_stream import labels, units
from ast_stream.messages import event as messages
from ast_stream.settings import explain
from ast_stream.units import (
    SILENCE_DBFS,
    amplitude_to_dbfs,
    frame_count,
    ns_to_samples,
    samples_for_frames,
    samples_to_ns,
    samples_to_seconds,
    seconds_to_samples,
    whole_frames,
)


@pytest.mark.parametrize("module", [labels, messages, units, explain])
def test_examples_in_docstrings_are_true(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n_samples", "n_frames"),
    [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998), (163_840, 1022)],
)
def test_frames_are_counted_as_kaldi_does_with_snipped_edges(n_samples: int, n_frames: int) -> None:
    assert frame_count(n_samples) == n_frames


def test_samples_of_the_full_window_of_ast() -> None:
    assert samples_for_frames(1024) == 164_080
    assert samples_for_frames(0) == 0


@given(st.integers(1, 10_000))
def test_samples_for_frames_are_the_fewest(n_frames: int) -> None:
    n_samples = samples_for_frames(n_frames)
    assert (frame_count(n_samples), frame_count(n_samples - 1)) == (n_frames, n_frames - 1)


@given(st.integers(0, 2**40))
def test_samples_survive_the_way_to_seconds_and_back(n_samples: int) -> None:
    assert seconds_to_samples(samples_to_seconds(n_samples)) == n_samples


def test_nanoseconds_do_not_drift_over_years() -> None:
    ten_years = 10 * 365 * 86_400 * 16_000
    assert samples_to_ns(ten_years + 1) - samples_to_ns(ten_years) == 62_500
    assert ns_to_samples(samples_to_ns(ten_years)) == ten_years
    assert ns_to_samples(samples_to_ns(ten_years) - 1) == ten_years - 1


@pytest.mark.parametrize(("seconds", "n_frames"), [(0.01, 1), (0.29, 29), (0.5, 50), (10.24, 1024)])
def test_durations_in_whole_frames_are_exact(seconds: float, n_frames: int) -> None:
    assert whole_frames(seconds) == n_frames


@pytest.mark.parametrize("seconds", [0.0, -0.5, 0.005, 0.333])
def test_duration_that_is_no_whole_number_of_frames_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^hop: expected a positive multiple of 0\.01 s, got"):
        whole_frames(seconds, "hop")


def test_levels_are_relative_to_full_scale_and_silence_is_finite() -> None:
    assert amplitude_to_dbfs(1.0) == 0.0
    assert amplitude_to_dbfs(0.1) == pytest.approx(-20.0)
    assert amplitude_to_dbfs(0.0) == SILENCE_DBFS
    assert amplitude_to_dbfs(1e-30) == SILENCE_DBFS
