"""The action `apprise`: chat, mail and push services by the apprise library (extra `notify`)."""

from __future__ import annotations

import logging
import threading
from typing import Any

from ast_stream.alerts.actions.base import (
    Delivered,
    Failed,
    Notification,
    Outcome,
    read_secret,
)
from ast_stream.errors import StartupError
from ast_stream.settings.alert_schema import AppriseAction

_TYPES = {"resolved": "success", "heartbeat": "info"}
_LOUD = ("high", "critical")


class AppriseRunner:
    """Notifies all URLs of one action; they are never logged, for they hold secrets.

    Raises:
        StartupError: the library is missing, or a URL is none; the line is named, not the URL.
    """

    def __init__(self, name: str, settings: AppriseAction) -> None:
        try:
            import apprise
        except ImportError as error:
            raise StartupError(
                f"action {name}: apprise is not installed: pip install 'ast-stream[notify]'"
            ) from error
        logging.getLogger("apprise").disabled = True  # it writes URLs into the log
        text = read_secret(f"action {name}", settings.urls_file, settings.urls_env) or ""
        self._service: Any = apprise.Apprise()
        for number, line in enumerate(text.splitlines(), 1):
            url = line.strip()
            if url and not url.startswith("#") and not self._service.add(url):
                raise StartupError(f"action {name}: line {number} is no URL that apprise knows")
        if not len(self._service):
            raise StartupError(f"action {name}: expected at least one apprise URL, got none")
        self._timeout_s = settings.timeout_s
        self._worker: threading.Thread | None = None

    def deliver(self, notification: Notification) -> Outcome:
        """Notify, in a thread of its own: the library has no time limit that covers everything."""
        if self._worker is not None and self._worker.is_alive():
            return Failed("the service has not answered the message before")
        answers: list[bool | Exception] = []
        self._worker = threading.Thread(
            target=self._notify, args=(notification, answers), name="apprise", daemon=True
        )
        self._worker.start()
        self._worker.join(self._timeout_s)
        if not answers:
            return Failed(f"no answer within {self._timeout_s:g} s")
        match answers[0]:
            case True:
                return Delivered()
            case Exception() as error:
                return Failed(f"apprise failed: {type(error).__name__}")
            case _:
                return Failed("a service refused the message or was not there")

    def close(self) -> None:
        """Have nothing to let go of."""

    def _notify(self, notification: Notification, answers: list[bool | Exception]) -> None:
        level = "failure" if notification.severity in _LOUD else "warning"
        try:
            answer = self._service.notify(
                title=notification.title,
                body=notification.text,
                notify_type=_TYPES.get(notification.kind, level),
                body_format="text",
                interpret_escapes=False,
            )
        except Exception as error:  # plug-ins for a hundred services raise what they like
            answers.append(error)
        else:
            answers.append(bool(answer))
