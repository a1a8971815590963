"""The rules in force, and how others take their place while the process runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ast_stream.alerts.actions.base import LiveSensors
from ast_stream.alerts.detector import (
    DetectionTiming,
    decision_parameters,
    detection_timing,
    model_facts,
)
from ast_stream.alerts.loop import AlertLoop
from ast_stream.alerts.rule_watch import RuleFiles
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.alerts.watch import exposed_entities
from ast_stream.errors import AstStreamError
from ast_stream.settings.check import check_against_model
from ast_stream.settings.load import LoadedSettings

logger = logging.getLogger(__name__)


def timing_in_force(loaded: LoadedSettings) -> DetectionTiming:
    """Return how late the configured detector tells of sounds, by its measured rise times.

    Raises:
        ConfigError: detection settings that the model cannot fulfil.
        CheckpointError: the checkpoint's measurements cannot be read.
    """
    settings = loaded.settings
    known, hop_s = model_facts(settings.model), settings.model.hop_s
    if known.labels is not None:
        check_against_model(loaded, known.labels, hop_s=hop_s, window_s=known.window_s)
    return detection_timing(decision_parameters(known, settings.detection, hop_s))


class RulesInForce:
    """Puts other rules and another timing in force: validate, then swap.

    Args:
        rules, timing: with which `loop` was made.
        sensors: show the classes that rules name.
    """

    def __init__(
        self,
        loaded: LoadedSettings,
        files: RuleFiles,
        rules: RuleSet,
        timing: DetectionTiming,
        loop: AlertLoop,
        sensors: Sequence[LiveSensors],
    ) -> None:
        self._settings = loaded.settings
        self._files = files
        self._rules = rules
        self._timing = timing
        self._loop = loop
        self._sensors = sensors

    def __len__(self) -> int:
        return len(self._rules.rules)

    def look(self) -> None:
        """Use the rule files if they have changed and are right."""
        if self._files.have_changed() and (changed := self._files.reload()) is not None:
            try:
                self._put(changed)
            except AstStreamError as error:
                logger.error("the rules in force stay as they were: %s", error)

    def use(self, new: LoadedSettings) -> None:
        """Use what the rule files say now, and the timing of other detection settings.

        Raises:
            AstStreamError: either is wrong; everything stays as it was.
        """
        model = self._settings.model  # another one needs a restart
        kept = new.settings.model_copy(update={"model": model})
        timing = timing_in_force(LoadedSettings(kept, new.lines, new.file))
        rules = self._files.load()
        self._timing = timing
        self._put(rules)

    def _put(self, rules: RuleSet) -> None:
        # first: if it raises, nothing has changed
        shown = exposed_entities(self._settings, rules)
        self._rules = rules
        self._loop.replace_rules(rules, self._timing)
        for one in self._sensors:
            try:
                one.expose(shown)
            except Exception:  # one boundary: a broker's library must not end the evaluation
                logger.exception("the live sensors of a broker stay as they were")
