"""Scores averaged over the last windows, so that one window by chance decides little.

An exponential moving average: of a window at distance t before the newest, a share in proportion to
exp(-t / time constant). What is left of sounds long over is forgotten, so that a stream's state
stays small.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FORGOTTEN = np.float32(0.01)  # an average below this counts as 0 for the next one


def share_of_newest(smoothing_s: float, hop_s: float) -> np.float32:
    """Return how much of the average the newest window makes; 1 without smoothing."""
    return np.float32(1.0 if smoothing_s == 0 else -math.expm1(-hop_s / smoothing_s))


def averaged(scores: Floats, before: Floats, share: Floats) -> Floats:
    """Return the averages with `scores` as the newest, both of shape (n, n_classes).

    Args:
        share: of the newest, shape (n_classes,).
        before: what `remembered` kept of the averages before.
    """
    newest: Floats = share * scores + (np.float32(1) - share) * before
    return newest


def remembered(averages: Floats, share: Floats) -> Floats:
    """Return what of the averages counts for the next ones."""
    kept: Floats = np.where((averages >= FORGOTTEN) & (share < 1), averages, np.float32(0))
    return kept


def smooth(scores: Floats, share: np.float32) -> Floats:
    """Return the averages of all windows of a stream, of one class; shape (n_windows,)."""
    if share == 1 or not len(scores):
        return scores
    rest, kept = np.float32(1) - share, scores[0]
    averages = np.empty_like(scores)
    # the very operations of `averaged`, so that not even the rounding differs
    for at, score in enumerate(scores):
        average = share * score + rest * kept if at else score
        averages[at] = average
        kept = average if average >= FORGOTTEN else np.float32(0)
    return averages
