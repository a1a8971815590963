"""What rules must know of a checkpoint: its classes, thresholds and delays; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ast_stream.alerts.actions.registry import kinds_by_action, used_without_rules
from ast_stream.alerts.model import DetectionTiming
from ast_stream.alerts.rule_watch import ModelFacts, model_facts
from ast_stream.alerts.rules.detector_lint import DetectorFacts
from ast_stream.detect.facts import model_facts as checkpoint_facts
from ast_stream.detect.parameters import DecisionParameters, resolve_parameters
from ast_stream.errors import UsageError
from ast_stream.labels import problem_with_labels, slug
from ast_stream.settings.alert_schema import AlertSettings
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import DEFAULT_CONFIRM_S, DetectionSettings, ModelSettings
from ast_stream.units import NS_PER_SECOND, SAMPLE_RATE, samples_to_seconds

_ANY_OTHER = "(any other class)"


@dataclass(frozen=True)
class RuleContext:
    """What rules are looked at with.

    Attributes:
        labels: classes of the model; None: not known, names are taken as they are.
        facts: of the detector; None: not known.
        timing: how late events are.
        confirm_s: the longest span in which any class is confirmed.
        alerts: as configured; None: there is no configuration.
    """

    model: ModelSettings
    detection: DetectionSettings
    labels: tuple[str, ...] | None
    facts: DetectorFacts | None
    timing: DetectionTiming
    confirm_s: float
    alerts: AlertSettings | None

    @property
    def actions(self) -> Mapping[str, Sequence[str]] | None:
        """What each configured action is on for; None: there is no configuration."""
        return None if self.alerts is None else kinds_by_action(self.alerts.actions)

    @property
    def used_actions(self) -> set[str]:
        """Actions that do something although no rule names them."""
        return set() if self.alerts is None else used_without_rules(self.alerts)


def rule_context(
    config: Path | None, checkpoint: str | None, labels_file: Path | None
) -> RuleContext:
    """Return what the command line names: a configuration, a checkpoint, a list of labels.

    Raises:
        ConfigError, CheckpointError, UsageError: something of it cannot be used.
    """
    settings = None if config is None else load_settings(config)
    model = ModelSettings() if settings is None else settings.model
    detection = DetectionSettings() if settings is None else settings.detection
    alerts = None if settings is None else settings.alerts
    if checkpoint is not None:
        model = model.model_copy(update={"checkpoint": checkpoint})
    if labels_file is not None:
        listed = _read_labels(labels_file)
        confirm_s = detection.defaults.confirm_s or DEFAULT_CONFIRM_S
        return RuleContext(model, detection, listed, None, DetectionTiming(), confirm_s, alerts)
    known = model_facts(model)
    if known.labels is None and checkpoint is not None:
        raise UsageError(f"rules: {checkpoint}: expected a folder with a checkpoint, got none")
    parameters = decision_parameters(known, detection, model.hop_s)
    facts = None if known.labels is None else detector_facts(parameters)
    return RuleContext(
        model,
        detection,
        known.labels,
        facts,
        detection_timing(parameters),
        samples_to_seconds(int(parameters.confirm_hops.max()) * parameters.geometry.hop),
        alerts,
    )


def decision_parameters(
    known: ModelFacts, detection: DetectionSettings, hop_s: float
) -> DecisionParameters:
    """Return what decides on the events of a checkpoint, as the worker has it.

    Of a checkpoint whose classes are not known: of the classes that the settings name, and of one
    that stands for all others.

    Raises:
        UsageError: settings that this checkpoint cannot fulfil.
    """
    labels = known.labels or (*detection.classes, _ANY_OTHER)
    facts = checkpoint_facts(labels, known.window_s, known.metadata)
    return resolve_parameters(detection, facts, hop_s)


def detection_timing(parameters: DecisionParameters) -> DetectionTiming:
    """Return how late the begin and the end of each class are told, at most.

    An onset is set half a hop and the rise before the first window that saw the sound, see
    `ast_stream.detect.boundaries`; the begin comes when the sound is confirmed and, where
    `min_duration_s` asks for it, long enough, which may be seen only after a pause. An offset is
    set as long before the first window that no longer sees it; the end comes after the hold.
    """
    p, hop = parameters, parameters.geometry.hop
    click = np.maximum(0, p.geometry.window - p.rise_on - p.rise_off)  # seen of a mere click
    held = _whole_hops(p.hold, hop)
    long_enough = np.where(p.min_duration > 0, _whole_hops(click + p.min_duration, hop) + held, 0)
    latency = p.longest_rise + hop // 2 + np.maximum(p.confirm_hops * hop, long_enough)
    smear = p.geometry.window - p.rise_off + hop // 2 + held
    heard = np.flatnonzero(p.is_enabled) if p.is_enabled.any() else np.arange(len(p.labels))
    return DetectionTiming(
        _samples_to_ns(int(latency[heard].max())),
        _samples_to_ns(int(smear[heard].max())),
        {
            slug(label): (_samples_to_ns(int(latency[n])), _samples_to_ns(int(smear[n])))
            for n, label in enumerate(p.labels)
            if label != _ANY_OTHER
        },
    )


def detector_facts(parameters: DecisionParameters) -> DetectorFacts:
    """Return what lints need of the detector's settings."""
    p, slugs = parameters, [slug(label) for label in parameters.labels]
    # a sound is seen until the window holds less than rise_off of it, and its event is held on;
    # one that is shorter than rise_on is not seen, so these lie between onsets
    apart = p.geometry.window - p.rise_off + p.hold + p.refractory
    return DetectorFacts(
        thresholds={
            one: round(float(p.onset_threshold[index]), 4) for index, one in enumerate(slugs)
        },
        silent=[one for index, one in enumerate(slugs) if not p.is_enabled[index]],
        window_s=samples_to_seconds(p.geometry.window),
        hop_s=samples_to_seconds(p.geometry.hop),
        apart_s=_by_class(slugs, apart),
        shortest_s=_by_class(slugs, np.maximum(p.rise_on, p.min_duration)),
        longest_s=_by_class(slugs, p.max_duration),
    )


def _by_class(slugs: Sequence[str], samples: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return seconds by class, rounded down to 10 ms so that nothing is claimed too much."""
    return {
        one: math.floor(samples_to_seconds(int(value)) * 100 + 1e-6) / 100
        for one, value in zip(slugs, samples, strict=True)
    }


def _whole_hops(samples: npt.NDArray[np.int64], hop: int) -> npt.NDArray[np.int64]:
    return -(-samples // hop) * hop


def _samples_to_ns(samples: int) -> int:
    return samples * NS_PER_SECOND // SAMPLE_RATE


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"rules: --labels: {path} cannot be read: {error}") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    problem = problem_with_labels(labels)
    if problem is not None:
        raise UsageError(f"rules: --labels: {path}: {problem}")
    if not labels:
        raise UsageError(f"rules: --labels: expected one label on each line of {path}, got none")
    return labels
