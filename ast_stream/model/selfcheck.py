"""The check before *ready*: a known clip through features and model must give known scores.

The clip is one that every installation generates alike: its noise comes from a hash and not from a
random generator, whose stream may change between versions of a library.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ast_stream.errors import StartupError
from ast_stream.model.checkpoint import Checkpoint
from ast_stream.model.metadata import Golden
from ast_stream.model.runners import Precision
from ast_stream.model.tagger import Tagger
from ast_stream.units import FULL_SCALE, SAMPLE_RATE

RECIPE: Literal["chirps-1"] = "chirps-1"
N_CHIRPS = 8
NOISE_AMPLITUDE = 0.02  # keeps all bands well above the rounding noise of an FFT
CHIRP_AMPLITUDE = (0.05, 0.3)
CHIRP_HZ = (100.0, 6000.0)
MIN_CHIRP_FRACTION = 0.1  # of the clip
logger = logging.getLogger(__name__)

# Largest difference of a logit from its expected value, in units of max(1, spread of the expected
# logits): scores near 0 and 1 hide mistakes that logits show.
TOLERANCE: dict[Precision, float] = {
    "fp32": 2e-3,
    "fp16": 5e-2,
    "bf16": 3e-1,
    "int8": 5e-1,
    "fp8": 5e-1,
}
MAX_LOGIT = 15.0  # beyond it a score no longer tells the logit
BATCH = 3  # rows of the same clip, so that more than one row of a batch is looked at


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


@dataclass(frozen=True)
class SelfCheck:
    """Outcome of a passed check.

    Attributes:
        against: `golden` scores stored with the checkpoint, or a `reference` in fp32 with math
            attention on the CPU, computed now.
        max_error: largest difference of a logit, as `TOLERANCE` counts it.
    """

    against: Literal["golden", "reference"]
    max_error: float
    tolerance: float


def self_check(tagger: Tagger) -> SelfCheck:
    """Return how well `tagger` reproduces the golden scores of its checkpoint.

    Checkpoints without golden scores, and other window lengths than the trained one, are compared
    with the same model in fp32 with math attention.

    Raises:
        StartupError: scores are not finite, not repeatable, or beyond the precision's tolerance.
    """
    golden = tagger.metadata.golden
    clip = golden_clip(golden.seed if golden else 0, tagger.window_samples)
    logits = _repeatable_logits(tagger, clip)
    against: Literal["golden", "reference"] = "reference"
    if golden and tagger.window_s == tagger.checkpoint.window_s:
        against, expected = "golden", _logits_of(np.asarray(golden.scores))
    else:
        expected = _reference_logits(tagger, clip)
    error = np.abs(_bounded(logits) - expected) / max(1.0, float(expected.std()))
    if tagger.frames is not None:  # no golden scores are stored of these
        error = np.maximum(error, _frame_error(tagger, clip))
    result = SelfCheck(against, float(error.max()), TOLERANCE[tagger.precision])
    if not result.max_error <= result.tolerance:
        worst = tagger.labels[int(error.max(axis=0).argmax())]
        raise StartupError(
            f"self-check failed: {tagger.checkpoint.origin} on {tagger.device} in "
            f"{tagger.precision} with attention {tagger.attention} differs from its {against} "
            f"scores by {result.max_error:.3g} at '{worst}'; allowed is {result.tolerance:g}"
        )
    logger.info(
        "self-check passed: error %.2g of %g allowed, against %s scores",
        result.max_error,
        result.tolerance,
        against,
    )
    return result


def _repeatable_logits(tagger: Tagger, clip: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (BATCH, n_classes) logits of the same clip."""
    batch = np.repeat(clip[None], BATCH, axis=0)
    logits = _score_logits(tagger, batch)
    if not np.isfinite(logits).all():
        raise StartupError(
            f"self-check failed: {tagger.checkpoint.origin} in {tagger.precision} gives scores "
            "that are not finite; try precision fp32"
        )
    if not np.array_equal(logits, _score_logits(tagger, batch)):
        raise StartupError(
            f"self-check failed: {tagger.checkpoint.origin} on {tagger.device} with attention "
            f"{tagger.attention} gives other scores when asked again"
        )
    return logits


def _reference(tagger: Tagger) -> Tagger:
    return Tagger(
        tagger.checkpoint,
        device="cpu",
        precision="fp32",
        attention="math",
        window_s=tagger.window_s,
    )


def _reference_logits(tagger: Tagger, clip: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return _bounded(_score_logits(_reference(tagger), clip))


def _frame_error(tagger: Tagger, clip: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return how far the frames of the clip are from the reference's, (n_classes,)."""
    batch = torch.from_numpy(np.repeat(clip[None], BATCH, axis=0))
    logits = tagger.frame_logits(tagger.windows(batch))
    if not np.isfinite(logits).all():
        raise StartupError(
            f"self-check failed: the frame head of {tagger.checkpoint.origin} in "
            f"{tagger.precision} gives scores that are not finite; try precision fp32"
        )
    reference = _reference(tagger)
    expected = _bounded(reference.frame_logits(reference.windows(batch[:1])))
    error = np.abs(_bounded(logits) - expected) / max(1.0, float(expected.std()))
    worst: npt.NDArray[np.float64] = error.max(axis=(0, 1))
    return worst


def _score_logits(tagger: Tagger, clips: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the logits of scores."""
    logits: npt.NDArray[np.float32] = tagger.calibrated(
        torch.from_numpy(tagger.logits(clips))
    ).numpy()
    return logits


def _logits_of(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return _bounded(np.log(scores) - np.log1p(-scores))


def _bounded(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return np.clip(logits.astype(np.float64), -MAX_LOGIT, MAX_LOGIT)
