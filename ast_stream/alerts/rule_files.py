"""The rule files in force: found, read, and read again when they change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_stream.alerts.actions.base import Entities, LiveSensors
from ast_stream.alerts.loop import AlertLoop
from ast_stream.alerts.model_facts import (
    DetectionTiming,
    decision_parameters,
    detection_timing,
    model_facts,
)
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.rules.lint import notification_lints
from ast_stream.alerts.rules.problems import RuleProblem
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.errors import AstStreamError, CheckpointError, ConfigError, Problem
from ast_stream.labels import slug
from ast_stream.runtime.files import file_version
from ast_stream.settings.check import check_against_model
from ast_stream.settings.load import LoadedSettings
from ast_stream.settings.schema import Settings

POLL_EVERY_S = 2.0

logger = logging.getLogger(__name__)


class RuleFiles:
    """The rule files that a configuration names, relative ones beside it.

    Args:
        knows_model: class names are checked against the configured checkpoint.
    """

    def __init__(
        self,
        loaded: LoadedSettings,
        now_s: Callable[[], float] = time.monotonic,
        knows_model: bool = True,
    ) -> None:
        folder = Path(loaded.file).parent
        self._paths = [folder / name for name in loaded.settings.alerts.rules]
        if not self._paths:
            text = "expected at least one rule file for the alerts process, got none"
            raise ConfigError([Problem(loaded.file, None, "alerts.rules", text)])
        self._labels = _labels(loaded) if knows_model else None
        self._alerts = loaded.settings.alerts
        self._now_s = now_s
        self._polled_s = now_s()
        self._loaded_signature = self._signature()

    def load(self) -> RuleSet:
        """Return the rules.

        Raises:
            ConfigError: they cannot be used; every problem with its place.
        """
        self._loaded_signature = self._signature()
        return load_rules(self._paths, labels=self._labels, actions=self._alerts.actions)

    def warnings(self, rules: RuleSet) -> list[RuleProblem]:
        """Return which rules notify nobody, and which actions are not used."""
        return notification_lints(rules, self._alerts)

    def have_changed(self) -> bool:
        """Return whether a file has changed since the last `load`; looks every 2 s."""
        now_s = self._now_s()
        if now_s - self._polled_s < POLL_EVERY_S:
            return False
        self._polled_s = now_s
        return self._signature() != self._loaded_signature

    def reload(self) -> RuleSet | None:
        """Return the rules as they are now, or log why they cannot be used and return None."""
        try:
            rules = self.load()
        except ConfigError as error:
            for problem in error.problems:
                logger.error("%s", problem)
            logger.error("the rules in force stay as they were")
            return None
        except Exception as error:  # a fault of ours must not end a process that works
            names = ", ".join(str(path) for path in self._paths)
            text = "the rules in force stay as they were: %s: %s: %s"
            logger.exception(text, names, type(error).__name__, error)
            return None
        logger.info("%s rules are in force now", len(rules.rules))
        self.log_warnings(rules)
        return rules

    def log_warnings(self, rules: RuleSet) -> None:
        """Log what `warnings` returns."""
        for warning in self.warnings(rules):
            logger.warning("%s", warning)

    def _signature(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(file_version(path) for path in self._paths)


def configured_timing(loaded: LoadedSettings) -> DetectionTiming:
    """Return how late the configured detector reports sounds, by its measured rise times.

    Raises:
        ConfigError: detection settings that the model cannot fulfil.
        CheckpointError: the checkpoint's measurements cannot be read.
    """
    settings = loaded.settings
    known, hop_s = model_facts(settings.model), settings.model.hop_s
    if known.labels is not None:
        check_against_model(
            loaded, known.labels, hop_s=hop_s, window_s=known.window_s, frame_s=known.frame_s
        )
    return detection_timing(decision_parameters(known, settings.detection, hop_s))


@dataclass
class RulesInForce:
    """Puts other rules and another timing in force: validate, then swap.

    Args:
        rules, timing: with which `loop` was made.
        sensors: show the classes that rules name.
    """

    settings: Settings
    files: RuleFiles
    rules: RuleSet
    timing: DetectionTiming
    loop: AlertLoop
    sensors: Sequence[LiveSensors]

    def __len__(self) -> int:
        return len(self.rules.rules)

    @property
    def names(self) -> set[str]:
        """Names of the rules."""
        return {rule.name for rule in self.rules.rules}

    def poll(self) -> None:
        """Put the rule files in force if they have changed and are valid."""
        if self.files.have_changed() and (changed := self.files.reload()) is not None:
            try:
                self._put(changed)
            except AstStreamError as error:
                logger.error("the rules in force stay as they were: %s", error)

    def apply(self, new: LoadedSettings) -> None:
        """Put the rule files as they are now in force, with the timing of the new settings.

        Raises:
            AstStreamError: either is wrong; everything stays as it was.
        """
        model = self.settings.model  # another one needs a restart
        streams = new.settings.streams
        kept = new.settings.model_copy(update={"model": model})
        timing = configured_timing(LoadedSettings(kept, new.lines, new.file))
        rules = self.files.load()
        self.timing = timing
        self.settings = self.settings.model_copy(update={"streams": streams})
        self._put(rules)

    def _put(self, rules: RuleSet) -> None:
        # first: if it raises, nothing has changed
        shown = exposed_entities(self.settings, rules)
        self.rules = rules
        self.loop.replace_rules(rules, self.timing)
        for sensors in self.sensors:
            try:
                sensors.expose(shown)
            except Exception:  # one boundary: a broker's library must not end the evaluation
                logger.exception("the live sensors of a broker stay as they were")


def exposed_entities(settings: Settings, rules: RuleSet) -> Entities:
    """Return what is shown live: classes that rules name, not all of a branch or of the model."""
    labels = {slug(label): label for label in model_facts(settings.model).labels or ()}
    named = {
        class_slug: None
        for rule in rules.rules
        for _, match in rule.trigger.matches(rule.settings)
        for name in (*(match.class_ or ()), *(match.any_of or ()))
        for class_slug in (slug(name),)
    }
    return Entities(
        streams=tuple(stream.name for stream in settings.streams),
        classes=tuple(labels.get(name, name) for name in named),
        rules=tuple(rule.name for rule in rules.rules),
    )


def _labels(loaded: LoadedSettings) -> tuple[str, ...] | None:
    try:
        return model_facts(loaded.settings.model).labels
    except CheckpointError as error:
        raise ConfigError([loaded.problem(("model", "checkpoint"), str(error))]) from error
