"""Parameters of the decision stage: settings in seconds become hops and samples, once.

Nothing here needs torch: alert rules and configuration checks use it, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_stream.detect.boundaries import OnsetFits, WindowGeometry
from ast_stream.errors import UsageError
from ast_stream.labels import did_you_mean, find_label
from ast_stream.model.metadata import FrameDecisions, Metadata, StoredOnsetFit
from ast_stream.settings.detection import (
    DEFAULT_CONFIRM_S,
    DEFAULT_FRAME_CONFIRM_S,
    DEFAULT_HOLD_S,
    MAX_CONFIRM_HOPS,
    ClassSettings,
    DetectionSettings,
)
from ast_stream.units import seconds_to_samples

CONFIRM_RATIO = 0.6  # of the windows within confirm_s must be above the onset threshold
OFFSET_DROP = 0.15  # hysteresis: the offset threshold lies this far below the onset threshold,
OFFSET_RATIO = 0.6  # but not below this ratio of it
# the onset of a sound whose score rises gradually is moved back to the first frame of the run with
# at least this ratio of the onset threshold,
RISING_RATIO = np.float32(0.4)
MAX_RISE_S = 1.6  # but by at most this time


@dataclass(frozen=True)
class FrameSteps:
    """Frames that decide instead of windows.

    Attributes:
        frame_s: length and distance of frames.
        delay_s: a frame is decided by the first window that ends at least this much after it.
    """

    frame_s: float
    delay_s: float


@dataclass(frozen=True)
class ModelFacts:
    """What the decision stage must know about a checkpoint; lists are in the order of `labels`.

    Attributes:
        onset_thresholds: used if the settings have none.
        rise_on_s, rise_off_s: how much of a sound a window needs to be above the onset threshold,
            and above the offset threshold.
        rise_on_spread_s: half-width of the spread around `rise_on_s`.
        confirm_s: span in which windows must agree, where the settings have none.
        smoothing_s: time constants over which scores are averaged, where the settings have none;
            empty: 0 for all.
        hold_s: quiet time after which an event has ended, where the settings have none; empty:
            the usual one for all.
        onset_fits: rise times as a function of scores, None for classes without a fit; empty: none.
        fitted_hop_s: the hop for which they are valid, together with the smoothing above.
        background: labels that never make events.
        off: labels that make events only if the settings enable them.
        frames: None: windows decide. Otherwise all of the above is about frames, and rise times
            and fits are not used, because frames are short.
    """

    labels: Sequence[str]
    window_s: float
    onset_thresholds: Sequence[float]
    rise_on_s: Sequence[float]
    rise_off_s: Sequence[float]
    rise_on_spread_s: Sequence[float]
    confirm_s: Sequence[float]
    smoothing_s: Sequence[float] = ()
    hold_s: Sequence[float] = ()
    onset_fits: Sequence[StoredOnsetFit | None] = ()
    fitted_hop_s: float | None = None
    background: Sequence[str] = ()
    off: Sequence[str] = ()
    frames: FrameSteps | None = None


@dataclass(frozen=True)
class DecisionParameters:
    """Per-class settings of the decision stage; arrays have shape (n_classes,).

    Attributes:
        ema_alpha: weight of the newest window in the moving average of the scores.
    """

    labels: tuple[str, ...]
    geometry: WindowGeometry
    ema_alpha: npt.NDArray[np.float32]
    is_enabled: npt.NDArray[np.bool_]
    onset_threshold: npt.NDArray[np.float32]
    offset_threshold: npt.NDArray[np.float32]
    confirm_hits: npt.NDArray[np.int64]
    confirm_hops: npt.NDArray[np.int64]
    hold: npt.NDArray[np.int64]
    min_duration: npt.NDArray[np.int64]
    refractory: npt.NDArray[np.int64]
    max_duration: npt.NDArray[np.int64]
    rise_on: npt.NDArray[np.int64]
    rise_off: npt.NDArray[np.int64]
    rise_on_spread: npt.NDArray[np.int64]
    onset_fits: OnsetFits

    def at_thresholds(
        self, index: int, thresholds: npt.NDArray[np.floating[Any]]
    ) -> DecisionParameters:
        """Return parameters whose classes are class `index`, once at each threshold.

        With these, the decision stage finds the events at many thresholds at once.
        """
        n = len(thresholds)
        onset = thresholds.astype(np.float32)
        repeated: dict[str, Any] = {
            field.name: np.repeat(value[index], n)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return replace(
            self,
            **repeated | {"onset_threshold": onset, "offset_threshold": offset_thresholds(onset)},
            labels=(self.labels[index],) * n,
            onset_fits=OnsetFits.of([self.onset_fits.fits[index]] * n, onset),
        )

    @staticmethod
    def joined(parts: Sequence[DecisionParameters]) -> DecisionParameters:
        """Return parameters with the classes of all parts, which have the same geometry."""
        first = parts[0]
        joined: dict[str, Any] = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(first)
            if isinstance(getattr(first, field.name), np.ndarray)
        }
        fits = [fit for part in parts for fit in part.onset_fits.fits]
        return replace(
            first,
            **joined,
            labels=tuple(label for part in parts for label in part.labels),
            onset_fits=OnsetFits.of(fits, joined["onset_threshold"]),
        )

    @property
    def longest_rise(self) -> npt.NDArray[np.int64]:
        """How far before the first window that sees a sound its onset may lie, in samples."""
        longest = np.maximum(self.rise_on, self.onset_fits.longest)
        return longest + self.max_rise

    @property
    def max_rise(self) -> int:
        """How far before the first frame above its threshold a sound may have begun, in samples."""
        return seconds_to_samples(MAX_RISE_S) if self.geometry.is_of_frames else 0

    @property
    def rising_threshold(self) -> npt.NDArray[np.float32]:
        """Score at which a frame may be the first of a sound, shape (n_classes,)."""
        return self.onset_threshold * RISING_RATIO

    def describe(self, index: int) -> str:
        """Return one class's effective values as a line for the log."""
        return (
            f"{self.labels[index]}: onset {self.onset_threshold[index]:.3f}, "
            f"offset {self.offset_threshold[index]:.3f}, "
            f"confirm {self.confirm_hits[index]} of {self.confirm_hops[index]} "
            + ("frames" if self.geometry.is_of_frames else "hops")
        )


