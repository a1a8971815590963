"""The alerts process's own feed: alerts, and how the process is."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter

from ast_stream.alerts.actions.base import ActionRunner, Delivered, Outcome
from ast_stream.alerts.notification import Notification
from ast_stream.messages.alert import Alert
from ast_stream.messages.feed import Content, Scores16
from ast_stream.transport.feed import FeedPublisher
from ast_stream.transport.sockets import FEED_HWM_MESSAGES, Sockets


class SharedPublisher(FeedPublisher):
    """A publisher for two threads: alerts come from their delivery, the status from the loop."""

    def __init__(self, sockets: Sockets, endpoint: str) -> None:
        pub = sockets.bind("pub", endpoint, FEED_HWM_MESSAGES)
        super().__init__(pub, None, secrets.token_hex(8), time.time_ns)
        self._lock = threading.Lock()

    def publish(self, content: Content, scores: Scores16 | None = None) -> None:
        """Publish one message at a time, whole."""
        with self._lock:
            super().publish(content, scores)


class FeedRunner(ActionRunner):
    """Publishes alerts on the process's own PUB; one of the actions, so none is forgotten.

    Attributes:
        published: alerts published, by rule and severity.
    """

    def __init__(self, publisher: FeedPublisher) -> None:
        super().__init__("feed", None)
        self.published: Counter[tuple[str, str]] = Counter()
        self._publisher = publisher

    def deliver(self, notification: Notification) -> Outcome:
        """Publish one alert."""
        self.published[notification.rule, notification.severity] += 1
        self._publisher.publish(Alert.from_json(notification.alert, "alert"))
        return Delivered()
