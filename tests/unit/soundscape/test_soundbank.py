"""A soundbank: its foregrounds know their classes and how much sound they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from foregrounds import burst

from ast_stream.dataset.annotations import LabelledClip
from ast_stream.dataset.clips import load_recordings
from ast_stream.soundscape.soundbank import recorded_foregrounds
from ast_stream.units import SAMPLE_RATE

N_SAMPLES = 40_960


def _write(path: Path, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE))
    soundfile.write(path, samples, SAMPLE_RATE)


def test_foregrounds_know_their_labels_and_how_much_sound_they_hold() -> None:
    foreground = burst(2.0, 3.0)
    assert foreground.active_span == (2 * SAMPLE_RATE, 3 * SAMPLE_RATE)
    assert foreground.active_s(0, 2 * SAMPLE_RATE) == 0.0
    assert foreground.active_s(-5000, round(2.5 * SAMPLE_RATE)) == pytest.approx(0.5)
    assert foreground.max_active_s(N_SAMPLES) == pytest.approx(1.0)
    assert foreground.max_active_s(SAMPLE_RATE // 2) == pytest.approx(0.5)


def test_recordings_of_one_name_in_two_folders_are_distinguished(tmp_path: Path) -> None:
    clips = []
    for label in ("Bark", "Rain"):
        (tmp_path / label).mkdir()
        _write(tmp_path / label / "00.wav")
        clips.append(LabelledClip(tmp_path / label / "00.wav", (label,)))
    foregrounds = recorded_foregrounds(load_recordings(clips, min_clips=1), ["Bark", "Rain"])
    assert len({foreground.name for foreground in foregrounds}) == 2


def test_recordings_become_foregrounds_of_their_labels(tmp_path: Path) -> None:
    _write(tmp_path / "a.wav")
    _write(tmp_path / "b.wav")
    clips = [
        LabelledClip(tmp_path / "a.wav", ("Rain", "Bark")),
        LabelledClip(tmp_path / "b.wav", ("Rain", "Bark")),
    ]
    foregrounds = recorded_foregrounds(load_recordings(clips), ["Bark", "Rain"])
    assert [foreground.classes for foreground in foregrounds] == [(1, 0), (1, 0)]
