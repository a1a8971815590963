"""Levels beside PyOctaveBand, and beside the tables and limits of IEC 61672-1 and IEC 61260-1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ast_stream.levels.analysis import (
    LOOK_BACK,
    SECOND,
    SEGMENT,
    SETTLING,
    Levels,
    analyse,
    settled,
)
from ast_stream.levels.weighting import exact_centres_hz
from ast_stream.messages.levels import BAND_NAMES
from ast_stream.units import FULL_SCALE, SAMPLE_RATE

Pcm = npt.NDArray[np.int16]

# IEC 61672-1:2013, table 3: nominal frequency, A-weighting and limits of class 1, dB
A_WEIGHTING = (
    (25, -44.7, 2.0, -1.5), (31.5, -39.4, 1.5, -1.5), (40, -34.6, 1.0, -1.0),
    (50, -30.2, 1.0, -1.0), (63, -26.2, 1.0, -1.0), (80, -22.5, 1.0, -1.0),
    (100, -19.1, 1.0, -1.0), (125, -16.1, 1.0, -1.0), (160, -13.4, 1.0, -1.0),
    (200, -10.9, 1.0, -1.0), (250, -8.6, 1.0, -1.0), (315, -6.6, 1.0, -1.0),
    (400, -4.8, 1.0, -1.0), (500, -3.2, 1.0, -1.0), (630, -1.9, 1.0, -1.0),
    (800, -0.8, 1.0, -1.0), (1000, 0.0, 0.7, -0.7), (1250, 0.6, 1.0, -1.0),
    (1600, 1.0, 1.0, -1.0), (2000, 1.2, 1.0, -1.0), (2500, 1.3, 1.0, -1.0),
    (3150, 1.2, 1.0, -1.0), (4000, 1.0, 1.0, -1.0), (5000, 0.5, 1.5, -1.5),
    (6300, -0.1, 1.5, -2.0),
)  # fmt: skip
SECONDS = 12
BURSTS = ((2.3, 0.2, 1000), (4.9, 0.3, 3150), (7.4, 1.2, 400), (9.2, 0.05, 2500))
AMPLITUDE = 0.9
TONE_DB = 20 * np.log10(AMPLITUDE / np.sqrt(2))


def tones(frequencies_hz: npt.NDArray[np.float64]) -> Pcm:
    """Return a segment of each tone, shape (n, SEGMENT)."""
    phases = np.random.default_rng(1).uniform(0, 2 * np.pi, len(frequencies_hz))
    time = np.arange(SEGMENT) / SAMPLE_RATE
    waves = np.sin(2 * np.pi * frequencies_hz[:, None] * time + phases[:, None])
    return np.rint(AMPLITUDE * FULL_SCALE * waves).astype(np.int16)


def levels_of(pcm: Pcm) -> list[Levels]:
    """Return the levels of the seconds from the third on."""
    found = []
    for start in range(2 * SECOND, len(pcm) - SECOND + 1, SECOND):
        before = settled(pcm[None, start - SECOND - SETTLING :][:, : SETTLING + SECOND])
        found += analyse(pcm[None, start - LOOK_BACK :][:, :SEGMENT], before)[0]
    return found


def pink_noise(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    spectrum = np.fft.rfft(rng.normal(size=n))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise: npt.NDArray[np.float64] = np.fft.irfft(spectrum, n)
    return noise / np.abs(noise).max()


@pytest.fixture(scope="module")
def street() -> Pcm:
    """Give pink noise whose loudness changes, with hum and bursts of tones."""
    rng = np.random.default_rng(7)
    n = SECONDS * SECOND
    time = np.arange(n) / SAMPLE_RATE
    sound = 0.15 * pink_noise(rng, n) * (1 + 0.7 * np.sin(2 * np.pi * 0.3 * time))
    sound += 0.02 * np.sin(2 * np.pi * 50 * time)
    for start_s, length_s, hz in BURSTS:
        burst = slice(round(start_s * SAMPLE_RATE), round((start_s + length_s) * SAMPLE_RATE))
        sound[burst] += 0.3 * np.sin(2 * np.pi * hz * time[burst])
    return np.rint(sound * FULL_SCALE).astype(np.int16)


def test_a_weighting_is_that_of_the_standard_and_far_within_class_1() -> None:
    centres = exact_centres_hz()
    assert [float(name) for name in BAND_NAMES] == [row[0] for row in A_WEIGHTING]
    found, _ = analyse(tones(centres), np.zeros(len(centres)))
    for (nominal_hz, weight, upper, lower), levels in zip(A_WEIGHTING, found, strict=True):
        error = levels.laeq - TONE_DB - weight
        assert lower < error < upper, nominal_hz
        assert abs(error) < 0.12, f"{nominal_hz} Hz: the table is rounded to 0.1 dB"


def test_third_octaves_are_within_class_1_at_every_frequency() -> None:
    from pyoctaveband.compliance import class_limits  # slow: each process collects all tests

    steps = np.concatenate([np.linspace(-0.17, 0.17, 15), [-4, -3, -2, -1, -0.5, 0.5, 1, 2, 3, 4]])
    for band, centre_hz in enumerate(exact_centres_hz()):
        ratios = 10 ** (0.3 * steps)
        ratios = ratios[(ratios * centre_hz < 0.49 * SAMPLE_RATE) & (ratios * centre_hz > 2)]
        found, _ = analyse(tones(ratios * centre_hz), np.zeros(len(ratios)))
        attenuation = np.array([TONE_DB - levels.third_octaves[band] for levels in found])
        lowest, highest = class_limits(3, 1, ratios)
        assert (attenuation >= lowest).all(), (BAND_NAMES[band], attenuation - lowest)
        assert (attenuation <= highest).all(), (BAND_NAMES[band], highest - attenuation)


def test_levels_of_a_street_are_those_of_a_reference_implementation(street: Pcm) -> None:
    from pyoctaveband import laeq as reference_laeq
    from pyoctaveband.parametric_filters import time_weighting, weighting_filter

    sound = street / FULL_SCALE
    weighted = weighting_filter(sound, SAMPLE_RATE, "A")
    fast_db = 10 * np.log10(np.maximum(time_weighting(weighted, SAMPLE_RATE), 1e-12))
    found = levels_of(street)
    for second, levels in enumerate(found, start=2):
        part = slice(second * SECOND, (second + 1) * SECOND)
        expected = {
            "laeq": 10 * np.log10(np.mean(weighted[part] ** 2)),
            "laf_max": fast_db[part].max(),
            "laf_min": fast_db[part].min(),
            **{f"l{n}": np.percentile(fast_db[part], 100 - n) for n in (10, 50, 90)},
        }
        for name, value in expected.items():
            assert getattr(levels, name) == pytest.approx(value, abs=0.1), (second, name)
    whole = 10 * np.log10(np.mean([10 ** (its.laeq / 10) for its in found]))
    expected_db = reference_laeq(sound[2 * SECOND :], SAMPLE_RATE, dbfs=True)
    assert whole == pytest.approx(expected_db, abs=0.1)


def test_bands_of_steady_noise_are_those_of_a_reference_implementation() -> None:
    from pyoctaveband import OctaveFilterBank

    noise = 0.5 * FULL_SCALE * pink_noise(np.random.default_rng(3), SECONDS * SECOND)
    pcm = np.rint(noise).astype(np.int16)
    bank = OctaveFilterBank(SAMPLE_RATE, 3, order=3, limits=[24, 6400], dbfs=True)
    _, centres, filtered = bank.filter(pcm / FULL_SCALE, sigbands=True)
    assert [round(centre) for centre in centres] == [round(hz) for hz in exact_centres_hz()]
    powers = [10 ** (levels.third_octaves / 10) for levels in levels_of(pcm)]
    expected = [np.mean(np.square(band[2 * SECOND :])) for band in filtered]
    error_db = 10 * np.log10(np.mean(powers, axis=0) / expected)
    assert np.abs(error_db[6:]).max() < 0.2
    assert np.abs(error_db).max() < 0.6, "few periods of the lowest bands"


def test_silence_has_the_lowest_level_and_full_scale_is_finite() -> None:
    silence, pulses = np.zeros((1, SEGMENT), np.int16), np.full((1, SEGMENT), -FULL_SCALE, np.int16)
    pulses[:, ::16] = FULL_SCALE - 1
    (quiet, loud), _ = analyse(np.concatenate([silence, pulses]), np.zeros(2))
    assert (quiet.laeq, quiet.laf_max, quiet.l90, quiet.third_octaves.max()) == (-120.0,) * 4
    assert -20 < loud.laeq < 3
    assert np.isfinite(loud.third_octaves).all()
