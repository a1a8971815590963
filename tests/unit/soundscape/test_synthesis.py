"""Generated sounds keep what their standards say: pulse patterns, tone pairs, exact boundaries."""

from __future__ import annotations

import numpy as np
import pytest

from ast_stream.audio.activity import active_frames, active_rms
from ast_stream.soundscape.backgrounds import BACKGROUNDS, babble, coloured_noise
from ast_stream.soundscape.synthesis import (
    ACTIVE_DBFS,
    DTMF_COLUMNS_HZ,
    DTMF_ROWS_HZ,
    SOUNDS,
    co_alarm,
    dtmf_dialling,
    smoke_alarm,
)
from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE

LEVEL_TOLERANCE_DB = 0.1
PULSE_TOLERANCE_S = 0.08  # the echo of a room lengthens a pulse


def _pulses_s(waveform: np.ndarray) -> list[tuple[float, float]]:
    """Return start and length of the pulses: 10 ms frames within 12 dB of the loudest."""
    frames = waveform[: len(waveform) // FRAME_SHIFT * FRAME_SHIFT].reshape(-1, FRAME_SHIFT)
    power = np.square(frames).mean(axis=1)
    edges = np.flatnonzero(np.diff(np.r_[0, power > power.max() / 16, 0].astype(int)))
    return [(a / 100, (b - a) / 100) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("name", SOUNDS)
def test_the_same_seed_gives_the_same_sound_and_another_seed_another(name: str) -> None:
    first, again, other = (SOUNDS[name](np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.waveform, again.waveform)
    assert first.waveform.dtype == np.float32
    assert len(first.waveform) != len(other.waveform) or (first.waveform != other.waveform).any()


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_have_the_promised_level_and_moderate_peaks(name: str) -> None:
    for seed in range(20):
        sound = SOUNDS[name](np.random.default_rng(seed))
        level = 20 * np.log10(active_rms(sound.waveform))
        assert level == pytest.approx(ACTIVE_DBFS, abs=LEVEL_TOLERANCE_DB)
        assert np.abs(sound.waveform).max() < 1.5  # ticks stand out of their mean level


@pytest.mark.parametrize("name", SOUNDS)
def test_onset_and_offset_enclose_the_sound_but_not_its_echo(name: str) -> None:
    for seed in range(20):
        sound = SOUNDS[name](np.random.default_rng(seed))
        inside = np.square(sound.waveform[sound.onset_sample : sound.offset_sample]).mean()
        before = np.square(sound.waveform[: sound.onset_sample]).sum()
        late_echo = np.square(sound.waveform[sound.offset_sample + SAMPLE_RATE // 10 :]).sum()
        assert before < 1e-3 * inside * SAMPLE_RATE
        assert late_echo < 0.01 * inside * SAMPLE_RATE


def test_a_smoke_alarm_has_three_half_second_pulses_and_a_pause() -> None:
    for seed in range(10):
        pulses = _pulses_s(smoke_alarm(np.random.default_rng(seed)).waveform)
        assert len(pulses) == 6
        lengths = [length for _, length in pulses]
        assert lengths == pytest.approx([0.5] * 6, abs=PULSE_TOLERANCE_S + 0.05)
        pause = pulses[3][0] - pulses[2][0] - pulses[2][1]
        assert pause == pytest.approx(1.5, abs=0.25)


def test_a_carbon_monoxide_alarm_has_four_short_pulses() -> None:
    for seed in range(10):
        sound = co_alarm(np.random.default_rng(seed))
        pulses = _pulses_s(sound.waveform[: sound.offset_sample])
        assert len(pulses) == 4
        starts = np.array([start for start, _ in pulses])
        np.testing.assert_allclose(np.diff(starts), 0.2, atol=0.04)


def test_dtmf_is_dialled_in_pairs_of_standard_tones() -> None:
    sound = dtmf_dialling(np.random.default_rng(3))
    start, length = _pulses_s(sound.waveform)[0]
    digit = sound.waveform[round(start * SAMPLE_RATE) :][: round(length * SAMPLE_RATE)]
    spectrum = np.abs(np.fft.rfft(digit, SAMPLE_RATE))  # 1 Hz a bin
    for band, tones in (((600, 1050), DTMF_ROWS_HZ), ((1100, 1600), DTMF_COLUMNS_HZ)):
        peak_hz = band[0] + int(np.argmax(spectrum[band[0] : band[1]]))
        assert min(abs(peak_hz - tone) for tone in tones) < 8


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds_are_finite_with_rms_one_and_repeat_by_seed(name: str) -> None:
    first, again = (BACKGROUNDS[name](np.random.default_rng(5), 32_001) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (32_001,)
    assert np.sqrt(np.square(first).mean()) == pytest.approx(1.0)


def test_coloured_noise_falls_by_its_slope() -> None:
    noise = coloured_noise(np.random.default_rng(0), 1 << 17, slope=2.0)
    power = np.square(np.abs(np.fft.rfft(noise)))
    hz = np.fft.rfftfreq(1 << 17, 1 / SAMPLE_RATE)
    low, high = (power[(hz >= f) & (hz < 2 * f)].mean() for f in (200, 1600))
    assert 10 * np.log10(low / high) == pytest.approx(18.0, abs=1.0)  # 3 octaves of 6 dB


def test_babble_holds_every_length_of_voice() -> None:
    voices = [np.ones(100, np.float32), np.full(70_000, 0.5, np.float32)]
    assert babble(np.random.default_rng(0), 48_000, voices).shape == (48_000,)


def test_activity_is_the_sound_and_not_the_padding() -> None:
    clip = np.zeros(5 * SAMPLE_RATE, np.float32)
    clip[SAMPLE_RATE : 2 * SAMPLE_RATE] = 0.1 * np.sin(np.arange(SAMPLE_RATE))
    active = active_frames(clip)
    assert active.sum() == 100
    assert active[100:200].all()
    assert active_rms(clip) == pytest.approx(0.1 / np.sqrt(2), rel=0.01)


def test_silence_has_no_activity_and_no_level() -> None:
    assert not active_frames(np.zeros(SAMPLE_RATE, np.float32)).any()
    assert active_rms(np.zeros(SAMPLE_RATE, np.float32)) == 0.0
    assert active_rms(np.zeros(0, np.float32)) == 0.0


def test_short_pauses_belong_to_the_sound_and_long_ones_do_not() -> None:
    clip = np.full(3 * SAMPLE_RATE, 0.1, np.float32)
    clip[16_000:19_200] = 0.0  # 0.2 s
    clip[28_800:40_000] = 0.0  # 0.7 s
    active = active_frames(clip)
    assert active[:180].all()
    assert not active[180:250].any()
