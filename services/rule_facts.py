"""What rule commands must know of a checkpoint: its classes, thresholds and delays; no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ast_stream
from ast_stream.alerts.lints import DetectorFacts
from ast_stream.alerts.model import DetectionTiming
from ast_stream.detect.parameters import ModelFacts, resolve_parameters
from ast_stream.errors import UsageError
from ast_stream.labels import slug
from ast_stream.model.metadata import Metadata, read_metadata
from ast_stream.settings.load import load_settings
from ast_stream.settings.schema import DetectionSettings, ModelSettings
from ast_stream.units import samples_to_seconds
from services.alert_rules import model_facts


@dataclass(frozen=True)
class RuleContext:
    """What rules are looked at with.

    Attributes:
        labels: classes of the model; None: not known, names are taken as they are.
        facts: of the detector; None: not known.
        timing: how late events are.
        actions: names of the configured actions; None: there is no configuration.
    """

    model: ModelSettings
    detection: DetectionSettings
    labels: tuple[str, ...] | None
    facts: DetectorFacts | None
    timing: DetectionTiming
    actions: tuple[str, ...] | None


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
    actions = None if settings is None else tuple(settings.alerts.actions)
    if checkpoint is not None:
        model = model.model_copy(update={"checkpoint": checkpoint})
    if labels_file is not None:
        listed = _read_labels(labels_file)
        return RuleContext(model, detection, listed, None, DetectionTiming(), actions)
    known = model_facts(model)
    timing = DetectionTiming.of(
        known.window_s,
        model.hop_s,
        confirm_s=detection.defaults.confirm_s,
        hold_s=detection.defaults.hold_s,
    )
    facts = None
    if known.labels is not None:
        metadata = read_metadata(_folder(model.checkpoint))
        facts = detector_facts(known.labels, known.window_s, model.hop_s, metadata, detection)
    elif checkpoint is not None:
        raise UsageError(f"rules: {checkpoint}: expected a folder with a checkpoint, got none")
    return RuleContext(model, detection, known.labels, facts, timing, actions)


def detector_facts(
    labels: Sequence[str],
    window_s: float,
    hop_s: float,
    metadata: Metadata,
    detection: DetectionSettings,
) -> DetectorFacts:
    """Return what the detector makes of a checkpoint with these settings."""
    rises = [metadata.rise(label, window_s) for label in labels]
    facts = ModelFacts(
        labels=labels,
        window_s=window_s,
        onset_thresholds=[metadata.onset_threshold(label) for label in labels],
        rise_on_s=[rise.on_s for rise in rises],
        rise_off_s=[rise.off_s for rise in rises],
        background=metadata.background,
    )
    parameters = resolve_parameters(detection, facts, hop_s)
    slugs = [slug(label) for label in labels]
    # a sound is seen until the window holds less than rise_off of it, and its event is held on
    apart = parameters.geometry.window - parameters.rise_off + parameters.hold
    return DetectorFacts(
        thresholds={
            one: round(float(parameters.onset_threshold[index]), 4)
            for index, one in enumerate(slugs)
        },
        silent=[one for index, one in enumerate(slugs) if not parameters.is_enabled[index]],
        window_s=window_s,
        apart_s=math.floor(samples_to_seconds(int(apart.max())) * 100) / 100,
    )


def _folder(checkpoint: str) -> Path:
    if checkpoint == "bundled":
        return Path(ast_stream.__file__).parent / "model" / "bundled"
    return Path(checkpoint).expanduser()


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"rules: --labels: {path} cannot be read: {error}") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if not labels:
        raise UsageError(f"rules: --labels: expected one label on each line of {path}, got none")
    return labels
