"""A sign of life to an outside service, only while a sound could still become an alert."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from ast_stream.alerts.actions.base import ActionRunner, Delivered, Failed, Outcome, describe_error
from ast_stream.alerts.actions.registry import DeferredRunner, create_runner
from ast_stream.alerts.notification import Notification
from ast_stream.settings.alerts import AlertSettings

logger = logging.getLogger(__name__)


class HeartbeatThread(threading.Thread):
    """Notifies by one action each interval; past the outbox, for a late one would be a lie.

    Args:
        runner: its own, so that it never waits for alerts.
        is_well: whether the worker is heard and what comes of it is saved.
    """

    def __init__(
        self,
        runner: ActionRunner,
        interval_s: float,
        is_well: Callable[[], bool],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._runner = runner
        self._interval_s = interval_s
        self._is_well = is_well
        self._now_ns = now_ns
        self._stopped = threading.Event()

    @classmethod
    def of(cls, settings: AlertSettings, is_well: Callable[[], bool]) -> HeartbeatThread | None:
        """Return the thread that settings ask for, if they do."""
        heartbeat = settings.heartbeat
        if heartbeat is None:
            return None
        action = settings.actions[heartbeat.action]
        make = partial(create_runner, heartbeat.action, action)
        try:
            runner = make()
        except Exception as error:  # one boundary, as for alerts
            trouble = describe_error(heartbeat.action, error)
            runner = DeferredRunner(heartbeat.action, make, trouble)
        return cls(runner, heartbeat.interval_s, is_well)

    def run(self) -> None:
        """Beat until `stop`."""
        while not self._stopped.wait(self._interval_s):
            self.beat()

    def beat(self) -> None:
        """Notify once if all is well."""
        if not self._is_well():
            logger.warning("no heartbeat: the worker is silent, or alerts cannot be saved")
            return
        try:
            outcome: Outcome = self._runner.deliver(_heartbeat(self._now_ns()))
        except Exception as error:  # one boundary: a fault in the action must not end the beats
            logger.exception("the heartbeat's action failed in a way it should not")
            outcome = Failed(f"internal error: {type(error).__name__}")
        if not isinstance(outcome, Delivered):
            logger.warning("heartbeat not delivered: %s", outcome.reason)

    def stop(self) -> None:
        """End; a beat under way is left."""
        self._stopped.set()


def _heartbeat(now_ns: int) -> Notification:
    alert = {
        "id": "heartbeat",
        "rule": "heartbeat",
        "severity": "informational",
        "group": {},
        "annotations": {"summary": "ast-stream is listening"},
    }
    return Notification(f"heartbeat.{now_ns}", "heartbeat", now_ns, alert)
