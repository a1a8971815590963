"""The monotone map from logits to scores of one class, fitted on windows of known content.

Two numbers (scale and bias, after Platt), by the negative log likelihood with a Gaussian prior
around the identity: few examples move it little. Windows of one sound are no independent
examples, so a class counts as many examples as it has sounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ast_stream.calibration.scores import LogitStream, with_label
from ast_stream.model.metadata import PlattScaling
from ast_stream.soundscape.mixing import ReferenceEvent

PRIOR = 0.1  # weight of windows with the sound: like in training, and the same for all classes
SCALE_SPREAD, BIAS_SPREAD = 0.5, 0.5  # standard deviations of the prior around 1 and 0
LOWEST_SCALE, HIGHEST_SCALE = 0.1, 10.0
ENOUGH_RATIO, ENOUGH_S = 0.4, 0.5  # of the sound make a window an example, as in training

Floats = npt.NDArray[np.float64]


def fit_platt(
    index: int, label: str, streams: Sequence[LogitStream], window_s: float
) -> PlattScaling:
    """Return the map of class `index`, named `label`; the identity without examples."""
    with_sound, without, n_sounds = [], [], 0
    for stream in streams:
        sounds = with_label(stream.truth, label)
        n_sounds += len(sounds)
        has_enough, has_none = _content(stream, sounds, window_s)
        with_sound.append(stream.logits[has_enough, index])
        without.append(stream.logits[has_none, index])
    positives = np.concatenate([*with_sound, []]).astype(np.float64)
    negatives = np.concatenate([*without, []]).astype(np.float64)
    if not len(positives) or not len(negatives):
        return PlattScaling()
    scale, bias = fit(positives, negatives, n_sounds)
    return PlattScaling(scale=round(scale, 4), bias=round(bias, 4))


def fit(positives: Floats, negatives: Floats, n_examples: int) -> tuple[float, float]:
    """Return scale and bias for logits with and without the sound, each of shape (n,).

    The likelihood and the prior are log-concave, so there is one optimum within the allowed scales.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    logits = np.concatenate([positives, negatives])
    target = np.concatenate([np.ones(len(positives)), np.zeros(len(negatives))])
    weight = n_examples * np.where(target, PRIOR / len(positives), (1 - PRIOR) / len(negatives))
    inputs = np.stack([logits, np.ones(len(logits))], axis=1)
    identity, precision = np.array([1.0, 0.0]), np.array([SCALE_SPREAD**-2, BIAS_SPREAD**-2])

    def loss_and_gradient(parameters: Floats) -> tuple[float, Floats]:
        mapped, moved = inputs @ parameters, parameters - identity
        likelihood = weight @ (np.logaddexp(0, mapped) - target * mapped)
        gradient = inputs.T @ (weight * (expit(mapped) - target)) + precision * moved
        return float(likelihood + precision @ np.square(moved) / 2), gradient

    found = minimize(
        loss_and_gradient,
        identity,
        jac=True,
        method="L-BFGS-B",
        bounds=[(LOWEST_SCALE, HIGHEST_SCALE), (None, None)],
        options={"ftol": 1e-15, "gtol": 1e-9 * n_examples},
    )
    scale, bias = found.x
    return float(scale), float(bias)


def platt_scores(
    logits: npt.NDArray[np.float32], score_map: PlattScaling
) -> npt.NDArray[np.float32]:
    """Return the scores of logits, any shape, as `Tagger` computes them."""
    moved = logits * np.float32(score_map.scale) + np.float32(score_map.bias)
    scores: npt.NDArray[np.float32] = 1 / (1 + np.exp(-np.clip(moved, -80, 80)))
    return scores.astype(np.float32)


def _content(
    stream: LogitStream, sounds: Sequence[ReferenceEvent], window_s: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which windows hold enough of one of `sounds`, and which hold none of any."""
    times = stream.times_s
    has_enough, has_none = np.zeros(len(times), np.bool_), np.ones(len(times), np.bool_)
    for sound in sounds:
        held_s = np.minimum(times, sound.offset_s) - np.maximum(times - window_s, sound.onset_s)
        longest_s = min(window_s, sound.offset_s - sound.onset_s)
        has_enough |= held_s >= min(ENOUGH_S, ENOUGH_RATIO * longest_s)
        has_none &= held_s <= 0
    return has_enough, has_none
