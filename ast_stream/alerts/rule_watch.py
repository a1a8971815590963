"""Rule files of the alerts process: found, read, and read again when they change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from ast_stream.alerts.actions.registry import kinds_by_action, used_without_rules
from ast_stream.alerts.detector import model_facts
from ast_stream.alerts.rules.compile import load_rules
from ast_stream.alerts.rules.lint import notification_lints
from ast_stream.alerts.rules.problems import RuleProblem
from ast_stream.alerts.rules.rule import RuleSet
from ast_stream.errors import CheckpointError, ConfigError, Problem
from ast_stream.settings.load import LoadedSettings

LOOK_EVERY_S = 2.0

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
        self._looked_s = now_s()
        self._seen = self._signature()

    def load(self) -> RuleSet:
        """Return the rules.

        Raises:
            ConfigError: they cannot be used; every problem with its place.
        """
        self._seen = self._signature()
        return load_rules(self._paths, labels=self._labels, actions=self._alerts.actions)

    def warnings(self, rules: RuleSet) -> list[RuleProblem]:
        """Return which of the rules tell nobody, and by which actions nobody is told."""
        kinds, used = kinds_by_action(self._alerts.actions), used_without_rules(self._alerts)
        return notification_lints(rules, kinds, used)

    def have_changed(self) -> bool:
        """Tell whether a file is another one than at the last `load`; looks every 2 s."""
        now_s = self._now_s()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = now_s
        return self._signature() != self._seen

    def reload(self) -> RuleSet | None:
        """Return the rules as they are now, or None and say why they cannot be used."""
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
        for one in self.warnings(rules):
            logger.warning("%s", one)

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stat(path) for path in self._paths)


def _labels(loaded: LoadedSettings) -> tuple[str, ...] | None:
    try:
        return model_facts(loaded.settings.model).labels
    except CheckpointError as error:
        raise ConfigError([loaded.problem(("model", "checkpoint"), str(error))]) from error


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # a ValueError: a name with NUL in it
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