def model_facts(
    labels: Sequence[str],
    window_s: float,
    metadata: Metadata,
    frame_s: float | None = None,
) -> ModelFacts:
    """Return what the decision stage must know about a checkpoint.

    Args:
        frame_s: seconds from one time patch to the next; None: windows decide, even if the
            checkpoint has a frame head.
    """
    if frame_s is not None and metadata.frames is not None:
        return _frame_facts(labels, window_s, metadata, metadata.frames, frame_s)
    rises = [metadata.rise(label, window_s) for label in labels]
    return ModelFacts(
        labels=labels,
        window_s=window_s,
        onset_thresholds=[metadata.onset_threshold(label) for label in labels],
        rise_on_s=[rise.on_s for rise in rises],
        rise_off_s=[rise.off_s for rise in rises],
        rise_on_spread_s=[rise.on_spread_s for rise in rises],
        confirm_s=[metadata.confirm_s.get(label, DEFAULT_CONFIRM_S) for label in labels],
        smoothing_s=[metadata.smoothing_s.get(label, 0.0) for label in labels],
        onset_fits=(
            [metadata.onset_fits.get(label) for label in labels]
            if metadata.window_s in (None, window_s)
            else ()
        ),
        fitted_hop_s=metadata.hop_s,
        background=metadata.background,
        off=metadata.off,
    )


def _frame_facts(
    labels: Sequence[str],
    window_s: float,
    metadata: Metadata,
    frames: FrameDecisions,
    frame_s: float,
) -> ModelFacts:
    half = [frame_s / 2] * len(labels)
    return ModelFacts(
        labels=labels,
        window_s=window_s,
        onset_thresholds=[frames.onset_threshold(label) for label in labels],
        rise_on_s=half,
        rise_off_s=half,
        rise_on_spread_s=half,
        confirm_s=[frames.confirm_s.get(label, DEFAULT_FRAME_CONFIRM_S) for label in labels],
        smoothing_s=[frames.smoothing_s.get(label, 0.0) for label in labels],
        hold_s=[frames.hold_s.get(label, DEFAULT_HOLD_S) for label in labels],
        background=metadata.background,
        off=metadata.off,
        frames=FrameSteps(frame_s, frames.delay_s),
    )


