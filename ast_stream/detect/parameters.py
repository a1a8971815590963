"""Detection settings in seconds become per-class arrays in hops and samples, once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ast_stream.detect.boundaries import WindowGeometry
from ast_stream.detect.onset_fits import OnsetFit, OnsetFits
from ast_stream.detect.smoothing import share_of_newest
from ast_stream.errors import UsageError
from ast_stream.labels import did_you_mean, find_label
from ast_stream.settings.schema import MAX_CONFIRM_HOPS, ClassSettings, DetectionSettings
from ast_stream.units import seconds_to_samples

CONFIRM_SHARE = 0.6  # of the windows within confirm_s must be above the onset threshold
OFFSET_DROP = 0.15  # hysteresis: the offset threshold lies this far below the onset threshold,
OFFSET_SHARE = 0.6  # but not below this share of it


@dataclass(frozen=True)
class ModelFacts:
    """What the decision stage must know of a checkpoint; lists follow `labels`.

    Attributes:
        onset_thresholds: where the settings have none.
        rise_on_s, rise_off_s: how much of a sound a window needs to be above the onset threshold,
            and above the offset threshold.
        rise_on_spread_s: how much more or less than `rise_on_s`.
        confirm_s: span in which windows must agree, where the settings have none.
        smoothing_s: time constants over which scores are averaged, where the settings have none;
            empty: 0 for all.
        onset_fits: what the scores say about a rise, None where they do not; empty: of no class.
        fitted_hop_s: the hop that they hold for; the smoothing must be the one above, too.
        background: labels that never make events.
    """

    labels: Sequence[str]
    window_s: float
    onset_thresholds: Sequence[float]
    rise_on_s: Sequence[float]
    rise_off_s: Sequence[float]
    rise_on_spread_s: Sequence[float]
    confirm_s: Sequence[float]
    smoothing_s: Sequence[float] = ()
    onset_fits: Sequence[OnsetFit | None] = ()
    fitted_hop_s: float | None = None
    background: Sequence[str] = ()


@dataclass(frozen=True)
class DecisionParameters:
    """Per-class settings of the decision stage; arrays have shape (n_classes,).

    Attributes:
        share_of_newest: of the newest window in the averages of scores.
    """

    labels: tuple[str, ...]
    geometry: WindowGeometry
    share_of_newest: npt.NDArray[np.float32]
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

    @property
    def longest_rise(self) -> npt.NDArray[np.int64]:
        """How far before the first window that saw a sound its onset may be set, in samples."""
        return np.maximum(self.rise_on, self.onset_fits.longest)

    def describe(self, index: int) -> str:
        """Return one class's effective values as a line for the log."""
        return (
            f"{self.labels[index]}: onset {self.onset_threshold[index]:.3f}, "
            f"offset {self.offset_threshold[index]:.3f}, "
            f"confirm {self.confirm_hits[index]} of {self.confirm_hops[index]} hops"
        )


def resolve_parameters(
    detection: DetectionSettings, facts: ModelFacts, hop_s: float
) -> DecisionParameters:
    """Return what `detection` means for this checkpoint and hop.

    Raises:
        UsageError: a class the checkpoint does not have, or a value that no sound can reach.
    """
    by_class = _match_classes(detection.classes, facts.labels)
    chosen = [by_class.get(label, ClassSettings()) for label in facts.labels]

    def column(name: str, from_checkpoint: Sequence[float] | None = None) -> list[float]:
        default = getattr(detection.defaults, name)
        return [
            _first(getattr(one, name), default, from_checkpoint[index] if from_checkpoint else None)
            for index, one in enumerate(chosen)
        ]

    def samples(name: str) -> npt.NDArray[np.int64]:
        return np.array([seconds_to_samples(value) for value in column(name)], np.int64)

    onset = np.array(column("onset_threshold", facts.onset_thresholds), np.float32)
    # a checkpoint may have been calibrated with a longer hop than it is used with
    longest_s = MAX_CONFIRM_HOPS * hop_s
    confirm_s = column("confirm_s", [min(value, longest_s) for value in facts.confirm_s])
    if max(confirm_s, default=0.0) > longest_s:
        raise UsageError(
            f"detection: confirm_s: expected at most {longest_s:g} s "
            f"at a hop of {hop_s:g} s, got {max(confirm_s):g}"
        )
    own_smoothing_s = facts.smoothing_s or [0.0] * len(facts.labels)
    smoothing_s = column("smoothing_s", own_smoothing_s)
    confirm_hops = np.array([hops_of(seconds, hop_s) for seconds in confirm_s], np.int64)
    return DecisionParameters(
        labels=tuple(facts.labels),
        geometry=WindowGeometry(seconds_to_samples(facts.window_s), seconds_to_samples(hop_s)),
        share_of_newest=np.array([share_of_newest(one, hop_s) for one in smoothing_s]),
        is_enabled=np.array(
            [
                one.enabled and label not in facts.background
                for one, label in zip(chosen, facts.labels, strict=True)
            ]
        ),
        onset_threshold=onset,
        offset_threshold=np.maximum(onset - OFFSET_DROP, OFFSET_SHARE * onset).astype(np.float32),
        confirm_hits=np.array([hits_of(hops) for hops in confirm_hops], np.int64),
        confirm_hops=confirm_hops,
        hold=samples("hold_s"),
        min_duration=samples("min_duration_s"),
        refractory=samples("refractory_s"),
        max_duration=samples("max_duration_s"),
        rise_on=_rise(facts.rise_on_s, facts.window_s),
        rise_off=_rise(facts.rise_off_s, facts.window_s),
        rise_on_spread=_rise(facts.rise_on_spread_s, facts.window_s),
        onset_fits=OnsetFits.of(_fits(facts, hop_s, np.equal(smoothing_s, own_smoothing_s)), onset),
    )


def _fits(
    facts: ModelFacts, hop_s: float, is_as_smooth: npt.NDArray[np.bool_]
) -> Sequence[OnsetFit | None]:
    """Return the fits in use: none where windows or scores follow each other in another way."""
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


def hops_of(seconds: float, hop_s: float) -> int:
    """Return how many windows a span holds, at least one."""
    # the tolerance keeps 0.75 s at a hop of 0.25 s at three hops, whatever floats make of it
    return max(1, math.ceil(seconds / hop_s - 1e-6))


def hits_of(confirm_hops: int) -> int:
    """Return how many of so many windows must be above the onset threshold."""
    return max(1, math.ceil(CONFIRM_SHARE * confirm_hops))


def _rise(seconds: Sequence[float], window_s: float) -> npt.NDArray[np.int64]:
    return np.array([seconds_to_samples(min(value, window_s)) for value in seconds], np.int64)
