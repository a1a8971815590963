"""One resampler for every source: bit-exact where it may be, equal in pieces, clean in the band."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soxr

from ast_stream.audio.pcm import Resampler
from ast_stream.messages.audio import Pcm16
from ast_stream.units import SAMPLE_RATE

SNR_FLOOR_DB = 70.0  # measured: 75 dB from 44.1 kHz, limited by int16 and by soxr HQ


def noise(n_frames: int, n_channels: int, seed: int = 0) -> npt.NDArray[np.int16]:
    generator = np.random.default_rng(seed)
    return generator.integers(-20_000, 20_000, (n_frames, n_channels)).astype(np.int16)


def tone(
    rate: int, seconds: float, frequency_hz: float, amplitude: float
) -> npt.NDArray[np.float32]:
    times = np.arange(round(rate * seconds)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def resampled(resampler: Resampler, pieces: list[Any]) -> Pcm16:
    return np.concatenate([*(resampler.push(piece) for piece in pieces), resampler.flush()])


def test_mono_int16_at_16_khz_passes_bit_exact_and_as_a_copy() -> None:
    pcm = noise(1_600, 1)
    out = Resampler(SAMPLE_RATE).push(pcm)
    np.testing.assert_array_equal(out, pcm[:, 0])
    assert not np.shares_memory(out, pcm)


def test_float_made_from_int16_passes_bit_exact() -> None:
    pcm = np.arange(-32_768, 32_768, dtype=np.int32).astype(np.int16)[:, None]
    out = Resampler(SAMPLE_RATE).push(pcm.astype(np.float32) / np.float32(32_768))
    np.testing.assert_array_equal(out, pcm[:, 0])


def test_channels_are_averaged_without_a_change_of_level() -> None:
    both = np.full((100, 2), 0.5, dtype=np.float32)
    assert set(Resampler(SAMPLE_RATE).push(both).tolist()) == {16_384}
    opposed = np.array([[1_000, -1_000, 300]], dtype=np.int16)
    assert Resampler(SAMPLE_RATE).push(opposed).tolist() == [100]


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_any_cut_into_blocks_gives_the_same_samples(rate: int) -> None:
    pcm = noise(rate, 2, seed=rate)
    cuts = np.sort(np.random.default_rng(1).integers(0, len(pcm), 17))
    one_shot = resampled(Resampler(rate), [pcm])
    in_pieces = resampled(Resampler(rate), np.split(pcm, cuts))
    np.testing.assert_array_equal(in_pieces, one_shot)
    assert len(one_shot) == SAMPLE_RATE


def test_it_is_soxr_hq_on_the_mean() -> None:
    pcm = noise(48_000, 2)
    mono = pcm.astype(np.float32).mean(axis=1) / 32_768
    expected = np.rint(soxr.resample(mono, 48_000, SAMPLE_RATE, quality="HQ") * 32_768)
    np.testing.assert_array_equal(resampled(Resampler(48_000), [pcm]), expected.astype(np.int16))


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_a_tone_in_the_band_stays_and_one_above_it_goes(rate: int) -> None:
    kept = resampled(Resampler(rate), [tone(rate, 1.0, 3_000, 0.5)[:, None]])
    ideal = tone(SAMPLE_RATE, 1.0, 3_000, 0.5) * 32_768
    inside = slice(1_000, -1_000)
    error = kept[inside] - ideal[inside]
    assert 10 * np.log10(np.mean(ideal[inside] ** 2) / np.mean(error**2)) > SNR_FLOOR_DB
    gone = resampled(Resampler(rate), [tone(rate, 1.0, 13_000, 0.5)[:, None]])
    assert np.abs(gone[inside]).max() <= 2


def test_samples_beyond_full_scale_are_clipped_and_counted() -> None:
    resampler = Resampler(SAMPLE_RATE)
    loud = np.array([[1.5], [-1.5], [0.5], [-1.0]], dtype=np.float32)
    assert resampler.push(loud).tolist() == [32_767, -32_768, 16_384, -32_768]
    assert resampler.n_clipped == 2


def test_garbage_numbers_neither_spread_nor_fail() -> None:
    resampler = Resampler(48_000)
    garbage = np.array([np.nan, np.inf, -np.inf, 1e38], dtype=np.float32)[:, None]
    resampler.push(np.tile(garbage, (12, 1)))
    resampler.push(np.zeros((48_000, 1), dtype=np.float32))
    assert np.abs(resampler.push(np.zeros((4_800, 1), dtype=np.float32))).max() == 0


def test_flush_leaves_it_as_new() -> None:
    pcm = noise(4_800, 1)
    resampler = Resampler(48_000)
    first = resampled(resampler, [pcm])
    np.testing.assert_array_equal(resampled(resampler, [pcm]), first)
    resampler.push(noise(4_800, 1, seed=9))
    resampler.reset()
    np.testing.assert_array_equal(resampled(resampler, [pcm]), first)


def test_an_empty_block_is_no_news() -> None:
    for rate in (SAMPLE_RATE, 48_000):
        resampler = Resampler(rate)
        assert len(resampler.push(np.zeros((0, 2), dtype=np.float32))) == 0
        assert len(resampler.flush()) == 0


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="rate: expected at least 1 Hz, got 0"):
        Resampler(0)
