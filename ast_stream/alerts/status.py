"""What the alerts process says about itself: status, metrics, readiness and heartbeat."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from ast_stream.alerts.actions.base import (
    ActionRunner,
    Delivered,
    Failed,
    Outcome,
)
from ast_stream.alerts.actions.registry import DeferredRunner, create_runner
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.notification import Notification, message_alert
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.store import StoreError
from ast_stream.messages.status import AlertsStatus, FailingAction
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.metrics import Family, Metrics, figure
from ast_stream.settings.alerts import AlertSettings
from ast_stream.transport.publisher import FeedPublisher

REPORT_EVERY_S = 1.0

logger = logging.getLogger(__name__)


class StatusReporter:
    """Reports once a second to the service manager, on the process's feed, and to Prometheus.

    Args:
        runners: of all actions; those that cannot be used yet are failing, too.
        published: alerts published, by rule and severity.
        rules_and_worker: returns the number of rules, and whether the worker is heard.
    """

    def __init__(
        self,
        notifier: Notifier,
        metrics: Metrics,
        publisher: FeedPublisher,
        outbox: Outbox,
        runners: Mapping[str, ActionRunner],
        published: Counter[tuple[str, str]],
        rules_and_worker: Callable[[], tuple[int, bool]],
    ) -> None:
        self.notifier = notifier
        self._metrics = metrics
        self._publisher = publisher
        self._outbox = outbox
        self._runners = dict(runners)
        self._published = published
        self._rules_and_worker = rules_and_worker
        self._next_s = float("-inf")
        self._status = "starting"

    def tick(self) -> None:
        """Report if it is time; called after each turn of the loop, and while that waits."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + REPORT_EVERY_S
            self._report()
        self.notifier.turn(lambda: self._status, is_working=True)

    def _report(self) -> None:
        n_rules, hears_worker = self._rules_and_worker()
        pending: dict[str, int] | None = None
        failing: list[FailingAction] = []
        try:
            pending, failing = self._outbox.pending(), self._failing()
        except StoreError:
            pending, failing = None, []
        total = None if pending is None else sum(pending.values())
        waiting = "the outbox cannot be read" if total is None else f"{total} to deliver"
        names = ", ".join(action.action for action in failing)
        failed = f", not delivered by {names}" if names else ""
        unheard = "" if hears_worker else ", waiting for the worker"
        self._status = f"{n_rules} rules, {waiting}{failed}{unheard}"
        status = AlertsStatus(
            n_rules=n_rules,
            hears_worker=hears_worker,
            pending=total,
            disk=self._outbox.outage.text,
            failing=failing,
            pending_by_action=pending,
        )
        self._publisher.publish(status)
        if self._metrics.is_on:
            families = self._families(n_rules, hears_worker, pending or {})
            self._metrics.renew([*families, *self._delivery_families(pending or {}, failing)])

    def _failing(self) -> list[FailingAction]:
        """Return the actions whose deliveries do not get through, also those without deliveries.

        Raises:
            StoreError: the database cannot be read.
        """
        found = {action.action: action for action in self._outbox.failing()}
        for name, runner in self._runners.items():
            if isinstance(runner, DeferredRunner) and runner.error is not None:
                known = found.get(name)
                found[name] = FailingAction(
                    action=name,
                    waiting=0 if known is None else known.waiting,
                    attempts=0 if known is None else known.attempts,
                    lost=False if known is None else known.lost,
                    error=runner.error,
                )
        return list(found.values())

    def _delivery_families(
        self, actions: Iterable[str], failing: Sequence[FailingAction]
    ) -> list[Family]:
        names = {action.action for action in failing}
        return [
            figure(
                "ast_stream_alerts_action_failing",
                "1 while alerts do not get through by an action",
                {(name,): name in names for name in actions if name != FEED},
                ("action",),
            ),
            figure(
                "ast_stream_alerts_delivery_attempts_total",
                "Deliveries that were tried; outcome is delivered, failed or refused",
                self._outbox.attempts,
                ("action", "outcome"),
            ),
        ]

    def _families(
        self, n_rules: int, hears_worker: bool, pending: Mapping[str, int]
    ) -> list[Family]:
        return [
            figure("ast_stream_alerts_rules", "Rules in force", n_rules),
            figure("ast_stream_alerts_hears_worker", "1 while the worker is heard", hears_worker),
            figure(
                "ast_stream_alerts_disk_failing",
                "1 while the alert database cannot be written",
                self._outbox.outage.text is not None,
            ),
            figure(
                "ast_stream_alerts_outbox_pending",
                "Deliveries that wait",
                {(action,): n for action, n in pending.items()},
                ("action",),
            ),
            figure(
                "ast_stream_alerts_published_total",
                "Alert messages published",
                self._published,
                ("rule", "severity"),
            ),
            figure(
                "ast_stream_feed_messages_total",
                "Messages published",
                {(kind,): n for kind, n in self._publisher.messages.items()},
                ("kind",),
            ),
            figure(
                "ast_stream_feed_drops_total",
                "Messages that found no room",
                self._publisher.drops,
            ),
        ]


class HeartbeatThread(threading.Thread):
    """Notifies by one action each interval, without the outbox: a late heartbeat would be a lie.

    Args:
        runner: its own, so that it never waits for alerts.
        is_well: returns whether the worker is heard and its events are saved.
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
        runner = create_runner(heartbeat.action, action)
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
        """End; a beat in progress is not waited for."""
        self._stopped.set()


def _heartbeat(now_ns: int) -> Notification:
    alert = message_alert(
        "heartbeat",
        rule="heartbeat",
        severity="informational",
        group={},
        text="ast-stream is listening",
        now_ns=now_ns,
    )
    return Notification(id=f"heartbeat.{now_ns}", kind="heartbeat", at_ns=now_ns, alert=alert)
