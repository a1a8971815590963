"""Status, metrics, readiness and heartbeat of the alerts process."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ast_stream.alerts.actions.base import (
    ActionRunner,
    DeferredRunner,
    Delivered,
    Failed,
    Outcome,
    create_runner,
)
from ast_stream.alerts.delivery_schedule import FEED
from ast_stream.alerts.notification import Notification, message_alert
from ast_stream.alerts.outbox import Outbox
from ast_stream.alerts.store import StoreError
from ast_stream.messages.status import AlertsStatus, FailingAction
from ast_stream.runtime.lifecycle import Notifier
from ast_stream.runtime.metrics import Family, Metrics, figure
from ast_stream.settings.alerts import AlertSettings
from ast_stream.transport.publisher import FeedPublisher
from ast_stream.units import counted

REPORT_EVERY_S = 1.0

logger = logging.getLogger(__name__)


@dataclass
class StatusReporter:
    """Reports once a second to the service manager, on the process's feed, and to Prometheus.

    Args:
        runners: of all actions; those that cannot be used yet are failing, too.
        published: alerts published, by rule and severity.
        rules_and_worker: returns the number of rules, and whether the worker is heard.
        suppressed: returns how many alerts did not fire, by rule and reason.
        restart_needed: keys of the configuration that have changed and are not in use.
    """

    notifier: Notifier
    metrics: Metrics
    publisher: FeedPublisher
    outbox: Outbox
    runners: Mapping[str, ActionRunner]
    published: Counter[tuple[str, str]]
    rules_and_worker: Callable[[], tuple[int, bool]]
    suppressed: Callable[[], Mapping[str, Mapping[str, int]]] = dict
    restart_needed: Sequence[str] = ()
    _next_s: float = float("-inf")
    _status: str = "starting"

    def tick(self) -> None:
        """Report if it is time; called after each turn of the loop, and while that waits."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + REPORT_EVERY_S
            self._report()
        self.notifier.turn(lambda: self._status, is_working=True)

    def note_restart_needed(self, keys: Sequence[str]) -> None:
        """Report from now on that these keys of the configuration wait for a restart."""
        self.restart_needed = keys

    def _report(self) -> None:
        n_rules, hears_worker = self.rules_and_worker()
        pending: dict[str, int] | None
        try:
            pending, failing = self.outbox.pending(), self._failing()
        except StoreError:
            pending, failing = None, []
        total = None if pending is None else sum(pending.values())
        waiting = "the outbox cannot be read" if total is None else f"{total} to deliver"
        names = ", ".join(action.action for action in failing)
        failed = f", not delivered by {names}" if names else ""
        unheard = "" if hears_worker else ", waiting for the worker"
        self._status = f"{counted(n_rules, 'rule')}, {waiting}{failed}{unheard}"
        status = AlertsStatus(
            n_rules=n_rules,
            hears_worker=hears_worker,
            pending=total,
            disk=self.outbox.outage.text,
            failing=failing,
            pending_by_action=pending,
            restart_needed=list(self.restart_needed),
        )
        self.publisher.publish(status)
        if self.metrics.is_on:
            self.metrics.renew(self._families(status))

    def _failing(self) -> list[FailingAction]:
        """Return the actions whose deliveries do not get through, also those without deliveries.

        Raises:
            StoreError: the database cannot be read.
        """
        found = {action.action: action for action in self.outbox.failing()}
        for name, runner in self.runners.items():
            if isinstance(runner, DeferredRunner) and runner.error is not None:
                unknown = FailingAction(action=name, waiting=0, attempts=0, lost=False, error="")
                known = found.get(name, unknown)
                found[name] = known.model_copy(update={"error": runner.error})
        return list(found.values())

    def _families(self, status: AlertsStatus) -> list[Family]:
        pending = status.pending_by_action or {}
        failing = {action.action for action in status.failing}
        return [
            figure("ast_stream_alerts_rules", "Rules in force", status.n_rules),
            figure(
                "ast_stream_alerts_hears_worker",
                "1 while messages of the worker arrive",
                status.hears_worker,
            ),
            figure(
                "ast_stream_alerts_disk_failing",
                "1 while the alert database cannot be written",
                status.disk is not None,
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
                self.published,
                ("rule", "severity"),
            ),
            figure(
                "ast_stream_alerts_suppressed_total",
                "Alerts that did not fire; reason is cooldown, window, inhibited, limit (as many "
                "at a time as the rule may have) or instances (as many groups as one may have)",
                {
                    (rule, reason): n
                    for rule, by_reason in self.suppressed().items()
                    for reason, n in by_reason.items()
                },
                ("rule", "reason"),
            ),
            figure(
                "ast_stream_feed_messages_total",
                "Messages published",
                {(kind,): n for kind, n in self.publisher.messages.items()},
                ("kind",),
            ),
            figure(
                "ast_stream_feed_drops_total",
                "Messages that found no room",
                self.publisher.drops,
            ),
            figure(
                "ast_stream_alerts_action_failing",
                "1 while alerts do not get through by an action",
                {(name,): name in failing for name in pending if name != FEED},
                ("action",),
            ),
            figure(
                "ast_stream_alerts_delivery_attempts_total",
                "Deliveries that were tried; outcome is delivered, failed or refused",
                self.outbox.attempts,
                ("action", "outcome"),
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
        wall_ns=now_ns,
    )
    return Notification(id=f"heartbeat.{now_ns}", kind="heartbeat", at_ns=now_ns, alert=alert)
