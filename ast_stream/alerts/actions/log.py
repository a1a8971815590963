"""The action `log`: a line in the log of the alerts process."""

from __future__ import annotations

import logging

from ast_stream.alerts.actions.base import ActionRunner, Delivered, Outcome
from ast_stream.alerts.notification import Notification
from ast_stream.settings.alerts import LogAction

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

logger = logging.getLogger(__name__)


class LogRunner(ActionRunner):
    """Writes title and text as one line."""

    def __init__(self, name: str, settings: LogAction) -> None:
        super().__init__(name, settings)
        self._level = _LEVELS[settings.level]

    def deliver(self, notification: Notification) -> Outcome:
        """Write one line."""
        alert = notification.alert
        extra = {"alert_id": alert.id, "severity": alert.severity}
        logger.log(self._level, "%s: %s", notification.title, notification.text, extra=extra)
        return Delivered()


RUNNER = LogRunner
