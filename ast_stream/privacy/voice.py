"""A simple voice detector by pitch, to protect speech.

Voiced speech repeats itself 70 to 400 times a second, in a band that most alarms, machines and
animals leave to it. What is voiced for a moment and what is around it counts as talk. Better too
much than too little: the worst that happens is that a sound is withheld.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ast_stream.messages.audio import Pcm16
from ast_stream.units import FRAME_SHIFT, FULL_SCALE, SAMPLE_RATE

PERIODIC = 0.7  # autocorrelation at the pitch, of 1 for a perfect repetition
MIN_DBFS = -65.0  # quieter in the band of the voice is no talk that could be understood
MIN_VOICED = 6  # frames of 10 ms within
WITHIN = 60  # so many: syllables
CONTEXT = 40 * FRAME_SHIFT  # samples on either side by which a frame is judged

_DECIMATE = 4
_RATE = SAMPLE_RATE // _DECIMATE
_BAND_HZ = 1000.0
_TAPS = 65
_FRAME = 200  # samples at 4 kHz: 50 ms, more than three periods of the lowest voice
_STEP = FRAME_SHIFT // _DECIMATE
_FFT = 512
_LOWEST_HZ, _HIGHEST_HZ = 70, 400

Flags = npt.NDArray[np.bool_]


def talk_frames(pcm: Pcm16) -> Flags:
    """Return for each 10 ms whether there may be speech, shape (n_samples // 160,).

    Each is judged by what is within `CONTEXT` of it alone, so that the same moment is judged alike
    in any excerpt that has so much around it.
    """
    n_frames = len(pcm) // FRAME_SHIFT
    if n_frames == 0:
        return np.zeros(0, np.bool_)
    voiced = _voiced(pcm, n_frames)
    counts = np.cumsum(np.concatenate([[0], voiced]))
    half = WITHIN // 2
    ends = np.minimum(np.arange(n_frames) + half, n_frames)
    begins = np.maximum(np.arange(n_frames) - half, 0)
    found: Flags = counts[ends] - counts[begins] >= MIN_VOICED
    return found


def _voiced(pcm: Pcm16, n_frames: int) -> Flags:
    samples = pcm.astype(np.float32) / FULL_SCALE
    taps = np.arange(_TAPS) - _TAPS // 2
    kernel = np.sinc(2 * _BAND_HZ / SAMPLE_RATE * taps) * np.hamming(_TAPS)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    low = np.convolve(samples, kernel)[_TAPS // 2 :: _DECIMATE]
    # frame k is around the middle of the k-th 10 ms
    before = (_FRAME - _STEP) // 2
    padded = np.pad(low, (before, _FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_STEP][:n_frames]
    frames = frames - frames.mean(axis=1, keepdims=True)
    window = np.hanning(_FRAME)
    power = np.mean(frames * frames, axis=1)
    spectrum = np.fft.rfft(frames * window, _FFT)
    correlation = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, _FFT)
    of_window = np.fft.irfft(np.abs(np.fft.rfft(window, _FFT)) ** 2, _FFT)
    lags = slice(_RATE // _HIGHEST_HZ, _RATE // _LOWEST_HZ + 1)
    zero = np.maximum(correlation[:, 0], 1e-20) / of_window[0]
    peaks = (correlation[:, lags] / of_window[lags]).max(axis=1) / zero
    found: Flags = (peaks > PERIODIC) & (power > 10 ** (MIN_DBFS / 10))
    return found
