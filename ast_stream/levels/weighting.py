"""Frequency weightings and filters, as their response at each frequency.

Sources: IEC 61672-1:2013, annex E (A-weighting); IEC 61260-1:2014 (third octaves, base ten).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ast_stream.messages.levels import BAND_NAMES

Floats = npt.NDArray[np.float64]
Response = npt.NDArray[np.complex128]

_FIRST_BAND = -16  # of 25 Hz, counted from 1 kHz
_POLES_HZ = (20.598997, 20.598997, 107.65265, 737.86223)  # below; four zeros at 0 Hz
_HIGH_POLE_HZ = 12194.217  # twice
_ORDER = 3  # Butterworth, of the low-pass that a band filter is made of: within class 1


def exact_centres_hz() -> Floats:
    """Return the exact centres of the third octaves, shape (25,)."""
    centres: Floats = 1000 * 10 ** (np.arange(_FIRST_BAND, _FIRST_BAND + len(BAND_NAMES)) / 10)
    return centres


def a_weighting(frequencies_hz: Floats) -> Response:
    """Return the response of the A-weighting at frequencies of shape (n,), 1 at 1 kHz.

    Its high poles lie above what audio at 16 kHz holds; their phase, a delay of 20 µs, is left out.
    Without it the response meets itself at 8 kHz, so that it is short in time.
    """
    at_1_khz = float(abs(_unscaled_a_weighting(np.array([1000.0]))[0]))
    scaled: Response = _unscaled_a_weighting(frequencies_hz) / at_1_khz
    return scaled


def band_powers(frequencies_hz: Floats) -> Floats:
    """Return the power response of the third-octave filters, shape (n, 25).

    Args:
        frequencies_hz: shape (n,), at least 0.
    """
    ratio = np.maximum(frequencies_hz, 1e-3)[:, None] / exact_centres_hz()
    width = 10**0.05 - 10**-0.05  # from edge to edge, by which the centre is multiplied
    powers: Floats = 1 / (1 + ((ratio - 1 / ratio) / width) ** (2 * _ORDER))
    return powers


def _unscaled_a_weighting(frequencies_hz: Floats) -> Response:
    response: Response = (1 / (1 + (frequencies_hz / _HIGH_POLE_HZ) ** 2)).astype(np.complex128)
    for pole_hz in _POLES_HZ:
        response *= 1j * frequencies_hz / (1j * frequencies_hz + pole_hz)
    return response
