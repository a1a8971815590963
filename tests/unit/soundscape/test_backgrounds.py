"""Own backgrounds: read in pieces, at one level, and nothing unusable taken silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_stream.audio.activity import active_rms
from ast_stream.errors import ConfigError
from ast_stream.soundscape import backgrounds
from ast_stream.soundscape.backgrounds import (
    background_pieces,
    background_recordings,
    generated_backgrounds,
    read_backgrounds,
)
from ast_stream.soundscape.synthesis import ACTIVE_DBFS
from ast_stream.units import SAMPLE_RATE


def _noise(path: Path, seconds: float, rate: int = SAMPLE_RATE, level: float = 0.01) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = level * np.random.default_rng(0).standard_normal(round(seconds * rate))
    soundfile.write(path, samples, rate)
    return path


def test_a_long_recording_becomes_pieces_at_one_level(tmp_path: Path) -> None:
    pieces = read_backgrounds([_noise(tmp_path / "room.wav", 24.0)])
    assert [len(piece) for piece in pieces] == [160_000, 160_000, 64_000]
    for piece in pieces:
        assert piece.dtype == np.float32
        assert 20 * np.log10(active_rms(piece)) == pytest.approx(ACTIVE_DBFS, abs=0.1)


def test_folders_other_rates_and_mp3_are_read(tmp_path: Path) -> None:
    _noise(tmp_path / "room" / "a.flac", 12.0, rate=44_100)
    _noise(tmp_path / "room" / "deeper" / "b.mp3", 10.0, rate=16_000)
    (tmp_path / "room" / "notes.txt").write_text("no audio")
    pieces = read_backgrounds([tmp_path / "room"])
    assert 21.9 < sum(map(len, pieces)) / SAMPLE_RATE < 22.3


@pytest.mark.parametrize("read", [read_backgrounds, background_recordings])
def test_a_recording_in_a_folder_that_cannot_be_read_is_named_and_not_left_out(
    tmp_path: Path, read: Callable[[list[Path]], object]
) -> None:
    _noise(tmp_path / "room" / "a.flac", 12.0)
    (tmp_path / "room" / "from_the_phone.m4a").write_bytes(b"ftyp")
    with pytest.raises(ConfigError) as refused:
        read([tmp_path / "room"])
    assert [problem.file for problem in refused.value.problems] == [
        str(tmp_path / "room" / "from_the_phone.m4a")
    ]
    assert str(refused.value).count("from_the_phone") <= 2  # reported once


def test_the_pieces_of_a_file_are_those_of_the_whole_recording(tmp_path: Path) -> None:
    path = _noise(tmp_path / "room.wav", 15.0)
    whole = background_pieces(soundfile.read(path, dtype="float32")[0])
    for piece, expected in zip(read_backgrounds([path]), whole, strict=True):
        np.testing.assert_allclose(piece, expected, atol=1e-6)


def test_silence_and_splinters_are_left_out(tmp_path: Path) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(10 * SAMPLE_RATE)
    silence, splinter = np.zeros(10 * SAMPLE_RATE), noise[: SAMPLE_RATE // 2]
    soundfile.write(tmp_path / "a.wav", np.concatenate([silence, noise, splinter]), SAMPLE_RATE)
    assert [len(piece) for piece in read_backgrounds([tmp_path / "a.wav"])] == [10 * SAMPLE_RATE]


def test_of_very_long_recordings_evenly_spread_pieces_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backgrounds, "MAX_RECORDED_S", 30.0)
    files = [_noise(tmp_path / f"{number}.wav", 40.0) for number in range(2)]
    assert len(read_backgrounds(files)) == 4  # 80 s in 8 pieces, every third of each file


def test_all_unusable_files_are_reported_together(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), SAMPLE_RATE)
    nan = np.full(2 * SAMPLE_RATE, np.nan)
    soundfile.write(tmp_path / "nan.wav", nan, SAMPLE_RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "folder").mkdir()
    names = ("empty.wav", "nan.wav", "text.wav", "missing.wav", "folder")
    with pytest.raises(ConfigError) as caught:
        read_backgrounds([tmp_path / name for name in names])
    text = str(caught.value)
    assert len(text.splitlines()) == len(names)
    assert "missing.wav: file is missing" in text
    assert "folder: expected recordings in it, got none" in text
    assert "expected sound, got an empty file" in text
    assert "expected finite samples, got NaN or infinity" in text


def test_backgrounds_that_are_silent_altogether_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(5 * SAMPLE_RATE), SAMPLE_RATE)
    with pytest.raises(ConfigError, match="expected sound in the backgrounds, got silence"):
        read_backgrounds([tmp_path / "silent.wav"])


def test_what_is_a_class_is_no_generated_background() -> None:
    plain = generated_backgrounds(0, 12, with_speech=False)
    without_music = generated_backgrounds(0, 12, labels=("Speech", "Music"))
    assert len(without_music) == 12
    assert len(plain[0]) == len(without_music[0])
    # of six generators in turn the fourth is music
    np.testing.assert_array_equal(plain[2], without_music[2])
    assert not np.array_equal(plain[3], without_music[3])
