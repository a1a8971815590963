"""The action `log`: a line in the log of the alerts process."""

from __future__ import annotations

import logging

from ast_stream.alerts.actions.base import Delivered, Notification, Outcome
from ast_stream.settings.alert_schema import LogAction

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

logger = logging.getLogger(__name__)


class LogRunner:
    """Writes title and text as one line."""

    def __init__(self, settings: LogAction) -> None:
        self._level = _LEVELS[settings.level]

    def deliver(self, notification: Notification) -> Outcome:
        """Write one line."""
        extra = {"alert_id": notification.alert["id"], "severity": notification.severity}
        logger.log(self._level, "%s: %s", notification.title, notification.text, extra=extra)
        return Delivered()

    def close(self) -> None:
        """Have nothing to let go of."""
