"""A clip that every installation generates alike, and what a checkpoint says to it.

The noise comes from a hash and not from a random generator, whose stream may change between
versions of a library.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.metadata import Golden
from ast_stream.model.tagger import Tagger
from ast_stream.units import FULL_SCALE, SAMPLE_RATE

RECIPE: Literal["chirps-1"] = "chirps-1"
N_CHIRPS = 8
NOISE_AMPLITUDE = 0.02  # keeps all bands well above the rounding noise of an FFT
CHIRP_AMPLITUDE = (0.05, 0.3)
CHIRP_HZ = (100.0, 6000.0)
MIN_CHIRP_FRACTION = 0.1  # of the clip


def golden_clip(seed: int, n_samples: int) -> npt.NDArray[np.float32]:
    """Return chirps over noise: shape (n_samples,), float32 in [-1, 1], at 16 kHz."""
    stream = hashlib.shake_256(f"{RECIPE}:{seed}".encode()).digest(2 * (n_samples + 5 * N_CHIRPS))
    numbers = np.frombuffer(stream, dtype="<i2").astype(np.float64) / FULL_SCALE
    clip = numbers[:n_samples] * NOISE_AMPLITUDE
    for begin, length, first_hz, last_hz, loudness in (
        np.abs(numbers[n_samples:]).reshape(N_CHIRPS, 5).tolist()
    ):
        n_chirp = int(n_samples * (MIN_CHIRP_FRACTION + length * (1 - MIN_CHIRP_FRACTION)))
        start = int(begin * (n_samples - n_chirp))
        chirp = _chirp(n_chirp, _between(CHIRP_HZ, first_hz), _between(CHIRP_HZ, last_hz))
        clip[start : start + n_chirp] += chirp * _between(CHIRP_AMPLITUDE, loudness)
    return np.clip(clip, -1, 1).astype(np.float32)


def golden_for(checkpoint: Checkpoint, seed: int = 0) -> Golden:
    """Return the scores that `checkpoint` gives to its golden clip in fp32 with math attention.

    Raises:
        CheckpointError: the checkpoint's window is not one a tagger can have.
    """
    tagger = Tagger(checkpoint, device="cpu", precision="fp32", attention="math")
    clip = torch.from_numpy(golden_clip(seed, tagger.window_samples))
    logits = tagger.calibrated(tagger.logits(clip)).numpy().astype(np.float64)
    return Golden(recipe=RECIPE, seed=seed, scores=(1 / (1 + np.exp(-logits[0]))).tolist())


def _chirp(n_samples: int, first_hz: float, last_hz: float) -> npt.NDArray[np.float64]:
    """Return a linear sweep of amplitude 1 that fades in and out."""
    time = np.arange(n_samples) / SAMPLE_RATE
    slope = (last_hz - first_hz) * SAMPLE_RATE / max(n_samples, 1)
    phase = 2 * np.pi * (first_hz * time + slope * time**2 / 2)
    chirp: npt.NDArray[np.float64] = np.sin(phase) * np.hanning(n_samples)
    return chirp


def _between(limits: tuple[float, float], fraction: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * fraction
