"""Finer onsets: what the scores around the crossing of a threshold say about the rise time.

Windows are a hop apart, and sounds of one class need unlike shares of a window to be recognised. A
window that jumps from nothing to far above the threshold has held the sound for longer than one
that barely reaches it, so the two scores tell much of what the median rise time leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ast_stream.units import SAMPLE_RATE

LIMIT = 6.0  # logits this far from the threshold's tell no more than ones farther away
_CLOSEST = 1e-6  # of a score to 0 or 1

Floats = npt.NDArray[np.float64]


class OnsetFit(NamedTuple):
    """The fit of one class; see `ast_stream.model.metadata.StoredOnsetFit`."""

    rise_s: float
    before_s: float
    first_s: float
    lowest_s: float
    highest_s: float
    within_s: float


def logits_from(scores: npt.ArrayLike, threshold: npt.ArrayLike) -> Floats:
    """Return how far scores lie above a threshold on the logits, within `LIMIT`."""
    above: Floats = np.clip(_logit(scores) - _logit(threshold), -LIMIT, LIMIT)
    return above


@dataclass(frozen=True, eq=False)
class OnsetFits:
    """The fits of all classes; arrays have shape (n_classes,).

    Attributes:
        is_fitted: whether the class has one; the other arrays mean nothing where it does not.
        values: fields of `OnsetFit` in samples, by name.
        threshold: onset thresholds in force.
        floor: scores from here down tell as little as none.
    """

    is_fitted: npt.NDArray[np.bool_]
    values: dict[str, Floats]
    threshold: npt.NDArray[np.float32]
    floor: npt.NDArray[np.float32]

    @classmethod
    def of(cls, fits: Sequence[OnsetFit | None], threshold: npt.NDArray[np.float32]) -> OnsetFits:
        """Return the fits of the classes, in order; None: the class has none."""
        values = {
            name: np.array([getattr(fit, name) if fit else 0.0 for fit in fits]) * SAMPLE_RATE
            for name in OnsetFit._fields
        }
        is_fitted = np.array([fit is not None for fit in fits], np.bool_)
        floor = 1 / (1 + np.exp(LIMIT - _logit(threshold)))
        # classes without a fit need no score remembered
        floor = np.where(is_fitted, floor, np.inf)
        return cls(is_fitted, values, threshold, floor.astype(np.float32))

    @property
    def longest(self) -> npt.NDArray[np.int64]:
        """The longest rise time that each fit gives, in samples; 0 without a fit."""
        return np.round(self.values["highest_s"]).astype(np.int64)

    def rise(self, index: int, before: float, first: float) -> tuple[int, int]:
        """Return the rise time of class `index` and its half-width, in samples.

        Args:
            before, first: scores of the last window below the threshold and of the first above.
        """
        value = {name: column[index] for name, column in self.values.items()}
        z_before, z_first = logits_from([before, first], self.threshold[index])
        rise = value["rise_s"] + value["before_s"] * z_before + value["first_s"] * z_first
        return (
            round(float(np.clip(rise, value["lowest_s"], value["highest_s"]))),
            round(float(value["within_s"])),
        )


def _logit(scores: npt.ArrayLike) -> Floats:
    p = np.clip(np.asarray(scores, np.float64), _CLOSEST, 1 - _CLOSEST)
    logits: Floats = np.log(p / (1 - p))
    return logits
