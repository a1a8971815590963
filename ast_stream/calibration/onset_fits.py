"""Fits the rise time to the scores around the crossing, where that makes onsets clearly finer.

Least absolute deviations, since some sounds begin with a part that nobody would recognise and are
seen late whatever their scores say: they must not move the others' onsets. What a fit is worth is
measured on sounds that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.calibration.rises import LONGEST_RISE_SHARE, Crossing
from ast_stream.detect.boundaries import logits_above
from ast_stream.model.metadata import StoredOnsetFit

FEWEST_FITTED = 20  # sounds
N_PARTS = 5  # each is estimated by a fit to the others
WORTH_FITTING = 0.9  # of the median rise's error, at most
PERCENTILES = (5, 95)  # of the measured rises, beyond which no estimate may lie
WITHIN = 90  # percent of the estimates are so close
_RIDGE = 2.0  # of slopes in standard deviations: a few sounds prove no steep one
_ROUNDS = 30
_CLOSE_S = 0.02  # deviations below weigh alike

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedOnset:
    """A fit, and the median error of onsets with and without it, both of sounds not fitted to."""

    fit: StoredOnsetFit
    error_s: float
    error_without_s: float
    n_measured: int


def fit_onset(
    crossings: Sequence[Crossing], threshold: float, window_s: float
) -> FittedOnset | None:
    """Return the fit for a class of this threshold; None: too few sounds, or no clear gain."""
    if len(crossings) < FEWEST_FITTED:
        return None
    rises = np.clip([one.rise_s for one in crossings], None, LONGEST_RISE_SHARE * window_s)
    scores = np.array([(one.before, one.first) for one in crossings])
    heights = logits_above(scores, threshold)  # (n, 2)
    low, high = np.percentile(rises, PERCENTILES)
    part = np.arange(len(rises)) % N_PARTS
    errors, plain = np.zeros(len(rises)), np.zeros(len(rises))
    for number in range(N_PARTS):
        own = part == number
        line = _least_deviations(heights[~own], rises[~own])
        errors[own] = np.abs(np.clip(line[0] + heights[own] @ line[1:], low, high) - rises[own])
        plain[own] = np.abs(np.median(rises[~own]) - rises[own])
    if np.median(errors) > WORTH_FITTING * np.median(plain):
        return None
    rise_s, before_s, first_s = _least_deviations(heights, rises)
    fit = StoredOnsetFit(
        rise_s=round(float(rise_s), 4),
        before_s=round(float(before_s), 4),
        first_s=round(float(first_s), 4),
        lowest_s=round(float(low), 3),
        highest_s=round(float(high), 3),
        within_s=round(float(np.percentile(errors, WITHIN)), 3),
    )
    error_s, plain_s = (round(float(np.median(one)), 3) for one in (errors, plain))
    return FittedOnset(fit, error_s, plain_s, len(rises))


def _least_deviations(heights: Floats, rises: Floats) -> Floats:
    """Return base and slopes (3,) of the line with the least absolute deviations.

    Args:
        heights: shape (n, 2).
        rises: shape (n,).
    """
    middle, spread = heights.mean(axis=0), heights.std(axis=0) + 1e-6
    scaled = np.column_stack([np.ones(len(rises)), (heights - middle) / spread])
    ridge = np.diag([1e-9, _RIDGE, _RIDGE])
    weights = np.ones(len(rises))
    line = np.zeros(3)
    for _ in range(_ROUNDS):  # reweighted least squares
        weighted = scaled * weights[:, None]
        line = np.linalg.solve(weighted.T @ scaled + ridge, weighted.T @ rises)
        weights = 1 / np.maximum(np.abs(rises - scaled @ line), _CLOSE_S)
        weights /= weights.mean()
    slopes = line[1:] / spread
    return np.array([line[0] - slopes @ middle, *slopes])
