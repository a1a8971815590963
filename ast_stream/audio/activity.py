"""The active parts of a recording, and their level, by short-time energy.

A label holds for the sound, not for every second of the file: clips are padded with silence and a
bark fills a fraction of its window. Everything here works on frames of 10 ms.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from ast_stream.units import FRAME_SHIFT, SAMPLE_RATE

Waveform = npt.NDArray[np.float32]

ACTIVE_BELOW_PEAK_DB = 30.0  # quieter than this below the loudest 10 ms counts as silence
FLOOR_DB = -80.0  # absolute: below this nothing is a sound, whatever the peak
BRIDGE_S = 0.3  # shorter pauses belong to the sound


def frame_power(waveform: Waveform) -> npt.NDArray[np.float64]:
    """Return the mean power of consecutive 10 ms, shape (n_samples // 160,)."""
    n_frames = len(waveform) // FRAME_SHIFT
    frames = waveform[: n_frames * FRAME_SHIFT].reshape(n_frames, FRAME_SHIFT)
    power: npt.NDArray[np.float64] = np.mean(np.square(frames, dtype=np.float64), axis=1)
    return power


def active_frames(waveform: Waveform) -> npt.NDArray[np.bool_]:
    """Return for each 10 ms whether the sound is there, shape (n_samples // 160,).

    Active is what lies within `ACTIVE_BELOW_PEAK_DB` of the loudest 10 ms and above `FLOOR_DB`;
    pauses up to `BRIDGE_S` are filled, so that a rhythm of short pulses is one sound.
    """
    power = frame_power(waveform)
    if not power.size:
        return np.zeros(0, dtype=np.bool_)
    threshold = max(power.max() * 10 ** (-ACTIVE_BELOW_PEAK_DB / 10), 10 ** (FLOOR_DB / 10))
    return _bridge(power > threshold, round(BRIDGE_S * SAMPLE_RATE / FRAME_SHIFT))


def active_rms(waveform: Waveform) -> float:
    """Return the RMS amplitude of the active part, 0.0 if there is none.

    Pauses count as silence even where they are bridged: a tick is as loud as its ticks.
    """
    power = frame_power(waveform)
    if not power.size:
        return 0.0
    loud = power[power > max(power.max() * 10 ** (-20 / 10), 10 ** (FLOOR_DB / 10))]
    return float(np.sqrt(loud.mean())) if loud.size else 0.0


def _bridge(active: npt.NDArray[np.bool_], max_frames: int) -> npt.NDArray[np.bool_]:
    """Fill the pauses of at most `max_frames` frames that lie between active frames."""
    places = np.flatnonzero(active)
    filled = active.copy()
    for before, after in itertools.pairwise(places):
        if 1 < after - before <= max_frames + 1:
            filled[before:after] = True
    return filled
