"""The levels of one second of sound; many streams at once, without state between calls.

What a second gives depends on its own samples and those of 1.125 s before it alone: it is the same
live at any block size, after a restart, and in a batch of any size (to the rounding of float32).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.levels.weighting import Floats, a_weighting, band_powers
from ast_stream.units import FULL_SCALE, SAMPLE_RATE, SILENCE_DBFS

SECOND = SAMPLE_RATE
SETTLING = SAMPLE_RATE // 8  # samples before a second in which the A-weighting settles
LOOK_BACK = SAMPLE_RATE // 2  # samples before a second that its levels depend on
SEGMENT = LOOK_BACK + SECOND
FAST_S = 0.125  # time constant of the fast time weighting
SAMPLED_EVERY = SAMPLE_RATE // 1000  # samples from one LAF to the next, for percentiles
PERCENTILES = (90, 50, 10)  # of LAF: L10 is what is exceeded in a tenth of the time
_AT_ONCE = 16  # segments, as many as caches hold
_SILENCE = 10 ** (SILENCE_DBFS / 10)

# by sample of a second: what is left of the mean square before, with the fast time weighting
_DECAY: Floats = np.exp(-np.arange(1, SECOND + 1) / (FAST_S * SAMPLE_RATE))
_GAIN: Floats = -np.expm1(-1 / (FAST_S * SAMPLE_RATE)) / _DECAY
_WEIGHTED = SETTLING + SECOND  # samples that are A-weighted at once
_N_LOW = 9  # bands up to 160 Hz: a window with short edges would let other frequencies leak in
# by Parseval: the mean square of a second is a sum over the bins of both signs


def _bins_hz(n_samples: int) -> Floats:
    bins: Floats = np.arange(n_samples // 2 + 1, dtype=np.float64) * SAMPLE_RATE / n_samples
    return bins


def _powers(n_samples: int, bands: slice) -> npt.NDArray[np.float32]:
    """Return the factors that make mean squares of bands of the powers of bins."""
    factors = band_powers(_bins_hz(n_samples))[:, bands] * 2 / (n_samples * SECOND)
    return factors.astype(np.float32)


_RAMP = np.linspace(0, 1, _WEIGHTED, dtype=np.float32)
_A_WEIGHTING = a_weighting(_bins_hz(_WEIGHTED)).astype(np.complex64)
_LOW_POWERS = _powers(SEGMENT, slice(_N_LOW))
_HIGH_POWERS = _powers(_WEIGHTED, slice(_N_LOW, None))


@dataclass(frozen=True, eq=False)
class Levels:
    """Levels of one second, dBFS: a full-scale sine has -3.0, and silence has -120.

    Attributes:
        laeq: A-weighted, energy mean.
        laf_max, laf_min: A-weighted, fast time weighting; of every sample.
        l10, l50, l90: what LAF exceeds in so many percent of the second, each ms.
        third_octaves: not weighted, shape (25,), by `BAND_NAMES`.
    """

    laeq: float
    laf_max: float
    laf_min: float
    l10: float
    l50: float
    l90: float
    third_octaves: Floats


def _window(n_fade: int) -> npt.NDArray[np.float32]:
    """Return a window of third octaves: a second that fades in and out.

    Its squares fade as those of the window of the second before and after rise: all energy counts
    once, half of a fade late.
    """
    at = (np.arange(n_fade) + 0.5) / n_fade
    fade = np.sin(np.pi / 2 * np.sin(np.pi / 2 * at) ** 2)  # of Vorbis: lets little leak
    return np.concatenate([fade, np.ones(SECOND - n_fade), fade[::-1]]).astype(np.float32)


_LOW_WINDOW, _HIGH_WINDOW = _window(LOOK_BACK), _window(SETTLING)


def settled(segments: npt.NDArray[np.int16]) -> Floats:
    """Return the fast time weighting at the end of each second, starting from rest.

    Args:
        segments: shape (n, SETTLING + SECOND): each second, and `SETTLING` samples before it.

    Returns:
        A-weighted mean squares, shape (n,), of 1 for full scale.
    """
    ends: Floats = _fast_from_rest(_a_weighted_squares(segments))[:, -1] * _DECAY[-1]
    return ends


def analyse(segments: npt.NDArray[np.int16], before: Floats) -> tuple[list[Levels], Floats]:
    """Return the levels of seconds, and what `settled` would return for them.

    Args:
        segments: shape (n, SEGMENT): each second, and `LOOK_BACK` samples before it.
        before: shape (n,): what `settled` returned of the second before.
    """
    found: list[Levels] = []
    ends = np.zeros(len(segments))
    for at in range(0, len(segments), _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        squares = _a_weighted_squares(segments[part, -_WEIGHTED:])
        rest = _fast_from_rest(squares)
        fast = (rest + before[part, None]) * _DECAY
        ends[part] = rest[:, -1] * _DECAY[-1]
        sampled = _decibels(fast[:, SAMPLED_EVERY - 1 :: SAMPLED_EVERY])
        rows = zip(
            _decibels(squares.mean(axis=1, dtype=np.float64)).tolist(),
            _decibels(fast.max(axis=1)).tolist(),
            _decibels(fast.min(axis=1)).tolist(),
            *np.percentile(sampled, PERCENTILES, axis=1).tolist(),
            _decibels(_third_octaves(segments[part])),
            strict=True,
        )
        found += [Levels(*row) for row in rows]
    return found, ends


def _a_weighted_squares(segments: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Return (n, SECOND) squares of the A-weighted samples of seconds."""
    samples = segments / np.float32(FULL_SCALE)
    # the end of a segment meets its beginning: without a step there, which a ramp takes away, and
    # the A-weighting lets nothing of a ramp through
    samples -= (samples[:, -1:] - samples[:, :1]) * _RAMP
    spectrum = np.fft.rfft(samples)
    weighted = np.fft.irfft(spectrum * _A_WEIGHTING, _WEIGHTED)[:, SETTLING:]
    squares: npt.NDArray[np.float32] = np.square(weighted)
    return squares


def _fast_from_rest(squares: npt.NDArray[np.float32]) -> Floats:
    """Return (n, SECOND): the fast time weighting from rest, of which `_DECAY` makes levels."""
    rest: Floats = np.cumsum(squares * _GAIN, axis=1)
    return rest


def _third_octaves(segments: npt.NDArray[np.int16]) -> Floats:
    """Return (n, 25) mean squares of the bands."""
    low = _band_means(segments, _LOW_WINDOW, _LOW_POWERS)
    high = _band_means(segments[:, -_WEIGHTED:], _HIGH_WINDOW, _HIGH_POWERS)
    bands: Floats = np.concatenate([low, high], axis=1).astype(np.float64)
    return bands


def _band_means(
    segments: npt.NDArray[np.int16],
    window: npt.NDArray[np.float32],
    powers: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    spectrum = np.fft.rfft(segments / np.float32(FULL_SCALE) * window)
    means: npt.NDArray[np.float32] = (np.square(spectrum.real) + np.square(spectrum.imag)) @ powers
    return means


def _decibels(mean_squares: Floats) -> Floats:
    levels: Floats = 10 * np.log10(np.maximum(mean_squares, _SILENCE))
    return levels