def resolve_parameters(
    detection: DetectionSettings, facts: ModelFacts, hop_s: float
) -> DecisionParameters:
    """Return what `detection` means for this checkpoint and hop.

    If frames decide, frames are counted instead of windows.

    Raises:
        UsageError: a class the checkpoint does not have, or a value that no sound can reach.
    """
    frame_s = facts.frames.frame_s if facts.frames else None
    step_s, seen_s = frame_s or hop_s, frame_s or facts.window_s
    by_class = _match_classes(detection.classes, facts.labels)
    chosen = [by_class.get(label, ClassSettings()) for label in facts.labels]

    def column(name: str, from_checkpoint: Sequence[float] | None = None) -> list[float]:
        default = getattr(detection.defaults, name)
        return [
            _first(
                getattr(settings, name),
                default,
                from_checkpoint[index] if from_checkpoint else None,
            )
            for index, settings in enumerate(chosen)
        ]

    def samples(name: str, from_checkpoint: Sequence[float] | None = None) -> npt.NDArray[np.int64]:
        values = column(name, from_checkpoint)
        return np.array([seconds_to_samples(value) for value in values], np.int64)

    onset = np.array(column("onset_threshold", facts.onset_thresholds), np.float32)
    # a checkpoint may have been calibrated with a longer hop than it is used with
    longest_s = MAX_CONFIRM_HOPS * step_s
    confirm_s = column("confirm_s", [min(value, longest_s) for value in facts.confirm_s])
    if max(confirm_s, default=0.0) > longest_s:
        raise UsageError(
            f"detection: confirm_s: expected at most {longest_s:g} s "
            f"at a hop of {step_s:g} s, got {max(confirm_s):g}"
        )
    own_smoothing_s = facts.smoothing_s or [0.0] * len(facts.labels)
    smoothing_s = column("smoothing_s", own_smoothing_s)
    confirm_hops = np.array([hops_of(seconds, step_s) for seconds in confirm_s], np.int64)
    return DecisionParameters(
        labels=tuple(facts.labels),
        geometry=_geometry(facts, hop_s),
        ema_alpha=np.array([ema_alpha(seconds, step_s) for seconds in smoothing_s]),
        is_enabled=np.array(
            [
                label not in facts.background
                and (label not in facts.off if settings.enabled is None else settings.enabled)
                for settings, label in zip(chosen, facts.labels, strict=True)
            ]
        ),
        onset_threshold=onset,
        offset_threshold=offset_thresholds(onset),
        confirm_hits=np.array([hits_of(hops) for hops in confirm_hops], np.int64),
        confirm_hops=confirm_hops,
        hold=samples("hold_s", facts.hold_s or [DEFAULT_HOLD_S] * len(facts.labels)),
        min_duration=samples("min_duration_s"),
        refractory=samples("refractory_s"),
        max_duration=samples("max_duration_s"),
        rise_on=_rise(facts.rise_on_s, seen_s),
        rise_off=_rise(facts.rise_off_s, seen_s),
        rise_on_spread=_rise(facts.rise_on_spread_s, seen_s),
        onset_fits=OnsetFits.of(_fits(facts, hop_s, np.equal(smoothing_s, own_smoothing_s)), onset),
    )


def _geometry(facts: ModelFacts, hop_s: float) -> WindowGeometry:
    hop = seconds_to_samples(hop_s)
    if facts.frames is None:
        return WindowGeometry(seconds_to_samples(facts.window_s), hop)
    frame = seconds_to_samples(facts.frames.frame_s)
    return WindowGeometry(
        window=frame, hop=frame, delay=seconds_to_samples(facts.frames.delay_s), window_hop=hop
    )


def _fits(
    facts: ModelFacts, hop_s: float, is_as_smooth: npt.NDArray[np.bool_]
) -> Sequence[StoredOnsetFit | None]:
    """Return the fits in use: none if the hop or the smoothing differs from those fitted."""
    if not facts.onset_fits or facts.fitted_hop_s != hop_s:
        return [None] * len(facts.labels)
    return [fit if own else None for fit, own in zip(facts.onset_fits, is_as_smooth, strict=True)]


def _match_classes(
    classes: Mapping[str, ClassSettings], labels: Sequence[str]
) -> dict[str, ClassSettings]:
    matched = {}
    for name, settings in classes.items():
        label = find_label(name, labels)
        if label is None:
            raise UsageError(
                f"detection.classes: expected a class of the model, got {name!r}"
                f"{did_you_mean(name, labels)}"
            )
        matched[label] = settings
    return matched


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def offset_thresholds(onset: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the scores below which events with these onset thresholds may end."""
    offset: npt.NDArray[np.float32] = np.maximum(onset - OFFSET_DROP, OFFSET_RATIO * onset)
    return offset.astype(np.float32)


def ema_alpha(smoothing_s: float, hop_s: float) -> np.float32:
    """Return the weight of the newest window for a time constant; 1 without smoothing."""
    return np.float32(1.0 if smoothing_s == 0 else -math.expm1(-hop_s / smoothing_s))


def hops_of(seconds: float, hop_s: float) -> int:
    """Return how many windows a span holds, at least one."""
    # the tolerance makes 0.75 s at a hop of 0.25 s three hops, despite rounding of floats
    return max(1, math.ceil(seconds / hop_s - 1e-6))


def hits_of(confirm_hops: int) -> int:
    """Return how many of `confirm_hops` windows must be above the onset threshold."""
    return max(1, math.ceil(CONFIRM_RATIO * confirm_hops))


def _rise(seconds: Sequence[float], window_s: float) -> npt.NDArray[np.int64]:
    return np.array([seconds_to_samples(min(value, window_s)) for value in seconds], np.int64)
