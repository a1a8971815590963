"""Where a sound begins and ends, from when its windows' scores cross the thresholds.

A window ending at t covers [t - W, t] and is scored every H. A sound is seen once the window
holds `rise_on` of it, and no longer once it holds less than `rise_off`, hence (both crossings are
noticed H/2 late on average)

    onset  = t_up   - H/2 - rise_on
    offset = t_down - H/2 - (W - rise_off)

Windows are a hop apart, and sounds of one class fill different parts of a window before they are
recognised. A window whose score jumps far above the threshold has contained the sound for longer
than one that barely reaches it, so the two scores around the crossing give a better estimate than
a median `rise_on`: this is an onset fit.

Frames of a checkpoint with a frame head are windows as long as the hop: a frame is above the
threshold if the sound fills about half of it, so that both rise times are half a frame.

Everything is in samples; all functions take and return scalars or arrays of any one shape. Checked
against simulated windows in tests/unit/detect/test_boundaries.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ast_stream.detect.state import NEVER
from ast_stream.model.metadata import StoredOnsetFit
from ast_stream.units import SAMPLE_RATE

LOGIT_LIMIT = 6.0  # farther from the threshold, logits give no more information
_CLOSEST = 1e-6  # of a score to 0 or 1
_FIT_FIELDS = ("rise_s", "before_s", "first_s", "lowest_s", "highest_s", "within_s")

Floats = npt.NDArray[np.float64]
Samples = npt.NDArray[np.int64]
SamplesLike = Samples | np.int64 | int


@dataclass(frozen=True)
class WindowGeometry:
    """The unit of decisions, in samples: windows, or the frames in them.

    Attributes:
        window, hop: length and distance; equal for frames.
        delay: a frame is decided by the first window that ends at least this much after it; 0 for
            windows.
        window_hop: distance of the windows that decide frames; 0 if windows are decided.
    """

    window: int
    hop: int
    delay: int = 0
    window_hop: int = 0

    @property
    def is_of_frames(self) -> bool:
        """Whether frames are decided instead of windows."""
        return self.window_hop > 0

    @property
    def longest_wait(self) -> int:
        """How long after its end a frame is decided at most; 0 for windows."""
        return self.delay + self.window_hop

    def known_at(self, at: SamplesLike) -> SamplesLike:
        """Return the end of the window that decides the frame, or is the window, that ends at `at`.

        While a stream starts or ends, and under overload, frames may have to wait for a later one.
        """
        if not self.is_of_frames:
            return at
        return -(-np.add(at, self.delay) // self.window_hop) * self.window_hop


class Onset(NamedTuple):
    """Estimated onset of a sound, and the half-width of the interval that contains it."""

    sample: Samples
    uncertainty_s: Floats


class Offset(NamedTuple):
    """Estimated end of a sound; unreliable where the estimate had to be clamped."""

    sample: Samples
    is_reliable: npt.NDArray[np.bool_]


def locate_onset(
    geometry: WindowGeometry,
    t_up: SamplesLike,
    rise_on: SamplesLike,
    *,
    uncertainty: SamplesLike,
    earliest: SamplesLike,
    first_scored: SamplesLike,
    audio_end: SamplesLike,
) -> Onset:
    """Return the onset of a sound first seen by the window ending at `t_up`.

    Args:
        rise_on: how much of the sound a window needs to be above the onset threshold.
        uncertainty: half-width of the interval around the estimate, for sounds seen to begin.
        earliest: no onset before this: start of the audio, or end of the previous event.
        first_scored: end of the first window scored since start or gap, or NEVER. If that window
            already sees the sound, the onset may be anywhere since `earliest`.
        audio_end: end of the audio known, less than `t_up` while flushing.
    """
    half_hop = geometry.hop // 2
    earliest = np.maximum(earliest, np.subtract(t_up, geometry.window))
    latest = np.maximum(earliest, np.minimum(t_up, audio_end) - rise_on)
    has_begun_before = np.equal(t_up, first_scored)
    estimate = np.clip(np.subtract(t_up, half_hop + np.asarray(rise_on)), earliest, latest)
    return Onset(
        np.where(has_begun_before, (earliest + latest) // 2, estimate),
        np.where(has_begun_before, (latest - earliest) // 2 + half_hop, uncertainty) / SAMPLE_RATE,
    )


def locate_offset(
    geometry: WindowGeometry,
    onset: SamplesLike,
    t_down: SamplesLike,
    rise_on: SamplesLike,
    rise_off: SamplesLike,
    *,
    audio_end: SamplesLike,
) -> Offset:
    """Return the offset of a sound no longer seen by the window ending at `t_down`.

    Args:
        t_down: NEVER if the audio ended first: then the sound lasted to its end.
        audio_end: end of the audio known.
    """
    shortest = np.minimum(np.add(onset, rise_on), np.maximum(audio_end, onset))
    smear = geometry.hop // 2 + geometry.window - np.asarray(rise_off)
    is_open = np.equal(t_down, NEVER)
    estimate = np.where(is_open, audio_end, np.minimum(np.subtract(t_down, smear), audio_end))
    return Offset(np.maximum(estimate, shortest), ~is_open & (estimate >= shortest))


def logits_above(scores: npt.ArrayLike, threshold: npt.ArrayLike) -> Floats:
    """Return how far the logits of scores are above that of a threshold, within `LOGIT_LIMIT`."""
    above: Floats = np.clip(_logit(scores) - _logit(threshold), -LOGIT_LIMIT, LOGIT_LIMIT)
    return above


@dataclass(frozen=True, eq=False)
class OnsetFits:
    """The onset fits of all classes; arrays have shape (n_classes,).

    Attributes:
        fits: those of the checkpoint, None for a class without one.
        is_fitted: whether the class has a fit; otherwise its other values are undefined.
        values: fields of `StoredOnsetFit` in samples, by name.
        threshold: onset thresholds in force.
        floor: lower scores give no more information than 0.
    """

    fits: tuple[StoredOnsetFit | None, ...]
    is_fitted: npt.NDArray[np.bool_]
    values: dict[str, Floats]
    threshold: npt.NDArray[np.float32]
    floor: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls, fits: Sequence[StoredOnsetFit | None], threshold: npt.NDArray[np.float32]
    ) -> OnsetFits:
        """Return the fits of the classes, in order; None: the class has none."""
        values = {
            name: np.array([getattr(fit, name) if fit else 0.0 for fit in fits]) * SAMPLE_RATE
            for name in _FIT_FIELDS
        }
        is_fitted = np.array([fit is not None for fit in fits], np.bool_)
        floor = 1 / (1 + np.exp(LOGIT_LIMIT - _logit(threshold)))
        # classes without a fit need no score remembered
        floor = np.where(is_fitted, floor, np.inf)
        return cls(tuple(fits), is_fitted, values, threshold, floor.astype(np.float32))

    @property
    def longest(self) -> Samples:
        """The longest rise time that each fit gives, in samples; 0 without a fit."""
        return np.round(self.values["highest_s"]).astype(np.int64)

    def rise(
        self, index: Samples | int, before: npt.ArrayLike, first: npt.ArrayLike
    ) -> tuple[Samples, Samples]:
        """Return the rise times of classes and their half-widths, in samples.

        Args:
            index: which classes.
            before, first: scores of the last window below the threshold and of the first above.
        """
        value = {name: column[index] for name, column in self.values.items()}
        threshold = self.threshold[index]
        rise = (
            value["rise_s"]
            + value["before_s"] * logits_above(before, threshold)
            + value["first_s"] * logits_above(first, threshold)
        )
        rise = np.clip(rise, value["lowest_s"], value["highest_s"])
        return np.round(rise).astype(np.int64), np.round(value["within_s"]).astype(np.int64)


def _logit(scores: npt.ArrayLike) -> Floats:
    p = np.clip(np.asarray(scores, np.float64), _CLOSEST, 1 - _CLOSEST)
    logits: Floats = np.log(p / (1 - p))
    return logits
