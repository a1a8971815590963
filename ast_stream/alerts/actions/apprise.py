"""The action `apprise`: chat, mail and push services by the apprise library (extra `notify`)."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

from ast_stream.alerts.actions.base import (
    ActionRunner,
    Delivered,
    Failed,
    Outcome,
)
from ast_stream.alerts.notification import Notification
from ast_stream.errors import StartupError
from ast_stream.runtime.credentials import read_secret
from ast_stream.settings.alerts import AppriseAction

_TYPES = {"resolved": "success", "heartbeat": "info"}
_URGENT = ("high", "critical")
MAX_AT_ONCE = 4  # messages that a service has not answered yet


class AppriseRunner(ActionRunner):
    """Notifies all URLs of one action; they are never logged, for they hold secrets.

    Raises:
        StartupError: the library is missing, or a URL is none; the line is named, not the URL.
    """

    def __init__(self, name: str, settings: AppriseAction) -> None:
        super().__init__(name, settings)
        try:
            import apprise
        except ImportError as error:
            raise StartupError(
                f"action {name}: apprise is not installed: pip install 'ast-stream[notify]'"
            ) from error
        logging.getLogger("apprise").disabled = True  # it writes URLs into the log
        text = read_secret(f"action {name}", settings.urls_file, settings.urls_env) or ""
        urls = [line.strip() for line in text.splitlines()]
        # a set of plug-ins for each message at a time: they need not be thread-safe
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(MAX_AT_ONCE):
            self._free.put(_services(name, urls, apprise.Apprise()))
        self._timeout_s = settings.timeout_s

    def deliver(self, notification: Notification) -> Outcome:
        """Notify, in a thread of its own: the library has no time limit that covers everything."""
        try:
            services = self._free.get_nowait()
        except queue.Empty:
            text = f"the last {MAX_AT_ONCE} messages are not answered yet"
            return Failed(text, is_down=True)
        answers: list[bool | Exception] = []
        work = threading.Thread(
            target=self._notify,
            args=(services, notification, answers),
            name="apprise",
            daemon=True,
        )
        work.start()
        work.join(self._timeout_s)
        if not answers:
            return Failed(f"no answer within {self._timeout_s:g} s", is_down=True)
        match answers[0]:
            case True:
                return Delivered()
            case Exception() as error:
                return Failed(f"apprise failed: {type(error).__name__}")
            case _:
                return Failed("a service refused the message or was not there", is_down=True)

    def _notify(
        self, services: Any, notification: Notification, answers: list[bool | Exception]
    ) -> None:
        level = "failure" if notification.alert.severity in _URGENT else "warning"
        try:
            answer = services.notify(
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
        finally:
            self._free.put(services)


def _services(name: str, urls: list[str], services: Any) -> Any:
    """Add `urls`, without empty lines and comments, to the library's `services`; return those."""
    for number, url in enumerate(urls, 1):
        if url and not url.startswith("#") and not services.add(url):
            raise StartupError(f"action {name}: line {number} is no URL that apprise knows")
    if not len(services):
        raise StartupError(f"action {name}: expected at least one apprise URL, got none")
    return services


RUNNER = AppriseRunner
